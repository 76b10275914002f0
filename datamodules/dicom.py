"""Read one DICOM radiograph: refuse what is none, and show it in 8-bit grey as a station would.

DICOM PS3.3 C.11.1, C.11.2: stored value, rescale or modality LUT, the first VOI LUT or window (what
shows nothing is left out, with a note); else the window of ``pixels.window_16bit``, or 8 bits as
they are. MONOCHROME1 or INVERSE is inverted, padding is black. No message repeats a value of the
file but codes of the standard: it may be a patient's name.
"""

import io
import logging
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

from datamodules import pixels
from datamodules.geometry import BLACK
from datamodules.index import DataError
from datamodules.pixels import JPEG, check_size, damaged, ramp_16bit, strict_jpeg

# Packages that warn with values of the file, or log them, to stderr.
QUOTING = r"(pydicom|highdicom|pylibjpeg|openjpeg|datamodules\.dicom)(\.|$)"
# Projection radiographs, scanned film (OT, SC, HC), or unstated.
MODALITIES = ("CR", "DX", "DR", "RG", "RF", "XA", "PX", "IO", "MG", "OT", "SC", "HC", "")
NUMBERS = ("Columns", "Rows", "BitsStored", "BitsAllocated", "PixelRepresentation")
NEEDED = (*NUMBERS, "SamplesPerPixel", "PhotometricInterpretation")
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
SQUARE = 0.01  # sides of a pixel that differ by less are those of a rounded square
INVERTED = {"MONOCHROME1", "INVERSE"}
# Beside the plain ramp between the quantiles a window shows nothing if it leaves fewer grey levels,
# or only the darkest or brightest quarter; if its pixels between black and white are a smaller
# share of the ramp's; or if it whitens a larger share of what the ramp shows above a quarter.
FEWEST_LEVELS, FEWEST_BETWEEN, BURNT = 32, 0.005, 0.75
UNUSED = "its window, lookup table or padding does not show its pixels, and was not used"
# By whether implicit and little endian, where a data set does not name its transfer syntax.
PLAIN: Any = {(False, True): uid.ExplicitVRLittleEndian, (False, False): uid.ExplicitVRBigEndian}
PLAIN[True, True] = uid.ImplicitVRLittleEndian
CONTRADICTED = "its header contradicts its pixel data (size or bits). Fix: export it again"
# Run as a process: it decodes a frame of JPEG of what NEEDED tells.
GDCM = str(Path(__file__).with_name("gdcm_frame.py"))


