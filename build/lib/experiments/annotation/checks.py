"""What can be wrong with what is marked on an image, each found by a pure function.

A fault keeps the image out; a note is told and the image is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.annotations.marks import Mark, Point

# EXIF orientations that swap width and height.
_SWAPPED = (5, 6, 7, 8)
# Pixels that an outline may stand out of the image without a word: rounding, and thick pens.
SLACK = 2.0
# A loop of fewer pixels, or of a smaller share of the outline's area, is a slip of the hand.
LOOP_PIXELS, LOOP_SHARE = 4.0, 0.01
# Each side is held against each other one: this many take a second.
MAX_CORNERS = 5_000
# A larger share of an image is hardly a lesion's.
MOST, NEARLY_ALL = 0.5, 0.95


def check_size(
    stated: tuple[int, int] | None, upright: tuple[int, int], path: Path
) -> tuple[str, str]:
    """Compare the size that a file states with the upright image's own.

    Args:
        stated: ``(height, width)``, pixels; None where the file does not say.
        upright: The image's, as it is decoded.
        path: The image, readable.

    Returns:
        A fault and a note, "" each where there is none.
    """
    orientation, stored = orientation_of(path)
    turned = upright[::-1]
    if stated is None or tuple(stated) == upright:
        # The size tells whether a turn by 90 degrees was applied, but nothing of the others.
        hidden = orientation not in (1, *_SWAPPED) or (orientation != 1 and upright == turned)
        if hidden or (stated is None and orientation != 1):
            return "", (
                f"its XMP or EXIF orientation is {orientation}, and the file does not tell whether "
                "the tool applied it"
            )
        return "", ""
    if tuple(stated) == turned and orientation in _SWAPPED:
        was_raw = stored != upright
        frame, did = ("raw", "ignored the EXIF") if was_raw else ("turned", "applied XMP's")
        return (
            f"it was annotated in the {frame} frame, {show_size(stated)} px: the tool {did} "
            f"orientation {orientation}; as it is decoded the image is {show_size(upright)} px "
            "(width x height); annotate a copy whose pixels are turned",
            "",
        )
    remedy = "it seems turned by 90 degrees: " if tuple(stated) == turned else ""
    return (
        f"it is {show_size(stated)} px in the file, the upright image {show_size(upright)} px "
        f"(width x height); {remedy}annotate the original, neither scaled nor turned",
        "",
    )


def check_mark(mark: Mark, size: tuple[int, int]) -> tuple[str, str]:
    """Find what is wrong with one mark on an image of ``size`` (height, width).

    Returns:
        A fault and a note, "" each where there is none. An outline of which less than half lies
        outside is cut off at the image's edge, with a note.
    """
    if mark.runs is not None:
        if tuple(mark.runs["size"]) != tuple(size):
            return (
                f"its mask is {show_size(mark.runs['size'])} px, the upright image "
                f"{show_size(size)} px (width x height); draw it on the original",
                "",
            )
        return "", ""
    if len(mark.outline) < 3:
        return f"an outline of {len(mark.outline)} points; three or more are needed", ""
    if len(mark.outline) > MAX_CORNERS:
        return f"an outline of {len(mark.outline):,} points; simplify it to {MAX_CORNERS:,}", ""
    height, width = size
    if all(
        0 <= x <= max(1, width / 100) and 0 <= y <= max(1, height / 100) for x, y in mark.outline
    ):
        return (
            "it lies in the first hundredth of the image: are its coordinates shares where pixels "
            "or percent are expected? convert them, or export again"
        ), ""
    fault, note = _check_inside(mark.outline, size)
    if not fault and (place := crossing(mark.outline)) is not None:
        fault = (
            f"its outline crosses itself near ({place[0]:.0f}, {place[1]:.0f}): what lies inside "
            "is unclear; draw it again, two lesions as two outlines"
        )
    return fault, note


def is_rectangle(outline: Sequence[Point]) -> bool:
    """Whether an outline is a box written as its corners, turned or not; no hand draws one."""
    corners = np.asarray(outline[:-1] if outline[:1] == outline[4:] else outline, float)
    if corners.shape != (4, 2):
        return False
    a, b, c, d = corners
    # Two diagonals of one middle and one length.
    lengths = math.dist(a, c), math.dist(b, d)
    return math.dist(a + c, b + d) <= 0.2 and abs(lengths[0] - lengths[1]) <= 0.2


def check_mask(mask: np.ndarray) -> tuple[str, str]:
    """What is wrong with a whole mask (H, W), 0 or 255: a fault and a note, "" each.

    It is empty, or marks all, or looks inverted: most of the image and of its border are marked.
    """
    if not mask.any():
        return "its mask is empty; mark the lesion, or take the entry out", ""
    share = float((mask > 0).mean())
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if share > NEARLY_ALL:
        said = "the whole image is marked"
    elif share > MOST and (border > 0).mean() > MOST:
        said = f"{share:.1%} of the image and most of its border are marked".replace("%", " %")
    else:
        return "", f"{share:.0%} of the image is marked".replace("%", " %") if share > MOST else ""
    return f"{said}: is the mask inverted? mark the lesion alone, or take the entry out", ""


def crossing(outline: Sequence[Point]) -> Point | None:
    """Where a closed outline truly crosses itself, if it does.

    Corners that touch a side do not cross, nor do sides that run back over one another (holes are
    often cut in so). A crossing that only makes a tiny loop (:data:`LOOP_PIXELS`,
    :data:`LOOP_SHARE`) is a slip of the hand and passes.
    """
    corners = np.asarray(outline, float)
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    origin = corners.min(axis=0, initial=np.inf)
    starts = corners - origin  # products of small numbers round less
    ends = np.roll(starts, -1, axis=0)
    # Twice the area swept, seen from the origin, up to each corner.
    swept = np.concatenate([[0.0], np.cumsum(_cross(starts, ends))])
    for first in range(len(starts) - 2):
        a, b, c, d = starts[first], ends[first], starts[first + 2 :], ends[first + 2 :]
        parted = np.sign(_cross(b - a, c - a)) * np.sign(_cross(b - a, d - a)) < 0
        parted &= np.sign(_cross(d - c, a - c)) * np.sign(_cross(d - c, b - c)) < 0
        for second in np.flatnonzero(parted) + first + 2:
            c, step = starts[second], ends[second] - starts[second]
            meet = a + _cross(c - a, step) / _cross(b - a, step) * (b - a)
            # The two loops into which the sides that meet part the outline.
            loop = swept[second] - swept[first + 1] + _cross(c, meet) + _cross(meet, b)
            small, large = sorted(np.abs([loop, swept[-1] - loop]) / 2)
            if small > max(LOOP_PIXELS, LOOP_SHARE * large):
                return float(meet[0] + origin[0]), float(meet[1] + origin[1])
    return None


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def orientation_of(path: Path) -> tuple[int, tuple[int, int]]:
    """Orientation that a file holds (of EXIF, XMP or text; 1: none), and its stored size."""
    try:
        with Image.open(path) as image:
            found = image.getexif().get(0x0112, 1)
            return found if found in range(1, 9) else 1, image.size[::-1]
    except Exception:  # DICOM, or EXIF that Pillow cannot parse: nothing is applied
        return 1, (0, 0)


def show_size(size: Sequence[int]) -> str:
    """``(height, width)`` as people write it: width x height."""
    return f"{size[1]}x{size[0]}"


def _check_inside(outline: Sequence[Point], size: tuple[int, int]) -> tuple[str, str]:
    height, width = size
    (left, top), (right, bottom) = np.min(outline, axis=0), np.max(outline, axis=0)
    inner_x = min(right, width) - max(left, 0)
    inner_y = min(bottom, height) - max(top, 0)
    out = max(-left, -top, right - width, bottom - height)
    reach = f"it reaches from ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f})"
    if inner_x < 0 or inner_y < 0:
        return f"it lies outside the {show_size(size)} px image: {reach}; draw it again", ""
    # Sides of no length count as a pixel: a hairline along an edge is no point outside.
    inside = max(inner_x, 1.0) * max(inner_y, 1.0)
    if out > SLACK and inside < 0.5 * max(right - left, 1.0) * max(bottom - top, 1.0):
        return (
            f"most of it lies outside the {show_size(size)} px image: {reach}; was it drawn on a "
            "scaled or turned copy? annotate the original",
            "",
        )
    return "", f"cut off at the image's edge, {out:.0f} px beyond it" if out > SLACK else ""
