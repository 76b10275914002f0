"""PNG masks, one file an image: 0 background, 255 or the numbers of classes marked."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datamodules.annotations.fields import catch_file, check, image_name, list_files, names
from datamodules.annotations.marks import Mark, MarkedImage, Marking, encode
from datamodules.decode import decode, is_opaque
from datamodules.index import DataError
from datamodules.lesions import CSV, read_lesions
from datamodules.tables import read_text

# What tools put behind the image's own name.
SUFFIX = re.compile(r"([._-]mask)?\.png$", re.IGNORECASE)
# Numbers of classes begin at 1 and are few; smooth edges reach far beyond.
MAX_CLASS = 64
# Of Pascal VOC's folders, the one whose colours are classes.
CLASSES = "SegmentationClass"
SEVERAL = (
    "of several classes; a labelmap.txt with their colours may name them (in Pascal VOC 255 is the "
    "void around objects); or export polygons (COCO), or the lesion's class alone"
)


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
            concerned[:] = [image_name(SUFFIX.sub("", below))]
            pixels = read_mask(file)
            values = np.unique(pixels[pixels > 0]).tolist()
            if all(value in classes for value in values):
                parts = [(pixels == value, names(classes[value])) for value in values]
            else:  # one class, or numbers of lesions
                nameless |= dict.fromkeys(values, file)
                parts = [(pixels, names(*types.get(f"masks/{below}", "").split("+")))]
            marks = [Mark("mask", runs=encode(part), labels=labels) for part, labels in parts]
            size = (pixels.shape[0], pixels.shape[1])
            marking.images.append(MarkedImage(concerned[0], size, marks, str(file)))
    if len(nameless) > 1 and max(nameless) > MAX_CLASS:
        last = sorted(nameless)[-2:]
        both = " and ".join(f"{_show(value)} in {nameless[value]}" for value in last)
        raise DataError(f"{path}: holds {both}: {SEVERAL}")
    return marking


def _labelmap(file: Path) -> dict[int, str]:
    """Classes by colour, 0xRRGGBB, from the lines ``name:red,green,blue:...`` of CVAT's exports."""
    content = read_text(file) if file.is_file() else ""
    lines = re.findall(r"^([^#:\n]+):(\d+),(\d+),(\d+):", content, re.MULTILINE)
    return {int(r) << 16 | int(g) << 8 | int(b): name for name, r, g, b in lines}


def _show(value: int) -> str:
    return f"#{value:06x}" if value > 0xFF else str(value)


def read_mask(file: Path) -> np.ndarray:
    """Read one mask, upright ``(H, W)``: of a palette its numbers, of colours 0xRRGGBB, else 1."""
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
        pixels = red << 16 | green << 8 | blue if is_colour else red
    is_grey = not (is_colour or is_palette)
    values = np.unique(pixels[pixels > 0]).tolist()
    most = 1 if is_grey and values and values[-1] > MAX_CLASS else MAX_CLASS
    what = f"holds grey in between, such as {values[:2]}; save it with 0 and 255 alone, unsmoothed"
    check(len(values) <= most, what)
    return (pixels > 0).astype(np.uint8) if is_grey else pixels