def decode_dicom(data: bytes, path: Path) -> tuple[np.ndarray, str]:
    """Decode a DICOM file: uint8 ``(H, W)`` and a note for people, mostly empty."""
    header = read_dicom(data, path)
    reason = "its pixel data is cut short or cannot be decoded"
    try:
        stored, padding = _pixels(header, path)
        reason = "its rescale or lookup table cannot be applied"
        return _grey_of(stored, padding, header)
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
        high, samples = (int(header.get(name) or 0) for name in ("HighBit", "SamplesPerPixel"))
    except Exception:
        raise damaged(path, "its header cannot be read", "DICOM file") from None
    odd = not 8 <= bits <= cell or bits > 16 or cell % 8 or high >= bits
    odd = odd or (samples > 1 and cell > 8)
    # Only a code is repeated.
    named = modality if re.fullmatch("[A-Z]{2,16}", modality) else "unknown"
    refusals = {
        "is DICOM without pixel data. Fix: take it out": "PixelData" not in header,
        f"its modality {named} is no radiograph's. Fix: take it out": modality not in MODALITIES,
        "is FOR PROCESSING. Fix: export it FOR PRESENTATION": "PROCESSING" in str(intent).upper(),
        f"lacks {missing}. Fix: export it again from its archive": missing,
        f"holds {frames} frames, and a radiograph is one. Fix: save each as a file": frames != 1,
        f"its pixels are not square ({oblong}). Fix: resample them (dcmscale, of DCMTK)": oblong,
        f"stores {bits} bits a pixel, up to bit {high} of {cell}: expected 8 to 16 (8 in colour), "
        "the low ones of 8 or 16. Fix: convert it": odd,
    }
    if reasons := [reason for reason, holds in refusals.items() if holds]:
        raise DataError(f"{path}: {reasons[0]}")
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
    """Stored values, ``(H, W)`` or RGB ``(H, W, 3)`` uint8, and which are padding."""
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
    lowest = _lowest(header)
    outside = (stored < lowest) | (stored >= lowest + 2**header.BitsStored)
    if outside[~padding].sum() > pixels.MARKERS * stored.size:  # lossy codecs overshoot in a few
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
        install = "pip install 'decision-basis[dicom]', or " * bool(decoder)
        raise DataError(
            f"{path}: its pixels are compressed ({named}), and no package reads them. Fix: "
            f"{install}convert the file to Explicit VR Little Endian"
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
    if made["photometric_interpretation"] not in ("MONOCHROME1", "MONOCHROME2", "RGB"):
        raise DataError(f"{path}: its PhotometricInterpretation is unknown. Fix: convert it to RGB")
    return np.asarray(cells)


def _grey_of(stored: np.ndarray, padding: np.ndarray, header: Dataset) -> tuple[np.ndarray, str]:
    """Stored values as uint8 grey ``(H, W)``, and a note."""
    if stored.ndim == 3:
        return np.asarray(cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)), ""
    # All is worked out once for each value that can be stored, and looked up for the pixels.
    levels = np.arange(2**header.BitsStored, dtype=np.int64) + (lowest := _lowest(header))
    place = np.clip(stored, levels[0], levels[-1]).astype(np.int32) - lowest
    note = UNUSED if padding.all() and np.ptp(place) else ""
    counts = np.bincount(place[~padding | padding.all()], minlength=len(levels))
    padding = padding & (not note)
    values = apply_modality_lut(levels, header)
    if not np.isfinite(values).all() or (values[0] == values[-1] and "RescaleSlope" in header):
        raise ValueError("no slope")
    inverted = {header.PhotometricInterpretation, header.get("PresentationLUTShape")} & INVERTED
    turn = np.uint8(255 if inverted else 0)
    # What the others are measured by: the stored values between their quantiles.
    plain = ramp_16bit(np.pad(counts, (0, 2**16 - len(counts))))[0][: len(counts)]
    plain = 255 - plain if values[0] > values[-1] else plain
    for name in ("VOILUTSequence", "WindowCenter"):
        if getattr(header.get_item(name), "value", None) in (None, "", b""):
            continue
        try:
            grey = _rendered(values, header, name)
        except Exception:  # a stranger's numbers
            grey = np.zeros_like(plain)
        if _shows(grey ^ turn, plain ^ turn, counts):
            break
        note = UNUSED
    else:
        order = levels - lowest if values[-1] > values[0] else levels[::-1] - lowest
        order = values if header.get("ModalityLUTSequence") else order
        grey = order.astype(np.uint8)  # 8 bits, as those of a PNG
        if order.max() > 255:
            ramp, aside = ramp_16bit(np.bincount(order, counts, minlength=2**16))
            grey, note = ramp[order], "; ".join(filter(None, (note, aside)))
        if not _shows(grey ^ turn, plain ^ turn, counts):
            grey, note = plain, UNUSED
    return np.where(padding, np.uint8(BLACK), (grey ^ turn)[place]), note


def _shows(grey: np.ndarray, plain: np.ndarray, counts: np.ndarray) -> bool:
    """Whether the greys of the stored values show what ``counts`` pixels of each hold.

    A window may blacken air and whiten metal, but not most of the body, of many greys.
    """
    held, most = (np.bincount(each, counts, minlength=256) for each in (grey, plain))
    share = np.cumsum(held) / held.sum()
    low, high = np.searchsorted(share, (pixels.WINDOW_TAIL, 1 - pixels.WINDOW_TAIL))
    fewer = 2 * np.count_nonzero(held) <= np.count_nonzero(most)
    narrow = min(np.count_nonzero(held), high - low) < FEWEST_LEVELS or high < 64 or low > 191
    between = held[1:-1].sum() >= FEWEST_BETWEEN * most[1:-1].sum()
    burnt = np.bincount(plain, counts * (grey == 255), minlength=256)[64:255]
    burns = burnt.sum() > max(BURNT * most[64:255].sum(), pixels.MARKERS * most.sum())
    spread = np.sort(burnt)[:-FEWEST_LEVELS].sum() > burnt.sum() / 4
    return bool(between and not (fewer and narrow) and not (burns and spread))


def _rendered(values: np.ndarray, header: Dataset, name: str) -> np.ndarray:
    """Greys of the first VOI LUT, over the bits that its entries need, or of the first window."""
    if name == "VOILUTSequence":
        entries = apply_voi(np.rint(values).astype(np.int64), header)
        return _grey(entries / (2 ** max(8, int(entries.max()).bit_length()) - 1))
    window = Dataset()
    window.WindowCenter, window.WindowWidth = header.WindowCenter, header.WindowWidth
    window.VOILUTFunction = header.get("VOILUTFunction") or "LINEAR"
    # Of one bit: pydicom then answers from 0 to 1.
    window.BitsStored, window.PixelRepresentation = 1, 0
    window.PhotometricInterpretation = "MONOCHROME2"
    with np.errstate(over="ignore", invalid="raise"):  # the ends of a sigmoid are no fault
        return _grey(apply_windowing(values, window))


def _grey(share: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(share * 255), 0, 255).astype(np.uint8)


def _lowest(header: Dataset) -> int:
    return -(2 ** (header.BitsStored - 1)) if header.PixelRepresentation else 0
