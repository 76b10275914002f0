"""From a map to polygons that an annotation tool can show and a person can correct."""

from __future__ import annotations

import cv2
import numpy as np

from experiments.annotation.checks import crossing

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
        Polygons ``[(x, y), ...]`` of three points or more in pixels, that an import takes: none
        crosses itself.
    """
    above = ((shown >= threshold) & (shown > 0)).astype(np.uint8)
    found, _ = cv2.findContours(above, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    tolerance = max(1.0, TOLERANCE * max(shown.shape))
    polygons = []
    for contour in found:
        if cv2.contourArea(contour) < max(1.0, SPECK * shown.size):
            continue
        simple = cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0]
        if len(simple) < 3 or crossing(simple.tolist()) is not None:
            simple = cv2.convexHull(contour)[:, 0]
        polygons.append(simple)
    polygons.sort(key=cv2.contourArea, reverse=True)
    return [[(x + 0.5, y + 0.5) for x, y in polygon.tolist()] for polygon in polygons]
