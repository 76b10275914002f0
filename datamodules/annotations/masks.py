"""Masks of pixels: PNG files, 0 background, 255 or the numbers of classes marked, and DICOM SEG.

DICOM SEG names an image by its SOP Instance UID. It is read with pydicom: highdicom's reader
refuses objects of plain radiographs, which have no slice thickness, its own among them.
"""

import os
import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info

from datamodules.annotations import fields
from datamodules.annotations.fields import EntryError, catch_file, check, list_files
from datamodules.annotations.marks import Mark, MarkedImage, Marking, encode
from datamodules.decode import decode, is_opaque, read_content
from datamodules.index import DataError, read_text
from datamodules.lesions import CSV, read_lesions

# What tools put behind the image's own name.
SUFFIX = re.compile(r"([._-]mask([._-]?\d+)?)?\.png$", re.IGNORECASE)
# Numbers of classes begin at 1 and are few; smooth edges reach far beyond.
MAX_CLASS = 64
# Added to a colour 0xRRGGBB: the blue 0,0,2 is not the class of number 2.
COLOUR = 1 << 24
# Of Pascal VOC's folders, the one whose colours are classes.
CLASSES = "SegmentationClass"
SEVERAL = (
    "of several classes; a labelmap.txt with their colours may name them (in Pascal VOC 255 is the "
    "void around objects); or export polygons (COCO), or the lesion's class alone"
)
NUMBERS = (
    "its numbers {} are joined; if they are classes, name them in a labelmap.txt, such as "
    "fracture:2,2,2::"
)
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"  # binary or fractional; not the label maps of .66.7


def read_masks(path: Path) -> Marking:
    """Read a mask, or all PNG files below a folder; a black one is an image without marks."""
    types: dict[str, str] = {}
    if (path / CSV).is_file() and (path / "masks").is_dir():
        rows = read_lesions(path)
        types = dict(zip(rows["mask"], rows["lesion_type"], strict=True))
        path = path / "masks"  # beside them lie contact sheets
    elif (path / CLASSES).is_dir():
        path = path / CLASSES  # beside it lie the radiographs, and each object by itself
    classes = _labelmap(path / "labelmap.txt") | _labelmap(path.parent / "labelmap.txt")
    marking = Marking([], [])
    nameless: dict[int, Path] = {}  # values that no class is named for, and a file that has them
    for file in list_files(path, ".png", wanted="the folder of the masks"):
        with catch_file(marking, file, path) as concerned:
            below = file.name if file == path else os.path.relpath(file, path)
            concerned[:] = [fields.image_name(SUFFIX.sub("", below))]
            pixels = read_mask(file)
            values = np.unique(pixels[pixels > 0]).tolist()
            if all(value in classes for value in values):
                parts = [(pixels == value, fields.names(classes[value])) for value in values]
            else:  # one class, or numbers of lesions
                nameless |= dict.fromkeys(values, file)
                parts = [(pixels, fields.names(*types.get(f"masks/{below}", "").split("+")))]
            note = NUMBERS.format(", ".join(map(str, values))) if len(values) > len(parts) else ""
            marks = [Mark("mask", runs=encode(part), labels=labels) for part, labels in parts]
            size = (pixels.shape[0], pixels.shape[1])
            marking.images.append(MarkedImage(concerned[0], size, marks, str(file), note=note))
    if len(nameless) > 1 and max(nameless) > MAX_CLASS:
        last = sorted(nameless)[-2:]
        shown = [f"#{value % COLOUR:06x}" if value > COLOUR else str(value) for value in last]
        raise DataError(f"{path}: holds {' and '.join(shown)}: {SEVERAL}")
    return marking


