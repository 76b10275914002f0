"""The plots of a report: small SVGs in the colours of the page, whether light, dark or printed.

They show no text of a user's: the page itself names, escaped, what a plot is of.
"""

import base64
import io
import re
from pathlib import Path
from typing import NamedTuple, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.evaluation.compare import Group
from experiments.evaluation.figures import reliability
from experiments.evaluation.names import figure_name, method_name, split_key
from experiments.runs import read_metrics

STYLE = Path(__file__).with_name("plots.mplstyle")
INK = "#16202a"
# Colours of the style and the variables of page.css that stand for them.
VARIABLES = {INK: "ink", "#d5dbe1": "line", "#0072b2": "series1", "#c24e00": "series2"}
VARIABLES |= {"#00805c": "series3", "#9b2f8f": "series4"}
LINES = ("-", "--", "-.", ":")  # told apart without colours, too
LOSSES = {f"train/l{number}": f"L{number}" for number in range(1, 4)}
CLASSIFICATION = ("train/alpha", "val/accuracy", "val/masked_accuracy", "val/auroc")


class Plot(NamedTuple):
    """A plot: its title, what it shows for those who do not see it, and its SVG."""

    title: str
    alt: str
    svg: str


@mpl.rc_context(fname=STYLE)
def curves(group: Group) -> list[Plot]:
    """What training logged, a line a seed; dotted the epochs that are judged."""
    tables = [read_metrics(run.folder) for run in group.runs]
    plots = []
    for title, label, names in (
        ("Loss terms on train", "loss (logarithmic)", LOSSES),
        ("alpha, and classification on val", "", CLASSIFICATION if group.classifies else ()),
        ("Hit rate of the maps on val", "hit rate", [f"val/{one}/hit" for one in group.methods]),
    ):
        ax, ends = Figure().add_subplot(xlabel="epoch", ylabel=label), list[str]()
        for name in names:
            lines = [table[["epoch", name]].dropna() for table in tables if name in table]
            if not (lines := [line for line in lines if len(line)]):
                continue
            method, figure, _ = split_key(name.split("/", 1)[1])
            heading = method_name(method).heading if method else figure_name(figure).heading
            words, style = LOSSES.get(name, heading), f"C{len(ends)}{LINES[len(ends)]}"
            for seed, line in enumerate(lines):
                ax.plot(line["epoch"] + 1, line[name], style, label="" if seed else words)
            first, last = (np.mean([line[name].iloc[n] for line in lines]) for n in (0, -1))
            ends.append(f"{words} from {first:.3g} to {last:.3g}")
        ax.locator_params("x", integer=True)
        for run in group.runs:
            ax.axvline(run.about["epoch"], color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        if names is LOSSES:
            ax.set_yscale("log")
            # A loss may stay within a decade, which would have one tick.
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        else:
            ax.set_ylim(0, 1.02)
        if ends:
            plots.append(Plot(title, f"{title}, over epochs: {'; '.join(ends)}.", _svg(ax)))
    return plots


@mpl.rc_context(fname=STYLE)
def reliability_plot(group: Group) -> Plot:
    """How often images are abnormal, by their probability; dots of all seeds."""
    ax = Figure().add_subplot(xlim=(0, 1), ylim=(0, 1))
    ax.set(xlabel="probability that the network gives", ylabel="share that is abnormal")
    ax.plot([0, 1], [0, 1], ":", color=INK, linewidth=1.0, label="perfect")
    every = (reliability(run.table["probability"], run.table["label"]) for run in group.runs)
    seeds = [bins[bins["images"] > 0] for bins in every]
    for seed, bins in enumerate(seeds):
        size = 10 + 120 * bins["images"] / bins["images"].max()
        label = "" if seed else "15 bins; area: images"
        dots = ax.scatter(bins["probability"], bins["abnormal"], size, "C0", label=label)
        dots.set(alpha=0.6, clip_on=False)
    rows = zip(*(seeds[0][name] for name in ("abnormal", "probability", "images")), strict=True)
    listed = ", ".join(f"{a:.2f} at {p:.2f} ({count} images)" for a, p, count in rows)
    first = " (first seed)" * (len(seeds) > 1)
    return Plot(group.name, f"Share abnormal at each probability{first}: {listed}.", _svg(ax))


def sweeps(folder: Path) -> dict[str, str]:
    """The plot of each sweep beside the stage of a run, by the sweep's name, for an ``img``."""
    drawn = sorted((folder / ".." / ".." / "sweeps").glob("*/plot.png"))
    texts = {path.parent.name: base64.b64encode(path.read_bytes()).decode() for path in drawn}
    return {name: f"data:image/png;base64,{text}" for name, text in texts.items()}


def _svg(ax: Axes) -> str:
    """The SVG with a legend, to be put into a page: none of its ids is used twice there."""
    # Above the axes: figures from 0 to 1 leave no corner free for certain.
    count = len(ax.get_legend_handles_labels()[1])
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3 if count == 3 else 2)
    file, unwanted = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    cast(Figure, ax.figure).savefig(file, format="svg", metadata=unwanted)
    # Without the XML head, and without the counted ids, to which nothing refers.
    svg = re.sub(r' id="[\w.]+_\d+"', "", file.getvalue().partition("<svg")[2])
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return "<svg" + svg
