"""A picture as a DICOM Secondary Capture of the patient and study of the radiograph it shows."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DA, TM, validate_value

from datamodules import DataError
from datamodules.dicom import hush
from experiments.prediction.properties import project_version

SERIES = "Evidence map, RESEARCH USE ONLY"
# Of a series beside the radiographs': archives sort by it.
SERIES_NUMBER = 9901
MAKER = "decision-basis"
# Taken over from the radiograph: what must be there; what is refused where it is not valid (an
# archive would file the capture elsewhere); and what is then left out, or empty.
NEEDED = ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")
IDS = (*NEEDED, "PatientID", "IssuerOfPatientID", "PatientName", "SpecificCharacterSet")
OPTIONAL = ("IssuerOfPatientID", "StudyDescription", "BodyPartExamined")
TAKEN = ("PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName", *OPTIONAL)
STUDY = ("StudyID", "StudyDate", "StudyTime", "InstanceNumber")
# Where nothing is said of the patient's position, highdicom wants something: taken out again.
SOME = ("L", "F")
# Control characters, and what stands for bytes that the character set does not have.
UNTOLD = re.compile("[\0-\x1f\x7f\ufffd]")
DATED: Any = {"DA": DA, "TM": TM}  # days and hours that there are
TOWARDS = r"\['[APLRFH]{1,3}', '[APLRFH]{1,3}'\]"


def secondary_capture(
    source: Dataset, picture: np.ndarray, series: str, derivation: str
) -> Dataset:
    """Make a Secondary Capture.

    The patient and the study are the source's; the series and the instance are new.

    Args:
        source: The radiograph, of which no pixels are needed.
        picture: RGB, uint8 ``(H, W, 3)``, "research use only" burnt in.
        series: What the series is of, such as a network's hash: a study has one series of it.
        derivation: How the picture came to be; no ids.

    Returns:
        The Secondary Capture, uncompressed. A ValueError names what the source lacks, or what of
        it is not valid, by keyword; no value of the source is repeated.
    """
    import highdicom

    hush()
    about, found = Dataset(), {name: _checked(source, name) for name in (*IDS, *TAKEN, *STUDY)}
    for name in (name for name in found if found[name]):
        setattr(about, name, found[name])
    if wrong := [name for name in IDS if found[name] is None]:
        raise ValueError(
            f"no Secondary Capture can be made of it: {', '.join(wrong)} "
            f"{'is' if len(wrong) == 1 else 'are'} missing or not valid; mend the file's header"
        )
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
            software_versions=project_version(),
            series_description=SERIES,
            patient_orientation=SOME,
            specific_character_set=None,  # taken over below: highdicom refuses some that are valid
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        towards = source.get("PatientOrientation")
        made.PatientOrientation = towards if re.fullmatch(TOWARDS, str(towards)) else None
        # Of an undeclared character set pydicom reads Latin-1, which keeps each byte.
        made.SpecificCharacterSet = about.get("SpecificCharacterSet", "ISO_IR 100")
        made.update({about[name].tag: about[name] for name in OPTIONAL if name in about})
        # Not the series' Laterality, which an unpaired body part may not have, not even empty.
        side = source.get("ImageLaterality") or source.get("Laterality")
        made.ImageLaterality = side if side in ("L", "R", "U", "B") else None
        made.BurnedInAnnotation = "YES"
        made.DerivationDescription = derivation
        made.SourceImageSequence = [_reference(source)]
        # Once lossy, always lossy.
        made.LossyImageCompression = "01" if source.get("LossyImageCompression") == "01" else "00"
        return made
    except Exception:  # a stranger's values, and texts that repeat them
        raise ValueError(
            "no Secondary Capture can be made of it: its patient's or study's data elements are "
            "missing or not valid"
        ) from None


def encode(made: Dataset, path: Path) -> bytes:
    """The file of a Secondary Capture; a DataError where what was taken over cannot be written."""
    content = io.BytesIO()
    try:
        made.save_as(content, enforce_file_format=True)
    except Exception:
        raise DataError(
            f"{path}: no Secondary Capture can be written of it: its patient's or study's data "
            "elements are not valid"
        ) from None
    return content.getvalue()


def _checked(source: Dataset, name: str) -> Any:
    """An element's value, "" without any; None where it is needed, or not valid (PS3.5, 6.2)."""
    vr = dictionary_VR(name)
    try:
        value = source.get(name) or ""
        several = isinstance(value, MultiValue)
        for each in map(str, value if several else [value]):
            validate_value(vr, each, pydicom.config.RAISE)
            if UNTOLD.search(each) or (each and vr in DATED and not DATED[vr](each)):
                return None
    except Exception:  # a stranger's values
        return None
    known = name != "PatientSex" or value in ("", "F", "M", "O")
    one = not several or name == "SpecificCharacterSet"
    return value if known and one and (value or name not in NEEDED) else None


def _reference(source: Dataset) -> Dataset:
    """The radiograph as the source of what was derived from it (PS3.3 C.7.6.1.1.4)."""
    purpose: Any = Dataset()
    purpose.CodeValue = "121322"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [purpose]
    return reference
