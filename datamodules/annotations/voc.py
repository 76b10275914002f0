"""Pascal VOC XML, one file an image: boxes, as LabelImg and many data sets write them.

Corners are taken as written. Files of the challenge itself count from 1, those of most tools from
0: a pixel, which is less than anybody draws exactly.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from xml.etree.ElementTree import Element

from datamodules.annotations.entries import (
    EntryError,
    image_name,
    image_size,
    name_beside,
    names,
    noting,
    noting_file,
    number,
)
from datamodules.annotations.files import list_files, read_xml
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake, Point
from datamodules.annotations.shapes import box
from datamodules.index import DataError


def read_voc(path: Path) -> Marking:
    """Read a VOC file, or all below a folder; an image's name gets the folder of its file.

    Path and folder that a file states, often of another machine, are other names.

    Blanks and line breaks around values, and an empty size, are put up with. An image without
    objects is listed without marks.

    Raises:
        DataError: There is no such file or folder, no XML in it, or the only one cannot be read.
    """
    images: list[MarkedImage] = []
    mistakes: list[Mistake] = []
    files = list_files(path, ".xml")
    for file in files:
        with noting_file(mistakes, file, alone=len(files) == 1):
            root = read_xml(file)
            if root.tag != "annotation":
                raise DataError(f"{file}: no Pascal VOC file, which begins <annotation>")
            name = name_beside(file, path, _value(root, "filename") or file.stem)
            image = MarkedImage(name, _size(root), [], str(file), also=_also(root))
            images.append(image)
            for place, thing in enumerate(root.findall("object")):
                entry = f"object number {place}"
                labels = names(_value(thing, "name"))
                with noting(mistakes, f"{file}: {entry}", image.name, labels):
                    image.marks.append(Mark(entry, _box(thing), labels=labels, is_box=True))
    if not files:
        raise DataError(f"{path}: holds no .xml file; give a VOC file or their folder")
    return Marking(images, mistakes)


def _also(root: Element) -> tuple[str, ...]:
    """Return the file's path, and its name in its folder, where they are given."""
    file, found = _value(root, "filename"), []
    for given in (_value(root, "path"), f"{_value(root, 'folder')}/{file}"):
        with suppress(EntryError):  # a hint more, not what must be there
            found.append(image_name(given))
    return tuple(name for name in found if file and name.endswith(f"/{file}"))


def _box(thing: Element) -> tuple[Point, ...]:
    corners = thing.find("bndbox")
    if corners is None:
        raise EntryError("has no bndbox; draw its box again")
    left, top, right, bottom = (
        number(_value(corners, name), name) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    return box(left, top, right - left, bottom - top)


def _size(root: Element) -> tuple[int, int] | None:
    size = root.find("size")
    sides = [_value(size, name) if size is not None else "" for name in ("height", "width")]
    return None if all(side in ("", "0") for side in sides) else image_size(*sides)


def _value(element: Element, name: str) -> str:
    return (element.findtext(name) or "").strip()
