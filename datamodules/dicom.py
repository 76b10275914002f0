"""Read one DICOM radiograph: refuse what is none, decode its pixels as they were stored.

DICOM PS3.3 C.7.6.3.1. No message here repeats a value of the file but codes of the standard: a
patient's name may stand anywhere in one.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from datamodules.greys import first_number, grey_of, right_sign
from datamodules.index import DataError
from datamodules.pixels import JPEG, MARKERS, check_size, damaged, strict_jpeg

# Packages that warn with values of the file, or log them, to stderr.
QUOTING = r"(pydicom|highdicom|pylibjpeg|openjpeg|datamodules\.(dicom|greys))(\.|$)"

# Projection radiographs, scanned film (OT, SC, HC), or unstated.
MODALITIES = ("CR", "DX", "DR", "RG", "RF", "XA", "PX", "IO", "MG", "OT", "SC", "HC", "")
NUMBERS = ("Columns", "Rows", "BitsStored", "BitsAllocated", "PixelRepresentation")
NEEDED = (*NUMBERS, "SamplesPerPixel", "PhotometricInterpretation")
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
SQUARE = 0.01  # sides of a pixel that differ by less are those of a rounded square
GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
DEFLATED = "1.2.840.10008.1.2.1.99"
# By whether implicit and little endian, where a data set does not name its transfer syntax.
PLAIN: Any = {(False, True): uid.ExplicitVRLittleEndian, (False, False): uid.ExplicitVRBigEndian}
PLAIN[True, True] = uid.ImplicitVRLittleEndian
CONTRADICTED = (
    "its header contradicts its pixel data (syntax, size, bits, colour). Fix: export it again"
)
CONVERT = "convert the file to Explicit VR Little Endian where it comes from"
# JPEG 2000: start of codestream, then the SIZ marker, whose bytes 8 to 23 tell the size.
J2K = b"\xff\x4f\xff\x51"
# Start of frame of JPEG and JPEG-LS, then the bits a sample.
START_OF_FRAME = rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7]\0.(.)"
# Lossy codecs overshoot: values beyond the stored bits are clipped, not masked.
LOSSY = (uid.JPEG2000, uid.JPEGLSNearLossless, uid.HTJ2K)
# Run as a process: it decodes a frame of JPEG of what NEEDED tells.
GDCM = str(Path(__file__).with_name("gdcm_frame.py"))


def decode_dicom(data: bytes, path: Path) -> tuple[np.ndarray, str]:
    """Decode the content of a DICOM file with one frame.

    Returns:
        uint8 ``(H, W)``, 0 to 255, and a note for people, mostly empty; see :mod:`.greys`. A
        DataError says what is damaged or lacks, or why it is no radiograph that can be shown.
    """
    header = read_dicom(data, path)
    reason = "its pixel data is cut short or cannot be decoded"
    try:
        stored, padding = _pixels(header, path)
        reason = "its rescale or lookup table cannot be applied"
        return grey_of(stored, padding, header)
    except DataError:
        raise
    except Exception:  # a stranger's values, wrong in many ways; their text is not repeated
        raise damaged(path, reason, "DICOM file") from None


def hush() -> None:
    """Let nothing that quotes the values of a file reach stderr; what means damage is raised."""
    warnings.filterwarnings("ignore", module=QUOTING)
    warnings.filterwarnings("error", "The decoded RLE segment contains non-conformant padding")
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).propagate = False
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def read_dicom(data: bytes, path: Path) -> Dataset:
    """Read a DICOM file that claims to be one radiograph, its pixels still encoded.

    A DataError says what its header lacks or why it is no radiograph.
    """
    hush()
    try:
        header: Dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
        syntax = uid.UID(
            str(header.file_meta.get("TransferSyntaxUID") or PLAIN[header.original_encoding])
        )
        if syntax != DEFLATED:  # else not before it is known to be small: see below
            header = pydicom.dcmread(io.BytesIO(data), force=True)
        header.file_meta.TransferSyntaxUID = syntax
        modality = str(header.get("Modality") or "")
        intent = header.get("PresentationIntentType"), uid.UID(str(header.get("SOPClassUID"))).name
        raw = "FOR PROCESSING" in str(intent).upper()
        frames = int(header.get("NumberOfFrames") or 1)
        needed = (*NEEDED, "PlanarConfiguration") if header.get("SamplesPerPixel") == 3 else NEEDED
        missing = ", ".join(name for name in needed if header.get(name) in (None, ""))
        oblong = ", ".join(name for name in SPACINGS if not _is_square(header, name))
        columns, rows, bits, cell, _ = (int(header.get(name) or 0) for name in NUMBERS)
    except Exception:
        raise damaged(path, "its header cannot be read", "DICOM file") from None
    empty, odd = "PixelData" not in header, not 8 <= bits <= 16 or cell % 8
    # Only a code is repeated.
    named = modality if re.fullmatch("[A-Z]{2,16}", modality) else "unknown"
    refusals = {
        "is a deflated DICOM file. Fix: inflate it (dcmconv, of DCMTK)": syntax == DEFLATED,
        "is DICOM without pixel data (report, directory or header). Fix: take it out": empty,
        f"its modality {named} is no radiograph's. Fix: take it out": modality not in MODALITIES,
        "is FOR PROCESSING, not what a station shows. Fix: export it FOR PRESENTATION": raw,
        f"lacks {missing}. Fix: export it again from its archive": missing,
        f"holds {frames} frames, and a radiograph is one. Fix: save each as a file": frames != 1,
        f"its pixels are not square ({oblong}). Fix: resample them (dcmscale, of DCMTK)": oblong,
        f"stores {bits} bits a pixel in {cell}: expected 8 to 16 in whole bytes": odd,
    }
    for reason in (reason for reason, holds in refusals.items() if holds):
        raise DataError(f"{path}: {reason}")
    check_size((columns, rows), path)
    return header


def _is_square(header: Dataset, name: str) -> bool:
    """Whether two sides of a pixel are equal, or unstated: missing, malformed or zero."""
    try:
        raw: Any = header.get_item(name)  # pydicom's numbers know no decimal comma
        down, across = (float(side.replace(b",", b".")) for side in raw.value.split(b"\\"))
    except (AttributeError, ValueError):
        return True
    return min(down, across) <= 0 or abs(down / across - 1) < SQUARE


def _pixels(header: Dataset, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Stored values at the low end of their bits, ``(H, W)``, or RGB ``(H, W, 3)``; padding."""
    syntax, bits = header.file_meta.TransferSyntaxUID, int(header.BitsStored)
    top = max(bits, int(header.get("HighBit") or 0) + 1)
    cells, precision = _cells(header, top, path)
    header.BitsStored = bits
    # Cells of more bits: drop those above the image's, then those below.
    spare = 0 if precision <= bits or syntax in LOSSY else max(0, 8 * cells.dtype.itemsize - top)
    whole = cells << spare >> spare
    stored = whole >> (top - bits) * (precision > bits)
    padding = _padding(cells, stored, header)
    above = (cells != whole) * (cells.astype(np.uint16) >> top)  # but for the sign
    held = np.bincount(above[~padding], minlength=1)
    graphics = any(0x6000 <= tag >> 16 < 0x6100 for tag in header.keys())  # noqa: SIM118
    if held.max() < (1 - MARKERS) * held.sum() and not graphics:
        raise DataError(f"{path}: {CONTRADICTED}")
    return stored, padding


