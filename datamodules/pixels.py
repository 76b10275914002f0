"""What all decoders share: limits of size, JPEG without guesses, the window of 16-bit images."""

import re
from pathlib import Path

import numpy as np
import simplejpeg

from datamodules.index import DataError

JPEG = b"\xff\xd8\xff"
# A scan's header and its last fields, where some phones write 0, 0, 0: all others mean 0, 63, 0.
SCAN = re.compile(rb"(\xff\xda\0(?:\x08\x01..|\x0c\x03.{6}|\x0e\x04.{8}))\0\0\0", re.DOTALL)
# Larger files are refused before they are read, images of more pixels before they are decoded: a
# header of a hundred bytes may claim gigabytes. Long films stitched together stay below both.
MOST_BYTES, MOST_PIXELS = 2**28, 2**26
# Share of the pixels that a 16-bit image may lose at either end of its range to outliers; and to
# markers and labels that stand alone there and would darken all else.
WINDOW_TAIL, MARKERS = 0.001, 0.06


def damaged(path: Path, reason: str, what: str = "image") -> DataError:
    """The error of a file that is not as it was written."""
    return DataError(f"{path}: damaged {what} ({reason}). Fix: fetch it again")


def check_size(size: tuple[int, int], path: Path) -> None:
    """Raise a DataError where the width and height that a header claims cannot be an image's."""
    width, height = size
    if not 0 < width * height <= MOST_PIXELS:
        claim = f"its header claims {width:,} x {height:,} pixels, and at most {MOST_PIXELS:,} fit"
        raise damaged(path, claim)


def strict_jpeg(data: bytes) -> np.ndarray:
    """Grey of a JPEG, ``(H, W)``; a ValueError where libjpeg only warns, and fills it with grey."""
    try:
        return simplejpeg.decode_jpeg(data, "GRAY", strict=True)[..., 0]
    except ValueError:
        data = SCAN.sub(b"\\1\0\x3f\0", data)
        return simplejpeg.decode_jpeg(data, "GRAY", strict=True)[..., 0]


def window_16bit(pixels: np.ndarray) -> tuple[np.ndarray, str]:
    """Scale uint16 ``(H, W)`` to uint8 by :func:`ramp_16bit`, with its note; constant gives 0."""
    ramp, note = ramp_16bit(np.bincount(pixels.reshape(-1), minlength=1 << 16))
    return ramp[pixels], note


def ramp_16bit(counts: np.ndarray) -> tuple[np.ndarray, str]:
    """What an image's 16-bit values become: its 0.1 % quantile 0, its 99.9 % quantile 255.

    ``counts`` ``(65536,)`` are the pixels of each value. Where a few (a marker) stand alone so far
    off that the gap takes most of the window, it ends where the others end, with a note, else "".
    """
    share = np.cumsum(counts) / counts.sum()
    low = int(np.searchsorted(share, WINDOW_TAIL, side="right"))
    high = int(np.searchsorted(share, 1 - WINDOW_TAIL, side="left"))
    if high <= low:  # nearly all pixels are equal: fall back to the full stored range
        low, high = (int(end) for end in np.flatnonzero(counts)[[0, -1]])
    top, bottom = _end_of_body(counts, high), 65535 - _end_of_body(counts[::-1], 65535 - low)
    alone = 1 - counts[bottom : top + 1].sum() / counts.sum()
    note = f"{alone:.1%} of its pixels stand far from all others, as a marker's do: black or white"
    ramp = (np.arange(1 << 16) - bottom) * (255 / max(top - bottom, 1))
    ramp = np.clip(np.rint(ramp), 0, 255).astype(np.uint8)
    return ramp, "" if (bottom, top) == (low, high) else note


def _end_of_body(counts: np.ndarray, high: int) -> int:
    """Where a window up to ``high`` ends without what stands alone at its top.

    Metal and dense bone may be as bright, but values lead up to them, or they have many themselves.
    """
    below = np.cumsum(counts)
    # The other end may have markers as well: its window's end is not asked. A frame has one value.
    few = MARKERS * below[-1]
    low, start = np.searchsorted(below, (few, below[-1] - few - counts[high]))
    reach = (high - low) // 16
    ends = np.arange(start, (low + high) // 2)  # above: the gap would not take most
    # A gap: nearly all of what lies above lies farther above. Smooth edges of a marker lie in it.
    ends = ends[below[ends + reach] - below[ends] < 0.05 * np.minimum(below[-1] - below[ends], few)]
    if len(ends):
        body, alone = counts[: ends[0] + 1], counts[ends[0] + 1 : high + 1]
        parts = sorted(int(part.sum()) for part in np.array_split(alone, 32))
        is_picture = np.sort(body)[:-16].sum() > alone.sum()  # no mask, of few values
        if is_picture and sum(parts[-3:]) >= alone.sum() / 2:
            return int(np.searchsorted(below, (1 - WINDOW_TAIL) * below[ends[0]]))
    return high
