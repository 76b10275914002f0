"""Decode one radiograph to upright 8-bit grey, or say what is wrong with its file."""

from __future__ import annotations

import io
import math
import os
import re
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from datamodules.index import DataError

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
DICOM, DICOM_AT = b"DICM", 128
# Without that preamble: the first data element, of group 2 (how the file is written) or 8 (what it
# is), then its representation, or a length that such an element may have.
BARE_DICOM = re.compile(
    rb"(\x02\0[\0\x01\x02\x10]\0|\x08\0..)([A-Z]{2}|[\0-\x80]\0\0\0|\xff{4})|\0\x08..[A-Z]{2}", re.S
)
# What image files of a data set are called; inside, the content decides.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Share of the pixels that a 16-bit image may lose at either end of its range to outliers.
WINDOW_TAIL = 0.001
# Larger files are refused before they are read, images of more pixels before they are decoded: a
# header of a hundred bytes may claim gigabytes. Long films stitched together stay below both.
MOST_BYTES, MOST_PIXELS = 2**28, 2**26
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def decode(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or DICOM as it should be looked at: grey, 8 bit, upright.

    Grey, RGB, palette and CMYK files are reduced to grey; an alpha channel is ignored; an EXIF
    orientation is applied. A 16-bit image is windowed by its own stored values: the 0.1 % quantile
    becomes 0, the 99.9 % quantile 255, so that 12 bits stored in 16 fill the range. DICOM:
    :func:`datamodules.dicom.decode_dicom`.

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
    return decode_content(read_content(path), path)


def decode_content(data: bytes, path: Path) -> np.ndarray:
    """Decode the content of a file as :func:`decode` does; ``path`` is for messages."""
    if is_dicom(data):
        from datamodules.dicom import decode_dicom  # seldom needed, and it imports this file

        return decode_dicom(data, path)[0]
    if data.startswith(JPEG):
        check_size(jpeg_size(data), path)
        if not data[-64:].rstrip(b"\0\r\n").endswith(JPEG_END):
            return _decode_unended_jpeg(data, path)
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
    return pixels if pixels.dtype == np.uint8 else window_16bit(pixels)


def window_16bit(pixels: np.ndarray) -> np.ndarray:
    """Scale uint16 ``(H, W)`` to uint8 between its 0.1 % and 99.9 % quantiles; constant gives 0."""
    # In parts: NumPy turns what it counts and looks up into 64 bits, eight bytes a pixel.
    parts = np.array_split(pixels, max(1, pixels.size >> 20))
    counts = [np.bincount(part.reshape(-1), minlength=1 << 16) for part in parts]
    ramp = ramp_16bit(np.sum(counts, axis=0))
    return np.concatenate([ramp[part] for part in parts])


def ramp_16bit(counts: np.ndarray) -> np.ndarray:
    """What :func:`window_16bit` makes of each 16-bit value.

    Args:
        counts: How many pixels have it, ``(65536,)``; at least one pixel.

    Returns:
        uint8 ``(65536,)``.
    """
    share = np.cumsum(counts) / counts.sum()
    low = int(np.searchsorted(share, WINDOW_TAIL, side="right"))
    high = int(np.searchsorted(share, 1 - WINDOW_TAIL, side="left"))
    if high <= low:  # nearly all pixels are equal: fall back to the full stored range
        stored = np.flatnonzero(counts)
        low, high = int(stored[0]), int(stored[-1])
    ramp = (np.arange(1 << 16) - low) * (255 / max(high - low, 1))
    return np.clip(np.rint(ramp), 0, 255).astype(np.uint8)


def upright_size(path: Path) -> tuple[int, int]:
    """Read ``(height, width)`` of an upright image from its header alone (EXIF turns applied).

    Raises:
        DataError: The file is missing, or its header is unreadable.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(path, str(error)) from error
    return (width, height) if turned else (height, width)


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
            check_size(_png_size(view[place + 8 : place + 16]), path)
        if kind == b"IEND":
            return
        place = end
    raise _damaged(path, "the PNG is cut short")


def jpeg_size(data: bytes) -> tuple[int, int]:
    r"""Width and height that a JPEG's frame header claims; (1, 1) where there is none.

    Example:
        >>> jpeg_size(b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x02\x00\x03")
        (3, 2)
    """
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # these have no length
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 1, 1


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


def usable_cores() -> int:
    """Threads worth starting: the cores that affinity and a container's quota leave, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such system, or "max": no quota
        pass
    return max(1, cores)


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


def _png_size(field: memoryview) -> tuple[int, int]:
    return int.from_bytes(field[:4], "big"), int.from_bytes(field[4:8], "big")


def _decode_unended_jpeg(data: bytes, path: Path) -> np.ndarray:
    """Decode a JPEG without its end marker at the end: cut short, or followed by other bytes.

    OpenCV returns the part that is there and fills the rest with grey; Pillow refuses instead, so
    its verdict counts. Its pixels are taken too: the same libjpeg, but nothing on stderr.
    """
    if JPEG_END not in data:
        raise _damaged(path, "the JPEG is cut short, it has no end marker")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("L", image.size)
            return np.array(ImageOps.exif_transpose(image).convert("L"))
    except Image.DecompressionBombError as error:
        raise _damaged(path, str(error)) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise _damaged(path, f"the JPEG is cut short: {error}") from error
