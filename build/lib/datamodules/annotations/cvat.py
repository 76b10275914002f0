"""CVAT for images 1.1 (XML): polygons, masks, ellipses and boxes.

Source: https://docs.cvat.ai/docs/other/xml_format. A mask's runs go along the rows of its own box.
The format does not name who marked what.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from datamodules.annotations.entries import (
    EntryError,
    image_name,
    image_size,
    names,
    no_area,
    noting,
    number,
    numbers,
    show,
    whole,
)
from datamodules.annotations.files import only_file, read_xml
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake
from datamodules.annotations.shapes import box, ellipse, placed_runs, polygon
from datamodules.index import DataError

OTHERS = ("polyline", "points", "cuboid", "skeleton", "tag")
Size = tuple[int, int]


def read_cvat(path: Path) -> Marking:
    """Read ``annotations.xml``, or the folder that it was unpacked into.

    Raises:
        DataError: The file cannot be read, or is none of CVAT for images.
    """
    path = only_file(path, ".xml")
    root = read_xml(path)
    if root.tag != "annotations":
        raise DataError(f"{path}: no CVAT file; export as 'CVAT for images 1.1'")
    if root.find("track") is not None:
        raise DataError(f"{path}: holds tracks of a video; export as 'CVAT for images 1.1'")
    images: list[MarkedImage] = []
    mistakes: list[Mistake] = []
    known = {label.text for label in root.iterfind("meta//label/name")}
    for place, element in enumerate(root.findall("image")):
        where = f"{path}: image {element.get('id', place)}"
        with noting(mistakes, where) as whose:
            name = image_name(element.get("name"))
            whose.append(name)
            size = image_size(element.get("height"), element.get("width"))
            images.append(MarkedImage(name, size, [], where))
            for count, shape in enumerate(element):
                entry, labels = f"{shape.tag} number {count}", names(shape.get("label"))
                with noting(mistakes, f"{path}: {entry} on {name}", name, labels):
                    if shape.tag in OTHERS:
                        raise no_area(shape.tag)
                    if shape.tag in SHAPES:
                        if known and shape.get("label") not in known:
                            given = show(shape.get("label"))
                            raise EntryError(f"has the label {given}, not in <meta>; add it there")
                        mark = Mark(entry, labels=labels, is_box=shape.tag == "box")
                        images[-1].marks.append(mark._replace(**SHAPES[shape.tag](shape, size)))
    return Marking(images, mistakes)


def _polygon(shape: Element, size: Size) -> dict[str, Any]:
    corners = [point.split(",") for point in shape.get("points", "").split(";")]
    if any(len(corner) != 2 for corner in corners):
        raise EntryError("its points are not 'x,y;x,y;...'; export it again")
    return {"outline": polygon(corners)}


def _ellipse(shape: Element, size: Size) -> dict[str, Any]:
    cx, cy, rx, ry = numbers(shape.attrib, "cx", "cy", "rx", "ry")
    return {"outline": ellipse(cx, cy, rx, ry, _angle(shape))}


def _box(shape: Element, size: Size) -> dict[str, Any]:
    left, top, right, bottom = numbers(shape.attrib, "xtl", "ytl", "xbr", "ybr")
    return {"outline": box(left, top, right - left, bottom - top, _angle(shape))}


def _mask(shape: Element, size: Size) -> dict[str, Any]:
    left, top = whole(shape.get("left"), "left"), whole(shape.get("top"), "top")
    own = image_size(shape.get("height"), shape.get("width"))
    try:
        runs = [int(run) for run in shape.get("rle", "").split(",")]
    except ValueError as error:
        raise EntryError("its rle is not 'run, run, ...'; export it again") from error
    return {"runs": placed_runs(runs, own, left, top, size)}


def _angle(shape: Element) -> float:
    return math.radians(number(shape.get("rotation", "0"), "rotation"))


SHAPES = {"polygon": _polygon, "mask": _mask, "ellipse": _ellipse, "box": _box}
