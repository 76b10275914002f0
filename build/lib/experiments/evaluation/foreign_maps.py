"""Anybody's maps: one file an image in a folder, found, checked and read; no network, no scores.

A map belongs to the image whose path in the index table its own path repeats: for ``hand/a.jpg``
``hand/a.png``, ``hand/a.jpg.png`` or ``hand/a.jpg.<method>.png``, each also as ``.npy``. Never by
its bare name: MURA has thousands of ``image1.png``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import torch

from datamodules.files import usable_cores
from datamodules.index import DataError
from experiments.evaluation.map_files import read_map
from lightning_modules.attention import has_peak

# The method of files whose names tell none.
PLAIN = "map"
_WITH_METHOD = re.compile(r"(?P<image>.+)\.(?P<method>[\w+-]+)\.(png|npy)", re.ASCII)
# Columns of the table of images begin so, those of a method with its name.
TAKEN = ("lesion",)
# Faults that are told in full; of the others the number.
SHOWN = 3

Files = dict[str, dict[str, Path]]
"""Of each method, the file of each image (its path in the index table)."""


def find_maps(folder: Path, images: Sequence[str]) -> Files:
    """Tell which file in ``folder`` is the map of which image; nothing is opened.

    Hidden files (a leading dot) are no maps. Links are followed.

    Args:
        folder: Folder of maps, laid out as the data set below ``data.root``.
        images: Paths of all images of the index table, whatever their split.

    Returns:
        Method -> image -> file; the method is :data:`PLAIN` where the names tell none.

    Raises:
        DataError: There is no such folder or nothing in it; a file belongs to no image or to two,
            or an image has two; some names tell a method and others do not, or one that is taken.
    """
    check_folder(folder)
    owners: dict[str, list[str]] = {}
    for image in images:
        for name in sorted({*_names(image)}):
            owners.setdefault(name, []).append(image)
    known = set(images)
    found: Files = {}
    surplus: list[str] = []
    for name in _walk(folder):
        method, candidates = PLAIN, owners.get(name, [])
        if not candidates and (told := _WITH_METHOD.fullmatch(name)) and told["image"] in known:
            method, candidates = told["method"], [told["image"]]
            if method in TAKEN:
                raise DataError(
                    f"{folder / name}: no method can be called {method}, columns of the results "
                    "are; choose another name"
                )
        if not candidates:
            surplus.append(name)
            continue
        if len(candidates) > 1:
            raise DataError(
                f"{folder / name} may be the map of {candidates[0]} or of {candidates[1]}; give it "
                f"the image's whole name, such as {candidates[0]}{Path(name).suffix}"
            )
        files = found.setdefault(method, {})
        if candidates[0] in files:
            raise DataError(
                f"{files[candidates[0]]} and {folder / name} are both maps of {candidates[0]}; "
                "keep one of them"
            )
        files[candidates[0]] = folder / name
    if not found and not surplus:
        raise DataError(f"--maps {folder} holds no file; put a map an image there, {_like(images)}")
    if surplus:
        raise DataError(
            f"{folder} holds files of no image of the data set: {_first(surplus)}; take them out, "
            f"or name them as the images below data.root, {_like(images)}"
        )
    _check_named_alike(found)
    return found


def check_folder(folder: Path) -> None:
    """Raise a DataError unless there is such a folder."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"--maps {folder} {what}; give the folder that holds the maps")


def choose_maps(
    files: Mapping[str, Path], table: pd.DataFrame, folder: Path, needed: np.ndarray
) -> dict[int, Path]:
    """The maps of some images, all of which are there.

    Images without a lesion mask are judged for whether anything is shown on them: either all normal
    images have a map, or none; the same of the abnormal ones without a mask.

    Args:
        files: Image -> file, of one method.
        table: Index table.
        folder: Where the files lie, for the message.
        needed: Rows of the table that are to be judged, all of one split.

    Returns:
        Row of the table -> file.

    Raises:
        DataError: A map is missing.
    """
    rows = table.iloc[needed]
    masked, abnormal = rows["lesion_mask"] != "", rows["label"] == 1
    split = rows["split"].iloc[0] if len(rows) else ""
    for group, name, may_lack in (
        (masked, "images with a lesion mask", False),
        (~masked & ~abnormal, "normal images", True),
        (~masked & abnormal, "abnormal images without a lesion mask", True),
    ):
        lacking = [image for image in rows["path"][group] if image not in files]
        if lacking and not (may_lack and len(lacking) == group.sum()):
            remedy = f"make them, or leave all {group.sum()} out" if may_lack else "make them"
            raise DataError(
                f"{folder}: no map of {len(lacking)} of the {group.sum()} {name} in {split}: "
                f"{_first(lacking)}; {remedy}"
            )
    places = zip(needed, rows["path"], strict=True)
    return {int(row): files[image] for row, image in places if image in files}


def check_maps(sizes: Mapping[Path, tuple[int, int]]) -> set[Path]:
    """Read every map once, so that none is found faulty after minutes of judging.

    Args:
        sizes: File -> height and width of its upright image, pixels.

    Returns:
        Files whose map is of one value: allowed, it points nowhere.

    Raises:
        DataError: Maps do not keep the contract (see :func:`map_files.read_map`); names the first
            ones with their faults and the number of all.
    """

    def check(path: Path) -> tuple[bool, str]:
        try:
            values = read_map(path, sizes[path])
        except DataError as error:
            return False, str(error)
        return not has_peak(torch.from_numpy(values)[None, None]).item(), ""

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = dict(zip(sizes, pool.map(check, sizes), strict=True))
    faults = [fault for _, fault in found.values() if fault]
    if len(faults) == 1:
        raise DataError(faults[0])
    if faults:
        listed = "\n  ".join(faults[:SHOWN])
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError(f"{len(faults)} of {len(sizes)} maps cannot be used:\n  {listed}{more}")
    return {path for path, (constant, _) in found.items() if constant}


def _names(image: str) -> Iterator[str]:
    """What a map of ``image`` may be called, without a method."""
    bare = str(PurePosixPath(image).with_suffix(""))
    for suffix in (".png", ".npy"):
        yield bare + suffix
        yield image + suffix


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files below ``folder``, relative to it and in order; hidden ones left out."""
    seen = set()

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        stat = os.stat(place)
        # A link that leads back up would be walked for ever.
        again = (stat.st_dev, stat.st_ino) in seen
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = [] if again else sorted(name for name in folders if name[0] != ".")
        for name in [] if again else sorted(files):
            path = Path(place, name)
            if name[0] == ".":
                continue
            if not path.is_file():  # a pipe would be waited for
                raise DataError(f"{path}: is no file (a broken link, or a device); take it out")
            yield path.relative_to(folder).as_posix()


def _check_named_alike(found: Files) -> None:
    named = [method for method in found if method != PLAIN]
    if PLAIN not in found or not named:
        return
    method = named[0]
    both = [image for image in found[method] if image in found[PLAIN]]
    if both:
        raise DataError(
            f"{found[PLAIN][both[0]]} and {found[method][both[0]]} are both maps of {both[0]}; "
            "keep one of them, or give both the name of a method"
        )
    one, other = next(iter(found[PLAIN].values())), next(iter(found[method].values()))
    raise DataError(f"{other} tells the method {method} and {one} tells none; name all maps alike")


def _like(images: Sequence[str]) -> str:
    return f"such as {next(_names(images[0]))}" if images else "a map an image"


def _first(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
