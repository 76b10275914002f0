"""PNG masks, one file an image: 0 background, 255 or the numbers of classes marked."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datamodules.annotations.entries import EntryError, image_name, names, noting_file
from datamodules.annotations.files import list_files, read_bytes
from datamodules.annotations.marks import MAX_PIXELS, Mark, MarkedImage, Marking, Mistake, encode
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
    """Read a mask, or all PNG files below a folder.

    Of a lesion folder, these are its masks; their lesion types are the marks' labels.

    An image's name is the mask's path below the folder without ``.png`` and ``_mask``, ``-mask`` or
    ``.mask``. A black mask is an image without marks. Of a folder laid out as Pascal VOC's only
    ``SegmentationClass`` is read.

    Raises:
        DataError: There is no such file or folder, no PNG in it, the only one cannot be read, or
            masks are of several colours.
    """
    images: list[MarkedImage] = []
    mistakes: list[Mistake] = []
    types: dict[str, str] = {}
    if (path / CSV).is_file() and (path / "masks").is_dir():
        rows = read_lesions(path)
        types = dict(zip(rows["mask"], rows["lesion_type"], strict=True))
        path = path / "masks"  # beside them lie contact sheets
    elif (path / CLASSES).is_dir():
        path = path / CLASSES  # beside it lie the radiographs, and each object by itself
    files = list_files(path, ".png")
    classes = _labelmap(path / "labelmap.txt") | _labelmap(path.parent / "labelmap.txt")
    found: dict[int, Path] = {}
    for file in files:
        with noting_file(mistakes, file, path) as whose:
            below = file.name if file == path else os.path.relpath(file, path)
            name = image_name(SUFFIX.sub("", below.removesuffix(file.suffix)))
            whose[:] = [name]
            pixels = read_mask(file)
            values = np.unique(pixels[pixels > 0]).tolist()
            shown = " and ".join(map(_show, values[-2:]))
            labels = {value: names(classes.get(value)) for value in values}
            if all(labels.values()):
                parts = [(pixels == value, label) for value, label in labels.items()]
            elif len(values) > 1 and values[-1] > MAX_CLASS:
                raise EntryError(f"holds {shown}: {SEVERAL}")
            else:  # one class, or numbers of lesions
                found |= dict.fromkeys(values, file)
                parts = [(pixels, names(*types.get(f"masks/{below}", "").split("+")))]
            marks = [Mark("mask", runs=encode(part), labels=label) for part, label in parts]
            height, width = pixels.shape
            images.append(MarkedImage(name, (height, width), marks if values else [], str(file)))
    if len(found) > 1 and max(found) > MAX_CLASS:
        both = " and ".join(f"{_show(value)} in {found[value]}" for value in sorted(found)[-2:])
        raise DataError(f"{path}: holds {both}: {SEVERAL}")
    if not files:
        raise DataError(f"{path}: holds no .png file; give the folder of the masks")
    return Marking(images, mistakes)


def _labelmap(file: Path) -> dict[int, str]:
    """Classes by colour, 0xRRGGBB, from the lines ``name:red,green,blue:...`` of CVAT's exports."""
    lines = read_bytes(file).decode("utf-8", "replace").splitlines() if file.is_file() else []
    fields = [re.fullmatch(r"([^#:]+):(\d+),(\d+),(\d+):.*", line) for line in lines]
    codes = {match[1]: map(int, match.groups()[1:]) for match in fields if match}
    return {red << 16 | green << 8 | blue: name for name, (red, green, blue) in codes.items()}


def _show(value: int) -> str:
    return f"#{value:06x}" if value > 0xFF else str(value)


def read_mask(file: Path) -> np.ndarray:
    """Read one mask, ``(H, W)``, marked where not 0; of a coloured one its colours, 0xRRGGBB.

    Raises:
        DataError: It cannot be read, or is no PNG.
        EntryError: It is none: too large, see-through, or grey in between.
    """
    data = read_bytes(file)
    sides = (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    if not data.startswith(PNG):
        raise DataError(f"{file}: is no PNG, whatever its name says; save it as PNG")
    if sides[0] * sides[1] > MAX_PIXELS:
        raise EntryError(f"is of {sides[0]} x {sides[1]} pixels, no radiograph is; export it again")
    decode(file)  # says what is wrong with the file
    if not is_opaque(file):
        raise EntryError("is see-through in places; save it without transparency")
    is_palette = data[25] == 3  # its numbers are the classes, not the grey of their colours
    with Image.open(file) as image:
        pixels = np.array(image) if is_palette else _values(data)
    values = np.unique(pixels[pixels > 0])
    is_grey = not is_palette and pixels.dtype != np.uint32
    if len(values) > (1 if is_grey and values.max(initial=0) > MAX_CLASS else MAX_CLASS):
        raise EntryError(
            f"holds grey in between, such as {values[0]} and {values[-1]}; save it with 0 and 255 "
            "alone, without smoothing"
        )
    return (pixels > 0).astype(np.uint8) if is_grey else pixels


def _values(data: bytes) -> np.ndarray:
    """Return the values that a PNG without palette stores, upright, ``(H, W)``."""
    bits, is_colour = data[24], data[25] & 2
    pixels = np.asarray(
        cv2.imdecode(
            np.frombuffer(data, np.uint8),
            (cv2.IMREAD_COLOR if is_colour else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_ANYDEPTH,
        )
    )
    if not is_colour:
        # Of few bits, OpenCV spreads 0, 1, 2, 3 over 0 to 255.
        return pixels // (255 // (2**bits - 1)) if bits < 8 else pixels
    grey = pixels.max(axis=2)
    if (pixels == grey[..., None]).all():
        return grey
    blue, green, red = np.moveaxis(pixels.astype(np.uint32) >> (bits - 8), -1, 0)
    coded = red << 16 | green << 8 | blue
    return coded if len(np.unique(coded[grey > 0])) <= MAX_CLASS else grey
