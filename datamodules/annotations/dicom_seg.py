"""DICOM Segmentation objects: binary, fractional from one half on, and label maps.

An image is named by the SOP Instance UID that the object refers to. Read with pydicom: highdicom's
reader refuses objects of plain radiographs, which have no slice thickness, its own among them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info

from datamodules.annotations import fields
from datamodules.annotations.fields import EntryError, catch_file, check, list_files
from datamodules.annotations.marks import Mark, MarkedImage, Marking, encode
from datamodules.decode import read_content
from datamodules.index import DataError

# Segmentation Storage, Label Map Segmentation Storage.
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
REMEDY = "write the segmentation uncropped (pydicom-seg: inplane_cropping=False)"


def read_dicom_seg(path: Path) -> Marking:
    """Read a segmentation, or all below a folder, where other DICOM files are the images."""
    marking = Marking([], [])
    files = [file for file in list_files(path, "") if is_segmentation(file)]
    if not files:
        raise DataError(f"{path}: holds no DICOM segmentation (SEG); export one, or masks as PNG")
    for file in files:
        with catch_file(marking, file, path) as concerned:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of odd values, which may be a patient's
                    marking.images.extend(_read(file, concerned))
            except EntryError:
                raise
            except Exception as error:  # pydicom fails in many ways, with values in its texts
                what = f"damaged or compressed DICOM ({type(error).__name__}); export it again"
                raise EntryError(what) from error
    return marking


def is_segmentation(file: Path) -> bool:
    """Whether a file is DICOM and says that it is a segmentation."""
    try:
        return str(read_file_meta_info(file).MediaStorageSOPClassUID) in SEGMENTATIONS
    except Exception:  # pydicom fails in many ways
        return False


def _read(file: Path, concerned: list[str]) -> list[MarkedImage]:
    """Read a segmentation; ``concerned`` becomes the images that it refers to."""
    data = dcmread(BytesIO(read_content(file)))
    every = (item.value for item in data.iterall() if item.keyword == "ReferencedSOPInstanceUID")
    concerned[:] = dict.fromkeys(map(str, every)) or concerned
    size = fields.image_size(data.Rows, data.Columns)
    labels = {int(s.SegmentNumber): fields.names(str(s.SegmentLabel)) for s in data.SegmentSequence}
    images: dict[str, MarkedImage] = {}
    for place, frame in enumerate(data.pixel_array.reshape(-1, *size)):
        name = _source(data, place)
        image = images.setdefault(name, MarkedImage(name, size, [], str(file), remedy=REMEDY))
        for segment, mask in _segments(data, place, frame):
            if mask.any():
                entry = f"segment {segment}, frame {place + 1}"
                image.marks.append(Mark(entry, runs=encode(mask), labels=labels[segment]))
    return list(images.values())


def _segments(data: Dataset, place: int, frame: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The segments of a frame: their number and what they mark, bool ``(H, W)``."""
    kind = str(data.SegmentationType)
    if kind == "LABELMAP":
        for segment in np.unique(frame[frame > 0]):
            yield int(segment), frame == segment
        return
    segment = int(_group(data, place, "SegmentIdentificationSequence").ReferencedSegmentNumber)
    half = int(data.MaximumFractionalValue) / 2 if kind == "FRACTIONAL" else 1
    yield segment, frame >= half


def _source(data: Dataset, place: int) -> str:
    """The SOP Instance UID of the image that a frame marks."""
    derivation = _group(data, place, "DerivationImageSequence")
    series = data.get("ReferencedSeriesSequence") or []
    listed = [image for item in series for image in item.ReferencedInstanceSequence]
    sources = listed if derivation is None else derivation.SourceImageSequence
    uids = {str(source.ReferencedSOPInstanceUID) for source in sources}
    check(len(uids) == 1, f"frame {place + 1} is of {len(uids)} images, not one; export it again")
    return fields.image_name(uids.pop())


def _group(data: Dataset, place: int, name: str) -> Any:
    """The first item of a functional group of a frame, or of what all frames share."""
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    groups = [item.get(name) for item in [*own[place : place + 1], *shared[:1]]]
    return next((group[0] for group in groups if group), None)
