"""DICOM Segmentation objects: binary, fractional from one half on, and label maps.

DICOM has no file names: an image is named by the SOP Instance UID that the object refers to, which
a mapping file turns into a path. Only uncompressed objects are read: what a compressed one unpacks
to cannot be told beforehand. Who made it stays in the file. Read with pydicom: highdicom's reader
refuses objects of plain radiographs, which have no slice thickness, its own among them.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info

from datamodules.annotations import fields
from datamodules.annotations.fields import EntryError
from datamodules.annotations.files import MAX_BYTES, catch_file, list_files, read_bytes
from datamodules.annotations.marks import MAX_PIXELS, Mark, MarkedImage, Marking, encode
from datamodules.decode import is_dicom
from datamodules.index import DataError

# Segmentation Storage, Label Map Segmentation Storage.
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# Implicit and explicit little endian, explicit big endian.
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
DEFLATED = "1.2.840.10008.1.2.1.99"
# Preamble, "DICM" and the element that counts the bytes of the header behind it.
META_BEGINS = 128 + 4 + 12
REMEDY = "write the segmentation uncropped (pydicom-seg: inplane_cropping=False)"


def read_dicom_seg(path: Path) -> Marking:
    """Read a segmentation, or all below a folder, where other DICOM files are the images.

    The label of a mark is that of its segment.
    """
    marking = Marking([], [])
    is_there = False
    for file in list_files(path, ""):
        with catch_file(marking, file, path) as concerned:
            data = read_bytes(file)
            if not is_dicom(data) or not is_segmentation(file):
                continue
            is_there = True
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of odd values, which may be a patient's
                    marking.images.extend(_read(file, data, concerned))
            except (EntryError, DataError):
                raise
            except Exception as error:  # pydicom fails in many ways, with values in its texts
                what = f"damaged DICOM ({type(error).__name__}); export it again"
                raise EntryError(what) from error
    if not is_there:
        raise DataError(f"{path}: holds no DICOM segmentation (SEG); export one, or masks as PNG")
    return marking


def is_segmentation(file: Path) -> bool:
    """Whether a DICOM file says that it is a segmentation."""
    try:
        return str(read_file_meta_info(file).MediaStorageSOPClassUID) in SEGMENTATIONS
    except Exception:  # pydicom fails in many ways
        return False


def _read(file: Path, content: bytes, concerned: list[str]) -> list[MarkedImage]:
    """Read a segmentation's content; ``concerned`` becomes the images that it refers to."""
    meta: Any = read_file_meta_info(file)
    syntax = str(meta.TransferSyntaxUID)
    if syntax == DEFLATED:
        packed = content[META_BEGINS + meta.FileMetaInformationGroupLength :]
        if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_BYTES)) == MAX_BYTES:
            raise DataError(f"inflates to over {MAX_BYTES >> 20} MiB; save it uncompressed")
    data = dcmread(BytesIO(content), stop_before_pixels=syntax not in UNCOMPRESSED)
    every = (item.value for item in data.iterall() if item.keyword == "ReferencedSOPInstanceUID")
    concerned[:] = dict.fromkeys(map(str, every)) or concerned
    if syntax not in UNCOMPRESSED:
        raise EntryError(f"is compressed (transfer syntax {syntax[:64]}); save it uncompressed")
    count = int(data.get("NumberOfFrames") or 1)
    size = fields.image_size(data.Rows, data.Columns)
    if not 0 < count * size[0] * size[1] <= MAX_PIXELS:
        raise EntryError(f"holds {fields.show(count)} frames of {size[1]} x {size[0]}; split it")
    labels = {int(s.SegmentNumber): fields.names(str(s.SegmentLabel)) for s in data.SegmentSequence}
    images: dict[str, MarkedImage] = {}
    for place, frame in enumerate(data.pixel_array.reshape(count, *size)):
        name = _source(data, place)
        image = images.setdefault(name, MarkedImage(name, size, [], str(file), remedy=REMEDY))
        for segment, mask in _segments(data, place, frame):
            entry = f"segment {segment}, frame {place + 1}"
            if not mask.any():
                continue
            if segment not in labels:
                raise EntryError(f"{entry}: no segment of that number is described")
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
    if listed and not uids <= {str(image.ReferencedSOPInstanceUID) for image in listed}:
        raise EntryError(f"frame {place + 1} is of an image that its series does not list")
    if len(uids) != 1:
        raise EntryError(f"frame {place + 1} is of {len(uids)} images, not one; export it again")
    if any(int(source.get("ReferencedFrameNumber") or 1) != 1 for source in sources):
        raise EntryError("it marks a frame of a film, not a radiograph; take it out")
    return fields.image_name(uids.pop())


def _group(data: Dataset, place: int, name: str) -> Any:
    """The first item of a functional group of a frame, or of what all frames share."""
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    for item in [*own[place : place + 1], *shared[:1]]:
        if item.get(name):
            return item.get(name)[0]
    return None
