"""Pascal VOC XML, one file an image: boxes (LabelImg, many data sets), or outlines beside them.

Corners are taken as written. Files of the challenge itself count from 1, those of most tools from
0: a pixel, which is less than anybody draws exactly.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from datamodules.annotations.entries import (
    LABEL_STUDIO,
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
from datamodules.annotations.shapes import beside_box, box, polygon, turn
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
        with noting_file(mistakes, file, path) as whose:
            root = read_xml(file)
            if root.tag != "annotation":
                whose.clear()
                raise DataError(f"{file}: no Pascal VOC file, which begins <annotation>")
            also = (*whose, *_also(root))
            name = name_beside(file, path, _value(root, "filename") or file.stem)
            whose += [name, *also]
            if root.find("imagesize") is not None or root.find("object/polygon/pt") is not None:
                raise EntryError("is LabelMe's old XML, which is not read; export as CVAT or COCO")
            note = LABEL_STUDIO if _value(root, "owner/name") == "Label Studio" else ""
            image = MarkedImage(name, _size(root), [], str(file), also=also, note=note)
            images.append(image)
            for place, thing in enumerate(root.findall("object")):
                entry = f"object number {place}"
                labels = names(_value(thing, "name"))
                with noting(mistakes, f"{file}: {entry}", image.name, labels):
                    image.marks.append(Mark(entry, labels=labels)._replace(**_shape(thing)))
    if not files:
        raise DataError(f"{path}: holds no .xml file; give a VOC file or their folder")
    return Marking(images, mistakes)


def _also(root: Element) -> tuple[str, ...]:
    """Return the file's path, and its name in its folder, where they are given."""
    file, found = _value(root, "filename"), []
    for given in (_value(root, "path"), f"{_value(root, 'folder')}/{file}"):
        with suppress(EntryError):  # it need not be there
            found.append(image_name(given))
    return tuple(name for name in found if "." in name)  # a folder alone names no image


def _shape(thing: Element) -> dict[str, Any]:
    """The outline of an object where it has one, else its box."""
    corners, outline = thing.find("bndbox"), thing.find("polygon")
    if corners is None and outline is None:
        kinds = ", ".join(f"<{part.tag[:40]}>" for part in thing if len(part)) or "nothing"
        raise EntryError(f"has no bndbox but {kinds}, which is not read; draw its box again")
    edges: tuple[Point, ...] = ()
    if corners is not None:
        left, top, right, bottom = (
            number(_value(corners, name), name) for name in ("xmin", "ymin", "xmax", "ymax")
        )
        parts = {part.tag: part.text for part in (*thing, *corners)}
        named = {_value(a, "name"): _value(a, "value") for a in thing.iter("attribute")}
        if "robndbox" in parts:
            raise EntryError("has a turned box (robndbox), which is not read; outline the lesion")
        edges = box(left, top, right - left, bottom - top, turn(parts | named))
    if outline is None:
        return {"outline": edges, "is_box": True}
    values = {part.tag: part.text for part in outline}
    count = len(values) // 2
    points = [(values.get(f"x{n}"), values.get(f"y{n}")) for n in range(1, count + 1)]
    return {"outline": beside_box(polygon(points), edges)}


def _size(root: Element) -> tuple[int, int] | None:
    size = root.find("size")
    sides = [_value(size, name) if size is not None else "" for name in ("height", "width")]
    return None if all(side in ("", "0") for side in sides) else image_size(*sides)


def _value(element: Element, name: str) -> str:
    return (element.findtext(name) or "").strip()
