"""A report's page: what was judged, put into the template."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from datamodules import SOURCES
from experiments.evaluation.compare import population
from experiments.evaluation.comparison import compare_runs, group
from experiments.evaluation.figures import reliability
from experiments.evaluation.run import Evaluation
from experiments.metrics_csv import read_metrics
from experiments.report import MARK
from experiments.reporting.cases import Column, Networks, draw_cases, pick
from experiments.reporting.claim import Joined, beside_trivial, best_map, claim, tiles
from experiments.reporting.plots import Plot, curves, reliability_plot, sweep_plots, with_ids
from experiments.reporting.runs import commands, runs_of, versions
from experiments.reporting.tables import (
    compared,
    method_name,
    table_of_classifiers,
    table_of_lesions,
    table_of_maps,
    table_of_parts,
)

LAMBDA = "loss.lambda_lesion"
# Beginnings of notes without which the claim would mislead.
ALERTS = ("half finished", "labels or lesion masks are not")


def write_page(page: Path, runs: list[Evaluation], words: Sequence[str], images: bool) -> int:
    """Write the page, whole or not at all; returns how many radiographs it holds.

    Args:
        page: Its path.
        runs: What was judged, on the same images.
        words: Of the command, to be shown.
        images: Whether radiographs are shown.

    Raises:
        RunError: The runs were judged on different images, or on other data than there is today.
        DataError: The data cannot be found.
    """
    content = gather(runs, words, images)
    unfinished = page.with_name(f".{page.name}.partial")
    try:
        unfinished.write_text(render(content), encoding="utf-8")
        unfinished.replace(page)
    finally:
        unfinished.unlink(missing_ok=True)
    return len(content["cases"])


def render(content: dict[str, Any]) -> str:
    """The page of what :func:`gather` found; whatever is inserted is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(**content, mark=MARK)


def gather(runs: list[Evaluation], words: Sequence[str], images: bool) -> dict[str, Any]:
    """All that the template shows, as plain values."""
    joined = [Joined(one, runs[0]) for one in group(runs)]
    split = str(runs[0].about["split"])
    chosen, method = best_map(joined)
    several = len(joined) > 1 or any(len(run.maps) > 1 for run in runs)
    differences = compare_runs(runs).table if several else None
    columns = columns_of(joined)
    reference = next(
        (one for one in columns if one.run is chosen.runs[0] and one.method == method),
        Column(chosen.runs[0], method, ""),
    )
    rule, picks = pick(chosen.runs[0].table, method) if images else ("", [])
    cases = draw_cases(picks, columns, reference, Networks())
    return {
        "title": f"{runs[0].about['data']}: what the maps are worth",
        "about": population(runs[0].table, split).removeprefix("On "),
        "patients_are": SOURCES[runs[0].config.data.name].patients_are,
        "data": runs[0].about["data"],
        "split": split,
        "claim": claim(joined, split),
        "tiles": tiles(joined),
        "trivial": "" if differences is None else beside_trivial(joined, differences),
        **notes_of(joined),
        "hero": hero(cases, reference),
        "rule": rule,
        "pictured": f"{chosen.name}, seed {chosen.runs[0].config.seed}",
        "seeds": max(len(one.runs) for one in joined),
        "cases": cases,
        "images": images,
        "maps": table_of_maps(joined),
        "classifiers": table_of_classifiers(joined),
        "lesions": table_of_lesions(joined, [one for one in columns if one.method != "cam"]),
        "parts": table_of_parts(joined),
        "compared": compared(differences),
        "curves": curves_of(joined),
        "reliability": reliability_of(joined),
        "sweeps": sweeps_of(runs[0].folder),
        "runs": runs_of(joined),
        "versions": versions(),
        "commands": commands(joined, split, words),
        "written": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    }


def notes_of(joined: Sequence[Joined]) -> dict[str, list[str]]:
    """What a reader must know: ``alerts`` at the top of the page, ``notes`` beside the figures."""
    alerts: list[str] = []
    notes: list[str] = []
    for one in joined:
        for run in one.runs:
            name = f"{one.name}, seed {run.config.seed}"
            if "leaks" in run.about:
                alerts.append(f"{name}: {run.about['leaks']}, so that patients leak into the test.")
            for note in run.notes:
                (alerts if note.startswith(ALERTS) else notes).append(f"{name}: {note}.")
    return {"alerts": alerts, "notes": notes}


def columns_of(joined: Sequence[Joined]) -> list[Column]:
    """The maps of the paper's second figure: CAM once, then PCAM and the FCN of each stage."""
    found: list[Column] = []
    for one in joined:
        for method in one.methods:
            if method != "cam" or all(column.method != "cam" for column in found):
                name = f"{one.name[0].upper()}{one.name[1:]}, {method_name(method)}"
                found.append(Column(one.runs[0], method, name))
    return found


def hero(cases: list[dict[str, Any]], reference: Column) -> dict[str, Any] | None:
    """The middle case, with its lesion, the earliest PCAM, and the map that the claim is about."""
    case = next((one for one in cases if one["kind"] == "Median"), None)
    if case is None:
        return None
    cells = case["cells"]
    marked = next((cell for cell in cells if cell["name"] == "Lesion mask"), cells[0])
    early = next((cell["name"] for cell in cells if cell["name"].endswith("PCAM")), "")
    wanted = {early, reference.name}
    return {**case, "cells": [marked, *(cell for cell in cells if cell["name"] in wanted)]}


def curves_of(joined: Sequence[Joined]) -> list[dict[str, Any]]:
    """What training logged, of each group."""
    found = []
    for place, one in enumerate(joined):
        tables = [read_metrics(run.folder) for run in one.runs]
        plots = curves(
            tables, [int(run.about["epoch"]) for run in one.runs], one.methods, one.classifies
        )
        found.append({"name": one.name, "plots": with_ids(plots, f"run{place}-")})
    return found


def reliability_of(joined: Sequence[Joined]) -> list[Plot]:
    """How far the probabilities of each group that classifies can be believed."""
    plots = [
        reliability_plot(
            [reliability(run.table["probability"], run.table["label"]) for run in one.runs],
            one.name[0].upper() + one.name[1:],
        )
        for one in joined
        if one.classifies
    ]
    return with_ids(plots, "reliability-")


def sweeps_of(folder: Path) -> list[dict[str, Any]]:
    """The sweeps over lambda that lie beside the stages of a run."""
    found: list[dict[str, Any]] = []
    for path in sorted((folder / ".." / ".." / "sweeps").glob("*/results.csv")):
        table = pd.read_csv(path)
        if LAMBDA not in table or "state" not in table:
            continue
        done = table[table["state"] == "done"]
        if done[LAMBDA].nunique() > 1:
            plots = with_ids(sweep_plots(done), f"sweep{len(found)}-")
            found.append({"name": path.parent.name, "count": len(done), "plots": plots})
    return found
