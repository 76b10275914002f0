"""CVAT for images 1.1 (XML): polygons, masks, ellipses and boxes; it does not name raters.

Source: https://docs.cvat.ai/docs/other/xml_format. A mask's runs go along the rows of its own box.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import EntryError, catch, check
from datamodules.annotations.files import only_file, read_xml
from datamodules.annotations.marks import Mark, MarkedImage, Marking
from datamodules.index import DataError

WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")
READ = ("polygon", "mask", "ellipse", "box")


def read_cvat(path: Path) -> Marking:
    """Read ``annotations.xml``, or the folder that it was unpacked into."""
    path = only_file(path, ".xml")
    root = read_xml(path)
    for is_wrong, what in (
        (root.tag != "annotations", "no CVAT file"),
        (root.find("track") is not None, "holds tracks of a video"),
    ):
        if is_wrong:
            raise DataError(f"{path}: {what}; export as 'CVAT for images 1.1'")
    marking = Marking([], [])
    known = {label.text for label in root.iterfind("meta//label/name")}
    for place, element in enumerate(root.findall("image")):
        where = f"{path}: image {element.get('id', place)}"
        with catch(marking, where) as concerned:
            name = fields.image_name(element.get("name"))
            concerned.append(name)
            size = fields.image_size(element.get("height"), element.get("width"))
            image = MarkedImage(name, size, [], where)
            marking.images.append(image)
            for number, shape in enumerate(element):
                entry, labels = f"{shape.tag} number {number}", fields.names(shape.get("label"))
                with catch(marking, f"{path}: {entry} on {name}", name, labels):
                    if shape.tag in WITHOUT_AREA:
                        raise fields.no_area(shape.tag)
                    if shape.tag in READ:
                        label = shape.get("label")
                        what = f"has the label {fields.show(label)}, not in <meta>; add it there"
                        check(not known or label in known, what)
                        image.marks.append(Mark(entry, labels=labels, **_area(shape, size)))
    return marking


def _area(shape: Element, size: tuple[int, int]) -> dict[str, Any]:
    if shape.tag == "mask":
        left, top = (fields.whole(shape.get(name), name) for name in ("left", "top"))
        own = fields.image_size(shape.get("height"), shape.get("width"))
        try:
            runs = [int(run) for run in shape.get("rle", "").split(",")]
        except ValueError as error:
            raise EntryError("its rle is not 'run, run, ...'; export it again") from error
        return {"runs": shapes.placed_runs(runs, own, left, top, size)}
    if shape.tag == "polygon":
        corners = [point.split(",") for point in shape.get("points", "").split(";")]
        is_right = all(len(corner) == 2 for corner in corners)
        check(is_right, "its points are not 'x,y;x,y;...'; export it again")
        return {"outline": shapes.polygon(corners)}
    angle = shapes.box_angle({"rotation": shape.get("rotation")})
    if shape.tag == "ellipse":
        cx, cy, rx, ry = fields.numbers(shape.attrib, "cx", "cy", "rx", "ry")
        return {"outline": shapes.ellipse(cx, cy, rx, ry, angle)}
    x, y, right, bottom = fields.numbers(shape.attrib, "xtl", "ytl", "xbr", "ybr")
    return {"outline": shapes.box(x, y, right - x, bottom - y, angle), "is_box": True}
