"""``python tests/gpu/table.py FOLDER``: what tests/gpu/run.sh measured there, as one table.

``FOLDER/results.json`` gathers ``parts.tsv``, the tests' report, the bench's files and the runs.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

HOUSE = Path(__file__).parents[2]
STATES = {"0": "done", "no-time": "no time left", "124": "timed out", "137": "timed out"}
HEADER = ("part", "row", "value", "beside", "ratio", "of peak", "memory", "state")
FIGURES = ("accuracy", "auroc", "pcam/hit", "pcam/pixel_ap", "fcn/hit", "fcn/pixel_ap")
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
        try:
            rows = rows_of(name, folder)
        except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
            rows = [{"row": "results", "state": f"cannot be read: {type(error).__name__}"}]
        parts.append({**part, "rows": rows})
    card = folder / "card"  # its name and driver, where there is one
    device = card.read_text().strip() if card.is_file() else "cpu"
    return {"device": device, "torch": version("torch"), "parts": parts}


def rows_of(part: str, folder: Path) -> list[Row]:
    """The rows that a part left behind."""
    if part == "tests":
        return [test_row(case) for case in ElementTree.parse(folder / "tests.xml").iter("testcase")]
    if part.startswith("stage"):
        (metrics,) = folder.glob(f"runs/phantom/{part}/*/metrics.csv")
        speed = pd.read_csv(metrics)["images_per_second"]
        row = {"row": f"{len(speed)} epochs", "value": speed.median(), "unit": "images/s"}
        return [{**row, "low": speed.min(), "high": speed.max()}]
    if part == "evaluate":
        return [row for number in (1, 2, 3) for row in figures(f"stage{number}", folder)]
    if part == "recipe":
        return [{"row": line} for line in (folder / "recipe.log").read_text().splitlines()]
    if part.startswith("bench"):
        return json.loads((folder / f"{part}.json").read_text())["rows"]
    return []


def test_row(case: ElementTree.Element) -> Row:
    """A test of pytest's JUnit file, with the figures that it recorded."""
    wrong = [one for name in ("failure", "error", "skipped") for one in case.findall(name)]
    state = f"{wrong[0].tag}: {wrong[0].get('message')}" if wrong else "passed"
    noted = [f"{one.get('name')} {shown(one.get('value'))}" for one in case.iter("property")]
    row = {"row": case.get("name"), "value": float(case.get("time", 0)), "unit": "s"}
    return {**row, "beside": "; ".join(noted), "state": state.split("\n")[0][:120]}


def figures(stage: str, folder: Path) -> list[Row]:
    """A stage's figures on test, after those of three seeds that its configuration file expects."""
    (summary,) = folder.glob(f"runs/phantom/{stage}/*/evaluation/test/summary.json")
    values = json.loads(summary.read_text())
    text = (HOUSE / "experiments" / f"{stage}.yaml").read_text()
    expected = text.partition("# expected:")[2].partition("\n#\n")[0].replace("#", " ").split()
    rows = [{"row": f"{stage} {name}", "value": values[name]} for name in FIGURES if name in values]
    return [{"row": stage, "beside": " ".join(expected)}, *rows]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: a line a part, below it its rows."""
    minutes = sum(part["seconds"] for part in results["parts"]) / 60
    lines = [HEADER, ("---",) * len(HEADER)]
    for part in results["parts"]:
        took = f"{part['seconds']} of {part['limit']} s"
        whole = {"value": took, "peak_memory_mb": part["peak_memory_mb"], "state": part["state"]}
        lines.append((part["part"], *cells(whole)))
        lines += [("", *cells(row)) for row in part["rows"]]
    body = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
    title = f"{results['device']}, torch {results['torch']}, {minutes:.1f} minutes"
    return "\n".join([title, "", *body])


def cells(row: Row) -> list[str]:
    """A row's cells below ``HEADER``, the first one apart."""
    ratio, share = shown(row.get("ratio")), row.get("share_of_peak")
    if row.get("low") is not None:
        ratio = f"{ratio} ({shown(row['low'])} to {shown(row['high'])})".strip()
    value, memory = shown(row.get("value"), row.get("unit")), shown(row.get("peak_memory_mb"), "MB")
    peak = "" if share is None else f"{share:.0%}"
    texts = [row.get("row"), value, row.get("beside"), ratio, peak, memory, row.get("state")]
    return [text or "" for text in texts]


def shown(value: Any, unit: str | None = None) -> str:
    """A number in three digits with its unit, text as it is, nothing for None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "" if value is None else str(value)
    digits = ",.0f" if abs(number) >= 1000 else ".3g"
    return f"{number:{digits}} {unit or ''}".strip()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    results = gather(place)
    (place / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results))
