"""JSON in pixels: LabelMe, one file an image, and VGG Image Annotator 1 and 2, also as CSV.

LabelMe's (and X-AnyLabeling's) masks are base64 PNGs of the part of the image between their two
points, both included. VIA turns ellipses by ``theta``, in radians, and states no sizes.
"""

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import EntryError, catch, check, read_mark
from datamodules.annotations.marks import Mark, MarkedImage, Marking
from datamodules.decode import decode_noted
from datamodules.index import DataError, read_csv

# X-AnyLabeling writes the first with four corners, and the last, as other tools the second, turned.
BOXES = ("rectangle", "oriented_rectangle", "rotation")
POLYGONS = ("polygon", "quadrilateral", "oriented_rectangle", "rotation")
# Attributes whose value is the label, where a region of VIA has several.
LABELS = ("label", "class", "category", "type", "name")
COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


def read_labelme(source: Path) -> Marking:
    """Read a LabelMe file, or all below a folder; an image's path counts from its file."""
    marking = Marking([], [])
    for file in fields.list_files(source, ".json", wanted="LabelMe's file or their folder"):
        with fields.catch_file(marking, file, source) as concerned:
            content = fields.read_json(file)
            if "shapes" not in content:
                concerned.clear()
                raise DataError(f"{file}: no LabelMe file, it lacks the list 'shapes'; take it out")
            own = tuple(concerned)
            name = fields.name_beside(file, source, content["imagePath"])
            concerned.append(name)
            sides = content.get("imageHeight"), content.get("imageWidth")
            size = fields.image_size(*sides) if sides != (None, None) else None
            image = MarkedImage(name, size, [], str(file), also=own)
            marking.images.append(image)
            for place, shape in enumerate(content["shapes"]):
                about = Mark(f"shape number {place}", labels=fields.names(shape.get("label")))
                read_mark(marking, image, about, _labelme_mark, shape, size)
    return marking


def _labelme_mark(shape: dict[str, Any], size: tuple[int, int] | None) -> Mark:
    points = shape["points"]
    kind = shape.get("shape_type", "polygon")  # versions before 4 wrote none
    if kind in POLYGONS or (kind == "rectangle" and len(points) == 4):
        return Mark(outline=shapes.polygon(points), is_box=kind in BOXES)
    is_area = kind in ("rectangle", "circle", "mask")
    check(is_area, f"{kind!r} marks no area; outline the lesion")
    check(len(points) == 2, f"a {kind} of {len(points)} points, not two; draw it again")
    (x, y), (a, b) = [[fields.number(value, "a point") for value in point] for point in points]
    if kind == "circle":  # its centre and a point on it
        radius = math.hypot(a - x, b - y)
        return Mark(outline=shapes.ellipse(x, y, radius, radius))
    if kind == "rectangle":
        return Mark(outline=shapes.box(min(x, a), min(y, b), abs(a - x), abs(b - y)), is_box=True)
    if size is None:
        raise EntryError("a mask on an image without size; save it again in LabelMe")
    mask, _ = decode_noted(base64.b64decode(shape["mask"]), Path("its mask"))
    is_right = mask.shape == (b - y + 1, a - x + 1)
    check(is_right, "its mask and its two points are of different sizes; save it again in LabelMe")
    return Mark(runs=shapes.placed(mask, int(x), int(y), size))


def read_via(path: Path, marking: Marking) -> None:
    """Read a VIA file: ``.csv``, else JSON."""
    if path.suffix.lower() == ".csv":
        content = _csv_entries(path, marking)
    else:
        content = fields.read_json(path)
        content = content.get("_via_img_metadata", content)
    is_via = all("regions" in entry for entry in content.values())
    check(is_via, "no file of VIA 1 or 2, whose entries hold 'regions'; export it from VIA 2")
    for key, entry in content.items():
        with catch(marking, f"{path}: {key}") as concerned:
            name = fields.image_name(entry["filename"])
            # A key is the name and the size in bytes (-1: not known), unless something edited it.
            other = "" if key.startswith(entry["filename"]) else re.sub(r"-?\d+$", "", key)
            also = (fields.image_name(other),) if other else ()
            concerned += [name, *also]
            image = MarkedImage(name, None, [], f"{path}: {key}", also=also)
            marking.images.append(image)
            regions = entry["regions"]  # version 1 numbers them
            numbered = regions if isinstance(regions, dict) else dict(enumerate(regions))
            for place, region in numbered.items():
                labels = _via_labels(region.get("region_attributes") or {})
                about = Mark(f"region {place}", labels=labels)
                read_mark(marking, image, about, _via_mark, region)
            count = str(len(regions))
            stated = entry.get("region_count") or count
            check(stated == count, f"{count} regions, but its region_count is {stated}")


def _csv_entries(path: Path, marking: Marking) -> dict[str, dict[str, Any]]:
    """The rows of a CSV in the form of VIA's JSON; regions are numbered by their rows."""
    rows = read_csv(path, COLUMNS[1:]).rename(columns=lambda name: name.lstrip("#"))
    check("filename" in rows, f"no CSV of VIA, whose columns are {', '.join(COLUMNS)}")
    entries: dict[str, dict[str, Any]] = {}
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        # As in VIA's own keys, the size in bytes tells images of one name apart.
        key = f"{row['filename']}{row.get('file_size', '')}"
        regions = entries.setdefault(key, {**row, "regions": {}})["regions"]
        with catch(marking, f"{path}: row {line}", row["filename"]):
            shape, attributes = (json.loads(row[column] or "{}") for column in COLUMNS[1:])
            if shape:  # an image without regions has a row, too
                entry = {"shape_attributes": shape, "region_attributes": attributes}
                regions[f"of row {line}"] = entry
    return entries


def _via_mark(region: dict[str, Any]) -> Mark:
    shape = region["shape_attributes"]
    kind = shape["name"]
    if kind == "rect":
        x, y, width, height = fields.numbers(shape, "x", "y", "width", "height")
        return Mark(outline=shapes.box(x, y, width, height), is_box=True)
    if kind == "circle":
        cx, cy, r = fields.numbers(shape, "cx", "cy", "r")
        return Mark(outline=shapes.ellipse(cx, cy, r, r))
    if kind == "ellipse":
        axes = fields.numbers({"theta": 0, **shape}, "cx", "cy", "rx", "ry", "theta")
        return Mark(outline=shapes.ellipse(*axes))
    check(kind in ("polygon", "polyline"), f"{kind!r} marks no area; outline the lesion")
    corners = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
    is_closed = kind == "polygon" or corners[:1] == corners[-1:]
    check(is_closed, "a polyline that does not end where it began; draw it as polygon")
    return Mark(outline=shapes.polygon(corners))


def _via_labels(attributes: dict[str, Any]) -> tuple[str, ...]:
    """The value of the attribute that is the label; of a checkbox all that is ticked."""
    for name in sorted(attributes, key=lambda name: name not in LABELS):
        value = attributes[name]
        ticked = sorted(k for k, on in value.items() if on) if isinstance(value, dict) else [value]
        if labels := fields.names(*ticked):
            return labels
    return ()
