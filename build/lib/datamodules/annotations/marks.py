"""What annotation files say, in one form: images, what is marked on them, and what is wrong.

Every reader of this folder turns files of one format into a :class:`Marking`. Coordinates are in
pixels of the upright image, x to the right and y down, (0, 0) the outer corner of the first pixel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

# A larger image is a mistake in the file, not a radiograph, and would only eat memory.
MAX_PIXELS = 1 << 28
# Coordinates beyond this are a mistake of scale; those a little outside the image are clipped.
MAX_COORDINATE = 1 << 17

Point = tuple[float, float]


class Mark(NamedTuple):
    """One thing that somebody marked on an image.

    Attributes:
        entry: Which entry of the file says so, for messages: "annotation 12".
        outline: Corners of a polygon, at least three; a box has four, an ellipse many. Empty where
            ``runs`` is given.
        runs: Instead of an outline, a mask as pycocotools encodes it: ``{"size": [H, W], "counts":
            bytes}``. Masks would fill the memory, their runs do not.
        labels: Names of its classes; none where the file has none.
        rater: Who marked it, "" where the file does not say.
        is_box: Whether it is only a box around the lesion, weaker than its outline.
    """

    entry: str
    outline: tuple[Point, ...] = ()
    runs: dict[str, Any] | None = None
    labels: tuple[str, ...] = ()
    rater: str = ""
    is_box: bool = False


class MarkedImage(NamedTuple):
    """What a file says of one image.

    Attributes:
        name: The image as the file names it: a path, or what a tool made of it.
        size: ``(height, width)`` that the file states, pixels; None where it does not.
        marks: What is marked on it; empty where the file lists the image without any.
        where: The file, and the place in it, for messages.
        in_shares: Outlines are shares of width and height (YOLO), to be scaled by the image's size.
        also: Other names that the file gives the image, its own file name among them: where they
            mean another image than ``name`` does, nobody can tell whose the marks are.
        remedy: What to do where ``size`` is not the image's, for a format that has a way out.
        note: What a person should know of the file, such as what its tool leaves out.
    """

    name: str
    size: tuple[int, int] | None
    marks: list[Mark]
    where: str
    in_shares: bool = False
    also: tuple[str, ...] = ()
    remedy: str = ""
    note: str = ""


class Mistake(NamedTuple):
    """One thing that is wrong.

    Attributes:
        where: The file, and the entry in it.
        what: What is wrong, with the remedy.
        images: Names of the images that it may concern, as in :attr:`MarkedImage.name`; nothing
            of these is taken.
        labels: Names of the classes of what is wrong, as in :attr:`Mark.labels`.
        is_file: Whether a whole file cannot be read, so that it marks images nobody knows of.
    """

    where: str
    what: str
    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    is_file: bool = False


class Marking(NamedTuple):
    """All that a source says; entries that are wrong are left out and listed."""

    images: list[MarkedImage]
    mistakes: list[Mistake]


def draw(marks: Iterable[Mark], height: int, width: int) -> np.ndarray:
    """Draw marks into one mask, uint8 ``(H, W)``, 0 background, 255 marked; overlaps add up.

    The rule is that of Pillow's ``ImageDraw.polygon`` with fill and outline, which LabelMe draws
    by: what the polygon encloses, and the line of pixels along its outline, so that a hairline
    fracture outlined thinner than a pixel does not vanish. Corners lose what arithmetic adds, or
    3.9999999 would fall into the pixel before. What lies outside the image is cut off.

    Raises:
        ValueError: The runs of a mark are of another size.
    """
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    joined = None
    for mark in marks:
        if mark.runs is None:
            corners = [(round(x, 4), round(y, 4)) for x, y in mark.outline]
            pen.polygon(corners, fill=255, outline=255)
        elif list(mark.runs["size"]) == [height, width]:
            # One by one, and before they become pixels: a brush may leave thousands of strokes.
            joined = mark.runs if joined is None else rle.merge([joined, mark.runs])
        else:
            raise ValueError(f"{mark.entry}: a mask of {mark.runs['size']}, not {[height, width]}")
    drawn = np.array(canvas)
    if joined is not None:
        drawn |= rle.decode(joined) * np.uint8(255)
    return drawn


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Runs of a mask ``(H, W)`` whose marked pixels are not 0, for :attr:`Mark.runs`."""
    return rle.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
