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

from experiments.sweep_file import Sweep

METHODS = {"fcn": "FCN", "pcam": "PCAM", "cam": "CAM"}
COLOURS = {"fcn": "#0072b2", "pcam": "#d55e00", "cam": "#009e73"}  # told apart by colour-blind eyes
COLOURS |= {"accuracy": "#000000", "auroc": "#cc79a7"}
PANELS = {  # title: {name in metrics.csv: (label, colour)}
    "pixel AP of the maps": {
        f"val/{m}/pixel_ap": (label, COLOURS[m]) for m, label in METHODS.items()
    },
    "hit rate of the maps": {f"val/{m}/hit": (label, COLOURS[m]) for m, label in METHODS.items()},
    "classification": {
        "val/accuracy": ("accuracy", COLOURS["accuracy"]),
        "val/auroc": ("AUROC", COLOURS["auroc"]),
    },
}


def write_report(sweep: Sweep, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write ``results.csv`` and ``plot.png``, each whole or not at all."""
    unfinished = folder / "results.csv.partial"
    table_of(sweep, rows).to_csv(unfinished, index=False)
    unfinished.replace(folder / "results.csv")
    unfinished = folder / "plot.png.partial"
    draw(sweep, rows).savefig(unfinished, format="png", dpi=150)
    unfinished.replace(folder / "plot.png")


def table_of(sweep: Sweep, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row a trial, sorted by what was swept: values, state, figures, run directory."""
    table = pd.DataFrame(rows)
    figures = sorted(name for name in table if str(name).startswith(("val/", "train/")))
    first = ["trial", *sweep.parameters, "state", *["epoch"] * ("epoch" in table)]
    return table.sort_values(sweep.swept)[[*first, *figures, "why", "run"]]


def describe(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """The table as a person reads it, and the best trial by the sweep's metric."""
    table = table_of(sweep, rows)
    names = [name for panel in PANELS.values() for name in panel if name in table]
    names = [sweep.metric] * (sweep.metric not in names and sweep.metric in table) + names
    shown = table[[*sweep.swept, "state", *names]]
    shown = shown.rename(columns=lambda name: str(name).removeprefix("val/"))
    text = [f"figures on val, of each run's best epoch:\n{shown.round(3).to_string(index=False)}"]
    keys = [key for key in sweep.swept if key != "seed"]
    done = table[table["state"] == "done"]
    if "seed" in sweep.swept and keys and len(done):
        means = done.groupby(keys)[names].mean().round(3).reset_index()
        means.insert(len(keys), "seeds", done.groupby(keys).size().to_numpy())
        means = means.rename(columns=lambda name: str(name).removeprefix("val/"))
        text.append(f"means over seeds:\n{means.to_string(index=False)}")
    if sweep.metric in done and len(done):
        scores = done[sweep.metric]
        best = done.loc[scores.idxmax() if sweep.maximize else scores.idxmin()]
        words = " ".join(f"{key}={best[key]}" for key in sweep.swept)
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
        for (title, lines), ax in zip(PANELS.items(), axes, strict=True):
            there = {name: line for name, line in lines.items() if name in table}
            _panel(ax, sweep, table, key, there, joined=len(keys) == 1)
            ax.set_title(title, fontsize=11)
            ax.set_ylabel("share of 1, on val")
    return figure


def _panel(
    ax: Axes,
    sweep: Sweep,
    table: pd.DataFrame,
    key: str,
    lines: dict[str, tuple[str, str]],
    joined: bool,
) -> None:
    """One set of axes; values of a list stand side by side, so that lambda = 0 has its place."""
    values = sorted(sweep.parameters[key].values, key=_order)
    x = table[key].map(values.index) if values else table[key]
    for name, (label, colour) in lines.items():
        if joined:
            means = table[name].groupby(x).mean()
            ax.plot(means.index, means, color=colour, linewidth=1.8, label=label, zorder=2)
        ax.plot(
            x,
            table[name],
            linestyle="none",
            marker="o",
            markersize=5,
            color=colour,
            alpha=0.75,
            markeredgewidth=0,
            zorder=3,
            label=None if joined else label,
        )
    if values:
        ax.set_xticks(np.arange(len(values)), [f"{value}" for value in values])
        ax.set_xlim(-0.4, len(values) - 0.6)
    elif sweep.parameters[key].log:
        ax.set_xscale("log")
    ax.set_ylim(0, 1)
    ax.set_xlabel(_name(key))
    ax.grid(axis="y", color="0.9", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    # Below the axes: figures from 0 to 1 leave no corner free for certain.
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)


def _name(key: str) -> str:
    return {"loss.lambda_lesion": "lambda, weight of the lesion term (no unit)"}.get(key, key)


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers by size, then words."""
    return (True, str(value)) if isinstance(value, str) else (False, value)
