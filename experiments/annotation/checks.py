"""What can be wrong with a mark: an ``EntryError`` keeps its image out, a note ("": none) warns."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.annotations.fields import check
from datamodules.annotations.marks import Mark, MarkedImage, Point
from datamodules.geometry import wrong_size
from datamodules.lesions import MOST, coverage

# Pixels that an outline may stand out of the image without a word: rounding, and thick pens.
SLACK = 2.0
# A loop of fewer pixels, or of a smaller share of the outline's area, is a slip of the hand.
LOOP_PIXELS, LOOP_SHARE = 4.0, 0.01
# Each side is held against each other one: this many take a second.
MAX_CORNERS = 5_000


def check_size(marked: MarkedImage, upright: tuple[int, int], path: Path) -> str:
    """Compare the size that a file states, if any, with the upright image's (height, width)."""
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(0x0112, 1)  # of EXIF, XMP or text
    except Exception:  # DICOM, or EXIF that Pillow cannot parse: nothing is applied
        orientation = 1
    stated, turned = marked.size or upright, upright[::-1]
    hint = ", not turned by 90 degrees" if stated == turned else ", not scaled"
    check(stated == upright, f"its size in the file {wrong_size(stated, upright)}{hint}")
    # The size tells whether a turn by 90 degrees was applied, but nothing of the others.
    is_clear = marked.size and upright != turned and orientation > 4
    if is_clear or orientation not in range(2, 9):
        return ""
    return f"its EXIF orientation is {orientation}: the file does not tell if the tool applied it"


def check_mark(mark: Mark, size: tuple[int, int]) -> str:
    """Check one mark on an image of ``size`` (height, width); runs are the readers' to check.

    At most half of an outline's bounding box may lie outside; it is cut off at the image's edge.
    """
    corners, (height, width) = mark.outline, size
    if mark.runs is not None:
        return ""
    is_few = len(corners) <= MAX_CORNERS
    check(is_few, f"an outline of {len(corners):,} points; simplify it to {MAX_CORNERS:,}")
    (left, top), (right, bottom) = np.min(corners, axis=0), np.max(corners, axis=0)
    is_tiny = left >= 0 <= top and right <= max(1, width / 100) and bottom <= max(1, height / 100)
    what = "it lies in the first hundredth of the image: are its coordinates shares where pixels or"
    check(not is_tiny, f"{what} percent are expected? convert them, or export again")
    # Sides of no length count as a pixel: a hairline along an edge is no point outside.
    inner = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
    inside = max(inner[0], 1.0) * max(inner[1], 1.0)
    whole = max(right - left, 1.0) * max(bottom - top, 1.0)
    out = max(-left, -top, right - width, bottom - height)
    what = f"most of it lies outside the {width}x{height} px image: it reaches from ({left:.0f}, "
    what += f"{top:.0f}) to ({right:.0f}, {bottom:.0f}); annotate the original"
    check(min(inner) >= 0 and (out <= SLACK or inside >= 0.5 * whole), what)
    place = crossing(corners)
    what = "its outline crosses itself near ({:.0f}, {:.0f}): what lies inside is unclear; draw it "
    check(place is None, f"{what}again, two lesions as two outlines".format(*place or (0, 0)))
    return f"cut off at the image's edge, {out:.0f} px beyond it" if out > SLACK else ""


def check_mask(mask: np.ndarray) -> str:
    """Check a whole mask (H, W), 0 or 255: is it empty, full, or does it look inverted?"""
    check(mask.any(), "its mask is empty; mark the lesion, or take the entry out")
    share, is_inverted = coverage(mask)
    what = f"{share * 100:.1f} % of the image and most of its border are marked: is the mask "
    check(not is_inverted, f"{what}inverted? mark the lesion alone, or take the entry out")
    return f"{share * 100:.0f} % of the image is marked" if share > MOST else ""


def crossing(outline: Sequence[Point]) -> Point | None:
    """Where a closed outline truly crosses itself, if it does.

    Corners that touch a side do not cross, nor do sides that run back over one another (holes are
    often cut in so), nor does a tiny loop.
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
