"""Radiographs as DICOM files, drawn for tests."""

import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

# Nothing that is printed, logged or raised may hold this.
SECRET = "Sekretova"


def radiograph(pixels: np.ndarray, **elements) -> Dataset:
    """A radiograph of grey or RGB pixels; ``elements`` are laid over it, None takes one out."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = generate_uid(), generate_uid()
    made.PatientName, made.PatientID, made.PatientBirthDate = f"{SECRET}^Eva", "007", "19700101"
    made.PatientSex, made.StudyID, made.AccessionNumber = "F", "S1", "A1"
    made.StudyDate, made.StudyTime = "20200102", "030405"
    made.ReferringPhysicianName = f"{SECRET}^Doctor"
    made.Modality, made.InstanceNumber, made.PatientOrientation = "CR", 3, ["L", "F"]
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    made.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in elements.items():
        if value is None:
            del made[name]
        else:
            setattr(made, name, value)
    if "BitsStored" in elements:
        made.HighBit = made.BitsStored - 1
    return made


def content(dataset: Dataset) -> bytes:
    """The file of a dataset."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def compressed(pixels, syntax, **elements):
    dataset = radiograph(pixels, **elements)
    dataset.compress(syntax)
    return dataset


def framed(frame, syntax, pixels, **elements):
    """A radiograph of one encoded frame."""
    dataset = radiograph(pixels, PixelData=encapsulate([frame]), **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].is_undefined_length = True
    return dataset
