"""Decode one DICOM radiograph to the upright 8-bit grey that a reading station would show.

DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.6.3.1 (pixels). No message here repeats a
value of the file but codes of the standard: a patient's name may stand anywhere in one.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from scipy.special import expit

from datamodules.decode import DICOM, DICOM_AT, check_size, jpeg_size, ramp_16bit
from datamodules.geometry import BLACK
from datamodules.index import DataError

# Packages that warn with values of the file, or log them, to stderr.
QUOTING = r"(pydicom|highdicom|pylibjpeg|openjpeg|datamodules\.dicom)(\.|$)"

# Projection radiographs, scanned film (OT, SC, HC), or not told.
MODALITIES = ("CR", "DX", "DR", "RG", "RF", "XA", "PX", "IO", "MG", "OT", "SC", "HC", "")
DEFLATED = "1.2.840.10008.1.2.1.99"
EXTRA = "pip install 'decision-basis[dicom]' brings JPEG 2000"
FEWEST_BITS, MOST_BITS = 8, 16
# JPEG 2000: start of codestream, then the SIZ marker, whose bytes 8 to 23 tell the size.
J2K = b"\xff\x4f\xff\x51"


def decode_dicom(data: bytes, path: Path) -> np.ndarray:
    """Decode the content of a DICOM file with one frame.

    Grey: stored value, rescale (or modality LUT), the first VOI LUT or window; without either the
    window of :func:`datamodules.decode.window_16bit`, or, of 8 stored bits, the values as
    they are. MONOCHROME1 is inverted, padding is black. Colour is reduced to grey.

    Args:
        data: The file's content.
        path: Where it lies, for messages.

    Returns:
        uint8 ``(H, W)``, 0 to 255.

    Raises:
        DataError: It is damaged, no radiograph, or of several frames, its pixels are missing or
            are compressed in a way that nothing installed reads.
    """
    header = read_dicom(data, path)
    stored = _pixels(header, path)
    try:
        if stored.ndim == 3:
            return np.asarray(cv2.cvtColor(_eight_bit(stored, header), cv2.COLOR_RGB2GRAY))
        return _shown(stored, header)
    except Exception:  # a stranger's tables, wrong in many ways; their text is not repeated
        raise _damaged(path, "its rescale, window or lookup table cannot be applied") from None


def hush() -> None:
    """Let nothing that quotes the values of a file reach stderr; nothing here depends on it."""
    warnings.filterwarnings("ignore", module=QUOTING)
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).propagate = False
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def read_dicom(data: bytes, path: Path) -> Dataset:
    """Read a DICOM file that claims to be one radiograph, its pixels still encoded.

    Raises:
        DataError: As :func:`decode_dicom`.
    """
    hush()
    try:
        bare = data[DICOM_AT : DICOM_AT + len(DICOM)] != DICOM  # pydicom wants to be forced
        header: Dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=bare)
        tells = not bare or "TransferSyntaxUID" in header.file_meta
        syntax = str(header.file_meta.TransferSyntaxUID if tells else _plain_syntax(header))
        if syntax != DEFLATED:  # else not before it is known to be small: see below
            header = pydicom.dcmread(io.BytesIO(data), force=bare)
        header.file_meta.TransferSyntaxUID = UID(syntax)
        modality = str(header.get("Modality") or "")
        frames = int(header.get("NumberOfFrames") or 1)
        size = int(header.get("Columns") or 0), int(header.get("Rows") or 0)
        aspect = [int(side) for side in header.get("PixelAspectRatio") or (1, 1)]
        bits = int(header.get("BitsStored") or 0)
    except Exception:
        raise _damaged(path, "its header cannot be read") from None
    if syntax == DEFLATED:
        raise DataError(f"{path}: is a deflated DICOM file; inflate it (dcmconv, of DCMTK)")
    if "PixelData" not in header:
        raise DataError(
            f"{path}: is a DICOM file without pixel data (a report, a directory or a header); take "
            "it out"
        )
    if modality not in MODALITIES:
        # Only a code is repeated.
        named = modality if re.fullmatch("[A-Z]{2,16}", modality) else "unknown"
        raise DataError(f"{path}: its modality is {named}, which is no radiograph; take it out")
    if frames != 1:
        raise DataError(
            f"{path}: holds {frames} frames, and a radiograph is one; save each frame as a file of "
            "its own"
        )
    if len(set(aspect)) > 1:
        raise DataError(
            f"{path}: its pixels are not square (PixelAspectRatio); resample them (dcmscale, of "
            "DCMTK)"
        )
    check_size(size, path)
    if not FEWEST_BITS <= bits <= MOST_BITS:
        raise DataError(
            f"{path}: stores {bits} bits a pixel; {FEWEST_BITS} to {MOST_BITS} can be read"
        )
    return header


def _plain_syntax(header: Dataset) -> str:
    """The transfer syntax of a data set that does not name it: little endian, not compressed."""
    return ImplicitVRLittleEndian if header.original_encoding[0] else ExplicitVRLittleEndian


def _pixels(header: Dataset, path: Path) -> np.ndarray:
    """Stored values, ``(H, W)``, or RGB ``(H, W, 3)``."""
    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder: Any = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"{path}: its pixels are compressed as nothing here can read ({syntax.name}); convert "
            "it (dcmdjpeg or gdcmconv --raw)"
        ) from None
    if not decoder.is_available:
        raise DataError(
            f"{path}: its pixels are compressed ({syntax.name}), and the package that reads them "
            f"is missing: {EXTRA}; or convert the file (gdcmconv --raw)"
        )
    try:
        if syntax.is_encapsulated:
            frame = next(generate_frames(header.PixelData, number_of_frames=1))
        else:
            frame = b""
    except Exception:
        raise _damaged(path, "its pixel data is cut short") from None
    # A codec allocates what its own header claims, whatever DICOM's says.
    check_size(_coded_size(frame), path)
    try:
        stored = pixel_array(header)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, header)
    except Exception:
        raise _damaged(path, "its pixel data is cut short or cannot be decoded") from None
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[..., 0]
    if stored.ndim not in (2, 3) or not stored.size or (stored.ndim == 3 and stored.shape[2] != 3):
        raise _damaged(path, "its pixels are neither grey nor colour")
    return stored


def _coded_size(frame: bytes) -> tuple[int, int]:
    """Width and height that a compressed frame claims; (1, 1) where it is of another kind."""
    place = frame[:4096].find(J2K)
    if place >= 0:
        x, y, left, top = (
            int.from_bytes(frame[place + at : place + at + 4], "big") for at in (8, 12, 16, 20)
        )
        return max(x - left, 1), max(y - top, 1)
    return jpeg_size(frame) if frame.startswith(b"\xff\xd8") else (1, 1)


def _eight_bit(colour: np.ndarray, header: Dataset) -> np.ndarray:
    """RGB of up to 16 bits as uint8."""
    if colour.dtype == np.uint8:
        return colour
    palette = header.PhotometricInterpretation == "PALETTE COLOR"
    bits = colour.dtype.itemsize * 8 if palette else int(header.BitsStored)
    return np.clip(np.rint(colour * (255 / (2**bits - 1))), 0, 255).astype(np.uint8)


def _shown(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Grey as a reading station shows it: uint8 ``(H, W)``.

    All is worked out once for each value that can be stored, and looked up for the pixels.
    """
    lowest = -(2 ** (int(header.BitsStored) - 1)) if header.PixelRepresentation else 0
    levels = np.arange(2 ** int(header.BitsStored), dtype=np.int64) + lowest
    place = np.clip(stored, levels[0], levels[-1]).astype(np.int32) - lowest
    padding = _padding(levels, header)
    values, order, bits = _rescaled(levels, header)
    window = _window(header)
    if header.get("VOILUTSequence"):
        table, first, depth = _table(header.VOILUTSequence[0])
        shown = table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)]
        grey = _grey(shown / (2**depth - 1))
    elif window is not None:
        grey = _grey(windowed(values, *window))
    elif bits == 8:  # as an 8-bit PNG: shown as it is
        grey = order.astype(np.uint8)
    else:
        counts = np.bincount(place.reshape(-1), minlength=len(levels)) * ~padding
        if not counts.any():  # all is padding, and black
            return np.full(stored.shape, BLACK, dtype=np.uint8)
        grey = ramp_16bit(np.bincount(order, counts, minlength=2**16))[0][order]
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    grey[padding] = BLACK
    return np.asarray(grey[place])


def windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """A window (PS3.3 C.11.2.1.2) on values of any shape, from 0 (black) to 1.

    Args:
        values: In units of the modality.
        centre: Window Center.
        width: Window Width; above 1 for LINEAR, above 0 for the others.
        function: LINEAR, LINEAR_EXACT or SIGMOID.

    Example:
        >>> windowed(np.array([0.0, 50.0, 100.0]), 50.0, 100.0, "LINEAR_EXACT")
        array([0. , 0.5, 1. ])
    """
    if function == "SIGMOID":
        return np.asarray(expit(4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return np.asarray(np.clip((values - centre) / width + 0.5, 0, 1))


def _window(header: Dataset) -> tuple[float, float, str] | None:
    """The first window; None without one, or where it cannot be one."""
    centre, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(header.get("VOILUTFunction") or "LINEAR")
    if centre is None or width is None or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    if not math.isfinite(centre) or not math.isfinite(width):
        return None
    return (centre, width, function) if width > (1 if function == "LINEAR" else 0) else None


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, (list, MultiValue)):
        return float(value[0]) if value else None
    return float(value)


def _rescaled(levels: np.ndarray, header: Dataset) -> tuple[np.ndarray, np.ndarray, int]:
    """Values in units of the modality, whole numbers from 0 in the same order, and their bits."""
    if header.get("ModalityLUTSequence"):
        table, first, bits = _table(header.ModalityLUTSequence[0])
        values = table[np.clip(levels - first, 0, len(table) - 1)]
        return values, values, bits
    slope, intercept = _first(header.get("RescaleSlope")), _first(header.get("RescaleIntercept"))
    slope = 1.0 if slope is None else slope
    if not slope or not math.isfinite(slope):
        raise ValueError("no slope")
    order = levels - levels[0]
    return (
        levels * slope + (intercept or 0.0),
        order if slope > 0 else order[::-1],
        int(header.BitsStored),
    )


def _table(item: Dataset) -> tuple[np.ndarray, int, int]:
    """A lookup table as int64, the first value that it maps, and the bits of its entries."""
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count or 2**16
    data = item.LUTData
    if isinstance(data, bytes):  # of two bytes an entry, or packed
        data = np.frombuffer(data, "<u2" if len(data) >= 2 * count else np.uint8)
    table = np.asarray(data, dtype=np.int64)[:count] & (2**bits - 1)
    if len(table) != count or not 8 <= bits <= 16:
        raise ValueError("no whole table")
    return table, first, bits


def _padding(levels: np.ndarray, header: Dataset) -> np.ndarray:
    """Which stored values say that no detector was there; bool."""
    value, limit = (
        _first(header.get(name)) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")
    )
    if value is None:
        return np.zeros(levels.shape, dtype=bool)
    low, high = sorted((value, value if limit is None else limit))
    return np.asarray((levels >= low) & (levels <= high))


def _grey(share: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(share * 255), 0, 255).astype(np.uint8)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: damaged DICOM file ({reason}); fetch it again")
