"""A radiograph with what the network made of it, for people: map, outline, peak and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from callbacks.panels import overlay

WARNING = "RESEARCH USE ONLY - NOT FOR DIAGNOSIS"
FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
# Height of a line of words at font scale 1, pixels, and the widest letter's share of it.
LINE = 32
GAP = 8
# Smallest font scale of words: below it they cannot be read.
LEAST = 0.35
TICKS = 64  # width of the numbers beside the colour bar, at font scale 1


class Shown(NamedTuple):
    """What is drawn.

    Attributes:
        image: The upright radiograph, uint8 ``(H, W)``.
        heat: Its map in [0, 1], float32 ``(H, W)``.
        threshold: What lies at or above it in the map is outlined.
        peak: x and y of the map's peak, pixels of the image; None: no cross.
        words: Lines below the picture, ASCII.
    """

    image: np.ndarray
    heat: np.ndarray
    threshold: float
    peak: tuple[int, int] | None
    words: Sequence[str]


def draw(shown: Shown, smallest: int, largest: int, beside: bool) -> np.ndarray:
    """Draw a radiograph under its map, and below it the words and the colours' meaning.

    Args:
        shown: What is drawn.
        smallest: Side in pixels that the longer side of the image is enlarged to.
        largest: Side that it is shrunk to.
        beside: Whether the bare radiograph stands left of it: colours hide what they mark.

    Returns:
        uint8 ``(h, w, 3)``, RGB.
    """
    height, width = shown.image.shape
    side = max(height, width)
    scale = min(max(side, smallest), largest) / side
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    grey = cv2.cvtColor(cv2.resize(shown.image, size, interpolation=method), cv2.COLOR_GRAY2BGR)
    heat = cv2.resize(shown.heat, size, interpolation=cv2.INTER_LINEAR)
    unit = max(1, round(max(size) / 500))  # thickness of lines, pixels
    marked = overlay(grey, heat)
    _outline(marked, heat >= shown.threshold, unit)
    if shown.peak is not None:
        _cross(marked, [round((value + 0.5) * scale - 0.5) for value in shown.peak], unit)
    parts = [grey, np.full((size[1], GAP, 3), 255, np.uint8), marked] if beside else [marked]
    lines = [*shown.words, WARNING]
    picture = _widened(np.hstack(parts), 2 * GAP + math.ceil(LEAST * _longest(lines)))
    words = _words(lines, picture.shape[1], shown.threshold, max(size))
    return np.ascontiguousarray(np.vstack([picture, words])[..., ::-1])


def png(image: np.ndarray) -> bytes:
    """Encode uint8 grey ``(H, W)`` or RGB ``(H, W, 3)``."""
    stored = image if image.ndim == 2 else image[..., ::-1]
    done, content = cv2.imencode(".png", stored)
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded")
    return content.tobytes()


def _outline(picture: np.ndarray, marked: np.ndarray, unit: int) -> None:
    """A white line with a black edge: seen on film and bone, by whoever sees which colours."""
    lines, _ = cv2.findContours(marked.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, lines, -1, BLACK, 3 * unit, cv2.LINE_AA)
    cv2.drawContours(picture, lines, -1, WHITE, unit, cv2.LINE_AA)


def _cross(picture: np.ndarray, place: Sequence[int], unit: int) -> None:
    """An open cross: the pixel that is meant stays free."""
    x, y = place
    for colour, thick in ((BLACK, 3 * unit), (WHITE, unit)):
        for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            near = x + across * 4 * unit, y + down * 4 * unit
            far = x + across * 12 * unit, y + down * 12 * unit
            cv2.line(picture, near, far, colour, thick, cv2.LINE_AA)


def _longest(lines: Sequence[str]) -> int:
    """Width of the longest line at font scale 1, pixels."""
    return max(int(cv2.getTextSize(line, FONT, 1.0, 2)[0][0]) for line in lines)


def _widened(picture: np.ndarray, least: int) -> np.ndarray:
    """A picture of at least ``least`` pixels' width: a narrow one has no room for words."""
    missing = max(0, least - picture.shape[1])
    return np.pad(picture, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))


def _words(lines: Sequence[str], width: int, threshold: float, side: int) -> np.ndarray:
    """A black strip of ``width`` with lines of words, and above them the colour bar."""
    size = min(max(side / 1000, 0.4), (width - 2 * GAP) / _longest(lines))
    step = max(1, round(LINE * size))
    strip = np.zeros((step * (len(lines) + 1) + 2 * GAP, width, 3), np.uint8)
    _bar(strip, threshold, size, step)
    for number, line in enumerate(lines):
        place = GAP, GAP + step * (number + 2) - step // 4
        cv2.putText(strip, line, place, FONT, size, WHITE, max(1, round(size * 1.5)), cv2.LINE_AA)
    return strip


def _bar(strip: np.ndarray, threshold: float, size: float, step: int) -> None:
    """What the colours mean: 0 to 1, the outline's value marked."""
    left, top = GAP + round(TICKS * size / 2), GAP + step // 4
    right = max(left + 2, min(strip.shape[1] - left, left + 8 * step))
    ramp = np.linspace(0, 1, right - left, dtype=np.float32)[None].repeat(step // 2, axis=0)
    strip[top : top + step // 2, left:right] = cv2.applyColorMap(
        (ramp * 255).astype(np.uint8), cv2.COLORMAP_INFERNO
    )
    mark = left + round(threshold * (right - left - 1))
    thick = max(1, round(size * 1.5))
    cv2.line(strip, (mark, top - step // 8), (mark, top + step // 2 + step // 8), BLACK, 3 * thick)
    cv2.line(strip, (mark, top - step // 8), (mark, top + step // 2 + step // 8), WHITE, thick)
    for text, place in (("0", left - round(TICKS * size / 2)), ("1", right + GAP // 2)):
        cv2.putText(strip, text, (place, top + step // 2), FONT, size, WHITE, thick, cv2.LINE_AA)
