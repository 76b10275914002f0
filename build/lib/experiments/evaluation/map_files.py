"""One file with a map of one image: PNG or .npy from anywhere, read so that it can do no harm.

Size and type are taken from the file's header before anything is decoded or allocated, and nothing
in a file is ever run (no pickles).
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from datamodules.decode import PNG, check_png
from datamodules.index import DataError

# Values may leave [0, 1] by so much (interpolation rounds); they are cut.
ROUNDING = 1e-6
# Bytes in which the header of an .npy file of numbers ends, many times over.
HEADER = 2**14
PNG_HEADER = 33  # signature and IHDR chunk
COLOURS = {2: "colour", 3: "a palette", 4: "grey with transparency", 6: "colour with transparency"}


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a map.

    PNG: grey, 8 or 16 bit, 0 to the highest value for 0 to 1; an EXIF orientation is not applied.
    ``.npy``: float16, float32 or float64 in [0, 1], ``(H, W)`` or ``(1, H, W)``.

    Args:
        path: File; its suffix tells the format.
        size: Height and width of the upright image, pixels: the map's must be the same.

    Returns:
        float32 ``(H, W)`` in [0, 1].

    Raises:
        DataError: The file is missing, damaged or cut short, or its format, type, size or a value
            is another one.
    """
    try:
        with path.open("rb") as file:
            return (_read_npy if path.suffix == ".npy" else _read_png)(file, path, size)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check that it is there, and its "
            "rights"
        ) from error


def _read_png(file: BinaryIO, path: Path, size: tuple[int, int]) -> np.ndarray:
    header = file.read(PNG_HEADER)
    if not header:
        raise DataError(f"{path}: the file is empty; write it again")
    if not header.startswith(PNG):
        raise DataError(f"{path}: is no PNG file, whatever its name says; convert it")
    if len(header) < PNG_HEADER or header[12:16] != b"IHDR":
        raise DataError(f"{path}: damaged image (it lacks its header); write it again")
    width, height, depth, colour = struct.unpack(">IIBB", header[16:26])
    if colour != 0 or depth not in (8, 16):
        kind = COLOURS.get(colour, f"grey of {depth} bits" if colour == 0 else "of no known type")
        raise DataError(f"{path}: is {kind}; save the map as 8- or 16-bit grey")
    _check_size(path, (height, width), size)
    # Of noise, which does not compress, a PNG is hardly larger than its pixels.
    most = 2 * height * (width + 1) * depth // 8 + 2**20
    if (bytes_there := os.fstat(file.fileno()).st_size) > most:
        raise DataError(
            f"{path}: has {bytes_there:,} bytes, more than a map of {width}x{height} px can need; "
            "write it again without what else it holds"
        )
    data = header + file.read()
    check_png(data, path)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape != size:  # OpenCV has told the reason on stderr
        raise DataError(f"{path}: damaged image (its content cannot be decoded); write it again")
    return pixels.astype(np.float32) / np.float32(2**depth - 1)


def _read_npy(file: BinaryIO, path: Path, size: tuple[int, int]) -> np.ndarray:
    head = io.BytesIO(file.read(HEADER))
    try:
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        version = np.lib.format.read_magic(head)
        shape, _, dtype = readers[version](head)
    except Exception as error:  # the header is a stranger's text, parsed in many ways
        raise DataError(
            f"{path}: is no whole .npy file ({type(error).__name__}: {str(error)[:80]}); write it "
            "with np.save(file, map.astype(np.float32))"
        ) from error
    if dtype.hasobject:
        raise DataError(
            f"{path}: holds Python objects, which are never loaded; save the numbers alone: "
            "np.save(file, map.astype(np.float32))"
        )
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise DataError(
            f"{path}: holds {dtype}; save float32 in [0, 1] (8-bit values divided by 255)"
        )
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise DataError(f"{path}: has the shape {shape}; a map is (H, W), or (1, H, W)")
    _check_size(path, shape, size)
    there, told = os.fstat(file.fileno()).st_size, head.tell() + size[0] * size[1] * dtype.itemsize
    if there != told:
        fault = "is cut short" if there < told else "is longer than its header says"
        raise DataError(f"{path}: {fault} ({there:,} of {told:,} bytes); write it again")
    file.seek(0)
    values = np.load(file, allow_pickle=False).reshape(size)
    if not np.isfinite(values).all():
        count = values.size - np.count_nonzero(np.isfinite(values))
        raise DataError(
            f"{path}: {count:,} of {values.size:,} values are NaN or infinite; write 0 where "
            "nothing is claimed"
        )
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise DataError(
            f"{path}: its values reach from {low:.3g} to {high:.3g}; scale the maps, all alike, "
            "into [0, 1]"
        )
    return values.clip(0, 1).astype(np.float32)


def _check_size(path: Path, given: tuple[int, int], wanted: tuple[int, int]) -> None:
    if tuple(given) == tuple(wanted):
        return
    (height, width), (tall, wide) = given, wanted
    if (width, height) == (tall, wide):
        remedy = "it lies on its side: make it of the upright image (EXIF orientation applied)"
    elif min(height, width) > 0 and _same_shape(given, wanted):
        remedy = f"resize it: cv2.resize(map, ({wide}, {tall}), interpolation=cv2.INTER_LINEAR)"
    elif height == width:
        remedy = "take what was added to make it square off, then resize it to the image's size"
    else:
        remedy = "make it of the whole upright image, not cropped, at the image's own size"
    raise DataError(
        f"{path}: is {width}x{height} px, its image upright {wide}x{tall} px (width x height); "
        f"{remedy}"
    )


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes differ by a common factor, up to the rounding of a side."""
    across, down = other[1] * one[0] / other[0] - one[1], other[0] * one[1] / other[1] - one[0]
    return min(abs(across), abs(down)) <= 0.5