def _labelmap(file: Path) -> dict[int, str]:
    """Classes by colour, from the lines ``name:red,green,blue:...`` of CVAT's exports.

    Of a grey one, such as 2,2,2, also by its number.
    """
    content = read_text(file) if file.is_file() else ""
    lines = re.findall(r"^([^#:\n]+):(\d+),(\d+),(\d+):", content, re.MULTILINE)
    named = {COLOUR | int(r) << 16 | int(g) << 8 | int(b): name for name, r, g, b in lines}
    return named | {int(r): name for name, r, g, b in lines if r == g == b}


def read_mask(file: Path) -> np.ndarray:
    """Read one mask, upright ``(H, W)``: its numbers, its colours, 1 for other grey."""
    decode(file)  # says what is wrong with the file
    check(is_opaque(file), "is see-through in places; save it without transparency")
    with Image.open(file) as stored:
        check(stored.format == "PNG", "is no PNG, whatever its name says; save it as PNG")
        image = ImageOps.exif_transpose(stored)
        is_palette = image.mode == "P"  # its numbers are the classes, not the grey of their colours
        is_colour = not is_palette and len(image.getbands()) > 1
        pixels = np.array(image.convert("RGB") if is_colour else image)
    if is_colour:
        red, green, blue = np.moveaxis(pixels.astype(np.uint32), -1, 0)
        is_colour = not ((red == green) & (green == blue)).all()
        colour = red << 16 | green << 8 | blue
        pixels = np.where(colour > 0, colour | COLOUR, 0) if is_colour else red
    values = np.unique(pixels[pixels > 0]).tolist()
    is_grey = not (is_colour or is_palette) and bool(values) and values[-1] > MAX_CLASS
    most = 1 if is_grey else MAX_CLASS
    what = f"holds grey in between, such as {values[:2]}; save it with 0 and 255 alone, unsmoothed"
    check(len(values) <= most, what)
    return (pixels > 0).astype(np.uint8) if is_grey else pixels


def read_dicom_seg(path: Path) -> Marking:
    """Read a segmentation, or all below a folder, where other DICOM files are the images."""
    marking = Marking([], [])
    files = [file for file in list_files(path, "") if is_segmentation(file)]
    if not files:
        raise DataError(f"{path}: holds no DICOM segmentation (SEG); export one, or masks as PNG")
    for file in files:
        with catch_file(marking, file, path) as concerned, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values, which may be a patient's
            try:
                marking.images.extend(_read_segmentation(file, concerned))
            except EntryError:
                raise
            except Exception as error:  # pydicom fails in many ways, with values in its texts
                what = f"damaged or compressed DICOM ({type(error).__name__}); export it again"
                raise EntryError(what) from error
    return marking


def is_segmentation(file: Path) -> bool:
    """Whether a file is DICOM and says that it is a segmentation."""
    try:
        return str(read_file_meta_info(file).MediaStorageSOPClassUID) == SEGMENTATION
    except Exception:  # pydicom fails in many ways
        return False


def _read_segmentation(file: Path, concerned: list[str]) -> list[MarkedImage]:
    """Read a segmentation; ``concerned`` becomes the images that it refers to."""
    data = dcmread(BytesIO(read_content(file)))
    every = (item.value for item in data.iterall() if item.keyword == "ReferencedSOPInstanceUID")
    concerned[:] = dict.fromkeys(map(str, every)) or concerned
    size = fields.image_size(data.Rows, data.Columns)
    labels = {int(s.SegmentNumber): fields.names(str(s.SegmentLabel)) for s in data.SegmentSequence}
    half = int(data.MaximumFractionalValue) / 2 if data.SegmentationType == "FRACTIONAL" else 1
    images: dict[str, MarkedImage] = {}
    for place, frame in enumerate(data.pixel_array.reshape(-1, *size)):
        name = _source(data, place)
        image = images.setdefault(name, MarkedImage(name, size, [], str(file)))
        segment = int(_group(data, place, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        if (mask := frame >= half).any():
            entry = f"segment {segment}, frame {place + 1}"
            image.marks.append(Mark(entry, runs=encode(mask), labels=labels[segment]))
    return list(images.values())


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
