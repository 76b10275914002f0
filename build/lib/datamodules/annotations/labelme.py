"""LabelMe JSON, one file an image: polygons, rectangles, circles and masks.

Source: https://github.com/wkentaro/labelme; X-AnyLabeling writes the same. A mask is a base64 PNG
of the part of the image between its two points, both included. The format does not name who marked
what.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules.annotations.entries import (
    EntryError,
    field,
    image_size,
    items,
    name_beside,
    names,
    no_area,
    noting,
    noting_file,
    number,
    text,
    whole,
)
from datamodules.annotations.files import list_files, read_json
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake
from datamodules.annotations.shapes import box, check_place, ellipse, placed, polygon
from datamodules.decode import PNG, check_png
from datamodules.index import DataError

# X-AnyLabeling writes the first with four corners, and the last, as other tools the second, turned.
BOXES = ("rectangle", "oriented_rectangle", "rotation")


def read_labelme(path: Path) -> Marking:
    """Read a LabelMe file, or all below a folder.

    The image's path counts from its file, so that the folders of equal names stay apart.

    Raises:
        DataError: There is no such file or folder, no LabelMe file in it, or the only one cannot be
            read.
    """
    images: list[MarkedImage] = []
    mistakes: list[Mistake] = []
    files = list_files(path, ".json")
    for file in files:
        with noting_file(mistakes, file, path) as whose:
            content = read_json(file)
            if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                whose.clear()
                raise DataError(f"{file}: no LabelMe file, it lacks the list 'shapes'; take it out")
            own = tuple(whose)
            name = name_beside(file, path, field(content, "imagePath"))
            whose.append(name)
            sides = content.get("imageHeight"), content.get("imageWidth")
            size = image_size(*sides) if sides != (None, None) else None
            image = MarkedImage(name, size, [], str(file), also=own)
            images.append(image)
            _read_shapes(content["shapes"], image, mistakes)
    if not files:
        raise DataError(f"{path}: holds no .json file; give LabelMe's file or their folder")
    return Marking(images, mistakes)


def _read_shapes(shapes: list[Any], image: MarkedImage, mistakes: list[Mistake]) -> None:
    for place, shape in enumerate(shapes):
        entry = f"shape number {place}"
        labels = names(shape.get("label")) if isinstance(shape, dict) else ()
        with noting(mistakes, f"{image.where}: {entry}", image.name, labels):
            points = items(field(shape, "points"))
            if not all(isinstance(point, list) and len(point) == 2 for point in points):
                raise EntryError("its points are not [[x, y], ...]; draw it again")
            kind = text(shape.get("shape_type", "polygon"))  # versions before 4 wrote none
            mark = Mark(entry, labels=labels, is_box=kind in BOXES)
            if kind == "mask":
                image.marks.append(mark._replace(runs=_mask(shape, points, image.size)))
            else:
                image.marks.append(mark._replace(outline=_outline(kind, points)))


def _outline(kind: str, points: list[Any]) -> tuple[tuple[float, float], ...]:
    if kind in ("polygon", "quadrilateral", *BOXES[1:]) or (
        kind == "rectangle" and len(points) == 4
    ):
        return polygon(points)
    if kind not in ("rectangle", "circle"):
        raise no_area(kind)
    if len(points) != 2:
        raise EntryError(f"a {kind} of {len(points)} points, not two; draw it again")
    (x, y), (a, b) = [[number(value, "a point") for value in point] for point in points]
    if kind == "circle":  # its centre and a point on it
        radius = math.hypot(a - x, b - y)
        return ellipse(x, y, radius, radius)
    return box(min(x, a), min(y, b), abs(a - x), abs(b - y))


def _mask(shape: dict[str, Any], points: list[Any], size: tuple[int, int] | None) -> dict[str, Any]:
    if len(points) != 2 or size is None:
        raise EntryError("a mask needs two points and the image's size; save it again in LabelMe")
    left, top, right, bottom = (whole(value, "a point") for point in points for value in point)
    own = image_size(bottom - top + 1, right - left + 1)
    check_place(left, top, own, size)
    return placed(_decode(field(shape, "mask"), own), left, top, size)


def _decode(encoded: object, size: tuple[int, int]) -> np.ndarray:
    """Decode a base64 PNG after checking, before its pixels take memory, that it is of ``size``."""
    try:
        data = base64.b64decode(encoded if isinstance(encoded, str) else "", validate=True)
        if not data.startswith(PNG):
            raise EntryError("its mask is no PNG; save it again in LabelMe")
        check_png(data, Path("mask"))
        stated = (int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"))
        if stated != size:
            raise EntryError(
                f"its mask is of {stated[1]} x {stated[0]} pixels, its box of {size[1]} x "
                f"{size[0]}; save it again in LabelMe"
            )
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except EntryError:
        raise
    except (ValueError, cv2.error) as error:  # no base64, or damaged
        raise EntryError("its mask cannot be decoded; save it again in LabelMe") from error
    if pixels is None or pixels.shape != size:
        raise EntryError("its mask cannot be decoded; save it again in LabelMe")
    return pixels
