"""Outlines and runs of what formats store; angles are radians, clockwise as the image is seen."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from datamodules.annotations.fields import check, number
from datamodules.annotations.marks import Point, encode

# Corners that stand for an ellipse: on one of 500 pixels across, off by less than a tenth.
ELLIPSE_CORNERS = 128


def polygon(points: Iterable[Sequence[Any]]) -> tuple[Point, ...]:
    """The outline of a polygon from its corners ``(x, y)``, three or more, not on one line."""
    corners = tuple((number(x, "x"), number(y, "y")) for x, y in points)
    check(len(corners) >= 3, f"a polygon of {len(corners)} points; draw three or more")
    is_area = np.linalg.matrix_rank(np.subtract(corners, corners[0])) == 2
    check(is_area, "all its points lie on one line, it marks no area; draw it again")
    return corners


def box(
    x: float, y: float, width: float, height: float, angle: float = 0.0, pivot: Point | None = None
) -> tuple[Point, ...]:
    """The four corners of a box, turned about ``pivot`` (by default its centre)."""
    check(width > 0 and height > 0, f"a box of {width:g} x {height:g} pixels; draw it again")
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    if not angle:
        return polygon(corners)
    cx, cy = pivot or (x + width / 2, y + height / 2)
    return _turned([(a - cx, b - cy) for a, b in corners], cx, cy, angle)


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> tuple[Point, ...]:
    """Corners on an ellipse of half axes ``rx``, ``ry`` that is turned about its centre."""
    check(rx > 0 and ry > 0, f"an ellipse of {rx:g} x {ry:g} pixels half across; draw it again")
    turns = [2 * math.pi * step / ELLIPSE_CORNERS for step in range(ELLIPSE_CORNERS)]
    return _turned([(rx * math.cos(at), ry * math.sin(at)) for at in turns], cx, cy, angle)


def _turned(points: list[Point], cx: float, cy: float, angle: float) -> tuple[Point, ...]:
    """A polygon of points that are seen from their centre (cx, cy)."""
    cos, sin = math.cos(angle), math.sin(angle)
    return polygon((cx + a * cos - b * sin, cy + a * sin + b * cos) for a, b in points)


def box_angle(attributes: Mapping[str, Any]) -> float:
    """By how many radians the attributes of a box turn it about its centre: CVAT's ``rotation``."""
    # Other names turn it in units that only their tool knows; a word there is something else.
    for name in ("angle", "theta"):
        is_turned = re.fullmatch(r"-?[\d.]*[1-9][\d.]*", str(attributes.get(name)))
        check(not is_turned, f"its box is turned ({name}), which is not read; outline the lesion")
    return math.radians(number(attributes.get("rotation") or 0, "rotation"))


def check_beside_box(outline: Sequence[Point], edges: Sequence[Point]) -> None:
    """Check that an outline and the corners of the box beside it, if any, are of one thing."""
    (low, high), (left, right) = ((np.min(p, 0), np.max(p, 0)) for p in (outline, edges or outline))
    # A pixel more, so that lines and rounding count for little.
    common = np.prod(np.clip(np.minimum(high, right) - np.maximum(low, left) + 1, 0, None))
    both = np.prod(np.maximum(high, right) - np.minimum(low, left) + 1)
    check(2 * common >= both, "its outline and its box are of two places or units; export it again")


def coco_runs(segmentation: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Runs of COCO's run-length encoding, compressed or not, of an image of ``size`` (H, W)."""
    stated, counts = segmentation["size"], segmentation["counts"]
    what = f"its RLE is of size {stated}, the image of {[*size]}; export it again"
    check(stated == [*size], what)
    runs = _decompress(counts) if isinstance(counts, str) else counts
    return placed(unpack(runs, size[::-1]).T, 0, 0, size)


def _decompress(counts: str) -> list[int]:
    """Runs of COCO's compressed RLE: differences to the last but one, five bits a character."""
    runs: list[int] = []
    for group in re.findall("[P-o]*[0-O]", counts):  # the last character of a number is below P
        bits = [ord(character) - 48 & 0x1F for character in group]
        value = sum(five << 5 * place for place, five in enumerate(bits))
        value -= (bits[-1] >> 4) << 5 * len(bits)  # negative
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def unpack(runs: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """A mask ``(H, W)`` of runs along its rows, background and marked in turn."""
    covered, whole = sum(runs), size[0] * size[1]
    check(covered == whole, f"its RLE covers {covered} pixels, it has {whole}; export it again")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size)


def placed(mask: np.ndarray, left: int, top: int, image: tuple[int, int]) -> dict[str, Any]:
    """Runs of a whole image ``(H, W)`` in which ``mask`` ``(h, w)`` begins at (left, top)."""
    height, width = mask.shape
    is_inside = 0 <= left <= image[1] - width and 0 <= top <= image[0] - height
    what = f"a mask of {width} x {height} pixels at ({left}, {top}) juts out of the image"
    check(is_inside, f"{what}; export it again")
    check(mask.any(), "nothing is marked; draw it again, or take it out")
    whole = np.zeros(image, np.uint8, order="F")
    whole[top : top + height, left : left + width] = mask != 0
    return encode(whole)
