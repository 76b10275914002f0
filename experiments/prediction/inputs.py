"""Which images a person means by some files and folders, and what their outputs are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from datamodules.decode import DICOM, DICOM_AT, IMAGE_SUFFIXES, JPEG, PNG, is_dicom
from experiments.prediction.folder import ABOUT, Row, readable

SUFFIXES = (*IMAGE_SUFFIXES, ".dcm", ".dicom")
OURS = b'"undecided_maps"'  # a key of the about.json that predict writes


def find_inputs(places: Sequence[Path], out: Path) -> tuple[list[Row], Counter[str]]:
    """Find the images in files and folders; count what was left out of folders, by kind.

    A named file is taken as it is; of a folder, everything below that is PNG, JPEG or DICOM by
    suffix or by content, but no hidden files, nothing below ``out`` and no earlier predictions. An
    input is called by its POSIX path below the folder; with several, after the folder's name.
    """
    inputs: dict[str, Row] = {}
    left_out: Counter[str] = Counter()
    for place in places:
        top, error = place.parent, "" if place.is_file() else "there is no such file or folder"
        files = [place]
        if place.is_dir():
            found = list(_walk(place, out, left_out))
            top, error = place, "" if found else "no PNG, JPEG or DICOM file in this folder"
            files = found or files
        label = top.resolve().name if len(places) > 1 else ""
        for file in files:
            path = PurePosixPath(readable(PurePosixPath(label, file.relative_to(top))))
            name, number = str(path), 1
            while name in inputs:  # folders of equal names
                number += 1
                name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
            inputs[name] = Row(name, error=error, file=str(file.absolute()))
    return list(inputs.values()), +left_out  # the counts above 0


def _walk(top: Path, out: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Images below a folder; links are followed, each folder is visited once."""

    def refuse(error: OSError) -> None:
        raise error  # a folder that cannot be read is no folder without images

    visited = {out.resolve()}
    for folder, folders, files in os.walk(top, onerror=refuse, followlinks=True):
        here = Path(folder)
        again, about = here.resolve() in visited, here / ABOUT
        visited.add(here.resolve())
        earlier = not again and about.is_file() and OURS in about.read_bytes()
        left_out["earlier predictions"] += earlier
        if again or earlier:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (here / name for name in sorted(files)):
            if file.name.startswith("."):
                left_out["hidden"] += 1
            elif _is_image(file):
                yield file
            else:
                left_out[file.suffix.lower() or file.name] += 1


def _is_image(file: Path) -> bool:
    """By suffix or content; no pipes and devices, nor the table of contents of a DICOM medium."""
    if (file.exists() and not file.is_file()) or file.name.upper() == "DICOMDIR":
        return False
    if file.suffix.lower() in SUFFIXES:
        return True  # also a link to nowhere: its row says so
    with file.open("rb") as handle:
        start = handle.read(DICOM_AT + len(DICOM))
    return start.startswith((PNG, JPEG)) or is_dicom(start)
