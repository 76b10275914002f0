"""Which images a person means by some files and folders, and what their outputs are called."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from datamodules.decode import DICOM, DICOM_AT, IMAGE_SUFFIXES, JPEG, PNG, is_dicom

SUFFIXES = (*IMAGE_SUFFIXES, ".dcm", ".dicom")
# What experiments.predict writes: its overlays are no radiographs. The first is there before any.
ABOUT, ASKED = "about.json", {"checkpoint_hash", "methods"}
TABLES, MAPS = {"predictions.csv", "predictions.csv.partial"}, "maps"
# The table of contents of a DICOM medium, which is DICOM itself and no image.
CONTENTS = "DICOMDIR"
STUDY = re.compile(r"study\d+(_positive|_negative)?", re.IGNORECASE)


@dataclass(frozen=True)
class Input:
    """A file to look at.

    Attributes:
        name: Its path below the input that was given, POSIX, with its suffix; of several inputs
            after the folder's name. Unique: outputs are called by it. As :func:`readable` has it.
        file: The file; that which could not be found or opened where ``error`` says so.
        error: Why there is nothing to look at, or "".
    """

    name: str
    file: Path
    error: str = ""

    @property
    def study(self) -> Path | None:
        """Folder of the study in a tree such as MURA's (``.../study1_positive``), or None."""
        for folder in Path(readable(self.file.absolute())).parents:
            if STUDY.fullmatch(folder.name):
                return folder
        return None

    @property
    def study_names(self) -> list[str]:
        """What the study may be called: as in MURA (part/patient/study), or in full."""
        if self.study is None:
            return []
        return ["/".join(self.study.parts[1:][-3:]), self.study.as_posix()]


@dataclass
class Found:
    """What the given words mean.

    Attributes:
        inputs: Files, in the order of the words and of names.
        left_out: How many files in folders are no images, by suffix; how many are hidden, whatever
            they are; how many folders are earlier predictions.
    """

    inputs: list[Input] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def readable(path: str | Path) -> str:
    r"""A path, or a text with paths, in UTF-8: bytes that are none are written as ``\xe9``."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def find_inputs(words: Sequence[Path], out: Path) -> Found:
    """Find the images in files and folders.

    A file that is named is taken as it is. Of a folder, all below it that is PNG, JPEG or DICOM by
    its suffix or its content (DICOM files often have no suffix). Hidden files, ``out`` and earlier
    outputs are left out. A word without any image has an ``error``.

    Args:
        words: What was given.
        out: Where outputs go.
    """
    found, owners, taken = Found(), dict[str, Path](), set[str]()
    for word in words:
        if word.is_dir():
            label = _label(word, word.resolve(), owners, len(words) > 1, again=False)
            files = list(_walk(word, out, found.left_out))
            if not files:
                files = [Input("", word, "no PNG, JPEG or DICOM file in this folder")]
        else:
            parent = word.resolve().parent
            label = _label(parent, parent, owners, len(words) > 1, again=True)
            if readable(f"{label}{word.name}") in taken:
                label = _label(parent, parent, owners, True, again=False)
            error = "" if word.is_file() else "there is no such file or folder"
            files = [Input(word.name, word, error)]
        for item in files:
            name = f"{label}{item.name}" if item.name else label.rstrip("/") or word.resolve().name
            name = _free(readable(name), taken)
            taken.add(name)
            found.inputs.append(Input(name, item.file, item.error))
    return found


def _label(folder: Path, owner: Path, owners: dict[str, Path], several: bool, again: bool) -> str:
    """What comes before the names of a folder's files: "" of a single input, else ``name/``.

    Args:
        folder: Whose name is taken; a number follows where another folder has it.
        owner: The folder, resolved.
        owners: Which folder has which label so far; added to.
        several: Whether labels are needed.
        again: Whether files of one folder, given one by one, may share its label.
    """
    if not several:
        return ""
    base = readable(folder.resolve().name) or "input"
    label, number = base, 1
    while label in owners and not (again and owners[label] == owner):
        number += 1
        label = f"{base}-{number}"
    owners[label] = owner
    return f"{label}/"


def _free(name: str, taken: set[str]) -> str:
    """The name, or that with a number where another file is called as it is made readable."""
    path, number = PurePosixPath(name), 1
    while name in taken:
        number += 1
        name = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
    return name


def _walk(top: Path, out: Path, left_out: Counter[str]) -> Iterator[Input]:
    """Images below a folder, links followed, each folder once."""
    outputs, seen = out.resolve(), set[tuple[int, int]]()
    failed: list[OSError] = []
    for folder, folders, files in os.walk(top, onerror=failed.append, followlinks=True):
        here = Path(folder)
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen or here.resolve() == outputs:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if _is_output(here, folders, files):
            left_out["earlier predictions"] += 1
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = here / name
            if name.startswith("."):
                left_out["hidden"] += 1
            elif not _is_image(file):
                left_out[file.suffix.lower() or file.name] += 1
            else:
                yield Input(file.relative_to(top).as_posix(), file)
    for error in failed:
        place = Path(error.filename)
        yield Input(place.relative_to(top).as_posix(), place, f"cannot be opened: {error.strerror}")


def _is_output(here: Path, folders: list[str], files: list[str]) -> bool:
    """Whether predictions went, or were just going, into a folder."""
    if MAPS in folders and TABLES.intersection(files):
        return True
    if ABOUT not in files:
        return False
    try:
        asked = json.loads((here / ABOUT).read_bytes())
    except (OSError, ValueError):  # a person's own
        return False
    return isinstance(asked, dict) and asked.keys() >= ASKED


def _is_image(file: Path) -> bool:
    """By suffix or by content; links to nowhere by suffix, and no pipes or devices."""
    if (file.exists() and not file.is_file()) or file.name.upper() == CONTENTS:
        return False
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        with file.open("rb") as handle:
            start = handle.read(DICOM_AT + len(DICOM))
    except OSError:
        return False
    return start.startswith((PNG, JPEG)) or is_dicom(start)
