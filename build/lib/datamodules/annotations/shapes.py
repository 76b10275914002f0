"""Outlines and runs from what formats store: polygons, boxes, ellipses, run-length encoding.

Coordinates are checked numbers in pixels (``entries.number``); angles are radians, clockwise as the
image is seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from datamodules.annotations.entries import EntryError, image_size, number, show
from datamodules.annotations.marks import Point

# Corners that stand for an ellipse: on one of 500 pixels across, off by less than a tenth.
ELLIPSE_CORNERS = 128
NOTHING = "nothing is marked; draw it again, or take it out"


def polygon(points: Iterable[Sequence[object]]) -> tuple[Point, ...]:
    """Return the outline of a polygon from its corners ``(x, y)``.

    Raises:
        EntryError: A coordinate is no number, there are less than three corners, or all lie on one
            line.
    """
    corners = tuple((number(x, "x"), number(y, "y")) for x, y in points)
    if len(corners) < 3:
        raise EntryError(f"a polygon of {len(corners)} points; draw three or more")
    x, y = corners[0]
    far = max(corners, key=lambda corner: math.dist(corner, (x, y)))
    if all((far[0] - x) * (b - y) == (far[1] - y) * (a - x) for a, b in corners):
        raise EntryError("all its points lie on one line, it marks no area; draw it again")
    return corners


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    angle: float = 0.0,
    turn_at: Point | None = None,
) -> tuple[Point, ...]:
    """Return the four corners of a box, turned about ``turn_at`` (by default its centre).

    Raises:
        EntryError: It has no area, or reaches far outside the image.
    """
    if not (width > 0 and height > 0):
        raise EntryError(f"a box of {width:g} x {height:g} pixels; draw it again")
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    if not angle:
        return polygon(corners)
    cx, cy = turn_at or (x + width / 2, y + height / 2)
    cos, sin = math.cos(angle), math.sin(angle)
    return polygon(
        (cx + (a - cx) * cos - (b - cy) * sin, cy + (a - cx) * sin + (b - cy) * cos)
        for a, b in corners
    )


def turn(attributes: Mapping[str, object]) -> float:
    """Return by how many radians the attributes of a box turn it about its centre.

    CVAT writes ``rotation``, degrees clockwise, beside the upright box.

    Raises:
        EntryError: An attribute of another name turns it, in units that only its tool knows.
    """
    for name in ("angle", "theta"):  # a word there is something else
        if re.fullmatch(r"-?[\d.]*[1-9][\d.]*", str(attributes.get(name))):
            raise EntryError(f"its box is turned ({name}), which is not read; outline the lesion")
    return math.radians(number(attributes.get("rotation") or 0, "rotation"))


def beside_box(outline: tuple[Point, ...], edges: tuple[Point, ...]) -> tuple[Point, ...]:
    """Return an outline after comparing it with the corners of the box that stands beside it.

    Raises:
        EntryError: They are of two things: less than half of both extents is common.
    """
    if not edges:
        return outline
    (low, high), (left, right) = ((np.min(p, 0), np.max(p, 0)) for p in (outline, edges))
    # A pixel more, so that lines and rounding count for little.
    common = np.prod(np.clip(np.minimum(high, right) - np.maximum(low, left) + 1, 0, None))
    if 2 * common < np.prod(np.maximum(high, right) - np.minimum(low, left) + 1):
        raise EntryError("its outline and its box are of two places or units; export it again")
    return outline


def area_of(outline: Sequence[Point]) -> float:
    """Return the area that an outline encloses, pixels."""
    x, y = np.transpose(outline)
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> tuple[Point, ...]:
    """Return corners on an ellipse of half axes ``rx``, ``ry`` that is turned about its centre.

    Raises:
        EntryError: It has no area, or reaches far outside the image.
    """
    if not (rx > 0 and ry > 0):
        raise EntryError(f"an ellipse of {rx:g} x {ry:g} pixels half across; draw it again")
    cos, sin = math.cos(angle), math.sin(angle)
    turns = [2 * math.pi * step / ELLIPSE_CORNERS for step in range(ELLIPSE_CORNERS)]
    around = [(rx * math.cos(turn), ry * math.sin(turn)) for turn in turns]
    return polygon((cx + a * cos - b * sin, cy + a * sin + b * cos) for a, b in around)


def coco_runs(segmentation: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """Return COCO's run-length encoding, compressed or not, as pycocotools encodes it.

    Args:
        segmentation: ``{"size": [H, W], "counts": ...}`` from the file.
        size: Of the image, where it is known.

    Raises:
        EntryError: It is of another size, cannot be read, does not fill it, or marks nothing.
    """
    stated = segmentation.get("size")
    if not isinstance(stated, list) or len(stated) != 2:
        raise EntryError(f"its RLE is of size {show(stated)}; export it again")
    sides = image_size(*stated)
    if size and sides != size:
        raise EntryError(
            f"its RLE is of size {[*sides]}, the image of {[*size]} (height, width); "
            "export it again"
        )
    counts: Any = segmentation.get("counts")
    runs = counts if isinstance(counts, list) else _decompress(counts)
    # pycocotools refuses runs beyond the image but, after too few, returns stray memory.
    _check_runs(runs, *sides)
    return rle.frPyObjects({"size": [*sides], "counts": runs}, *sides)


def placed_runs(
    runs: Sequence[int], size: tuple[int, int], left: int, top: int, image: tuple[int, int]
) -> dict[str, Any]:
    """Place a mask in an image that is encoded in runs along its rows, background first.

    Only the rows that hold something take memory.

    Args:
        runs: Lengths in pixels, of background and mask in turn.
        size: ``(height, width)`` of the mask.
        left: Column of its first pixel in the image.
        top: Row of its first pixel in the image.
        image: ``(height, width)`` of the image.

    Returns:
        Runs of the whole image as pycocotools encodes them.

    Raises:
        EntryError: A run is negative, they do not fill the mask or mark nothing, or it juts out.
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
    """Place a mask in an image; memory is taken for the mask alone.

    Args:
        mask: ``(h, w)``, marked where not 0.
        left: Column of its first pixel in the image.
        top: Row of its first pixel in the image.
        image: ``(height, width)`` of the image.

    Returns:
        Runs of the whole image as pycocotools encodes them.

    Raises:
        EntryError: It juts out of the image, or nothing is marked.
    """
    height, width = mask.shape
    check_place(left, top, (height, width), image)
    if not mask.any():
        raise EntryError(NOTHING)
    # pycocotools counts down the columns. One blank row below ends each run with its column.
    columns = np.zeros((width, height + 1), bool)
    columns[:, :height] = mask.T != 0
    edges = np.flatnonzero(np.diff(columns.ravel(), prepend=False))
    column, row = np.divmod(edges, height + 1)
    edges = (left + column) * image[0] + top + row
    counts = np.diff(edges, prepend=0, append=image[0] * image[1])
    return rle.frPyObjects({"size": [*image], "counts": counts.tolist()}, *image)


