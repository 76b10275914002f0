"""One file with a map of one image, PNG or .npy from anywhere: read so that it can do no harm.

Its header is checked before anything is allocated, and nothing in a file is run (no pickles).
"""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np

from datamodules.decode import PNG, check_png
from datamodules.index import DataError

# Values may leave [0, 1] by so much (interpolation rounds); they are cut.
ROUNDING = 1e-6


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a map, float32 ``(H, W)`` in [0, 1]; DataError: it is not as docs/evaluation.md says.

    Args:
        path: its suffix tells the format.
        size: height and width of the upright image, pixels, which the map must have.
    """
    try:
        values = _npy(path, size) if path.suffix == ".npy" else _png(path, size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    wrong = values.size - np.isfinite(values).sum()
    if wrong:
        raise DataError(f"{path}: {wrong:,} of {values.size:,} values are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise DataError(
            f"{path}: its values reach from {low:.3g} to {high:.3g}. Fix: scale the maps, all "
            "alike, into [0, 1]"
        )
    return values.clip(0, 1).astype(np.float32)


def _png(path: Path, size: tuple[int, int]) -> np.ndarray:
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(PNG):
        raise DataError(f"{path}: is no whole PNG file. Fix: write it again")
    width, height, depth, colour = struct.unpack(">IIBB", header[16:])
    if colour != 0 or depth not in (8, 16):
        raise DataError(f"{path}: is not grey of 8 or 16 bits. Fix: save it as such")
    _check_size(path, (height, width), size)
    # Of noise, which does not compress, a PNG is hardly larger than its pixels.
    if path.stat().st_size > 2 * height * (width + 1) * depth // 8 + 2**20:
        raise DataError(f"{path}: is larger than any map of its size. Fix: write it again")
    data = path.read_bytes()
    check_png(data, path)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape != size:  # OpenCV has told the reason on stderr
        raise DataError(f"{path}: damaged image (it cannot be decoded). Fix: write it again")
    return pixels.astype(np.float32) / np.float32(2**depth - 1)


def _npy(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        values = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # the header is a stranger's text, parsed in many ways
        fault = f"is no whole .npy file of numbers ({str(error)[:80]})"
        raise DataError(f"{path}: {fault}. Fix: np.save(file, map.astype(np.float32))") from error
    if values.dtype.kind != "f" or values.itemsize > 8:
        raise DataError(f"{path}: holds {values.dtype}. Fix: save float32 in [0, 1]")
    if values.ndim != 2 and (values.ndim != 3 or len(values) != 1):
        raise DataError(f"{path}: has the shape {values.shape}; expected (H, W) or (1, H, W)")
    _check_size(path, values.shape[-2:], size)
    if path.stat().st_size != values.offset + values.nbytes:
        raise DataError(f"{path}: is longer than its header says. Fix: write it again")
    return np.array(values).reshape(size)


def _check_size(path: Path, given: tuple[int, int], wanted: tuple[int, int]) -> None:
    if given != wanted:
        raise DataError(
            f"{path}: is {given[1]}x{given[0]} px, its image upright {wanted[1]}x{wanted[0]} px "
            "(width x height). Fix: make it of the whole upright image, nothing cropped or added, "
            f"then cv2.resize(map, {wanted[::-1]})"
        )
