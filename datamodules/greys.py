"""Show a DICOM radiograph's stored values as a reading station would, in 8-bit grey.

DICOM PS3.3 C.11.1, C.11.2: stored value, rescale or modality LUT, the first VOI LUT or window (what
shows nothing is left out, with a note); else the window of ``pixels.window_16bit``, or 8 bits as
they are. MONOCHROME1 or INVERSE is inverted, padding is black. Colour is reduced to grey.
"""

from __future__ import annotations

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi,
    apply_windowing,
)

from datamodules.geometry import BLACK
from datamodules.pixels import MARKERS, WINDOW_TAIL, ramp_16bit

INVERTED = {"MONOCHROME1", "INVERSE"}
# A picture shows nothing in fewer neighbouring grey levels, in the darkest or brightest quarter of
# them, or with a smaller share between black and white (of that between the quantiles).
# Nor does one with a larger share white of what is brighter than a quarter between the quantiles.
FEWEST_LEVELS, FEWEST_BETWEEN, BURNT = 32, 0.005, 0.75
UNUSED = "its window, lookup table or padding does not show its pixels, and was not used"


def grey_of(stored: np.ndarray, padding: np.ndarray, header: Dataset) -> tuple[np.ndarray, str]:
    """Stored values ``(H, W)``, or RGB ``(H, W, 3)``, as uint8 grey ``(H, W)``, and a note.

    All is worked out once for each value that can be stored, and looked up for the pixels.
    """
    bits = int(header.BitsStored)
    if stored.ndim == 3:
        return _luminance(stored, bits), ""
    lowest = -(2 ** (bits - 1)) if header.PixelRepresentation else 0
    levels = np.arange(2**bits, dtype=np.int64) + lowest
    place = np.clip(stored, levels[0], levels[-1]).astype(np.int32) - lowest
    if header.PhotometricInterpretation == "PALETTE COLOR":
        colour = apply_color_lut(levels[:, None], header)[..., :3]
        return _luminance(colour, 8 * colour.dtype.itemsize)[:, 0][place], ""
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

    A window may blacken air and whiten metal, but not most of the limb, of many greys.
    """
    held, most = (np.bincount(each, counts, minlength=256) for each in (grey, plain))
    share = np.cumsum(held) / held.sum()
    low, high = np.searchsorted(share, (WINDOW_TAIL, 1 - WINDOW_TAIL))
    fewer = 2 * np.count_nonzero(held) <= np.count_nonzero(most)
    narrow = min(np.count_nonzero(held), high - low) < FEWEST_LEVELS or high < 64 or low > 191
    between = held[1:-1].sum() >= FEWEST_BETWEEN * most[1:-1].sum()
    burnt = np.bincount(plain, counts * (grey == 255), minlength=256)[64:255]
    burns = burnt.sum() > max(BURNT * most[64:255].sum(), MARKERS * most.sum())
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


def _luminance(colour: np.ndarray, bits: int) -> np.ndarray:
    """RGB of so many bits as grey, uint8; of fewer where it reaches no 16th of their range."""
    used = max(8, int(colour.max()).bit_length())
    most = 2 ** (used if used <= bits - 4 else bits) - 1
    eight = _grey(np.arange(most + 1) / most)[np.minimum(colour, most)]
    return np.asarray(cv2.cvtColor(eight, cv2.COLOR_RGB2GRAY))


def _grey(share: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(share * 255), 0, 255).astype(np.uint8)
