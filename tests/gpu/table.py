"""One table of what tests/gpu/run.sh measured: ``python tests/gpu/table.py FOLDER|RESULTS.json``.

A folder is gathered into its ``results.json`` first: ``parts.tsv``, the tests' report, the bench's
JSON files, the runs and their evaluations.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

STATES = {"0": "done", "no-time": "no time left", "124": "timed out", "137": "timed out"}
HEADER = ("part", "row", "value", "beside", "ratio", "of peak", "of bandwidth", "memory", "state")
FIGURES = ("accuracy", "auroc", "pcam/hit", "pcam/pixel_ap", "fcn/hit", "fcn/pixel_ap")
Row = dict[str, Any]


def gather(folder: Path) -> dict[str, Any]:
    """What lies in the folder of a run of the script, as plain values."""
    parts = []
    for line in (folder / "parts.tsv").read_text().splitlines():
        name, status, seconds, limit = line.split("\t")
        samples = folder / f"{name}.memory"
        words = samples.read_text().split() if samples.is_file() else []
        used = max((int(word) for word in words if word.isdigit()), default=None)
        part = {"part": name, "state": STATES.get(status, "failed"), "seconds": int(seconds)}
        part |= {"limit": int(limit), "peak_memory_mb": used}
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
        (metrics,) = folder.glob(f"runs/*/{part}/*/metrics.csv")
        speed = pd.read_csv(metrics)["images_per_second"]
        row = {"row": f"{len(speed)} epochs", "value": speed.median(), "unit": "images/s"}
        return [{**row, "low": speed.min(), "high": speed.max()}]
    if part == "evaluate":
        paths = sorted(folder.glob("runs/*/*/*/evaluation/test/summary.json"))
        summaries = [json.loads(path.read_text()) for path in paths]
        return [
            {"row": f"{one['stage']} {name}", "value": one[name]}
            for one in summaries
            for name in FIGURES
            if name in one
        ]
    if part.startswith("bench"):
        return json.loads((folder / f"{part}.json").read_text())["rows"]
    return []


def test_row(case: ElementTree.Element) -> Row:
    """A test of pytest's JUnit file, with the figures that it recorded."""
    wrong = [case.find(name) for name in ("failure", "error", "skipped")]
    states = [f"{one.tag}: {one.get('message')}" for one in wrong if one is not None]
    noted = [f"{one.get('name')} {shown(one.get('value'))}" for one in case.iter("property")]
    row = {"row": case.get("name"), "value": float(case.get("time", 0)), "unit": "s"}
    state = (states or ["passed"])[0].split("\n")[0][:120]
    return {**row, "beside": "; ".join(noted), "state": state}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: a line a part, below it its rows."""
    seconds = sum(part["seconds"] for part in results["parts"])
    lines = [HEADER, ("---",) * len(HEADER)]
    for part in results["parts"]:
        took = f"{part['seconds']} of {part['limit']} s"
        memory = shown(part["peak_memory_mb"], "MB")
        lines.append((part["part"], "", took, "", "", "", "", memory, part["state"]))
        for row in part["rows"]:
            value, ratio = shown(row.get("value"), row.get("unit") or ""), shown(row.get("ratio"))
            if row.get("low") is not None:
                ratio = f"{ratio} ({shown(row['low'])} to {shown(row['high'])})".strip()
            shares = [row.get(f"share_of_{name}") for name in ("peak", "bandwidth")]
            cells = ["" if one is None else f"{one:.0%}" for one in shares]
            cells += [shown(row.get("peak_memory_mb"), "MB"), row.get("state") or ""]
            lines.append(("", row["row"], value, row.get("beside") or "", ratio, *cells))
    body = [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines]
    title = f"{results['device']}, torch {results['torch']}, {seconds / 60:.1f} minutes"
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
