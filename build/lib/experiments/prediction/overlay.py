"""A radiograph with what the network made of it, for people: map, outline, peak and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from experiments.drawing import contours, draw_outline, draw_peak, overlay, resize

WARNING = "RESEARCH USE ONLY - NOT FOR DIAGNOSIS"
FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
# At font scale 1, pixels: the height of a line of words; the width of a number beside the bar.
LINE, NUMBER = 32, 64
GAP = 8  # pixels
LEAST = 0.35  # font scale below which words cannot be read


class Overlay(NamedTuple):
    """What is drawn of an image."""

    image: np.ndarray  # the upright radiograph, uint8 (H, W)
    heat: np.ndarray  # its map in [0, 1], float32 (H, W)
    threshold: float  # what reaches it in the map is outlined
    peak: tuple[int, int] | None  # x and y of the map's peak in the image; None: no cross
    words: Sequence[str]  # lines below the picture, ASCII


def draw(shown: Overlay, smallest: int, largest: int, beside: bool) -> np.ndarray:
    """Draw a radiograph under its map, with words and the meaning of the colours below; BGR.

    The image's longer side is brought to between ``smallest`` and ``largest`` pixels. With
    ``beside`` the bare radiograph stands to the left: colours hide what they mark.
    """
    bare = cv2.cvtColor(resize(shown.image, smallest, largest), cv2.COLOR_GRAY2BGR)
    heat = cv2.resize(shown.heat, bare.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    side = max(heat.shape)
    unit = max(1, round(side / 500))  # thickness of lines, pixels
    strokes, marked = ((BLACK, 3 * unit), (WHITE, unit)), overlay(bare, heat)
    draw_outline(marked, contours(heat >= shown.threshold), strokes)
    if shown.peak is not None:
        scale = side / max(shown.image.shape)
        x, y = (round((value + 0.5) * scale - 0.5) for value in shown.peak)
        draw_peak(marked, x, y, (4 * unit, 12 * unit), strokes)
    parts = [bare, np.full((len(bare), GAP, 3), 255, np.uint8), marked] if beside else [marked]
    picture, lines = np.hstack(parts), [*shown.words, WARNING]
    # A narrow picture is widened: it has no room for words.
    longest = max(int(cv2.getTextSize(line, FONT, 1.0, 2)[0][0]) for line in lines)
    missing = max(0, 2 * GAP + math.ceil(LEAST * longest) - picture.shape[1])
    picture = np.pad(picture, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))
    font_scale = min(max(side / 1000, 0.4), (picture.shape[1] - 2 * GAP) / longest)
    return np.vstack([picture, _words(lines, picture.shape[1], shown.threshold, font_scale)])


def _words(lines: Sequence[str], width: int, threshold: float, size: float) -> np.ndarray:
    """A black strip: the colour bar from 0 to 1, the threshold marked, and lines of words."""
    step, thick = max(1, round(LINE * size)), max(1, round(size * 1.5))
    strip = np.zeros((step * (len(lines) + 1) + 2 * GAP, width, 3), np.uint8)
    left, top, bottom = GAP + round(NUMBER * size / 2), GAP + step // 4, GAP + step // 4 + step // 2
    right = max(left + 2, min(width - left, left + 8 * step))
    ramp = np.linspace(0, 255, right - left, dtype=np.float32).astype(np.uint8)
    strip[top:bottom, left:right] = cv2.applyColorMap(ramp[None], cv2.COLORMAP_INFERNO)
    mark = left + round(threshold * (right - left - 1))
    for colour, across in ((BLACK, 3 * thick), (WHITE, thick)):
        cv2.line(strip, (mark, top - step // 8), (mark, bottom + step // 8), colour, across)
    rows = [GAP + step * (number + 2) - step // 4 for number in range(len(lines))]
    texts = [("0", GAP, bottom), ("1", right + GAP // 2, bottom)]
    for text, x, y in (*texts, *((line, GAP, y) for line, y in zip(lines, rows, strict=True))):
        cv2.putText(strip, text, (x, y), FONT, size, WHITE, thick, cv2.LINE_AA)
    return strip
