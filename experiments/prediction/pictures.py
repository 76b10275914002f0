"""A radiograph with what the network made of it: for people, and as DICOM for an archive."""

import io
import math
import re
from collections.abc import Sequence
from importlib.metadata import version

import cv2
import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import validate_value

from callbacks.panels import contours, draw_outline, draw_peak, overlay, resize
from datamodules.dicom import hush
from datamodules.index import DataError

WARNING = "RESEARCH USE ONLY - NOT FOR DIAGNOSIS"
FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
# At font scale 1, pixels: the height of a line of words; the width of a number beside the bar.
LINE, NUMBER = 32, 64
GAP = 8  # pixels
SMALLEST = 480  # longer side of a drawn image, pixels
LEAST = 0.35  # font scale below which words cannot be read

MAKER, SERIES = "decision-basis", "Evidence map, RESEARCH USE ONLY"
SERIES_NUMBER = 9901  # beside the radiographs' series, by which archives sort
# Taken over from the radiograph: refused where not valid, since an archive would file the capture
# elsewhere; the others are left out where not valid.
NEEDED = ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")
IDS = (*NEEDED, "PatientID", "IssuerOfPatientID", "PatientName", "SpecificCharacterSet")
OTHERS = (
    *("PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
    *("StudyDate", "StudyTime", "InstanceNumber", "StudyDescription", "BodyPartExamined"),
)
LEFT_OUT = {"IssuerOfPatientID", "StudyDescription", "BodyPartExamined"}  # by highdicom
REFUSED = "no Secondary Capture can be made of it: "
# Control characters, and what stands for bytes that the character set does not have.
GARBLED = re.compile("[\0-\x1f\x7f\ufffd]")
ORIENTATION = r"\['[APLRFH]{1,3}', '[APLRFH]{1,3}'\]"


def draw(
    image: np.ndarray,
    heat: np.ndarray,
    threshold: float,
    peak: tuple[int, int] | None,
    words: Sequence[str],
    largest: int,
    beside: bool,
) -> np.ndarray:
    """Draw a radiograph, uint8 ``(H, W)``, under its map in [0, 1], with words below; BGR.

    What reaches the threshold is outlined; the peak (x, y) gets a cross. ``largest``: px of the
    longer side. ``beside``: the bare radiograph stands to the left; colours hide what they mark.
    """
    bare = cv2.cvtColor(resize(image, SMALLEST, largest), cv2.COLOR_GRAY2BGR)
    heat = cv2.resize(heat, bare.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    side = max(heat.shape)
    unit = max(1, round(side / 500))  # thickness of lines, pixels
    strokes, marked = ((BLACK, 3 * unit), (WHITE, unit)), overlay(bare, heat)
    draw_outline(marked, contours(heat >= threshold), strokes)
    if peak is not None:
        scale = side / max(image.shape)
        x, y = (round((value + 0.5) * scale - 0.5) for value in peak)
        draw_peak(marked, x, y, (4 * unit, 12 * unit), strokes)
    parts = [bare, np.full((len(bare), GAP, 3), 255, np.uint8), marked] if beside else [marked]
    picture, lines = np.hstack(parts), [*words, WARNING]
    # A narrow picture is widened: it has no room for words.
    longest = max(int(cv2.getTextSize(line, FONT, 1.0, 2)[0][0]) for line in lines)
    missing = max(0, 2 * GAP + math.ceil(LEAST * longest) - picture.shape[1])
    picture = np.pad(picture, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))
    font_scale = min(max(side / 1000, 0.4), (picture.shape[1] - 2 * GAP) / longest)
    return np.vstack([picture, _words(lines, picture.shape[1], threshold, font_scale)])


def _words(lines: Sequence[str], width: int, threshold: float, size: float) -> np.ndarray:
    step, thick = max(1, round(LINE * size)), max(1, round(size * 1.5))
    strip = np.zeros((step * (len(lines) + 1) + 2 * GAP, width, 3), np.uint8)
    left, top, bottom = GAP + round(NUMBER * size / 2), GAP + step // 4, GAP + step // 4 + step // 2
    right = max(left + 2, min(width - left, left + 8 * step))
    ramp = np.linspace(0, 255, right - left, dtype=np.float32).astype(np.uint8)
    strip[top:bottom, left:right] = cv2.applyColorMap(ramp[None], cv2.COLORMAP_INFERNO)
    mark = left + round(threshold * (right - left - 1))
    for colour, across in ((BLACK, 3 * thick), (WHITE, thick)):
        cv2.line(strip, (mark, top - step // 8), (mark, bottom + step // 8), colour, across)
    texts = [("0", GAP, bottom), ("1", right + GAP // 2, bottom)]
    texts += [(line, GAP, GAP + step * (row + 2) - step // 4) for row, line in enumerate(lines)]
    for text, x, y in texts:
        cv2.putText(strip, text, (x, y), FONT, size, WHITE, thick, cv2.LINE_AA)
    return strip


def secondary_capture(source: Dataset, picture: np.ndarray, series: str, derivation: str) -> bytes:
    """The file of a Secondary Capture: of the source's patient and study, in another series.

    A DataError names elements of the source by keyword, and never repeats a value. ``picture`` is
    RGB, uint8 ``(H, W, 3)``; a study has one series of each ``series``, such as a network's hash.
    """
    import highdicom  # of an extra

    hush()
    about, content = _taken_over(source), io.BytesIO()
    reference = Dataset()  # PS3.3 C.7.6.1.1.4
    reference.ReferencedSOPClassUID = about.SOPClassUID
    reference.ReferencedSOPInstanceUID = about.SOPInstanceUID
    try:
        made: Dataset = highdicom.sc.SCImage.from_ref_dataset(
            about,
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            series_instance_uid=generate_uid(entropy_srcs=[about.StudyInstanceUID, series]),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=max(1, int(about.get("InstanceNumber") or 1)),
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=version(MAKER),
            series_description=SERIES,
            patient_orientation=("L", "F"),  # highdicom needs one; the source's follows
            specific_character_set=None,  # taken over below: highdicom refuses some that are valid
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        towards = source.get("PatientOrientation")
        made.PatientOrientation = towards if re.fullmatch(ORIENTATION, str(towards)) else None
        # Of an undeclared character set pydicom reads Latin-1, which keeps each byte.
        made.SpecificCharacterSet = about.get("SpecificCharacterSet", "ISO_IR 100")
        for name in LEFT_OUT & {*about.dir()}:
            made[name] = about[name]
        # Not the series' Laterality, which an unpaired body part may not have, not even empty.
        side = source.get("ImageLaterality") or source.get("Laterality")
        made.ImageLaterality = side if side in ("L", "R", "U", "B") else None
        made.BurnedInAnnotation = "YES"
        made.DerivationDescription = derivation
        made.SourceImageSequence = [reference]
        # Once lossy, always lossy.
        made.LossyImageCompression = "01" if source.get("LossyImageCompression") == "01" else "00"
        made.save_as(content, enforce_file_format=True)
    except Exception:  # a stranger's values, and messages that repeat them
        raise DataError(f"{REFUSED}data elements of its header are not valid") from None
    return content.getvalue()


def _taken_over(source: Dataset) -> Dataset:
    """The valid elements of patient and study (PS3.5, 6.2): highdicom takes them over unchecked."""
    about = Dataset()
    for name in (*IDS, *OTHERS):
        try:
            value = source.get(name) or ""
            texts = [str(text) for text in (value if isinstance(value, MultiValue) else [value])]
            valid = len(texts) == 1 or name == "SpecificCharacterSet"
            valid &= not GARBLED.search("".join(texts))
            valid &= name != "PatientSex" or texts[0] in ("", "F", "M", "O")
            for text in filter(None, texts):
                validate_value(dictionary_VR(name), text, pydicom.config.RAISE)
        except Exception:  # a stranger's values
            valid = False
        if valid and value:
            setattr(about, name, value)
        elif name in NEEDED or (name in IDS and not valid):
            raise DataError(f"{REFUSED}{name} missing or not valid. Fix: mend its header")
    return about
