"""Decode one radiograph to upright 8-bit grey, or say what is wrong with its file."""

import io
import re
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from datamodules.index import DataError
from datamodules.pixels import JPEG, MOST_BYTES, check_size, damaged, strict_jpeg, window_16bit

PNG = b"\x89PNG\r\n\x1a\n"
DICOM, DICOM_AT = b"DICM", 128
# Without that preamble: the first data element, of group 2 (how the file is written) or 8 (what it
# is), then its representation, or a length that such an element may have.
BARE_DICOM = re.compile(
    rb"(\x02\0[\0\x01\x02\x10]\0|\x08\0..)([A-Z]{2}|[\0-\x80]\0\0\0|\xff{4})|\0\x08..[A-Z]{2}", re.S
)


def decode(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or DICOM as it should be looked at: uint8 ``(H, W)``, grey, upright.

    Alpha is ignored, EXIF orientation applied, 16 bits are windowed (``pixels.ramp_16bit``). The
    content decides, not the suffix. Threads run in parallel: it releases Python's lock.
    """
    return decode_noted(read_content(path), path)[0]


def decode_noted(data: bytes, path: Path) -> tuple[np.ndarray, str]:
    """Decode a file's content (``path`` is for messages); also a note for people, mostly empty."""
    if is_dicom(data):
        from datamodules.dicom import decode_dicom  # seldom needed, and pydicom takes half a second

        return decode_dicom(data, path)
    if data.startswith(JPEG):
        try:
            check_size(simplejpeg.decode_jpeg_header(data, strict=False)[1::-1], path)
            grey = strict_jpeg(data)
        except DataError:
            raise
        except (KeyError, ValueError) as error:
            raise damaged(path, f"the JPEG is cut short or damaged: {error}") from error
        if b"Exif\0\0" not in data:
            return grey, ""
    elif data.startswith(PNG):
        check_png(data, path)
    else:
        raise DataError(
            f"{path}: expected a PNG, JPEG or DICOM file, got something else, whatever its name "
            "says. Fix: convert it to PNG, or take it out of the data"
        )
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH  # 16 bit stays 16 bit; EXIF is applied
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise damaged(path, "its content cannot be decoded")
    if pixels.dtype != np.uint8:
        return window_16bit(pixels)
    is_mask = ((pixels == pixels.min()) | (pixels == pixels.max())).all()
    return pixels, "has two grey values at most, as a mask has" * bool(is_mask)


def upright_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` of what :func:`decode` gives, with the same errors."""
    height, width = decode(path).shape
    return height, width


def is_opaque(path: Path) -> bool:
    """Whether no pixel of an image file is transparent; ``decode`` ignores alpha."""
    with Image.open(path) as image:
        if not image.has_transparency_data:
            return True
        return bool((np.array(image.convert("RGBA"))[..., 3] == 255).all())


def check_png(data: bytes, path: Path) -> None:
    """Check size and checksums of a PNG: OpenCV would print or guess where one is damaged."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(image.size, path)
            image.verify()
    except DataError:
        raise
    # What Pillow raises on a damaged PNG; IndexError: no pixels follow the header.
    except (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError) as error:
        raise damaged(path, f"the PNG is cut short or damaged: {error}") from error


def is_dicom(data: bytes) -> bool:
    """Whether a file's content, or its first 132 bytes, is DICOM's."""
    return data.startswith(DICOM, DICOM_AT) or BARE_DICOM.match(data) is not None


def read_content(path: Path) -> bytes:
    """The content of an image file; a DataError where it is missing, empty or far too large."""
    try:
        size = path.stat().st_size
        if 0 < size <= MOST_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Fix: check the path and its rights"
        ) from error
    problem = f"has {size:,} bytes, more than {MOST_BYTES:,}" if size else "is empty"
    raise DataError(f"{path}: the file {problem}. Fix: replace it")
