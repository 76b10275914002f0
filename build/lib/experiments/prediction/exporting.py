"""From a run to a model file and its card: checked against PyTorch, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2

from datamodules import SOURCES
from datamodules.files import whole_file
from experiments.evaluation.names import figure_name
from experiments.prediction.network import Trained, load_trained
from experiments.prediction.onnx import EXTRA, TOLERANCE, build, check_images, describe, differences
from experiments.runs import RunError

# The figures of a summary that a card shows: of images and studies, and of each map.
OF_IMAGES = ("auroc", "tuned/accuracy", "tuned/sensitivity", "tuned/specificity", "tuned/kappa")
OF_STUDIES = ("study_auroc", "tuned/study_kappa", "ece")
OF_MAPS = ("hit", "pixel_ap", "iou", "shown_normal")


def export(run: Path, file: Path, force: bool) -> None:
    """Write the network of a run as ``file``, with its card beside it, and print a summary."""
    card = file.with_suffix(".md")
    check_target(file, card, force)
    trained = load_trained(run)
    for note in trained.notes:
        print(f"note: {note}", file=sys.stderr)
    content, images = build(trained), check_images(trained.recipe)
    apart = differences(content, trained.run.module, images)
    output, largest = max(apart.items(), key=lambda pair: pair[1])
    if not largest <= TOLERANCE:
        raise RunError(
            f"{file} is not written: its {output} differs from PyTorch's by {largest:.1e}, "
            f"{TOLERANCE:g} is allowed. Fix: {EXTRA}"
        )
    text = model_card(trained, file.name, hashlib.sha256(content).hexdigest(), largest)
    with contextlib.ExitStack() as stack:  # both get their names once both are on the disk
        stack.enter_context(whole_file(file)).write_bytes(content)
        stack.enter_context(whole_file(card)).write_text(text, encoding="utf-8")
    size, fitted = trained.recipe.image_size, trained.fitted
    outputs = f"{', '.join(trained.map_thresholds)} (B, 1, {size}, {size}), float32 in [0, 1]"
    print(f"decision-basis  {trained.title}, {trained.run.checkpoint}")
    print(f"  input    image, uint8 (B, 1, {size}, {size}); normalisation is in the graph")
    if fitted is None:
        print(f"  outputs  {outputs}; trained on lesion masks alone, it knows no class")
    else:
        print(f"  outputs  probability (B,); {outputs}")
        decided = f"abnormal above {fitted.threshold:.4f}, as decided by {trained.decided_by}"
        print(f"  decides  {decided}")
    print(f"  checked  on {len(images)} images, largest difference from PyTorch {largest:.1e}")
    print(f"  written  {file} ({len(content) / 1e6:.1f} MB), {card}")


def check_target(file: Path, card: Path, force: bool) -> None:
    """Raise a RunError unless both may be written: before minutes of work."""
    folder = next(each for each in file.absolute().parents if each.exists())
    faults = {
        "expected a name that ends in .onnx": file.suffix != ".onnx",
        f"{file} is a folder": file.is_dir(),
        f"{card} is a folder": card.is_dir(),
        f"{file} exists. Fix: --force replaces it": file.exists() and not force,
        f"{card} exists. Fix: --force replaces it": card.exists() and not force,
        f"{folder} is a file, not a folder": not folder.is_dir(),
        f"{folder} cannot be written": not os.access(folder, os.W_OK | os.X_OK),
    }
    if fault := next((fault for fault, there in faults.items() if there), ""):
        raise RunError(f"--out {file}: {fault}")


def model_card(trained: Trained, name: str, sha256: str, largest: float) -> str:
    """The card of the model file ``name`` for people, Markdown: its use, figures and limits.

    ``largest`` is its difference from PyTorch.
    """
    summary = trained.run.summary("test") or {}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
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
        summary=summary,
        figures=figures(summary, trained.map_thresholds),
        people=SOURCES[trained.run.config.data.name].patients_are,
        # Without the path that a note may name: it is of the machine that judged.
        notes=[note.replace(summary["run"], "the run") for note in summary.get("notes", [])],
    )


def figures(summary: dict[str, Any], methods: Iterable[str]) -> list[tuple[str, str, str]]:
    """Name, value and 95 % interval of the figures that are shown and defined."""
    names = {key: figure_name(key).phrase for key in (*OF_IMAGES, *OF_STUDIES)}
    for method in methods:
        names |= {f"{method}/{key}": f"`{method}`: {figure_name(key).phrase}" for key in OF_MAPS}
    lines = []
    for key in (key for key in names if summary.get(key) is not None):
        low, high = summary["intervals"].get(key) or (None, None)
        interval = "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        lines.append((names[key], f"{summary[key]:.3f}", interval))
    return lines
