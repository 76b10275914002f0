"""The plot of a sweep."""

import itertools
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.config import show
from experiments.evaluation.names import PANELS

# Of lines, where two keys are swept.
STYLES = ("-", "--", ":", "-.")


def draw(parameters: dict[str, dict[str, Any]], swept: list[str], table: pd.DataFrame) -> Figure:
    """Localisation and classification over the first swept key: a dot a run, a line of means.

    What else is swept, but for the seed, has lines of its own kind.
    """
    table = table[table["state"] == "done"]
    key = ([key for key in swept if key != "seed"] or [*parameters])[0]
    values = parameters[key].get("values")
    # Listed values stand side by side, so that lambda = 0 has its place.
    table = table.assign(x=table[key].map(values.index) if values else table[key])
    rest = [other for other in swept if other not in (key, "seed")]
    words = table[rest].map(show).agg(", ".join, axis=1)
    parts = table.groupby(words, sort=False) if rest else [("", table)]
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    label = {"loss.lambda_lesion": "lambda, weight of the lesion term"}.get(key, key)
    for axes, (title, lines) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        drawn = [(name, line) for name, line in lines.items() if name in table]
        styled = zip(itertools.cycle(STYLES), parts, strict=False)  # as many as there are
        for (name, line), (style, (what, part)) in itertools.product(drawn, styled):
            legend = f"{line.heading} {what}".strip()
            means = part.groupby("x")[name].mean()
            axes.plot(means, style, color=line.colour, linewidth=1.6, label=legend)
            (dots,) = axes.plot(part["x"], part[name], line.marker, color=line.colour)
            dots.set(alpha=0.8, markeredgewidth=0, clip_on=False)
        if values:
            axes.set_xticks(range(len(values)), map(str, values))
        elif parameters[key].get("distribution") == "log_uniform_values":
            axes.set_xscale("log")
        axes.set(xlabel=label, ylabel=title, ylim=(0, 1))
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:  # a legend above the axes: figures leave no corner free for certain
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure
