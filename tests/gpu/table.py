"""One table of what tests/gpu/run.sh measured: ``python tests/gpu/table.py FOLDER|RESULTS.json``.

A folder is gathered into its ``results.json`` first: ``parts.tsv``, the tests' report, the bench's
JSON files, the runs and their evaluations.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

HOUSE = Path(__file__).parents[2]
STATES = {"0": "done", "no-time": "no time left", "124": "timed out", "137": "timed out"}
HEADER = ("part", "row", "value", "beside", "ratio", "of peak", "memory", "state")
FIGURES = {"accuracy": "accuracy", "AUROC": "auroc", "hit rate": "hit", "pixel AP": "pixel_ap"}
Row = dict[str, Any]


def gather(folder: Path) -> dict[str, Any]:
    """What lies in the folder of a run of the script, as plain values."""
    parts = []
    for line in (folder / "parts.tsv").read_text().splitlines():
        name, status, seconds, limit = line.split("\t")
        samples = folder / f"{name}.memory"
        words = samples.read_text().split() if samples.is_file() else []
        used = [int(word) for word in words if word.isdigit()]
        part = {"part": name, "state": STATES.get(status, "failed"), "seconds": int(seconds)}
        part |= {"limit": int(limit), "peak_memory_mb": max(used, default=None)}
        parts.append({**part, "rows": rows_of(name, folder)})
    card = folder / "card"  # its name and driver, where there is one
    device, _, driver = (card.read_text() if card.is_file() else "cpu").strip().partition(", ")
    return {"device": device, "driver": driver, "torch": version("torch"), "parts": parts}


def rows_of(part: str, folder: Path) -> list[Row]:
    """The rows that a part left behind; where they cannot be read, one that says so."""
    try:
        if part == "tests":
            return tests(folder / "tests.xml")
        if part.startswith("stage"):
            (metrics,) = folder.glob(f"runs/*/{part}/*/metrics.csv")
            speed = pd.read_csv(metrics)["images_per_second"]
            row = {"row": f"{len(speed)} epochs", "value": speed.median(), "unit": "images/s"}
            return [{**row, "low": speed.min(), "high": speed.max()}]
        if part == "evaluate":
            return [row for number in (1, 2, 3) for row in figures(f"stage{number}", folder)]
        if part.startswith("bench"):
            return json.loads((folder / f"{part}.json").read_text())["rows"]
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        return [{"row": "results", "state": f"cannot be read: {type(error).__name__}"}]
    return []


def tests(report: Path) -> list[Row]:
    """A row a test, with the figures that it recorded, of pytest's JUnit file."""
    rows = []
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [case.find(name) for name in ("failure", "error", "skipped")]
        states = [f"{one.tag}: {one.get('message')}" for one in wrong if one is not None]
        noted = [f"{one.get('name')} {shown(one.get('value'))}" for one in case.iter("property")]
        row = {"row": case.get("name"), "value": float(case.get("time", 0)), "unit": "s"}
        state = (states or ["passed"])[0].split("\n")[0][:120]
        rows.append({**row, "beside": "; ".join(noted), "state": state})
    return rows


def expected(stage: str) -> dict[str, tuple[str, str]]:
    """Least and largest of three seeds' figures, as the stage's configuration file gives them."""
    (path,) = (HOUSE / "experiments").rglob(f"{stage}.yaml")
    text = path.read_text().partition("# expected:")[2].partition("\n#\n")[0]
    number = r"([\d.]+\d)"
    ranges, method = {}, ""
    for of, name, low, high in re.findall(
        rf"(?:(CAM|PCAM|FCN) )?({'|'.join(FIGURES)}) {number} to {number}",
        " ".join(text.replace("#", " ").split()),
    ):
        method = of.lower() or method  # pixel AP follows the hit rate of the same map
        short = FIGURES[name]
        ranges[f"{method}/{short}" if name in ("hit rate", "pixel AP") else short] = low, high
    return ranges


def figures(stage: str, folder: Path) -> list[Row]:
    """A stage's figures on test, beside what is expected of the whole phantom."""
    (summary,) = folder.glob(f"runs/*/{stage}/*/evaluation/test/summary.json")
    values, rows = json.loads(summary.read_text()), []
    tiny = len(pd.read_csv(summary.with_name("images.csv"))) < 100
    for name, (low, high) in expected(stage).items():
        value, row = values[name], {"row": f"{stage} {name}"}
        if not tiny:
            value = round(value, len(low.split(".")[1]))  # a range is given in so many decimals
            within = float(low) <= value <= float(high)
            row |= {"beside": f"{low} to {high}", "state": "within" if within else "outside"}
        rows.append({**row, "value": value})
    return rows


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: a line a part, below it its rows."""
    driver = f", driver {results['driver']}" if results["driver"] else ""
    seconds = sum(part["seconds"] for part in results["parts"])
    lines = [HEADER, ("---",) * len(HEADER)]
    for part in results["parts"]:
        took = f"{part['seconds']} of {part['limit']} s"
        memory = shown(part["peak_memory_mb"], "MB")
        lines.append((part["part"], "", took, "", "", "", memory, part["state"]))
        for row in part["rows"]:
            value, ratio = shown(row.get("value"), row.get("unit") or ""), shown(row.get("ratio"))
            if row.get("low") is not None:
                ratio = f"{ratio} ({shown(row['low'])} to {shown(row['high'])})".strip()
            share = row.get("share_of_peak")
            cells = ["" if share is None else f"{share:.0%}"]
            cells += [shown(row.get("peak_memory_mb"), "MB"), row.get("state") or ""]
            lines.append(("", row["row"], value, row.get("beside") or "", ratio, *cells))
    body = [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines]
    title = f"{results['device']}{driver}, torch {results['torch']}, {seconds / 60:.1f} minutes"
    return "\n".join([title, "", *body])


def shown(value: Any, unit: str = "") -> str:
    """A number in three digits with its unit, text as it is, nothing for None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "" if value is None else str(value)
    digits = ",.0f" if abs(number) >= 1000 else ".3g"
    return f"{number:{digits}} {unit}".strip()


if __name__ == "__main__":
    given = Path(sys.argv[1])
    if given.is_dir():
        results = gather(given)
        (given / "results.json").write_text(json.dumps(results, indent=1))
    else:
        results = json.loads(given.read_text())
    print(table(results))
