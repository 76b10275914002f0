"""The model card: what a model file is for, what it does well and what not, for people."""

from __future__ import annotations

from typing import Any

import jinja2

from datamodules import SOURCES
from experiments.evaluation.names import figure_name
from experiments.prediction.network import Trained
from experiments.prediction.onnx import OUTPUTS, PAPER, TOLERANCE, describe

# The figures of a summary that the card shows: of images and studies, and of each map.
OF_IMAGES = ("auroc", "tuned/accuracy", "tuned/sensitivity", "tuned/specificity", "tuned/kappa")
OF_STUDIES = ("study_auroc", "tuned/study_kappa", "ece")
OF_MAPS = ("hit", "pixel_ap", "iou", "shown_normal")


def model_card(trained: Trained, name: str, sha256: str, largest: float) -> str:
    """The card of a model file, Markdown.

    Args:
        trained: What the file was made of.
        name: Of the file.
        sha256: Of its content.
        largest: Difference from PyTorch.
    """
    summary = trained.run.summary("test") or {}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.prediction", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.j2").render(
        name=name,
        sha256=sha256,
        largest=largest,
        tolerance=f"{TOLERANCE:g}",
        about=describe(trained),
        trained=trained,
        meanings=OUTPUTS,
        summary=summary,
        figures=figures(summary, trained.map_methods),
        people=SOURCES[trained.run.config.data.name].patients_are,
        # Without the path that a note may name: it is of the machine that judged.
        notes=[note.replace(summary["run"], "the run") for note in summary.get("notes", [])],
        paper=PAPER,
    )


def figures(summary: dict[str, Any], methods: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Name, value and 95 % interval of the figures that are shown, those that are defined."""
    names = {key: figure_name(key).phrase for key in (*OF_IMAGES, *OF_STUDIES)}
    for method in methods:
        names |= {f"{method}/{key}": f"`{method}`: {figure_name(key).phrase}" for key in OF_MAPS}
    lines = []
    for key, name in names.items():
        if summary.get(key) is not None:
            low, high = summary["intervals"].get(key) or (None, None)
            interval = "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            lines.append((name, f"{summary[key]:.3f}", interval))
    return lines
