"""The one drawing of radiographs for people: resized, with outlines and peaks that can be seen.

Pictures are uint8 ``(h, w, 3)``, BGR; :func:`overlay` lays a map over one. Lines are drawn as
strokes (colour, width in pixels): a wide dark one below a light one is seen on film and on bone.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from callbacks.panels import overlay as overlay  # as every overlay here and in a run's panels

Strokes = Sequence[tuple[tuple[int, int, int], int]]


def resize(
    image: np.ndarray, smallest: int, largest: int, enlarge: int = cv2.INTER_CUBIC
) -> np.ndarray:
    """Bring the longer side of an image ``(H, W)`` to between ``smallest`` and ``largest``, px."""
    side = max(image.shape)
    scale = min(max(side, smallest), largest) / side
    height, width = (max(1, round(length * scale)) for length in image.shape)
    method = cv2.INTER_AREA if scale < 1 else enlarge
    return cv2.resize(image, (width, height), interpolation=method)


def contours(mask: np.ndarray, mode: int = cv2.RETR_LIST) -> Sequence[np.ndarray]:
    """Lines ``(N, 1, 2)``, x before y, around a mask ``(H, W)``; RETR_LIST: around holes, too."""
    return cv2.findContours(mask.astype(np.uint8), mode, cv2.CHAIN_APPROX_NONE)[0]


def draw_outline(
    picture: np.ndarray, lines: Sequence[np.ndarray], strokes: Strokes, shift: int = 0
) -> None:
    """Draw closed lines into a picture; with ``shift`` their points count in 1/2**shift px."""
    for colour, width in strokes:
        cv2.polylines(picture, lines, True, colour, width, cv2.LINE_AA, shift)


def draw_peak(
    picture: np.ndarray, x: int, y: int, reach: tuple[int, int], strokes: Strokes
) -> None:
    """Draw four ticks around a peak, ``reach`` px from it: the peak itself stays visible."""
    for colour, width in strokes:
        for right, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            start, end = ((x + right * length, y + down * length) for length in reach)
            cv2.line(picture, start, end, colour, width, cv2.LINE_AA)


def encode(picture: np.ndarray, suffix: str = ".png", options: Sequence[int] = ()) -> bytes:
    """The file of a picture or a grey image ``(h, w)``."""
    return cv2.imencode(suffix, picture, options)[1].tobytes()
