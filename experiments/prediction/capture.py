"""A picture as a DICOM Secondary Capture of the patient and study of the radiograph it shows."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DA, TM, validate_value

from datamodules.dicom import hush
from datamodules.index import DataError
from experiments.prediction.network import project_version

MAKER, SERIES = "decision-basis", "Evidence map, RESEARCH USE ONLY"
SERIES_NUMBER = 9901  # beside the radiographs' series, by which archives sort
# Taken over from the radiograph: refused where not valid, since an archive would file the capture
# elsewhere; the others are left out where not valid.
NEEDED = ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")
IDS = (*NEEDED, "PatientID", "IssuerOfPatientID", "PatientName", "SpecificCharacterSet")
PATIENT = ("PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName")
STUDY = ("StudyID", "StudyDate", "StudyTime", "InstanceNumber")
SHOWN = ("StudyDescription", "BodyPartExamined")
REFUSED = "no Secondary Capture can be made of it: "
# Control characters, and what stands for bytes that the character set does not have.
GARBLED = re.compile("[\0-\x1f\x7f\ufffd]")
DATED: Any = {"DA": DA, "TM": TM}  # days and hours that exist
ORIENTATION = r"\['[APLRFH]{1,3}', '[APLRFH]{1,3}'\]"


def secondary_capture(source: Dataset, picture: np.ndarray, series: str, derivation: str) -> bytes:
    """The file of a Secondary Capture: of the source's patient and study, in another series.

    A DataError names elements of the source by keyword, and never repeats a value. ``picture`` is
    RGB, uint8 ``(H, W, 3)``, with "research use only" burnt in. ``series`` says what the series is
    of, such as a network's hash: a study has one series of it. ``derivation`` holds no ids.
    """
    import highdicom  # of an extra

    hush()
    about, content = _taken_over(source), io.BytesIO()
    purpose = ("121322", "DCM", "Source image for image processing operation")
    try:
        reference = Dataset()  # PS3.3 C.7.6.1.1.4
        reference.ReferencedSOPClassUID = about.SOPClassUID
        reference.ReferencedSOPInstanceUID = about.SOPInstanceUID
        reference.PurposeOfReferenceCodeSequence = [highdicom.sr.CodedConcept(*purpose)]
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
            software_versions=project_version(),
            series_description=SERIES,
            patient_orientation=("L", "F"),  # highdicom needs one; the source's follows
            specific_character_set=None,  # taken over below: highdicom refuses some that are valid
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        towards = source.get("PatientOrientation")
        made.PatientOrientation = towards if re.fullmatch(ORIENTATION, str(towards)) else None
        # Of an undeclared character set pydicom reads Latin-1, which keeps each byte.
        made.SpecificCharacterSet = about.get("SpecificCharacterSet", "ISO_IR 100")
        for name in ("IssuerOfPatientID", *SHOWN):  # highdicom leaves these out
            if name in about:
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
    """The valid elements of patient and study, which highdicom would take over unchecked."""
    about, wrong = Dataset(), []
    for name in (*IDS, *PATIENT, *STUDY, *SHOWN):
        value = _valid(source, name)
        if value:
            setattr(about, name, value)
        elif name in IDS and (value is None or name in NEEDED):
            wrong.append(name)
    if wrong:
        are = "is" if len(wrong) == 1 else "are"
        raise DataError(f"{REFUSED}{', '.join(wrong)} {are} missing or not valid; mend its header")
    return about


def _valid(source: Dataset, name: str) -> Any:
    """An element's value, "" without any, None where it is not valid (PS3.5, 6.2)."""
    vr = dictionary_VR(name)
    try:
        value = source.get(name) or ""
        several = isinstance(value, MultiValue)
        for text in map(str, value if several else [value]):
            validate_value(vr, text, pydicom.config.RAISE)
            if GARBLED.search(text) or (text and vr in DATED and not DATED[vr](text)):
                return None
    except Exception:  # a stranger's values
        return None
    odd = name == "PatientSex" and value not in ("", "F", "M", "O")
    return None if odd or (several and name != "SpecificCharacterSet") else value
