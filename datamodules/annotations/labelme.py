"""LabelMe JSON, one file an image: polygons, rectangles, circles and masks; it names no raters.

Source: https://github.com/wkentaro/labelme; X-AnyLabeling writes the same. A mask is a base64 PNG
of the part of the image between its two points, both included.
"""

from __future__ import annotations

import base64
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import EntryError, catch, check, field, items
from datamodules.annotations.files import catch_file, list_files, name_beside, read_json
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Point
from datamodules.decode import check_png
from datamodules.index import DataError

# X-AnyLabeling writes the first with four corners, and the last, as other tools the second, turned.
BOXES = ("rectangle", "oriented_rectangle", "rotation")
POLYGONS = ("polygon", "quadrilateral", "oriented_rectangle", "rotation")


def read_labelme(path: Path) -> Marking:
    """Read a LabelMe file, or all below a folder; an image's path counts from its file."""
    marking = Marking([], [])
    for file in list_files(path, ".json", wanted="LabelMe's file or their folder"):
        with catch_file(marking, file, path) as concerned:
            content = read_json(file)
            if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                concerned.clear()
                raise DataError(f"{file}: no LabelMe file, it lacks the list 'shapes'; take it out")
            own = tuple(concerned)
            name = name_beside(file, path, field(content, "imagePath"))
            concerned.append(name)
            sides = content.get("imageHeight"), content.get("imageWidth")
            size = fields.image_size(*sides) if sides != (None, None) else None
            image = MarkedImage(name, size, [], str(file), also=own)
            marking.images.append(image)
            for place, shape in enumerate(content["shapes"]):
                entry = f"shape number {place}"
                labels = fields.names(shape.get("label")) if isinstance(shape, dict) else ()
                with catch(marking, f"{file}: {entry}", name, labels):
                    image.marks.append(Mark(entry, labels=labels, **_area(shape, size)))
    return marking


def _area(shape: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    points = items(field(shape, "points"))
    are_points = all(isinstance(point, list) and len(point) == 2 for point in points)
    check(are_points, "its points are not [[x, y], ...]; draw it again")
    kind = fields.text(shape.get("shape_type", "polygon"))  # versions before 4 wrote none
    if kind == "mask":
        if len(points) != 2 or size is None:
            raise EntryError("a mask without two points or the image's size; save it again")
        left, top, right, bottom = (fields.whole(v, "a point") for point in points for v in point)
        own = fields.image_size(bottom - top + 1, right - left + 1)
        shapes.check_place(left, top, own, size)
        return {"runs": shapes.placed(_decode(field(shape, "mask"), own), left, top, size)}
    return {"outline": _outline(kind, points), "is_box": kind in BOXES}


def _outline(kind: str, points: list[Any]) -> tuple[Point, ...]:
    if kind in POLYGONS or (kind == "rectangle" and len(points) == 4):
        return shapes.polygon(points)
    if kind not in ("rectangle", "circle"):
        raise fields.no_area(kind)
    check(len(points) == 2, f"a {kind} of {len(points)} points, not two; draw it again")
    (x, y), (a, b) = [[fields.number(value, "a point") for value in point] for point in points]
    if kind == "circle":  # its centre and a point on it
        radius = math.hypot(a - x, b - y)
        return shapes.ellipse(x, y, radius, radius)
    return shapes.box(min(x, a), min(y, b), abs(a - x), abs(b - y))


def _decode(encoded: object, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a base64 PNG of ``size``, which is checked before they take memory."""
    try:
        data = base64.b64decode(encoded if isinstance(encoded, str) else "", validate=True)
        check_png(data, Path("mask"))
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            stated = image.size[::-1]
            if stated == size:
                return np.array(image.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EntryError("its mask is no PNG, or damaged; save it again in LabelMe") from error
    what = f"its mask is of {stated[1]} x {stated[0]} pixels, its box of {size[1]} x {size[0]}"
    raise EntryError(f"{what}; save it again in LabelMe")
