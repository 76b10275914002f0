"""A picture as a DICOM Secondary Capture of the patient and study of the radiograph it shows."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import validate_value

from datamodules import DataError
from datamodules.dicom import hush
from experiments.model_properties import project_version

SERIES = "Evidence map, RESEARCH USE ONLY"
# Of a series beside the radiographs': archives sort by it.
SERIES_NUMBER = 9901
MAKER = "decision-basis"
# Taken over from the radiograph, and therefore checked: who it is of, and of which study.
NEEDED = ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")
OPTIONAL = (
    "SpecificCharacterSet",
    "StudyDescription",
    "IssuerOfPatientID",
    "BodyPartExamined",
)
IDS = (
    *NEEDED,
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# Where nothing is said of the patient's position, highdicom wants something: taken out again.
SOME = ("L", "F")
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
    # An archive would file it elsewhere, cut the value, or refuse the file.
    if wrong := [name for name in (*IDS, *OPTIONAL) if not _is_valid(source, name)]:
        raise ValueError(
            f"no Secondary Capture can be made of it: {', '.join(wrong)} "
            f"{'is' if len(wrong) == 1 else 'are'} missing or not valid; mend the file's header"
        )
    try:
        made: Dataset = highdicom.sc.SCImage.from_ref_dataset(
            source,
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            series_instance_uid=generate_uid(entropy_srcs=[source.StudyInstanceUID, series]),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=max(1, int(source.get("InstanceNumber") or 1)),
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
        for name in OPTIONAL:
            if source.get(name):
                made[name] = source[name]
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


def _is_valid(source: Dataset, name: str) -> bool:
    """Whether an element has values that DICOM allows (PS3.5, 6.2); without any unless needed."""
    try:
        element = source[name]
        values = element.value if element.VM > 1 else [element.value]
        given = [value for value in values if value not in (None, "")]
        for value in given:
            validate_value(element.VR, str(value), pydicom.config.RAISE)
    except KeyError:
        return name not in NEEDED
    except Exception:  # a stranger's values
        return False
    return bool(given) or name not in NEEDED


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
