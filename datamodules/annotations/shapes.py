"""Outlines and runs from what formats store: polygons, boxes, ellipses, run-length encoding.

Coordinates are checked numbers in pixels (``fields.number``); angles are radians, clockwise as the
image is seen. What is wrong is an ``EntryError``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from datamodules.annotations.fields import check, image_size, number, show
from datamodules.annotations.marks import Point

# Corners that stand for an ellipse: on one of 500 pixels across, off by less than a tenth.
ELLIPSE_CORNERS = 128
NOTHING = "nothing is marked; draw it again, or take it out"
UNREADABLE = "its RLE counts cannot be read; export it again"


def polygon(points: Iterable[Sequence[object]]) -> tuple[Point, ...]:
    """The outline of a polygon from its corners ``(x, y)``, three or more, not on one line."""
    corners = tuple((number(x, "x"), number(y, "y")) for x, y in points)
    check(len(corners) >= 3, f"a polygon of {len(corners)} points; draw three or more")
    x, y = corners[0]
    far = max(corners, key=lambda corner: math.dist(corner, (x, y)))
    is_area = any((far[0] - x) * (b - y) != (far[1] - y) * (a - x) for a, b in corners)
    check(is_area, "all its points lie on one line, it marks no area; draw it again")
    return corners


def box(
    left: float,
    top: float,
    width: float,
    height: float,
    angle: float = 0.0,
    turn_at: Point | None = None,
) -> tuple[Point, ...]:
    """The four corners of a box, turned about ``turn_at`` (by default its centre)."""
    check(width > 0 and height > 0, f"a box of {width:g} x {height:g} pixels; draw it again")
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    if not angle:
        return polygon(corners)
    x, y = turn_at or (left + width / 2, top + height / 2)
    return _turned([(a - x, b - y) for a, b in corners], x, y, angle)


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> tuple[Point, ...]:
    """Corners on an ellipse of half axes ``rx``, ``ry`` that is turned about its centre."""
    check(rx > 0 and ry > 0, f"an ellipse of {rx:g} x {ry:g} pixels half across; draw it again")
    turns = [2 * math.pi * step / ELLIPSE_CORNERS for step in range(ELLIPSE_CORNERS)]
    return _turned([(rx * math.cos(at), ry * math.sin(at)) for at in turns], cx, cy, angle)


def _turned(points: list[Point], cx: float, cy: float, angle: float) -> tuple[Point, ...]:
    """A polygon of points that are seen from their centre (cx, cy)."""
    cos, sin = math.cos(angle), math.sin(angle)
    return polygon((cx + a * cos - b * sin, cy + a * sin + b * cos) for a, b in points)


def box_angle(attributes: Mapping[str, object]) -> float:
    """By how many radians the attributes of a box turn it about its centre.

    CVAT writes ``rotation``, degrees clockwise, beside the upright box. Attributes of another name
    turn it in units that only their tool knows.
    """
    for name in ("angle", "theta"):  # a word there is something else
        is_turned = re.fullmatch(r"-?[\d.]*[1-9][\d.]*", str(attributes.get(name)))
        check(not is_turned, f"its box is turned ({name}), which is not read; outline the lesion")
    return math.radians(number(attributes.get("rotation") or 0, "rotation"))


def check_beside_box(outline: Sequence[Point], edges: Sequence[Point]) -> None:
    """Check that an outline and the corners of the box beside it, if any, are of one thing."""
    if not edges:
        return
    (low, high), (left, right) = ((np.min(p, 0), np.max(p, 0)) for p in (outline, edges))
    # A pixel more, so that lines and rounding count for little.
    common = np.prod(np.clip(np.minimum(high, right) - np.maximum(low, left) + 1, 0, None))
    both = np.prod(np.maximum(high, right) - np.minimum(low, left) + 1)
    check(2 * common >= both, "its outline and its box are of two places or units; export it again")


def coco_runs(segmentation: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """COCO's run-length encoding, compressed or not, of an image of ``size`` (height, width)."""
    stated = segmentation.get("size")
    sides = image_size(*stated) if isinstance(stated, list) and len(stated) == 2 else (0, 0)
    what = f"its RLE is of size {show(stated)}, the image of {size} (height, width)"
    check(sides == size, f"{what}; export it again")
    counts = segmentation.get("counts")
    runs = counts if isinstance(counts, list) else _decompress(counts)
    # pycocotools refuses runs beyond the image but, after too few, returns stray memory.
    _check_runs(runs, *sides)
    return rle.frPyObjects({"size": [*sides], "counts": runs}, *sides)


def placed_runs(
    runs: Sequence[int], size: tuple[int, int], left: int, top: int, image: tuple[int, int]
) -> dict[str, Any]:
    """:func:`placed` for a mask of ``size`` in runs along its rows, background first.

    Only the rows that hold something take memory.
    """
    height, width = size
    check_place(left, top, size, image)
    _check_runs(runs, height, width)
    marked = [place for place in range(1, len(runs), 2) if runs[place]]
    before, after = sum(runs[: marked[0]]), sum(runs[marked[-1] + 1 :])
    above, below = before // width, after // width
    kept = [before % width, *runs[marked[0] : marked[-1] + 1], after % width]
    mask = np.repeat((np.arange(len(kept)) % 2).astype(np.uint8), kept)
    return placed(mask.reshape(height - above - below, width), left, top + above, image)


def placed(mask: np.ndarray, left: int, top: int, image: tuple[int, int]) -> dict[str, Any]:
    """Runs of a whole image, as pycocotools encodes them, that a mask is a part of.

    Args:
        mask: ``(h, w)``, marked where not 0.
        left: Column of its first pixel in the image.
        top: Row of its first pixel in the image.
        image: ``(height, width)`` of the image.
    """
    height, width = mask.shape
    check_place(left, top, (height, width), image)
    check(mask.any(), NOTHING)
    # pycocotools counts down the columns of the whole image.
    columns = np.zeros((width, image[0]), bool)
    columns[:, top : top + height] = mask.T != 0
    edges = np.flatnonzero(np.diff(columns.ravel(), prepend=False, append=False))
    counts = np.diff(edges + left * image[0], prepend=0, append=image[0] * image[1])
    return rle.frPyObjects({"size": [*image], "counts": counts.tolist()}, *image)


def check_place(left: int, top: int, size: tuple[int, int], image: tuple[int, int]) -> None:
    """Check that a mask of ``size`` lies within the image, before either takes memory."""
    height, width = size
    is_inside = 0 <= left <= image[1] - width and 0 <= top <= image[0] - height
    what = f"a mask of {width} x {height} pixels at ({left}, {top}) juts out of the image of "
    check(is_inside, f"{what}{image[1]} x {image[0]}; export it again")


def _check_runs(runs: Sequence[Any], height: int, width: int) -> None:
    """Check lengths before anything is made of their size."""
    check(all(type(run) is int and run >= 0 for run in runs), UNREADABLE)
    covers = f"its RLE covers {show(sum(runs))} pixels, it has {height * width}; export it again"
    check(sum(runs) == height * width, covers)
    check(any(runs[1::2]), NOTHING)


def _decompress(counts: object) -> list[int]:
    """Runs of COCO's compressed RLE: differences to the last but one, five bits a character."""
    runs: list[int] = []
    value = shift = 0
    for character in counts if isinstance(counts, str) else "!":
        code = ord(character) - 48
        check(0 <= code < 64 and shift <= 60, UNREADABLE)  # no run is longer than 2^60
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    check(not shift, "its RLE ends within a number; export it again")
    return runs
