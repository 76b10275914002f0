"""From a map to polygons that an annotation tool can show and a person can correct."""

from __future__ import annotations

import cv2
import numpy as np

# A pixel at least, a thousandth of the longer side on large films: few points to drag.
TOLERANCE = 1e-3
# Specks of fewer pixels than this share of the image are no outline that anybody would correct.
SPECK = 5e-4

Polygon = list[tuple[float, float]]


def outline(shown: np.ndarray, threshold: float) -> list[Polygon]:
    """Outline what a map shows, largest area first; holes are filled, specks left out.

    Points are centres of pixels in a frame where (0, 0) is the outer corner of the first pixel: the
    polygon, filled with its outline, marks the pixels that it came from, up to the tolerance.

    Args:
        shown: ``(H, W)`` float, 0 to 1, at the image's original size.
        threshold: Pixels of at least this value, and above 0, are shown.

    Returns:
        Polygons ``[(x, y), ...]`` of three points or more in pixels; none crosses itself.
    """
    above = ((shown >= threshold) & (shown > 0)).astype(np.uint8)
    found, _ = cv2.findContours(above, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    tolerance = max(1.0, TOLERANCE * max(shown.shape))
    polygons = []
    for contour in sorted(found, key=cv2.contourArea, reverse=True):
        if cv2.contourArea(contour) < max(1.0, SPECK * shown.size):
            break
        simple = cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0]
        if crosses_itself(simple):
            simple = cv2.convexHull(contour)[:, 0]
        polygons.append([(float(x) + 0.5, float(y) + 0.5) for x, y in simple])
    return polygons


def crosses_itself(points: np.ndarray) -> bool:
    """Whether sides of a closed polygon meet elsewhere than where one ends and the next begins.

    Args:
        points: ``(N, 2)`` whole numbers.
    """
    start = points.astype(np.int64)
    end = np.roll(start, -1, axis=0)
    count = len(start)
    if count < 3 or len(np.unique(start, axis=0)) < count:
        return True
    one, other = np.triu_indices(count, k=2)
    apart = ~((one == 0) & (other == count - 1))  # the first and the last side share a corner
    a, b = (start[one[apart]], end[one[apart]]), (start[other[apart]], end[other[apart]])
    sides = [
        np.sign(_turn(*a, b[0])),
        np.sign(_turn(*a, b[1])),
        np.sign(_turn(*b, a[0])),
        np.sign(_turn(*b, a[1])),
    ]
    cross = (sides[0] != sides[1]) & (sides[2] != sides[3])
    touch = [
        (side == 0) & _between(*segment, point)
        for side, segment, point in zip(sides, (a, a, b, b), (*b, *a), strict=True)
    ]
    return bool((cross | np.logical_or.reduce(touch)).any())


def _turn(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Twice the signed area of triangles, each argument ``(N, 2)``."""
    return (q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (r[:, 0] - p[:, 0])


def _between(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Whether points r, each on the line through p and q, lie from p to q."""
    return ((np.minimum(p, q) <= r) & (r <= np.maximum(p, q))).all(axis=1)
