"""What a sweep found: a table, and localisation and accuracy drawn over what was swept.

All figures are of val at training size, of each run's best epoch: test belongs to
``experiments.evaluate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.cluster.sweep_file import Sweep

# Label, colour (told apart by colour-blind eyes) and marker.
FCN, PCAM, CAM = ("FCN", "#0072b2", "o"), ("PCAM", "#d55e00", "s"), ("CAM", "#009e73", "^")
PANELS = {  # label of the axis: {name in metrics.csv: line}
    "pixel AP on val (0 to 1)": {
        "val/fcn/pixel_ap": FCN,
        "val/pcam/pixel_ap": PCAM,
        "val/cam/pixel_ap": CAM,
    },
    "hit rate on val (0 to 1)": {"val/fcn/hit": FCN, "val/pcam/hit": PCAM, "val/cam/hit": CAM},
    "accuracy, AUROC on val (1: best)": {
        "val/accuracy": ("accuracy", "#000000", "o"),
        "val/auroc": ("AUROC", "#aa4499", "s"),
    },
}


def write_table(sweep: Sweep, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write ``results.csv``, whole or not at all."""
    unfinished = folder / "results.csv.partial"
    table_of(sweep, rows).to_csv(unfinished, index=False)
    unfinished.replace(folder / "results.csv")


def write_plot(sweep: Sweep, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write ``plot.png``, whole or not at all."""
    unfinished = folder / "plot.png.partial"
    draw(sweep, rows).savefig(unfinished, format="png", dpi=150)
    unfinished.replace(folder / "plot.png")


def table_of(sweep: Sweep, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row a trial, sorted by what was swept: values, state, figures, run directory."""
    # Not by pandas, which does not compare words with numbers.
    in_order = sorted(rows, key=lambda row: [_order(row[key]) for key in sweep.swept])
    table = pd.DataFrame(in_order)
    figures = sorted(name for name in table if str(name).startswith(("val/", "train/")))
    first = ["trial", *sweep.parameters, "state", *["epoch"] * ("epoch" in table)]
    return table[[*first, *figures, "why", "run"]]


def describe(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """The table as a person reads it, and the best trial by the sweep's metric."""
    table = table_of(sweep, rows)
    names = [name for panel in PANELS.values() for name in panel if name in table]
    names += [sweep.metric] * (sweep.metric not in names and sweep.metric in table)
    shown = table[[*sweep.swept, "state", *names]]
    shown = shown.rename(columns=lambda name: str(name).removeprefix("val/"))
    text = [f"figures on val, of each run's best epoch:\n{shown.round(3).to_string(index=False)}"]
    done = table[table["state"] == "done"]
    keys = [key for key in sweep.swept if key != "seed"]
    if keys and len(done):
        groups = done.groupby(keys, as_index=False)
        means = groups[names].mean()
        if "seed" in sweep.swept:
            means.insert(len(keys), "seeds", groups.size()["size"])
            shown = means.rename(columns=lambda name: str(name).removeprefix("val/")).round(3)
            text.append(f"means over seeds:\n{shown.to_string(index=False)}")
        scores = means[sweep.metric]
        best = means.loc[scores.idxmax() if sweep.maximize else scores.idxmin()]
        words = "  ".join(f"{key}={best[key]}" for key in keys)
        text.append(f"best {sweep.metric}: {best[sweep.metric]:.3f} at {words}")
    return "\n\n".join(text)


def draw(sweep: Sweep, rows: list[dict[str, Any]]) -> Figure:
    """Localisation and classification over each swept key: a dot a run, a line through means."""
    table = table_of(sweep, rows)
    table = table[table["state"] == "done"]
    keys = [key for key in sweep.swept if key != "seed"] or sweep.swept or [*sweep.parameters][:1]
    figure = Figure(figsize=(11, 3.9 * len(keys)), layout="constrained")
    grid = figure.subplots(len(keys), len(PANELS), squeeze=False)
    for key, axes in zip(keys, grid, strict=True):
        for (label, lines), ax in zip(PANELS.items(), axes, strict=True):
            there = {name: line for name, line in lines.items() if name in table}
            _panel(ax, sweep, table, key, there, joined=len(keys) == 1)
            ax.set_ylabel(label)
    return figure


def _panel(
    ax: Axes,
    sweep: Sweep,
    table: pd.DataFrame,
    key: str,
    lines: dict[str, tuple[str, str, str]],
    joined: bool,
) -> None:
    """One set of axes; values of a list stand side by side, so that lambda = 0 has its place."""
    values = sorted(sweep.parameters[key].values, key=_order)
    x = table[key].map(values.index) if values else table[key]
    for name, (label, colour, marker) in lines.items():
        if joined:
            means = table[name].groupby(x).mean()
            ax.plot(means.index, means, color=colour, linewidth=1.6)
        (dots,) = ax.plot(x, table[name], marker, color=colour, label=label, clip_on=False)
        dots.set(alpha=0.8, markeredgewidth=0)
    if values:
        ax.set_xticks(np.arange(len(values)), [f"{value}" for value in values])
        ax.set_xlim(-0.4, len(values) - 0.6)
    elif sweep.parameters[key].log:
        ax.set_xscale("log")
    chance = 0.5 if "val/auroc" in lines else 0.0
    ax.set_ylim(np.nanmin([chance, *table[[*lines]].min()]), 1)
    ax.set_xlabel(_name(key))
    ax.grid(axis="y", color="0.9", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    if lines:  # above the axes: figures from 0 to 1 leave no corner free for certain
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def _name(key: str) -> str:
    return {"loss.lambda_lesion": "lambda, weight of the lesion term"}.get(key, key)


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers by size, then words."""
    return (True, str(value)) if isinstance(value, str) else (False, value)