def _cells(header: Dataset, top: int, path: Path) -> tuple[np.ndarray, int]:
    """Decoded cells of ``top`` used bits, ``(H, W)`` or ``(H, W, 3)``, and the frame's bits."""
    syntax, grey = header.file_meta.TransferSyntaxUID, header.PhotometricInterpretation in GREY
    encoded = bool(header["PixelData"].is_undefined_length)
    frame = next(generate_frames(header.PixelData, number_of_frames=1)) if encoded else b""
    precision = _precision(frame, header)
    # Of 12 bits gdcm alone reads it, though pydicom does not ask it to.
    twelve = syntax == uid.JPEGExtended12Bit and precision == 12
    try:
        decoder: Any = get_decoder(uid.JPEGLossless if twelve else syntax)
    except NotImplementedError:
        named = syntax.name if syntax.name != syntax else "an unknown transfer syntax"
        raise DataError(f"{path}: its pixels are in {named}, unreadable. Fix: {CONVERT}") from None
    # Nor may a codec allocate what its own header claims, nor a column too few shear the picture.
    samples, cell = header.SamplesPerPixel, header.BitsAllocated
    rest = header.PixelData[header.Rows * header.Columns * samples * cell // 8 :]
    sheared = not encoded and len(rest) >= header.Rows * cell // 8 and rest.strip(b"\0")
    fits = precision and encoded == syntax.is_encapsulated and not sheared
    if not fits or grey != (samples == 1) or top > cell:
        raise DataError(f"{path}: {CONTRADICTED}")
    if not decoder.is_available:
        raise DataError(
            f"{path}: its pixels are compressed ({syntax.name}), and the package that reads them "
            f"is missing. Fix: pip install 'decision-basis[dicom]'; or {CONVERT}"
        )
    # gdcm, the first by name, only for what nothing else reads: the same pixels with and without.
    plugin = max(decoder.available_plugins, default="")
    header.BitsStored = top  # gdcm ignores HighBit
    if plugin == "gdcm":  # apart from this process: damage crashes it, or it warns on stderr alone
        command = [sys.executable, GDCM, *(str(header[name].value) for name in NEEDED)]
        done = subprocess.run(command, input=frame, capture_output=True, check=True)
        if b"Corrupt JPEG" in done.stderr:
            raise ValueError("damaged")
        header.PixelData, header.PlanarConfiguration = done.stdout, 0
        header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        decoder, plugin = get_decoder(uid.ExplicitVRLittleEndian), ""
    cells, made = decoder.as_array(header, decoding_plugin=plugin, correct_unused_bits=False)
    if plugin == "pillow" and frame.startswith(JPEG):
        strict_jpeg(frame)
    if not (grey or made["photometric_interpretation"] == "RGB"):
        raise DataError(f"{path}: its PhotometricInterpretation is unknown. Fix: convert it to RGB")
    return cells, precision


def _precision(frame: bytes, header: Dataset) -> int:
    """Bits a sample of a compressed frame, 16 if it does not tell, 0 if of another size, colour."""
    rows, columns, samples = int(header.Rows), int(header.Columns), int(header.SamplesPerPixel)
    place = frame[:4096].find(J2K)
    if place >= 0:
        x, y, left, top, *_, held = struct.unpack_from(">8IH", frame, place + 8)
        fits = (x - left, y - top, held) == (columns, rows, samples)
        return (frame[place + 42] & 0x7F) + 1 if fits else 0
    size = re.escape(struct.pack(">2HB", rows, columns, samples))
    match = re.search(START_OF_FRAME + size, frame, re.DOTALL)
    return match[1][0] if match else 0 if frame.startswith(JPEG) else 16


def _padding(cells: np.ndarray, stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Which pixels say that no detector was there: it may need more bits than are stored."""
    names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    values = [end for name in names if (end := first_number(header, name)) is not None]
    held, most = np.iinfo(cells.dtype), 2 ** int(header.BitsStored - header.PixelRepresentation)
    ends = [right_sign(end, held.min, held.max) for end in values] or [np.nan]
    cells = stored if all(-most <= end < most for end in ends) else cells
    return np.asarray((cells >= min(ends)) & (cells <= max(ends)))
