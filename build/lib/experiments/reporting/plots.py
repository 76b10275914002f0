"""The plots of a report: small SVGs that take the page's colours, light, dark and printed.

No text of a user is drawn here: the page itself says, escaped, what a plot is of.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.evaluation.names import PANELS

# Stand-ins that become variables of the page's style sheet.
INK, GRID = "#010101", "#020202"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004")
VARIABLES = {INK: "--ink", GRID: "--line"} | {
    colour: f"--series{place}" for place, colour in enumerate(SERIES, 1)
}
STYLES = ("-", "--", "-.", ":")  # so that lines are told apart without colours
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and magnified
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, and is wider than what pages use
    "font.size": 11.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "lines.linewidth": 1.8,
}
LOSSES = {"train/l1": "L1", "train/l2": "L2", "train/l3": "L3", "train/l4": "L4"}
ACCURACY = {
    "train/alpha": "alpha",
    "val/accuracy": "accuracy",
    "val/masked_accuracy": "masked accuracy",
    "val/auroc": "AUROC",
}
HITS = {"val/cam/hit": "CAM", "val/pcam/hit": "PCAM", "val/fcn/hit": "FCN"}


class Plot(NamedTuple):
    """A plot: what it shows, in words for those who do not see it, and its SVG."""

    title: str
    alt: str
    svg: str


def curves(
    tables: Sequence[pd.DataFrame], best: Sequence[int], methods: Sequence[str], classifies: bool
) -> list[Plot]:
    """What training logged, a line a seed.

    Args:
        tables: ``metrics.csv`` of each seed.
        best: Epoch of each seed that is judged, from 1.
        methods: The network's own maps.
        classifies: Whether it was taught normal and abnormal.
    """
    taught = {name: line for name, line in HITS.items() if name.split("/")[1] in methods}
    wanted = (
        ("Loss terms on train", LOSSES, "loss (logarithmic)"),
        ("alpha, and classification on val", ACCURACY if classifies else {}, ""),
        ("Hit rate of the maps on val", taught, "hit rate"),
    )
    found = []
    for title, names, label in wanted:
        there = [name for name in names if any(name in t and t[name].notna().any() for t in tables)]
        if not there:
            continue
        ax = _axes("epoch", label)
        for name, colour, style in zip(there, SERIES, STYLES, strict=False):
            for seed, table in enumerate(tables):
                if name in table:
                    known = table[["epoch", name]].dropna()
                    ax.plot(
                        known["epoch"] + 1,
                        known[name],
                        style,
                        color=colour,
                        label=names[name] if seed == 0 else None,
                    )
        for epoch in best:
            ax.axvline(epoch, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        if names is LOSSES:
            ax.set_yscale("log")
            # A loss may stay within a decade, which would have one tick.
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        else:
            ax.set_ylim(0, 1.02)
        _legend(ax)
        last = [f"{names[name]} {_ends(tables, name)}" for name in there]
        found.append(Plot(title, f"{title}, over epochs: {'; '.join(last)}.", _svg(ax, title)))
    return found


def reliability_plot(tables: Sequence[pd.DataFrame], title: str) -> Plot:
    """How often images are abnormal that are called so with a probability, dots of all seeds.

    Args:
        tables: Of :func:`figures.reliability`, one a seed.
        title: What the page calls it.
    """
    ax = _axes("probability that the network gives", "share that is abnormal")
    ax.plot([0, 1], [0, 1], ":", color=INK, linewidth=1.0, label="perfect")
    for place, table in enumerate(tables):
        known = table[table["images"] > 0]
        ax.scatter(
            known["probability"],
            known["abnormal"],
            s=10 + 120 * known["images"] / known["images"].max(),
            color=SERIES[0],
            alpha=0.6,
            clip_on=False,
            label=None if place else "15 bins; area: images",
        )
    ax.set(xlim=(0, 1), ylim=(0, 1))
    _legend(ax)
    known = tables[0][tables[0]["images"] > 0]
    said = ", ".join(
        f"{row['abnormal']:.2f} at {row['probability']:.2f} ({row['images']:.0f} images)"
        for row in known.to_dict("records")
    )
    return Plot(title, f"Share that is abnormal at each probability: {said}.", _svg(ax, ""))


def sweep_plots(table: pd.DataFrame) -> list[Plot]:
    """Localisation and classification over lambda, of ``results.csv`` of a sweep.

    Args:
        table: Finished trials, with ``loss.lambda_lesion``.
    """
    values = sorted(table["loss.lambda_lesion"].unique())
    place = table["loss.lambda_lesion"].map(values.index)
    found = []
    for label, lines in PANELS.items():
        there = {name: line for name, line in lines.items() if name in table}
        if not there:
            continue
        ax = _axes("lambda, weight of the lesion term", "")
        said = []
        for (name, line), colour, style in zip(there.items(), SERIES, STYLES, strict=False):
            means = table[name].groupby(place).mean()
            ax.plot(means.index, means, style, color=colour)
            label_of = line.heading
            ax.plot(place, table[name], line.marker, color=colour, label=label_of, clip_on=False)
            said.append(f"{label_of} " + ", ".join(f"{mean:.2f}" for mean in means))
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        ax.set_xlim(-0.3, len(values) - 0.7)
        ax.set_ylim(0, 1.02)
        _legend(ax)
        listed = ", ".join(f"{value:g}" for value in values)
        alt = f"{label} at lambda {listed}: {'; '.join(said)}."
        found.append(Plot(label[0].upper() + label[1:], alt, _svg(ax, label)))
    return found


def _axes(x: str, y: str) -> Axes:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        ax = figure.add_subplot()
        ax.set(xlabel=x, ylabel=y)
        ax.grid(axis="y", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return ax


def _legend(ax: Axes) -> None:
    columns = 3 if len(ax.get_legend_handles_labels()[1]) == 3 else 2
    with mpl.rc_context(STYLE):
        # Above the axes: figures from 0 to 1 leave no corner free for certain.
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            frameon=False,
            borderaxespad=0.2,
            columnspacing=1.2,
            scatterpoints=1,
        )


def _ends(tables: Sequence[pd.DataFrame], name: str) -> str:
    known = [table[name].dropna() for table in tables if name in table]
    first, last = (float(np.mean([column.iloc[place] for column in known])) for place in (0, -1))
    return f"from {first:.3g} to {last:.3g}"


def _svg(ax: Axes, name: str) -> str:
    """The SVG to be put into a page: its ids are its own, its colours the page's."""
    written = io.StringIO()
    figure: Any = ax.figure
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    # No address, no style sheet that would reach the whole page, and the page's own font.
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"\n\s*", "\n", text)
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text
    )
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def with_ids(plots: Sequence[Plot], prefix: str) -> list[Plot]:
    """The plots with ids that no other plot of the page has."""
    found = []
    for number, plot in enumerate(plots):
        own = f"{prefix}{number}-"
        svg = re.sub(r'\bid="', f'id="{own}', plot.svg)
        svg = re.sub(r'(xlink:href="|href="|url\()#', rf"\g<1>#{own}", svg)
        found.append(plot._replace(svg=svg.replace("xlink:href", "href")))
    return found
