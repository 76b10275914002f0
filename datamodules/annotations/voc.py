"""Pascal VOC XML, one file an image: boxes (LabelImg, many data sets), or outlines beside them.

Corners are taken as written. Files of the challenge itself count from 1, those of most tools from
0: a pixel, which is less than anybody draws exactly. Blanks and line breaks around values, and an
empty size, are accepted.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import EntryError, catch, check
from datamodules.annotations.files import catch_file, list_files, name_beside, read_xml
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Point
from datamodules.index import DataError


def read_voc(path: Path) -> Marking:
    """Read a VOC file, or all below a folder; an image's name gets the folder of its file.

    Path and folder that a file states, often of another machine, are other names.
    """
    marking = Marking([], [])
    for file in list_files(path, ".xml", wanted="a VOC file or their folder"):
        with catch_file(marking, file, path) as concerned:
            root = read_xml(file)
            if root.tag != "annotation":
                concerned.clear()
                raise DataError(f"{file}: no Pascal VOC file, which begins <annotation>")
            also = (*concerned, *_other_names(root))
            name = name_beside(file, path, _value(root, "filename") or file.stem)
            concerned += [name, *also]
            is_voc = root.find("imagesize") is None and root.find("object/polygon/pt") is None
            check(is_voc, "is LabelMe's old XML, which is not read; export as CVAT or COCO")
            note = fields.LABEL_STUDIO if _value(root, "owner/name") == "Label Studio" else ""
            sides = [_value(root, f"size/{side}") for side in ("height", "width")]
            size = None if {*sides} <= {"", "0"} else fields.image_size(*sides)
            image = MarkedImage(name, size, [], str(file), also=also, note=note)
            marking.images.append(image)
            for place, thing in enumerate(root.findall("object")):
                entry, labels = f"object number {place}", fields.names(_value(thing, "name"))
                with catch(marking, f"{file}: {entry}", name, labels):
                    image.marks.append(Mark(entry, labels=labels, **_area(thing)))
    return marking


def _other_names(root: Element) -> tuple[str, ...]:
    """The file's path, and its name in its folder, where they are given."""
    names = []
    for given in (_value(root, "path"), f"{_value(root, 'folder')}/{_value(root, 'filename')}"):
        with suppress(EntryError):  # it need not be there
            names.append(fields.image_name(given))
    return tuple(name for name in names if "." in name)  # a folder alone names no image


def _area(thing: Element) -> dict[str, Any]:
    """The outline of an object where it has one, else its box."""
    corners, outline = thing.find("bndbox"), thing.find("polygon")
    kinds = ", ".join(f"<{part.tag[:40]}>" for part in thing if len(part)) or "nothing"
    is_right = corners is not None or outline is not None
    check(is_right, f"has no bndbox but {kinds}, which is not read; draw its box again")
    edges: tuple[Point, ...] = ()
    if corners is not None:
        ends = {name: _value(corners, name) for name in ("xmin", "ymin", "xmax", "ymax")}
        left, top, right, bottom = fields.numbers(ends, *ends)
        parts = {part.tag: part.text for part in (*thing, *corners)}
        named = {_value(a, "name"): _value(a, "value") for a in thing.iter("attribute")}
        is_upright = "robndbox" not in parts
        check(is_upright, "has a turned box (robndbox), which is not read; outline the lesion")
        angle = shapes.box_angle(parts | named)
        edges = shapes.box(left, top, right - left, bottom - top, angle)
    if outline is None:
        return {"outline": edges, "is_box": True}
    values = {part.tag: part.text for part in outline}
    numbers = range(1, len(values) // 2 + 1)
    polygon = shapes.polygon((values.get(f"x{n}"), values.get(f"y{n}")) for n in numbers)
    shapes.check_beside_box(polygon, edges)
    return {"outline": polygon}


def _value(element: Element, name: str) -> str:
    return (element.findtext(name) or "").strip()
