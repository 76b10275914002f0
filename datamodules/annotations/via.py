"""VGG Image Annotator 1 and 2: project files, JSON and CSV exports.

Source: https://www.robots.ox.ac.uk/~vgg/software/via. An ellipse's ``theta`` is in radians. The
format states neither the sizes of images nor who marked what.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import EntryError, catch, check, field, items
from datamodules.annotations.files import only_file, read_bytes, read_json
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Point
from datamodules.index import DataError
from datamodules.tables import read_csv

# Attributes whose value is the label, where a region has several.
LABELS = ("label", "class", "category", "type", "name")
COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


def read_via(path: Path) -> Marking:
    """Read a VIA file: ``.csv``, else JSON; a folder may hold one of them."""
    path = only_file(path, ".csv", ".json")
    return _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)


def _read_json(path: Path) -> Marking:
    content = read_json(path)
    if isinstance(content, dict) and "_via_img_metadata" in content:
        content = content["_via_img_metadata"]
    if not isinstance(content, dict) or not all(
        isinstance(entry, dict) and "regions" in entry for entry in content.values()
    ):
        raise DataError(
            f"{path}: no file of VIA 1 or 2, whose entries hold 'regions' (VIA 3 is not read); "
            "draw in VIA 2, and export annotations as JSON"
        )
    marking = Marking([], [])
    for key, entry in content.items():
        where = f"{path}: {fields.show(key)}"
        with catch(marking, where) as concerned:
            given = fields.text(field(entry, "filename"))
            name = fields.image_name(given)
            # A key is the name and the size in bytes (-1: not known), unless something edited it.
            other = "" if key.startswith(given) else re.sub(r"-?\d+$", "", fields.text(key))
            also = (fields.image_name(other),) if other else ()
            concerned += [name, *also]
            image = MarkedImage(name, None, [], where, also=also)
            marking.images.append(image)
            regions = entry["regions"]
            regions = [*regions.values()] if isinstance(regions, dict) else items(regions)
            for place, region in enumerate(regions):
                _read_region(region, f"region {place}", path, image, marking)
    return marking


def _read_csv(path: Path) -> Marking:
    read_bytes(path)  # its size and kind
    rows = read_csv(path, COLUMNS[1:]).rename(columns=lambda name: name.lstrip("#"))
    if "filename" not in rows.columns or not rows.columns.is_unique:
        raise DataError(f"{path}: no CSV of VIA, whose columns are {', '.join(COLUMNS)}")
    images: dict[tuple[str, str], MarkedImage] = {}
    counts, stated = Counter[str](), dict[str, str]()
    marking = Marking([], [])
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        where = f"{path}: row {line}"
        with catch(marking, where) as concerned:
            name = fields.image_name(row["filename"])
            concerned.append(name)
            # As in VIA's own keys, the size in bytes tells images of one name apart.
            key = (name, str(row.get("file_size", "")))
            image = images.setdefault(key, MarkedImage(name, None, [], where))
            stated[image.where] = str(row.get("region_count", ""))
            try:
                shape, attributes = (json.loads(row[column] or "{}") for column in COLUMNS[1:])
            except (ValueError, RecursionError) as error:
                raise EntryError("its region is no JSON; export it again") from error
            if shape != {}:  # an image without regions has a row, too
                counts[image.where] += 1
                region = {"shape_attributes": shape, "region_attributes": attributes}
                _read_region(region, f"row {line}", path, image, marking)
    marking.images.extend(images.values())
    for image in marking.images:
        count, states = counts[image.where], stated[image.where]
        with catch(marking, image.where, image.name):
            is_all = not states.isdecimal() or int(states) == count
            check(is_all, f"{count} regions, but its region_count is {states}; export it again")
    return marking


def _read_region(region: Any, entry: str, path: Path, image: MarkedImage, marking: Marking) -> None:
    labels = _labels(region.get("region_attributes") if isinstance(region, dict) else None)
    with catch(marking, f"{path}: {entry} on {image.name}", image.name, labels):
        shape = field(region, "shape_attributes")
        is_box = field(shape, "name") == "rect"
        image.marks.append(Mark(entry, _outline(shape), labels=labels, is_box=is_box))


def _outline(shape: dict[str, Any]) -> tuple[Point, ...]:
    kind = shape["name"]
    if kind == "rect":
        x, y, width, height = fields.numbers(shape, "x", "y", "width", "height")
        return shapes.box(x, y, width, height)
    if kind == "circle":
        cx, cy, r = fields.numbers(shape, "cx", "cy", "r")
        return shapes.ellipse(cx, cy, r, r)
    if kind == "ellipse":
        axes = fields.numbers({"theta": 0, **shape}, "cx", "cy", "rx", "ry", "theta")
        return shapes.ellipse(*axes)
    if kind not in ("polygon", "polyline"):
        raise fields.no_area(kind)
    xs, ys = items(shape.get("all_points_x")), items(shape.get("all_points_y"))
    check(len(xs) == len(ys), f"has {len(xs)} x and {len(ys)} y; export it again")
    is_closed = kind == "polygon" or (xs[:1], ys[:1]) == (xs[-1:], ys[-1:])
    check(is_closed, "a polyline that does not end where it began; draw it as polygon")
    return shapes.polygon(zip(xs, ys, strict=True))


def _labels(attributes: object) -> tuple[str, ...]:
    """The value of the attribute that is the label; of a checkbox all that is ticked."""
    given = attributes if isinstance(attributes, dict) else {}
    for name in sorted(given, key=lambda name: name not in LABELS):
        value = given[name]
        ticked = [value]
        if isinstance(value, dict):
            ticked = sorted(option for option, is_on in value.items() if is_on is True)
        if labels := fields.names(*ticked):
            return labels
    return ()
