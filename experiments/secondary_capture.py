"""A picture as a DICOM Secondary Capture of the patient and study of the radiograph it shows."""

from __future__ import annotations

import io
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from datamodules import DataError
from datamodules.dicom import hush

SERIES = "Evidence map, RESEARCH USE ONLY"
# Of a series beside the radiographs': archives sort by it.
SERIES_NUMBER = 9901
MAKER = "decision-basis"
# Where nothing is said of the patient's position, highdicom wants something: taken out again.
SOME = ("L", "F")


def secondary_capture(
    source: Dataset, picture: np.ndarray, series: str, derivation: str
) -> Dataset:
    """Make a Secondary Capture.

    The patient and the study are the source's; the series and the instance are new.

    Args:
        source: The radiograph, of which no pixels are needed.
        picture: RGB, uint8 ``(H, W, 3)``, "research use only" burnt in.
        series: What the series is of, such as the hash of a network: one study has one series of
            the same text.
        derivation: How the picture came to be; no ids.

    Returns:
        The Secondary Capture, uncompressed.

    Raises:
        ValueError: The source lacks the ids of its study or of itself, or they cannot be used; no
            value of the source is repeated.
    """
    import highdicom

    hush()
    try:
        for name in ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID"):
            if not source[name].value.is_valid:  # an archive would file it elsewhere, or refuse it
                raise ValueError(name)
        made: Dataset = highdicom.sc.SCImage.from_ref_dataset(
            source,
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            series_instance_uid=generate_uid(entropy_srcs=[source.StudyInstanceUID, series]),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=int(source.get("InstanceNumber") or 1),
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=_version(),
            series_description=SERIES,
            patient_orientation=SOME,
            specific_character_set=None,  # taken over below: highdicom refuses some that are valid
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        made.PatientOrientation = source.get("PatientOrientation") or None
        for name in (
            "SpecificCharacterSet",
            "StudyDescription",
            "IssuerOfPatientID",
            "Laterality",
            "BodyPartExamined",
        ):
            if source.get(name):
                made[name] = source[name]
        side = source.get("Laterality") or source.get("ImageLaterality")
        made.Laterality = side if side in ("L", "R") else None
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
    """The file of a Secondary Capture.

    Raises:
        DataError: A value that was taken over cannot be written.
    """
    content = io.BytesIO()
    try:
        made.save_as(content, enforce_file_format=True)
    except Exception:
        raise DataError(
            f"{path}: no Secondary Capture can be written of it: its patient's or study's data "
            "elements are not valid"
        ) from None
    return content.getvalue()


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


def _version() -> str:
    try:
        return version(MAKER)
    except PackageNotFoundError:  # used from a folder
        return "0"
