"""A folder of radiographs to draw lesions on, that CVAT, Label Studio and LabelMe open as it is.

``images/`` holds upright 8-bit grey PNGs of the original size, so that whatever is drawn on them is
in the frame that lesion masks are in; they carry no metadata. ``mapping.csv`` leads back from their
flat names to the data set's paths. docs/lesions.md lists the files; their formats are CVAT
for images 1.1, Label Studio's JSON with predictions and labelling configuration, LabelMe's JSON.
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
from experiments.annotation.describe import fill
from experiments.runs import file_hash

LABEL, COLOUR = "lesion", "#e41a1c"
# File names of 255 bytes are the limit of most disks; tools put something in front or behind.
LONGEST = 180
FILES = (
    *("README.txt", "labels.txt", "cvat_labels.json", "label_studio.json"),
    "label_studio_config.xml",
)
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
    names = flat_names(chosen["image"])
    drawn = [[]] * len(names) if outlines is None else outlines
    listed = chosen[COLUMNS].assign(outlines=[len(polygons) for polygons in drawn])
    listed.insert(0, "name", names)
    listed.insert(0, "order", range(1, len(names) + 1))
    pictures = []
    with whole_folder(folder) as draft:
        (draft / "images").mkdir()
        rows = zip(names, chosen["image"], drawn, chosen["probability_abnormal"], strict=True)
        for name, image, polygons, score in tqdm(
            rows, total=len(names), desc="writing images", leave=False, disable=None
        ):
            pixels = decode(root / image)
            known = None if pd.isna(score) else float(score)
            height, width = pixels.shape
            picture = Picture(name, height, width, polygons, known)
            # Not cv2.imwrite: on a full disk it only returns False.
            file = draft / "images" / name
            file.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
            if outlines is not None:
                text = package_text("labelme.json", picture=picture, maker=maker)
                file.with_suffix(".json").write_text(text, encoding="utf-8")
            pictures.append(picture)
        for name in FILES if outlines is None else (*FILES, "cvat.xml"):
            about = {"pictures": pictures, "maker": maker, "words": shlex.join(words)}
            (draft / name).write_text(package_text(name, **about), encoding="utf-8")
        listed[["name", "image"]].to_csv(draft / "mapping.csv", index=False)
        listed["sha256"] = [file_hash(root / image) for image in chosen["image"]]
        listed.to_csv(draft / "selected.csv", index=False, float_format="%.4f")


def check_new(folder: Path) -> None:
    """Raise a DataError if ``folder`` exists: somebody may have drawn in it."""
    if folder.exists() or folder.is_symlink():
        raise DataError(f"--out {folder} already exists; remove it first, or choose another folder")


def package_text(name: str, **values: Any) -> str:
    """The text of a file of the package, from its template."""
    text = fill(name, label=LABEL, colour=COLOUR, **values) + "\n"
    return json.dumps(json.loads(text), indent=2) + "\n" if name.endswith(".json") else text


def flat_names(images: Iterable[str]) -> list[str]:
    """A file name for each path, no two alike on any disk: ``/`` becomes ``__``, the suffix png.

    Letters, digits, ``.``, ``_`` and ``-`` stay: what else a name holds, tools write in ways of
    their own.

    Example:
        >>> flat_names(["XR_HAND/patient1/image 1.jpg", "xr_hand/patient1/image-1.png"])
        ['XR_HAND__patient1__image-1.png', 'xr_hand__patient1__image-1-2.png']
    """
    taken: set[str] = set()
    names = []
    for image in images:
        flat = str(PurePosixPath(image).with_suffix("")).replace("/", "__")
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", flat).lstrip(".-")
        if len(stem) > LONGEST or not stem:
            stem = f"{hashlib.sha256(image.encode()).hexdigest()[:8]}-{stem[-LONGEST + 9 :]}"
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names


def outline(shown: np.ndarray, threshold: float) -> list[Polygon]:
    """Outline what a map shows, largest area first; holes are filled, specks left out.

    Points are centres of pixels in a frame where (0, 0) is the outer corner of the first pixel: the
    polygon, filled with its outline, marks the pixels that it came from, up to the tolerance. An
    import takes it: none crosses itself.

    Args:
        shown: ``(H, W)`` float, 0 to 1, at the image's original size.
        threshold: Pixels of at least this value, and above 0, are shown.
    """
    above = ((shown >= threshold) & (shown > 0)).astype(np.uint8)
    contours, _ = cv2.findContours(above, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    tolerance = max(1.0, TOLERANCE * max(shown.shape))
    polygons = []
    for contour in contours:
        if cv2.contourArea(contour) < max(1.0, SPECK * shown.size):
            continue
        simple = cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0]
        if len(simple) < 3 or crossing(simple.tolist()) is not None:
            simple = cv2.convexHull(contour)[:, 0]
        polygons.append(simple)
    polygons.sort(key=cv2.contourArea, reverse=True)
    return [[(x + 0.5, y + 0.5) for x, y in polygon.tolist()] for polygon in polygons]