def check_place(left: int, top: int, size: tuple[int, int], image: tuple[int, int]) -> None:
    """Check that a mask of ``size`` lies within the image, before either takes memory.

    Raises:
        EntryError: It juts out.
    """
    height, width = size
    if left < 0 or top < 0 or top + height > image[0] or left + width > image[1]:
        raise EntryError(
            f"a mask of {width} x {height} pixels at ({left}, {top}) juts out of the image of "
            f"{image[1]} x {image[0]}; export it again"
        )


def _check_runs(runs: Sequence[Any], height: int, width: int) -> None:
    """Check lengths before anything is made of their size."""
    if not all(type(run) is int and run >= 0 for run in runs):
        raise EntryError("its RLE counts cannot be read; export it again")
    covered = sum(runs)
    if covered != height * width:
        raise EntryError(
            f"its RLE covers {show(covered)} pixels, it has {height * width}; export it again"
        )
    if not any(runs[1::2]):
        raise EntryError(NOTHING)


def _decompress(counts: object) -> list[int]:
    """Runs of COCO's compressed RLE: differences to the last but one, five bits a character."""
    runs: list[int] = []
    value = shift = 0
    for character in counts if isinstance(counts, str) else "!":
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:  # no run is longer than 2^60
            raise EntryError("its RLE counts cannot be read; export it again")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise EntryError("its RLE ends within a number; export it again")
    return runs
