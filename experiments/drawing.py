"""The one drawing of radiographs for people: resized, with outlines and peaks that can be seen.

Pictures are uint8 ``(h, w, 3)``, BGR as OpenCV has them; a map goes over one by :func:`overlay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from callbacks.panels import overlay as overlay  # for all that draw

Colour = tuple[int, int, int]


class Pen(NamedTuple):
    """A line and the wider edge below it: together they are seen on film and on bone.

    Attributes:
        colour: of the line.
        width: of the line, pixels.
        edge: width of the edge, pixels; 0 for none.
        edge_colour: of the edge.
    """

    colour: Colour
    width: int
    edge: int = 0
    edge_colour: Colour = (0, 0, 0)

    def strokes(self) -> list[tuple[Colour, int]]:
        """Colour and width of each stroke, in the order in which they are drawn."""
        line = (self.colour, self.width)
        return [(self.edge_colour, self.edge), line] if self.edge else [line]


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
    """Lines around the nonzero parts of a mask ``(H, W)``, each ``(N, 1, 2)``, x before y.

    By default holes have lines too; ``cv2.RETR_EXTERNAL`` leaves them out.
    """
    return cv2.findContours(mask.astype(np.uint8), mode, cv2.CHAIN_APPROX_NONE)[0]


def draw_outline(
    picture: np.ndarray, lines: Sequence[np.ndarray], pen: Pen, shift: int = 0
) -> None:
    """Draw closed lines into a picture; with ``shift`` their points count in 1/2**shift px."""
    for colour, width in pen.strokes():
        cv2.polylines(picture, lines, True, colour, width, cv2.LINE_AA, shift)


def draw_peak(picture: np.ndarray, x: int, y: int, reach: tuple[int, int], pen: Pen) -> None:
    """Draw four ticks around a peak, ``reach`` px from it: the peak itself stays visible."""
    for colour, width in pen.strokes():
        for right, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            start, end = ((x + right * length, y + down * length) for length in reach)
            cv2.line(picture, start, end, colour, width, cv2.LINE_AA)


def encode(picture: np.ndarray, suffix: str = ".png", options: Sequence[int] = ()) -> bytes:
    """The file of a picture or a grey image ``(h, w)``."""
    done, content = cv2.imencode(suffix, picture, options)
    if not done:
        raise ValueError(f"OpenCV cannot encode an image of shape {picture.shape} as {suffix}")
    return content.tobytes()
