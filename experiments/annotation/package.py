"""A folder of radiographs to draw lesions on, that CVAT, Label Studio and LabelMe open as it is.

``images/`` holds upright 8-bit grey PNGs of the original size, so that whatever is drawn on them is
in the frame that lesion masks are in; they carry no metadata. ``mapping.csv`` leads back from their
flat names to the data set's paths.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from datamodules.decode import decode
from datamodules.files import whole_folder
from datamodules.index import DataError
from experiments.annotation.checks import crossing
from experiments.annotation.showing import fill
from experiments.drawing import contours, encode
from experiments.runs import file_hash

# File names of 255 bytes are the limit of most disks; tools put something in front or behind.
LONGEST = 180
FILES = ["README.txt", "labels.txt", "cvat_labels.json", "label_studio.json"]
FILES += ["label_studio_config.xml"]
COLUMNS = ["image", "body_part", "study", "patient", "split", "reason", "probability_abnormal"]
# Corners of outlines are moved by a pixel at most, a thousandth of the longer side on large films:
# few points to drag.
TOLERANCE = 1e-3
# Specks of fewer pixels than this share of the image are no outline that anybody would correct.
SPECK = 5e-4
Polygon = list[tuple[float, float]]


class Picture(NamedTuple):
    """An image of a package."""

    name: str  # its file in images/
    height: int
    width: int
    outlines: list[Polygon]  # what a run's map shows on it, to begin with
    score: float | None = None  # the run's probability of abnormal


def write_package(
    folder: Path,
    root: Path,
    chosen: pd.DataFrame,
    outlines: list[list[Polygon]] | None = None,
    maker: str = "",
    words: Sequence[str] = ("data.name=NAME",),
) -> None:
    """Write the package, whole or not at all; one image is held at a time.

    Args:
        folder: Must not exist: somebody may have drawn in it.
        root: Folder that the images' paths count from.
        chosen: The images in the order in which they are worth a mask, with ``COLUMNS``.
        outlines: What to begin with on each; None: nothing, and no file that would hold it.
        maker: What drew them, such as "stage1 pcam".
        words: ``data.*`` of the choice but the root, for the command in README.txt.
    """
    check_new(folder)
    drawn = outlines or [[] for _ in range(len(chosen))]
    listed = chosen[COLUMNS].assign(outlines=list(map(len, drawn)))
    listed.insert(0, "name", flat_names(chosen["image"]))
    listed.insert(0, "order", range(1, len(chosen) + 1))
    pictures = []
    with whole_folder(folder) as draft:
        (draft / "images").mkdir()
        rows = zip(listed["name"], listed["image"], drawn, listed[COLUMNS[-1]], strict=True)
        for name, image, polygons, score in tqdm(
            rows, total=len(listed), desc="writing images", leave=False, disable=None
        ):
            pixels = decode(root / image)
            height, width = pixels.shape
            pictures.append(Picture(name, height, width, polygons, score))
            file = draft / "images" / name
            file.write_bytes(encode(pixels))
            if outlines is not None:
                text = package_text("labelme.json", picture=pictures[-1], maker=maker)
                file.with_suffix(".json").write_text(text, encoding="utf-8")
        for name in FILES if outlines is None else (*FILES, "cvat.xml"):
            text = package_text(name, pictures=pictures, maker=maker, words=shlex.join(words))
            (draft / name).write_text(text, encoding="utf-8")
        listed[["name", "image"]].to_csv(draft / "mapping.csv", index=False)
        listed["sha256"] = [file_hash(root / image) for image in listed["image"]]
        listed.to_csv(draft / "selected.csv", index=False, float_format="%.4f")


def check_new(folder: Path) -> None:
    """Raise a DataError if ``folder`` exists: somebody may have drawn in it."""
    if folder.exists() or folder.is_symlink():
        raise DataError(f"--out {folder} already exists. Fix: remove it, or choose another --out")


def package_text(name: str, **values: Any) -> str:
    """The text of a file of the package, from its template."""
    text = fill(name, label="lesion", colour="#e41a1c", **values) + "\n"
    return json.dumps(json.loads(text), indent=2) + "\n" if name.endswith(".json") else text


def flat_names(images: Iterable[str]) -> list[str]:
    """A PNG's name for each path, all unlike on any disk: ``a/b 1.jpg`` becomes ``a__b-1.png``."""
    names: dict[str, str] = {}  # by what a disk that knows no case takes for the same
    for image in images:
        flat = str(PurePosixPath(image).with_suffix("")).replace("/", "__")
        # What else a name may hold, tools write in ways of their own.
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", flat).lstrip(".-")
        if len(stem) > LONGEST or not stem:
            stem = f"{hashlib.sha256(image.encode()).hexdigest()[:8]}-{stem[-LONGEST + 9 :]}"
        name, number = stem, 1
        while name.lower() in names:
            number += 1
            name = f"{stem}-{number}"
        names[name.lower()] = f"{name}.png"
    return [*names.values()]


def outline(shown: np.ndarray, threshold: float) -> list[Polygon]:
    """Outline where a map ``(H, W)`` is above 0 and at least ``threshold``, largest area first.

    Holes are filled, specks left out. Points are centres of pixels, (0, 0) the outer corner of the
    first: the polygon, filled with its outline, marks the pixels that it came from, up to the
    tolerance. None crosses itself: an import takes it.
    """
    tolerance, polygons = max(1.0, TOLERANCE * max(shown.shape)), []
    for contour in contours((shown >= threshold) & (shown > 0), cv2.RETR_EXTERNAL):
        if cv2.contourArea(contour) >= max(1.0, SPECK * shown.size):
            simple = cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0]
            if len(simple) < 3 or crossing(simple.tolist()) is not None:
                simple = cv2.convexHull(contour)[:, 0]
            polygons.append(simple)
    polygons.sort(key=cv2.contourArea, reverse=True)
    return [[(x + 0.5, y + 0.5) for x, y in polygon.tolist()] for polygon in polygons]
