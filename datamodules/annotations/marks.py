"""The common form of all annotation formats: images, what is marked on them, and mistakes.

Coordinates are pixels of the upright image, x to the right and y down, (0, 0) the outer corner of
the first pixel.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

Point = tuple[float, float]


class Mark(NamedTuple):
    """One thing that somebody marked on an image: an outline, or runs."""

    entry: str = ""  # which entry of the file, for messages: "annotation 12"
    outline: tuple[Point, ...] = ()  # three corners or more: a box has four, an ellipse many
    # A mask as pycocotools encodes it, {"size": [H, W], "counts": bytes}: pixels fill the memory.
    runs: dict[str, Any] | None = None
    labels: tuple[str, ...] = ()  # names of its classes; none where the file has none
    rater: str = ""  # who marked it, "" where the file does not tell
    is_box: bool = False  # only a box around the lesion, weaker than its outline


class MarkedImage(NamedTuple):
    """An image that a file lists, and what is marked on it."""

    name: str  # as the file names it: a path, or what a tool made of it
    size: tuple[int, int] | None  # (height, width) that the file states, pixels
    marks: list[Mark]
    where: str  # the file and the place in it, for messages
    in_shares: bool = False  # outlines are shares of width and height (YOLO)
    # Other names that the file gives the image, its own file name among them: where they mean
    # another image than ``name`` does, nobody can tell whose the marks are.
    also: tuple[str, ...] = ()
    note: str = ""  # what a person should know of the file, such as what its tool leaves out


class Mistake(NamedTuple):
    """One thing that is wrong; nothing is taken of the images that it may concern."""

    where: str  # the file, and the entry in it
    what: str  # with the fix
    images: tuple[str, ...] = ()  # names as in MarkedImage.name
    labels: tuple[str, ...] = ()  # classes as in Mark.labels
    is_file: bool = False  # a whole file cannot be read: it may mark images that nobody knows


class Marking(NamedTuple):
    """The content of a source; entries that are wrong are left out and listed."""

    images: list[MarkedImage]
    mistakes: list[Mistake]


def draw(marks: Iterable[Mark], height: int, width: int) -> np.ndarray:
    """Draw marks into one mask, uint8 ``(H, W)``, 0 background, 255 marked; overlaps add up.

    The rule is that of Pillow's ``ImageDraw.polygon`` with fill and outline, which LabelMe draws
    by: what the polygon encloses, and the line of pixels along its outline, so that a hairline
    fracture outlined thinner than a pixel does not vanish. What lies outside the image is cut off.
    """
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    joined = None
    for mark in marks:
        if mark.runs is None:
            # Corners lose what arithmetic adds, or 3.9999999 would fall into the pixel before.
            corners = [(round(x, 4), round(y, 4)) for x, y in mark.outline]
            pen.polygon(corners, fill=255, outline=255)
        else:
            # One by one, and before they become pixels: a brush may leave thousands of strokes.
            joined = mark.runs if joined is None else rle.merge([joined, mark.runs])
    mask = np.array(canvas)
    return mask if joined is None else mask | rle.decode(joined) * np.uint8(255)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Runs of a mask ``(H, W)`` whose marked pixels are not 0, for :attr:`Mark.runs`."""
    return rle.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
