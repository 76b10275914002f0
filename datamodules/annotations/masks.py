"""PNG masks, one file an image: 0 background, 255 or the numbers of classes marked."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datamodules.annotations.fields import check, image_name, names
from datamodules.annotations.files import catch_file, list_files, read_bytes
from datamodules.annotations.marks import MAX_PIXELS, Mark, MarkedImage, Marking, encode
from datamodules.decode import PNG, decode, is_opaque
from datamodules.index import DataError
from datamodules.lesions import CSV, read_lesions

# What tools put behind the image's own name.
SUFFIX = re.compile(r"[._-]mask$", re.IGNORECASE)
# Numbers of classes begin at 1 and are few; smooth edges reach far beyond.
MAX_CLASS = 64
# Of Pascal VOC's folders, the one whose colours are classes.
CLASSES = "SegmentationClass"
SEVERAL = (
    "of several classes; a labelmap.txt with their colours may name them (in Pascal VOC 255 is the "
    "void around objects); or export polygons (COCO), or the lesion's class alone"
)


def read_masks(path: Path) -> Marking:
    """Read a mask, or all PNG files below a folder; a black one is an image without marks.

    An image's name is the mask's path below the folder without ``.png`` and ``_mask``, ``-mask`` or
    ``.mask``. Of a lesion folder, these are its masks, with their lesion types as labels; of a
    folder laid out as Pascal VOC's only ``SegmentationClass`` is read.
    """
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
            name = image_name(SUFFIX.sub("", below.removesuffix(file.suffix)))
            concerned[:] = [name]
            pixels = read_mask(file)
            values = np.unique(pixels[pixels > 0]).tolist()
            labels = {value: names(classes.get(value)) for value in values}
            if all(labels.values()):
                parts = [(pixels == value, label) for value, label in labels.items()]
            else:  # one class, or numbers of lesions
                is_one = len(values) < 2 or values[-1] <= MAX_CLASS
                check(is_one, f"holds {' and '.join(map(_show, values[-2:]))}: {SEVERAL}")
                nameless |= dict.fromkeys(values, file)
                parts = [(pixels, names(*types.get(f"masks/{below}", "").split("+")))]
            marks = [Mark("mask", runs=encode(part), labels=label) for part, label in parts]
            size = (pixels.shape[0], pixels.shape[1])
            marking.images.append(MarkedImage(name, size, marks if values else [], str(file)))
    if len(nameless) > 1 and max(nameless) > MAX_CLASS:
        last = sorted(nameless)[-2:]
        both = " and ".join(f"{_show(value)} in {nameless[value]}" for value in last)
        raise DataError(f"{path}: holds {both}: {SEVERAL}")
    return marking


def _labelmap(file: Path) -> dict[int, str]:
    """Classes by colour, 0xRRGGBB, from the lines ``name:red,green,blue:...`` of CVAT's exports."""
    content = read_bytes(file).decode("utf-8", "replace") if file.is_file() else ""
    lines = re.findall(r"^([^#:\n]+):(\d+),(\d+),(\d+):", content, re.MULTILINE)
    return {int(r) << 16 | int(g) << 8 | int(b): name for name, r, g, b in lines}


def _show(value: int) -> str:
    return f"#{value:06x}" if value > 0xFF else str(value)


def read_mask(file: Path) -> np.ndarray:
    """Read one mask, ``(H, W)``, marked where not 0; of a coloured one its colours, 0xRRGGBB."""
    data = read_bytes(file)
    sides = (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    if not data.startswith(PNG):
        raise DataError(f"{file}: is no PNG, whatever its name says; save it as PNG")
    what = f"is of {sides[0]} x {sides[1]} pixels, no radiograph is; export it again"
    check(sides[0] * sides[1] <= MAX_PIXELS, what)
    decode(file)  # says what is wrong with the file
    check(is_opaque(file), "is see-through in places; save it without transparency")
    is_palette = data[25] == 3  # its numbers are the classes, not the grey of their colours
    with Image.open(file) as image:
        pixels = np.array(image) if is_palette else _values(data)
    values = np.unique(pixels[pixels > 0])
    is_grey = not is_palette and pixels.dtype != np.uint32
    most = 1 if is_grey and values.max(initial=0) > MAX_CLASS else MAX_CLASS
    between = " and ".join(map(str, values[[0, -1]] if len(values) else []))
    what = f"holds grey in between, such as {between}; save it with 0 and 255 alone"
    check(len(values) <= most, f"{what}, without smoothing")
    return (pixels > 0).astype(np.uint8) if is_grey else pixels


def _values(data: bytes) -> np.ndarray:
    """The values that a PNG without palette stores, upright, ``(H, W)``."""
    bits, is_colour = data[24], data[25] & 2
    mode = cv2.IMREAD_COLOR if is_colour else cv2.IMREAD_GRAYSCALE
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_ANYDEPTH)
    pixels = np.asarray(pixels)
    if not is_colour:
        # Of few bits, OpenCV spreads 0, 1, 2, 3 over 0 to 255.
        return pixels // (255 // (2**bits - 1)) if bits < 8 else pixels
    grey = pixels.max(axis=2)
    if (pixels == grey[..., None]).all():
        return grey
    blue, green, red = np.moveaxis(pixels.astype(np.uint32) >> (bits - 8), -1, 0)
    coded = red << 16 | green << 8 | blue
    return coded if len(np.unique(coded[grey > 0])) <= MAX_CLASS else grey
