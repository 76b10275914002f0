"""Decode one radiograph to upright 8-bit grey, or say what is wrong with its file."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from datamodules.index import DataError

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
# Warnings of libjpeg that cost no pixel: the field that is wrong, and how it would be right.
HARMLESS = {
    "JFIF revision": (rb"(JFIF\0).", b"\\g<1>\1"),
    "SOS parameters": (rb"(?s)(\xff\xda\0(?:\x08\x01..|\x0c\x03.{6}))...", b"\\1\0?\0"),
}
DICOM, DICOM_AT = b"DICM", 128
# Without that preamble: the first data element, of group 2 (how the file is written) or 8 (what it
# is), then its representation, or a length that such an element may have.
BARE_DICOM = re.compile(
    rb"(\x02\0[\0\x01\x02\x10]\0|\x08\0..)([A-Z]{2}|[\0-\x80]\0\0\0|\xff{4})|\0\x08..[A-Z]{2}", re.S
)
# What image files of a data set are called; inside, the content decides.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Share of the pixels that a 16-bit image may lose at either end of its range to outliers; and to
# markers and labels that stand alone there and would darken all else.
WINDOW_TAIL, MARKERS = 0.001, 0.06
# Larger files are refused before they are read, images of more pixels before they are decoded: a
# header of a hundred bytes may claim gigabytes. Long films stitched together stay below both.
MOST_BYTES, MOST_PIXELS = 2**28, 2**26


def decode(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or DICOM as it should be looked at: grey, 8 bit, upright.

    Grey, RGB, palette and CMYK files are reduced to grey; an alpha channel is ignored; an EXIF
    orientation is applied. A 16-bit image is windowed by its own stored values, so that 12 bits
    stored in 16 fill the range: :func:`ramp_16bit`. DICOM: :func:`datamodules.dicom.decode_dicom`.

    The file is read once and decoded from memory, the decoder runs without Python's lock: call it
    from as many threads as there are cores.

    Args:
        path: Image file; the suffix does not matter, the content decides.

    Returns:
        uint8 ``(H, W)``, 0 to 255.

    Raises:
        DataError: The file is missing, empty, cut short, of zero size, far too large, damaged, or
            neither PNG, JPEG nor DICOM.
    """
    return decode_noted(read_content(path), path)[0]


def decode_noted(data: bytes, path: Path) -> tuple[np.ndarray, str]:
    """Decode the content of a file as :func:`decode` does; ``path`` is for messages.

    Returns:
        The pixels, and a note for people where they are not shown as usual, else "".
    """
    if is_dicom(data):
        from datamodules.dicom import decode_dicom  # seldom needed, and it imports this file

        return decode_dicom(data, path)
    if data.startswith(JPEG):
        try:
            check_size(simplejpeg.decode_jpeg_header(data, strict=False)[1::-1], path)
            grey = strict_jpeg(data)
        except DataError:
            raise
        except (KeyError, ValueError) as error:
            if re.search("precision|conversion|arithmetic", str(error)):
                raise DataError(f"{path}: {error}; convert it to PNG") from error
            raise _damaged(path, f"the JPEG is cut short or damaged: {error}") from error
        if b"Exif\0\0" not in data:
            return grey, ""
    elif data.startswith(PNG):
        check_png(data, path)
    else:
        raise DataError(
            f"{path}: neither a PNG nor a JPEG file nor DICOM, whatever its name says; convert it "
            "to PNG, or take it out of the data"
        )
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH  # 16 bit stays 16 bit; EXIF is applied
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # e.g. more pixels than OpenCV accepts
        raise _damaged(path, str(error).strip()) from error
    if pixels is None or pixels.size == 0:
        raise _damaged(path, "its content cannot be decoded")
    return (pixels, "") if pixels.dtype == np.uint8 else window_16bit(pixels)


