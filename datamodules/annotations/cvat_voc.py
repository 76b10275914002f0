"""XML: "CVAT for images 1.1" (https://docs.cvat.ai/docs/other/xml_format), and Pascal VOC.

CVAT's masks run along the rows of their own box. VOC's corners are taken as written: files of the
challenge itself count from 1, those of most tools from 0, which is less than anybody draws exactly.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import catch, check, read_mark
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Point
from datamodules.index import DataError


def read_cvat(path: Path, marking: Marking) -> None:
    """Read ``annotations.xml``."""
    root = fields.read_xml(path)
    is_images = root.tag == "annotations" and root.find("track") is None
    check(is_images, "no CVAT file of images; export as 'CVAT for images 1.1'")
    listed = {label.text for label in root.iterfind("meta//label/name")}
    for place, element in enumerate(root.iterfind("image")):
        with catch(marking, f"{path}: image {element.get('id', place)}") as concerned:
            name = fields.image_name(element.get("name"))
            concerned.append(name)
            size = fields.image_size(element.get("height"), element.get("width"))
            image = MarkedImage(name, size, [], f"{path}: {name}")
            marking.images.append(image)
            for number, shape in enumerate(element):
                if shape.tag == "tag":  # of the image: marks nothing
                    continue
                labels = fields.names(shape.get("label"))
                about = Mark(f"{shape.tag} number {number}", labels=labels)
                read_mark(marking, image, about, _cvat_mark, shape, size, listed)


def _cvat_mark(shape: Element, size: tuple[int, int], listed: set[str | None]) -> Mark:
    label, values = shape.get("label"), shape.attrib
    is_listed = not listed or label in listed
    check(is_listed, f"has the label {label!r}, not in <meta>; add it there")
    if shape.tag == "mask":
        left, top, width, height = (int(values[key]) for key in ("left", "top", "width", "height"))
        mask = shapes.unpack([int(run) for run in values["rle"].split(",")], (height, width))
        return Mark(runs=shapes.placed(mask, left, top, size))
    if shape.tag == "polygon":
        corners = [corner.split(",") for corner in values["points"].split(";")]
        return Mark(outline=shapes.polygon(corners))
    angle = shapes.box_angle({"rotation": shape.get("rotation")})
    if shape.tag == "ellipse":
        cx, cy, rx, ry = fields.numbers(values, "cx", "cy", "rx", "ry")
        return Mark(outline=shapes.ellipse(cx, cy, rx, ry, angle))
    check(shape.tag == "box", f"{shape.tag!r} marks no area; outline the lesion")
    x, y, right, bottom = fields.numbers(values, "xtl", "ytl", "xbr", "ybr")
    return Mark(outline=shapes.box(x, y, right - x, bottom - y, angle), is_box=True)


def read_voc(source: Path) -> Marking:
    """Read a VOC file, or all below a folder; an image's name gets the folder of its file."""
    marking = Marking([], [])
    for file in fields.list_files(source, ".xml", wanted="a VOC file or their folder"):
        with fields.catch_file(marking, file, source) as concerned:
            root = fields.read_xml(file)
            if root.tag != "annotation":
                concerned.clear()
                raise DataError(f"{file}: no Pascal VOC file, which begins <annotation>")
            path = _value(root, "path")
            also = (*concerned, *([fields.image_name(path)] if path else []))
            name = fields.name_beside(file, source, _value(root, "filename") or file.stem)
            concerned += [name, *also]
            is_voc = root.find("imagesize") is None and root.find("object/polygon/pt") is None
            check(is_voc, "is LabelMe's old XML, which is not read; export as CVAT or COCO")
            note = fields.LABEL_STUDIO if _value(root, "owner/name") == "Label Studio" else ""
            sides = [_value(root, f"size/{side}") for side in ("height", "width")]
            size = None if {*sides} <= {"", "0"} else fields.image_size(*sides)
            image = MarkedImage(name, size, [], str(file), also=also, note=note)
            marking.images.append(image)
            for place, thing in enumerate(root.iterfind("object")):
                about = Mark(f"object number {place}", labels=fields.names(_value(thing, "name")))
                read_mark(marking, image, about, _voc_mark, thing)
    return marking


def _voc_mark(thing: Element) -> Mark:
    """The outline of an object where it has one, else its box."""
    corners, outline = thing.find("bndbox"), thing.find("polygon")
    is_read = thing.find("robndbox") is None and (corners is not None or outline is not None)
    check(is_read, "has no upright box (bndbox; robndbox is not read); outline the lesion")
    edges: tuple[Point, ...] = ()
    if corners is not None:
        ends = {key: _value(corners, key) for key in ("xmin", "ymin", "xmax", "ymax")}
        left, top, right, bottom = fields.numbers(ends, *ends)
        parts = {part.tag: part.text for part in (*thing, *corners)}
        named = {_value(a, "name"): _value(a, "value") for a in thing.iter("attribute")}
        angle = shapes.box_angle(parts | named)
        edges = shapes.box(left, top, right - left, bottom - top, angle)
    if outline is None:
        return Mark(outline=edges, is_box=True)
    numbers = range(1, len(outline) // 2 + 1)
    polygon = shapes.polygon([[_value(outline, f"{axis}{n}") for axis in "xy"] for n in numbers])
    shapes.check_beside_box(polygon, edges)
    return Mark(outline=polygon)


def _value(element: Element, name: str) -> str:
    return (element.findtext(name) or "").strip()
