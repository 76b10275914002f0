"""From a run to a model file and its card: checked against PyTorch, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import jinja2

from datamodules.files import whole_file
from datamodules.sources import SOURCES
from experiments.evaluation.names import figure_name
from experiments.prediction.network import Trained, load_trained
from experiments.prediction.onnx import TOLERANCE, build, check_images, describe, differences
from experiments.runs import RunError

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
EXTRA = "pip install -c constraints.txt -e '.[onnx]'"
# The figures of a summary that a card shows: of images, and of each map.
TUNED = ("tuned/accuracy", "tuned/sensitivity", "tuned/specificity", "tuned/kappa")
OF_IMAGES = ("auroc", *TUNED, "study_auroc", "tuned/study_kappa", "ece")
OF_MAPS = ("hit", "pixel_ap", "iou", "shown_normal")


def export(run: Path, file: Path, force: bool) -> None:
    """Write the network of a run as ``file``, with its card beside it, and print a summary."""
    card = file.with_suffix(".md")
    check_target(file, card, force)
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise RunError(f"an ONNX file needs {', '.join(missing)}. Fix: {EXTRA}")
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
    names = {key: figure_name(key.removeprefix("tuned/")).phrase for key in OF_IMAGES}
    for method in trained.map_thresholds:
        names |= {f"{method}/{key}": f"`{method}`: {figure_name(key).phrase}" for key in OF_MAPS}
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
        figures={key: name for key, name in names.items() if summary.get(key) is not None},
        people=SOURCES[trained.run.config.data.name].patients_are,
        # Without the path that a note may name: it is of the machine that judged.
        notes=[note.replace(summary["run"], "the run") for note in summary.get("notes", [])],
    )