def window_16bit(pixels: np.ndarray) -> tuple[np.ndarray, str]:
    """Scale uint16 ``(H, W)`` to uint8 by :func:`ramp_16bit`, with its note; constant gives 0."""
    # In parts: NumPy turns what it counts and looks up into 64 bits, eight bytes a pixel.
    parts = np.array_split(pixels, max(1, pixels.size >> 20))
    counts = [np.bincount(part.reshape(-1), minlength=1 << 16) for part in parts]
    ramp, note = ramp_16bit(np.sum(counts, axis=0))
    return np.concatenate([ramp[part] for part in parts]), note


def ramp_16bit(counts: np.ndarray) -> tuple[np.ndarray, str]:
    """What an image's 16-bit values become: its 0.1 % quantile 0, its 99.9 % quantile 255.

    Where a few pixels stand alone at one end (a marker, a label), so far that the gap takes most of
    that window, it ends where the others end.

    Args:
        counts: How many pixels have each value, ``(65536,)``; at least one pixel.

    Returns:
        uint8 ``(65536,)``, and a note for people where pixels stand alone, else "".
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


def upright_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` of what :func:`decode` gives: it decodes, and raises the same errors."""
    height, width = decode(path).shape
    return height, width


def is_opaque(path: Path) -> bool:
    """Whether no pixel of a file that ``decode`` reads is see-through: ``decode`` ignores alpha.

    Raises:
        DataError: Pillow cannot read it.
    """
    try:
        with Image.open(path) as image:
            if not image.has_transparency_data:
                return True
            return bool((np.array(image.convert("RGBA"))[..., 3] == 255).all())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(path, str(error)) from error


def check_png(data: bytes, path: Path) -> None:
    """Walk the chunks of a PNG file's content (OpenCV would print or guess).

    Raises:
        DataError: A chunk is missing or its checksum wrong, or the image's size is zero.
    """
    view, place = memoryview(data), len(PNG)
    while place + 12 <= len(data):
        length = int.from_bytes(view[place : place + 4], "big")
        kind, end = bytes(view[place + 4 : place + 8]), place + 12 + length
        if end > len(data):
            break
        stored = int.from_bytes(view[end - 4 : end], "big")
        if zlib.crc32(view[place + 4 : end - 4]) != stored:
            raise _damaged(path, f"checksum of its {kind.decode('latin1')} chunk is wrong")
        if kind == b"IHDR":
            check_size(struct.unpack(">2I", view[place + 8 : place + 16]), path)
        if kind == b"IEND":
            return
        place = end
    raise _damaged(path, "the PNG is cut short")


def strict_jpeg(data: bytes) -> np.ndarray:
    """Grey of a JPEG, ``(H, W)``; a ValueError where libjpeg only warns, and fills it with grey."""
    try:
        return simplejpeg.decode_jpeg(data, "GRAY", strict=True)[..., 0]
    except ValueError as error:
        for warning, (field, right) in HARMLESS.items():
            if warning in str(error) and (mended := re.sub(field, right, data)) != data:
                return strict_jpeg(mended)  # it may hide others
        raise


def check_size(size: tuple[int, int], path: Path) -> None:
    """Raise a DataError where the width and height that a header claims cannot be an image's."""
    width, height = size
    if not width * height:
        raise _damaged(path, "its size is zero")
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{path}: its header claims {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}; "
            "make the image smaller, or fetch it again if it should be"
        )


def is_dicom(data: bytes) -> bool:
    """Whether a file's content, or its first 132 bytes, is DICOM's, with or without a preamble."""
    whole = data[DICOM_AT : DICOM_AT + len(DICOM)] == DICOM
    return whole or BARE_DICOM.match(data) is not None


def read_content(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        DataError: It is missing, empty, cannot be read or has more than ``MOST_BYTES``.
    """
    try:
        if (size := os.stat(path).st_size) > MOST_BYTES:
            raise DataError(
                f"{path}: has {size:,} bytes, more than {MOST_BYTES:,}; make the image smaller"
            )
        data = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path and rights") from error
    if not data:
        raise DataError(f"{path}: the file is empty; fetch it again")
    return data


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: damaged image ({reason}); fetch it again")
