"""From a run to a model file and its card: checked against PyTorch, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path

from datamodules.files import whole_file
from experiments.prediction.card import model_card
from experiments.prediction.network import load_trained
from experiments.prediction.onnx import (
    TOLERANCE,
    build,
    check_images,
    differences,
    library,
    properties,
)
from experiments.runs import RunError


def export(run: Path, file: Path, force: bool) -> None:
    """Write the network of a run as ``file`` and its card beside it, and print a summary."""
    card = file.with_suffix(".md")
    check_target(file, card, force)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)
    trained = load_trained(run)
    network, size = trained.run.module.cpu(), trained.recipe.image_size
    for note in trained.notes:
        print(f"note: {note}", file=sys.stderr)
    content = build(network, size, properties(trained))
    images = check_images(trained.recipe)
    output, largest = max(differences(content, network, images).items(), key=lambda pair: pair[1])
    if not largest <= TOLERANCE:
        raise RunError(
            f"{file} is not written: its {output} differs from PyTorch's by {largest:.1e}, "
            f"{TOLERANCE:g} is allowed. Fix: install the versions of constraints.txt"
        )
    text = model_card(trained, file.name, hashlib.sha256(content).hexdigest(), largest)
    with contextlib.ExitStack() as stack:  # both get their names once both are on the disk
        stack.enter_context(whole_file(file)).write_bytes(content)
        stack.enter_context(whole_file(card)).write_text(text, encoding="utf-8")
    outputs = f"{', '.join(trained.map_methods)} (B, 1, {size}, {size}), float32 in [0, 1]"
    decides = ""
    if trained.fitted is None:
        outputs += "; trained on lesion masks alone, it knows no class"
    else:
        outputs = f"probability (B,); {outputs}"
        above = f"{trained.fitted.threshold:.4f}"
        decides = f"  decides  abnormal above {above}, as decided by {trained.decided_by}\n"
    print(
        f"decision-basis  {trained.title}, {trained.run.checkpoint}\n"
        f"  input    image, uint8 (B, 1, {size}, {size}); normalisation is in the graph\n"
        f"  outputs  {outputs}\n{decides}"
        f"  checked  on {len(images)} images, largest difference from PyTorch {largest:.1e}\n"
        f"  written  {file} ({len(content) / 1e6:.1f} MB), {card}"
    )


def check_target(file: Path, card: Path, force: bool) -> None:
    """Raise a RunError unless both may be written: before minutes of work."""
    folder = next(each for each in file.absolute().parents if each.exists())
    faults = [
        (file.suffix != ".onnx", f"--out {file}: expected a name that ends in .onnx"),
        *((path.is_dir(), f"--out {file}: {path} is a folder") for path in (file, card)),
        *(
            (path.exists() and not force, f"{path} exists. Fix: --force replaces it")
            for path in (file, card)
        ),
        (not folder.is_dir(), f"--out {file}: {folder} is a file, not a folder"),
        (not os.access(folder, os.W_OK | os.X_OK), f"--out {file}: {folder} cannot be written"),
    ]
    if message := next((message for fault, message in faults if fault), ""):
        raise RunError(message)
