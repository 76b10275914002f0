"""Write a trained network as an ONNX file: ``python -m experiments.export RUN --out FILE.onnx``.

RUN is a run directory, whose best checkpoint is meant, or a checkpoint. One graph gives the
probability and all maps of a batch of images (docs/onnx.md); what the file must be fed and how it
decides is in its metadata, and beside it lies a model card, FILE.md. ONNX Runtime is asked the same
as PyTorch first: where they differ by more than 1e-4 nothing is written. ``--force`` replaces an
existing file.

Exit status: 0 done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments.command import answered
from experiments.command import run as run_command


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export", description="Write a network as an ONNX file."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory or checkpoint")
    parser.add_argument("--out", type=Path, metavar="FILE.onnx", required=True)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    check_target(arguments.out, arguments.force)
    export(arguments.run, arguments.out)
    return 0


def check_target(file: Path, force: bool) -> None:
    """Raise a RunError unless ``file`` and its card may be written: before minutes of work."""
    from experiments.runs import RunError

    if file.suffix != ".onnx":
        raise RunError(f"--out {file}: name a file that ends in .onnx; its card is then FILE.md")
    for path in (file, card_of(file)):
        if path.is_dir():
            raise RunError(f"--out {file}: {path} is a folder; choose another name")
        if path.exists() and not force:
            raise RunError(f"{path} exists; --force replaces it, or choose another --out")
    # Made when there is something to write: what fails leaves no empty folder.
    there = next(folder for folder in (file.parent, *file.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise RunError(f"{there} is a file and no folder; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{there} cannot be written; choose another --out")


def card_of(file: Path) -> Path:
    """Where the card of a model file lies."""
    return file.with_suffix(".md")


def export(run: Path, file: Path) -> None:
    """Build, check, write and describe.

    Raises:
        RunError: There is no such run, the extra is missing, or file and network disagree.
    """
    from experiments.prediction.card import model_card
    from experiments.prediction.network import load_trained
    from experiments.prediction.onnx import TOLERANCE, build, check_images, differences, library
    from experiments.prediction.properties import properties
    from experiments.runs import RunError

    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)
    trained = load_trained(run)
    network, size = trained.module.cpu(), trained.recipe.image_size
    for note in trained.notes:
        print(f"note: {note}", file=sys.stderr)
    content = build(network, size, properties(trained))
    images = check_images(trained.recipe)
    apart = differences(content, network, images)
    output, largest = max(apart.items(), key=lambda pair: pair[1])
    if not largest <= TOLERANCE:
        raise RunError(
            f"{file} is not written: its {output} differs from PyTorch's by {largest:.1e}, "
            f"{TOLERANCE:g} is allowed; install the versions of constraints.txt"
        )
    card = model_card(trained, file.name, hashlib.sha256(content).hexdigest(), largest)
    write_whole({file: content, card_of(file): card.encode()})
    outputs = f"{', '.join(trained.map_methods)} (B, 1, {size}, {size}), float32 in [0, 1]"
    if trained.fitted is None:
        outputs += "; trained on lesion masks alone, it knows no class"
    else:
        outputs = f"probability (B,); {outputs}"
    print(f"decision-basis  {trained.stage} on {trained.data}, {trained.checkpoint}")
    print(f"  input    image, uint8 (B, 1, {size}, {size}); normalisation is in the graph")
    print(f"  outputs  {outputs}")
    if trained.fitted is not None:
        above = f"{trained.fitted.threshold:.4f}"
        print(f"  decides  abnormal above {above}, as decided by {trained.decided_by}")
    print(f"  checked  on {len(images)} images, largest difference from PyTorch {largest:.1e}")
    print(f"  written  {file} ({len(content) / 1e6:.1f} MB), {card_of(file)}")


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files beside their places and rename them once all are on the disk.

    Raises:
        RunError: A folder cannot be written.
    """
    try:
        for path in contents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            written = [
                (stack.enter_context(_written_beside(path, content)), path)
                for path, content in contents.items()
            ]
            for unfinished, path in written:
                unfinished.replace(path)
    except OSError as error:
        from experiments.runs import RunError

        names = " and ".join(map(str, contents))
        raise RunError(
            f"{names} cannot be written ({error.strerror}); choose another --out"
        ) from error


@contextlib.contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
