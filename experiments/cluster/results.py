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

from datamodules.files import whole_file
from experiments.cluster.points import Sweep, distribution, listed
from experiments.evaluation.names import PANELS

Rows = list[dict[str, Any]]


def write_table(sweep: Sweep, rows: Rows, folder: Path) -> None:
    """Write ``results.csv``, whole or not at all."""
    with whole_file(folder / "results.csv") as partial:
        table_of(sweep, rows).to_csv(partial, index=False)


def write_plot(sweep: Sweep, rows: Rows, folder: Path) -> None:
    """Write ``plot.png``, whole or not at all."""
    with whole_file(folder / "plot.png") as partial:
        draw(sweep, rows).savefig(partial, format="png", dpi=150)


def table_of(sweep: Sweep, rows: Rows) -> pd.DataFrame:
    """A row a trial, sorted by what was swept: values, state, figures, run directory."""
    # Not by pandas, which does not compare words with numbers.
    in_order = sorted(rows, key=lambda row: [_order(row[key]) for key in sweep.swept])
    table = pd.DataFrame(in_order)
    figures = sorted(str(name) for name in table if str(name).startswith(("val/", "train/")))
    first = ["trial", *sweep.parameters, "state", *["epoch"] * ("epoch" in table)]
    return table[[*first, *figures, "why", "run"]]


def describe(sweep: Sweep, rows: Rows) -> str:
    """The table as a person reads it, and the best trial by the sweep's metric."""

    def text(table: pd.DataFrame) -> str:
        plain = table.rename(columns=lambda name: str(name).removeprefix("val/"))
        return plain.round(3).to_string(index=False)

    table = table_of(sweep, rows)
    names = [name for panel in PANELS.values() for name in panel if name in table]
    names += [sweep.metric] * (sweep.metric not in names and sweep.metric in table)
    blocks = [
        "figures on val, of each run's best epoch:\n" + text(table[[*sweep.swept, "state", *names]])
    ]
    done = table[table["state"] == "done"]
    keys = [key for key in sweep.swept if key != "seed"]
    if keys and len(done):
        groups = done.groupby(keys, as_index=False)
        means = groups[names].mean()
        if "seed" in sweep.swept:
            means.insert(len(keys), "seeds", groups.size()["size"])
            blocks.append(f"means over seeds:\n{text(means)}")
        scores = means[sweep.metric]
        best = means.loc[scores.idxmax() if sweep.maximize else scores.idxmin()]
        words = "  ".join(f"{key}={best[key]}" for key in keys)
        blocks.append(f"best {sweep.metric}: {best[sweep.metric]:.3f} at {words}")
    return "\n\n".join(blocks)


def draw(sweep: Sweep, rows: Rows) -> Figure:
    """Localisation and classification over each swept key: a dot a run, a line through means."""
    table = table_of(sweep, rows)
    table = table[table["state"] == "done"]
    keys = [key for key in sweep.swept if key != "seed"] or sweep.swept or [*sweep.parameters][:1]
    figure = Figure(figsize=(11, 3.9 * len(keys)), layout="constrained")
    grid = figure.subplots(len(keys), len(PANELS), squeeze=False)
    for key, axes in zip(keys, grid, strict=True):
        for label, ax in zip(PANELS, axes, strict=True):
            _panel(ax, sweep.parameters[key], table, key, label, joined=len(keys) == 1)
    return figure


def _panel(
    ax: Axes, given: dict[str, Any], table: pd.DataFrame, key: str, label: str, joined: bool
) -> None:
    """One set of axes; values of a list stand side by side, so that lambda = 0 has its place."""
    lines = {name: line for name, line in PANELS[label].items() if name in table}
    values = sorted(listed(given), key=_order)
    x = table[key].map(values.index) if values else table[key]
    for name, line in lines.items():
        if joined:
            means = table[name].groupby(x).mean()
            ax.plot(means.index, means, color=line.colour, linewidth=1.6)
        dots = ax.plot(x, table[name], line.marker, color=line.colour, label=line.heading)
        dots[0].set(alpha=0.8, markeredgewidth=0, clip_on=False)
    if values:
        ax.set_xticks(np.arange(len(values)), [f"{value}" for value in values])
        ax.set_xlim(-0.4, len(values) - 0.6)
    elif distribution(given).startswith("log"):
        ax.set_xscale("log")
    chance = 0.5 if "val/auroc" in lines else 0.0
    ax.set_ylim(np.nanmin([chance, *table[[*lines]].min()]), 1)
    ax.set_xlabel({"loss.lambda_lesion": "lambda, weight of the lesion term"}.get(key, key))
    ax.set_ylabel(label)
    ax.grid(axis="y", color="0.9", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    if lines:  # above the axes: figures from 0 to 1 leave no corner free for certain
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers by size, then words."""
    return (True, str(value)) if isinstance(value, str) else (False, value)
