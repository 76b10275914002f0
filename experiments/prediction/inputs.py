"""Which images a person means by some files and folders, and what their outputs are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datamodules.decode import DICOM, DICOM_AT, IMAGE_SUFFIXES, JPEG, PNG, is_dicom

SUFFIXES = (*IMAGE_SUFFIXES, ".dcm", ".dicom")
# Predictions hold this file from the beginning, with this key.
ABOUT, ASKED = "about.json", b'"undecided_maps"'


class Input(NamedTuple):
    """A file to predict on, under a name of its own by which outputs are called.

    The name is its POSIX path below the given folder, with its suffix; with several inputs, after
    the folder's name. It is UTF-8, see :func:`readable`.
    """

    name: str
    file: Path
    error: str = ""  # why there is nothing to predict on


def readable(path: str | Path) -> str:
    r"""A path, or a text with paths, in UTF-8: other bytes are written as ``\xe9``."""
    return os.fsencode(path).decode(errors="backslashreplace")


def find_inputs(places: Sequence[Path], out: Path) -> tuple[list[Input], Counter[str]]:
    """Find the images in files and folders; count what was left out of folders, by kind.

    A named file is taken as it is; of a folder, everything below that is PNG, JPEG or DICOM by
    suffix or by content, but no hidden files, nothing below ``out`` and no earlier predictions.
    """
    inputs: dict[str, Input] = {}
    left_out: Counter[str] = Counter()
    labels: dict[Path, str] = {}
    for place in places:
        folder = place.resolve() if place.is_dir() else place.resolve().parent
        own = _unique(readable(folder.name) or "input", labels.values())
        label = labels.setdefault(folder, own)
        error = "" if place.is_file() else "there is no such file or folder"
        items = [Input(place.name, place, error)]
        if place.is_dir():
            error = "no PNG, JPEG or DICOM file in this folder"
            items = list(_walk(place, out, left_out)) or [Input("", place, error)]
        for item in items:
            below = PurePosixPath(label if len(places) > 1 else "", readable(item.name))
            name = _unique(str(below) if below.name else label, inputs)
            inputs[name] = item._replace(name=name)
    return list(inputs.values()), +left_out  # the counts above 0


def _unique(name: str, taken: Collection[str]) -> str:
    """The name, with a number before its suffix where it is taken."""
    path, number = PurePosixPath(name), 1
    while name in taken:
        number += 1
        name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    return name


def _walk(top: Path, out: Path, left_out: Counter[str]) -> Iterator[Input]:
    """Images below a folder; links are followed, each folder is visited once."""
    visited, failed = {out.resolve()}, list[OSError]()
    for folder, folders, files in os.walk(top, onerror=failed.append, followlinks=True):
        here = Path(folder)
        again, about = here.resolve() in visited, here / ABOUT
        visited.add(here.resolve())
        earlier = not again and about.is_file() and ASKED in about.read_bytes()
        left_out["earlier predictions"] += earlier
        if again or earlier:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (here / name for name in sorted(files)):
            if file.name.startswith("."):
                left_out["hidden"] += 1
            elif _is_image(file):
                yield Input(file.relative_to(top).as_posix(), file)
            else:
                left_out[file.suffix.lower() or file.name] += 1
    for error in failed:
        place = Path(error.filename)
        yield Input(place.relative_to(top).as_posix(), place, f"cannot be opened: {error.strerror}")


def _is_image(file: Path) -> bool:
    """By suffix or content; no pipes and devices, nor the table of contents of a DICOM medium."""
    if (file.exists() and not file.is_file()) or file.name.upper() == "DICOMDIR":
        return False
    if file.suffix.lower() in SUFFIXES:
        return True  # also a link to nowhere: its row says so
    try:
        with file.open("rb") as handle:
            start = handle.read(DICOM_AT + len(DICOM))
    except OSError:
        return False
    return start.startswith((PNG, JPEG)) or is_dicom(start)
