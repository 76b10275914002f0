"""COCO JSON: polygons, run-length encoding compressed or not, and boxes where there is no more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import EntryError, catch, check, field, items, show
from datamodules.annotations.files import only_file, read_json
from datamodules.annotations.marks import MAX_PIXELS, Mark, MarkedImage, Marking, Point
from datamodules.index import DataError


def read_coco(path: Path) -> Marking:
    """Read a COCO file, or the folder that holds one; an annotation may be several marks."""
    path = only_file(path, ".json")
    content = read_json(path)
    for part in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f"{path}: no COCO file, it lacks the list {part!r}; export as COCO")
    marking = Marking([], [])
    note = fields.LABEL_STUDIO if "'Label Studio'" in str(content.get("info")) else ""
    images, wrong = _read_images(content["images"], path, marking, note)
    labels: dict[object, tuple[str, ...]] = {}
    for entry in items(content.get("categories")):
        if isinstance(entry, dict):
            own = fields.names(entry.get("name"))
            if labels.setdefault(_key(entry.get("id")), own) != own:
                shared = show(entry.get("id"))
                raise DataError(f"{path}: two categories share the id {shared}; export it again")
    for place, entry in enumerate(content["annotations"]):
        about = entry if isinstance(entry, dict) else {}
        key, category = _key(about.get("image_id")), _key(about.get("category_id"))
        if key in wrong:
            continue
        image, classes = images.get(key), labels.get(category, ())
        name = f"annotation {show(about['id'])}" if "id" in about else f"annotation number {place}"
        where = f"{path}: {name} on {image.name}" if image else f"{path}: {name}"
        with catch(marking, where, image.name if image else "", classes):
            given = show(about.get("category_id"))
            is_listed = not labels or category in labels
            check(is_listed, f"its category_id {given} is not listed; export it again")
            given = show(field(entry, "image_id"))
            check(key is not None, f"has the image_id {given}; export it again")
            if image is None:
                raise EntryError(f"is of image {given}, which is not listed; export it again")
            image.marks.extend(_marks(about, image.size, name, classes))
    marking.images.extend(images.values())
    return marking


def _read_images(
    entries: list[Any], path: Path, marking: Marking, note: str
) -> tuple[dict[Any, MarkedImage], set[Any]]:
    """Images by their id, and the ids of those that are wrong."""
    images: dict[Any, MarkedImage] = {}
    wrong = set()
    for place, entry in enumerate(entries):
        where = f"{path}: image number {place}"
        key = _key(entry.get("id")) if isinstance(entry, dict) else None
        with catch(marking, where) as concerned:
            check(key is not None, f"has the id {show(field(entry, 'id'))}; export it again")
            wrong.add(key)
            name = fields.image_name(field(entry, "file_name"))
            concerned.append(name)
            if key in images:
                concerned.append(images[key].name)
                both = f"{images[key].name} and {name} share the id {show(key)}"
                raise EntryError(f"{both}: nobody can tell whose its marks are; export it again")
            extra = entry.get("extra")  # Roboflow's
            given = (entry.get("path"), entry.get("coco_url"))
            given += (extra.get("name"),) if isinstance(extra, dict) else ()
            also = tuple(fields.image_name(value) for value in given if fields.text(value))
            size = fields.image_size(field(entry, "height"), field(entry, "width"))
            images[key] = MarkedImage(name, size, [], where, also=also, note=note)
            wrong.remove(key)
    return {key: image for key, image in images.items() if key not in wrong}, wrong


def _marks(
    entry: dict[str, Any], size: tuple[int, int] | None, name: str, labels: tuple[str, ...]
) -> list[Mark]:
    is_flagged = entry.get("ignore") or entry.get("deleted")
    check(not is_flagged, "is flagged as ignored or deleted; take off the flag, or take it out")
    segmentation, corners = entry.get("segmentation"), items(entry.get("bbox"))
    edges: tuple[Point, ...] = ()
    areas = []
    if len(corners) == 4 and any(corners[2:]) and entry.get("bbox_mode", 1) == 1:
        x, y, width, height = (fields.number(value, "bbox") for value in corners)
        attributes = entry.get("attributes")
        angle = shapes.box_angle(entry | (attributes if isinstance(attributes, dict) else {}))
        edges = shapes.box(x, y, width, height, angle)
        areas = [width * height]  # which many tools write for outlines, too
    outlines = items(segmentation)
    if outlines and not any(isinstance(points, list) for points in outlines):
        outlines = [outlines]  # one polygon, not nested
    elif outlines and all(isinstance(point, list) and len(point) == 2 for point in outlines):
        outlines = [[value for point in outlines for value in point]]  # of pairs
    marks = [Mark(name, _outline(points), labels=labels) for points in outlines if points != []]
    if isinstance(segmentation, dict):
        runs = shapes.coco_runs(segmentation, size)
        marks = [Mark(name, runs=runs, labels=labels)]
        shapes.check_beside_box(shapes.box(*rle.toBbox(runs)), edges)
        areas.append(float(rle.area(runs)))
    elif marks:
        shapes.check_beside_box([point for mark in marks for point in mark.outline], edges)
        areas.append(sum(cv2.contourArea(np.array(mark.outline, np.float32)) for mark in marks))
    else:
        what = f"has no segmentation and no box of four ({show(corners)}); draw an outline"
        check(edges, what)
        marks = [Mark(name, edges, labels=labels, is_box=True)]
    area = fields.number(entry.get("area") or 0, "area", MAX_PIXELS)
    is_near = any(abs(area - own) <= 0.1 * own + 2 * own**0.5 for own in areas)
    what = f"marks {areas[-1]:.0f} pixels, but its area says {area:.0f}: a box that is no x, y, "
    check(not area or is_near, f"{what}width, height, a hole, or a lost outline? export it again")
    return marks


def _outline(points: object) -> tuple[Point, ...]:
    pairs = items(points)
    is_right = len(pairs) >= 6 and len(pairs) % 2 == 0
    check(is_right, "a polygon is x, y, x, y, ... of three points or more; draw it again")
    return shapes.polygon(zip(pairs[::2], pairs[1::2], strict=True))


def _key(value: object) -> int | str | None:
    """An id as key: 1, 1.0 and "1" are the same, "01", True and 1.5 are not."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,18}", value):
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None
