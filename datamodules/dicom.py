"""Read one DICOM radiograph: refuse what is none, decode its pixels as they were stored.

No message repeats a value of the file but codes of the standard: it may be a patient's name.
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

from datamodules.greys import grey_of
from datamodules.index import DataError
from datamodules.pixels import JPEG, MARKERS, check_size, damaged, strict_jpeg

# Packages that warn with values of the file, or log them, to stderr.
QUOTING = r"(pydicom|highdicom|pylibjpeg|openjpeg|datamodules\.(dicom|greys))(\.|$)"
# Projection radiographs, scanned film (OT, SC, HC), or unstated.
MODALITIES = ("CR", "DX", "DR", "RG", "RF", "XA", "PX", "IO", "MG", "OT", "SC", "HC", "")
NUMBERS = ("Columns", "Rows", "BitsStored", "BitsAllocated", "PixelRepresentation")
NEEDED = (*NUMBERS, "SamplesPerPixel", "PhotometricInterpretation")
GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
SQUARE = 0.01  # sides of a pixel that differ by less are those of a rounded square
# By whether implicit and little endian, where a data set does not name its transfer syntax.
PLAIN: Any = {(False, True): uid.ExplicitVRLittleEndian, (False, False): uid.ExplicitVRBigEndian}
PLAIN[True, True] = uid.ImplicitVRLittleEndian
CONTRADICTED = "its header contradicts its pixel data (size or bits). Fix: export it again"
# Run as a process: it decodes a frame of JPEG of what NEEDED tells.
GDCM = str(Path(__file__).with_name("gdcm_frame.py"))


def decode_dicom(data: bytes, path: Path) -> tuple[np.ndarray, str]:
    """Decode a DICOM file: uint8 ``(H, W)`` and a note for people, mostly empty (:mod:`.greys`)."""
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
    """Read a DICOM file, its pixels still encoded; a DataError where it is no radiograph."""
    hush()
    try:
        header: Dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        syntax = header.file_meta.get("TransferSyntaxUID") or PLAIN[header.original_encoding]
        header.file_meta.TransferSyntaxUID = uid.UID(str(syntax))
        modality = str(header.get("Modality") or "")
        intent = header.get("PresentationIntentType"), uid.UID(str(header.get("SOPClassUID"))).name
        frames = int(header.get("NumberOfFrames") or 1)
        missing = ", ".join(name for name in NEEDED if header.get(name) in (None, ""))
        oblong = ", ".join(name for name in SPACINGS if not _is_square(header, name))
        columns, rows, bits, cell, _ = (int(header.get(name) or 0) for name in NUMBERS)
        high = int(header.get("HighBit") or 0)
    except Exception:
        raise damaged(path, "its header cannot be read", "DICOM file") from None
    odd = not 8 <= bits <= cell or bits > 16 or cell % 8 or high >= bits
    # Only a code is repeated.
    named = modality if re.fullmatch("[A-Z]{2,16}", modality) else "unknown"
    refusals = {
        "is DICOM without pixel data. Fix: take it out": "PixelData" not in header,
        f"its modality {named} is no radiograph's. Fix: take it out": modality not in MODALITIES,
        "is FOR PROCESSING. Fix: export it FOR PRESENTATION": "PROCESSING" in str(intent).upper(),
        f"lacks {missing}. Fix: export it again from its archive": missing,
        f"holds {frames} frames, and a radiograph is one. Fix: save each as a file": frames != 1,
        f"its pixels are not square ({oblong}). Fix: resample them (dcmscale, of DCMTK)": oblong,
        f"stores {bits} bits a pixel in {cell}: expected 8 to 16, the low ones of bytes": odd,
    }
    for reason in (reason for reason, holds in refusals.items() if holds):
        raise DataError(f"{path}: {reason}")
    check_size((columns, rows), path)
    return header


def _is_square(header: Dataset, name: str) -> bool:
    """Whether two sides of a pixel are equal, or unstated: missing, malformed or zero."""
    try:
        down, across = (float(side) for side in header.get(name))
    except (TypeError, ValueError):
        return True
    return min(down, across) <= 0 or abs(down / across - 1) < SQUARE


def _pixels(header: Dataset, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Stored values, ``(H, W)`` or RGB ``(H, W, 3)``, and which say that no detector was there."""
    stored = _cells(header, path)
    held, ends = np.iinfo(stored.dtype), []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if header.get(name) not in (None, ""):
            value = int(header[name].value)  # its VR, US or SS, may be the wrong one
            turned = (value, value - 2**16, value + 2**16)
            ends.append(next(end for end in turned if held.min <= end <= held.max))
    padding = np.zeros(stored.shape, bool)
    if ends:
        padding = (stored >= min(ends)) & (stored <= max(ends))
    lowest = -(2 ** (header.BitsStored - 1)) if header.PixelRepresentation else 0
    outside = (stored < lowest) | (stored >= lowest + 2**header.BitsStored)
    if outside[~padding].sum() > MARKERS * stored.size:  # lossy codecs overshoot in a few
        raise DataError(f"{path}: {CONTRADICTED}")
    return stored, padding


def _cells(header: Dataset, path: Path) -> np.ndarray:
    """Decoded cells, ``(H, W)`` or ``(H, W, 3)``."""
    syntax = header.file_meta.TransferSyntaxUID
    # Of 12 bits gdcm alone reads it, though pydicom does not ask it to.
    twelve = syntax == uid.JPEGExtended12Bit and header.BitsStored > 8
    try:
        decoder: Any = get_decoder(uid.JPEGLossless if twelve else syntax)
    except NotImplementedError:
        decoder = None
    if not decoder or not decoder.is_available:
        named = syntax.name if syntax.name != syntax else "an unknown transfer syntax"
        raise DataError(
            f"{path}: its pixels are compressed ({named}), and no package reads them. Fix: pip "
            "install 'decision-basis[dicom]', or convert the file to Explicit VR Little Endian"
        )
    frame = b""
    row = header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
    if syntax.is_encapsulated:
        frame = next(generate_frames(header.PixelData, number_of_frames=1))
        if "JPEG-LS" in syntax.name and b"\xff\xd9" not in frame[-8:]:
            raise ValueError("cut short")  # its decoder takes half a minute to see that
        sides = struct.pack(">2H", header.Rows, header.Columns)
        if "JPEG 2000" in syntax.name:
            sides = struct.pack(">2I", header.Columns, header.Rows)
        if "JPEG" in syntax.name and sides not in frame:  # codecs go by the frame's: sheared
            raise DataError(f"{path}: {CONTRADICTED}")
    elif len(header.PixelData) >= (header.Rows + 1) * row:  # a column too few shears the picture
        raise DataError(f"{path}: {CONTRADICTED}")
    # gdcm, the first by name, only for what nothing else reads: the same pixels with and without.
    plugin = max(decoder.available_plugins, default="")
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
    if made["photometric_interpretation"] not in (*GREY, "RGB"):
        raise DataError(f"{path}: its PhotometricInterpretation is unknown. Fix: convert it to RGB")
    return np.asarray(cells)
