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

from datamodules.annotations.entries import (
    EntryError,
    field,
    image_name,
    items,
    names,
    no_area,
    noting,
    number,
    numbers,
    show,
    text,
)
from datamodules.annotations.files import only_file, read_bytes, read_json
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake
from datamodules.annotations.shapes import box, ellipse, polygon
from datamodules.index import DataError
from datamodules.lesions import read_csv

# Attributes whose value is the label, where a region has several.
LABELS = ("label", "class", "category", "type", "name")
COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


def read_via(path: Path) -> Marking:
    """Read a VIA file: ``.csv``, else JSON; a folder may hold one of them.

    Raises:
        DataError: The file cannot be read, or is none of VIA 1 or 2.
    """
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
    images: list[MarkedImage] = []
    mistakes: list[Mistake] = []
    for key, entry in content.items():
        where = f"{path}: {show(key)}"
        with noting(mistakes, where) as whose:
            given = text(field(entry, "filename"))
            name = image_name(given)
            # A key is the name and the size in bytes (-1: not known), unless something edited it.
            other = "" if key.startswith(given) else re.sub(r"-?\d+$", "", text(key))
            also = (image_name(other),) if other else ()
            whose += [name, *also]
            image = MarkedImage(name, None, [], where, also=also)
            images.append(image)
            regions = entry["regions"]
            regions = list(regions.values()) if isinstance(regions, dict) else items(regions)
            for place, region in enumerate(regions):
                name = f"region {place}"
                labels = _labels(region.get("region_attributes") if isinstance(region, dict) else 0)
                with noting(mistakes, f"{path}: {name} on {image.name}", image.name, labels):
                    image.marks.append(_mark(field(region, "shape_attributes"), labels, name))
    return Marking(images, mistakes)


def _read_csv(path: Path) -> Marking:
    read_bytes(path)  # its size and kind
    rows = read_csv(path, COLUMNS[1:]).rename(columns=lambda name: name.lstrip("#"))
    if "filename" not in rows.columns or not rows.columns.is_unique:
        raise DataError(f"{path}: no CSV of VIA, whose columns are {', '.join(COLUMNS)}")
    images: dict[tuple[str, str], MarkedImage] = {}
    counts, stated = Counter[tuple[str, str]](), dict[tuple[str, str], str]()
    mistakes: list[Mistake] = []
    # As in VIA's own keys, the size in bytes tells images of one name apart.
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        where = f"{path}: row {line}"
        with noting(mistakes, where):
            name = image_name(row["filename"])
            key = (name, str(row.get("file_size", "")))
            image = images.setdefault(key, MarkedImage(name, None, [], where))
            with noting(mistakes, f"{where} on {name}", name):
                try:
                    shape = json.loads(row["region_shape_attributes"] or "{}")
                    attributes = json.loads(row["region_attributes"] or "{}")
                except (ValueError, RecursionError) as error:
                    raise EntryError("its region is no JSON; export it again") from error
                labels = _labels(attributes)
                with noting(mistakes, f"{where} on {name}", name, labels):
                    counts[key] += shape != {}  # an image without regions has a row, too
                    if shape != {}:
                        image.marks.append(_mark(shape, labels, f"row {line}"))
            stated[key] = str(row.get("region_count", ""))
    for key, image in images.items():
        if stated[key].isdecimal() and int(stated[key]) != counts[key]:
            what = f"{counts[key]} regions, but its region_count is {stated[key]}; export it again"
            mistakes.append(Mistake(image.where, what, (image.name,)))
    return Marking(list(images.values()), mistakes)


def _mark(shape: Any, labels: tuple[str, ...], entry: str) -> Mark:
    kind = field(shape, "name")
    if kind == "rect":
        x, y, width, height = numbers(shape, "x", "y", "width", "height")
        return Mark(entry, box(x, y, width, height), labels=labels, is_box=True)
    if kind == "circle":
        cx, cy, r = numbers(shape, "cx", "cy", "r")
        return Mark(entry, ellipse(cx, cy, r, r), labels=labels)
    if kind == "ellipse":
        cx, cy, rx, ry = numbers(shape, "cx", "cy", "rx", "ry")
        theta = number(shape.get("theta", 0), "theta")
        return Mark(entry, ellipse(cx, cy, rx, ry, theta), labels=labels)
    if kind not in ("polygon", "polyline"):
        raise no_area(kind)
    xs, ys = items(shape.get("all_points_x")), items(shape.get("all_points_y"))
    if len(xs) != len(ys):
        raise EntryError(f"has {len(xs)} x and {len(ys)} y; export it again")
    if kind == "polyline" and (xs[:1], ys[:1]) != (xs[-1:], ys[-1:]):
        raise EntryError("a polyline that does not end where it began; draw it as polygon")
    return Mark(entry, polygon(zip(xs, ys, strict=True)), labels=labels)


def _labels(attributes: object) -> tuple[str, ...]:
    """Return the value of the attribute that is the label; of a checkbox all that is ticked."""
    if not isinstance(attributes, dict):
        return ()
    known = [name for name in LABELS if name in attributes]
    for name in (*known, *attributes):
        value = attributes[name]
        if isinstance(value, dict):
            ticked = names(*sorted(option for option, is_on in value.items() if is_on is True))
        else:
            ticked = names(value)
        if ticked:
            return ticked
    return ()
