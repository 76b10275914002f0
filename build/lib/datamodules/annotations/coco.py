"""COCO JSON: polygons, run-length encoding compressed or not, and boxes where there is no more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pycocotools import mask as rle

from datamodules.annotations.entries import (
    LABEL_STUDIO,
    EntryError,
    field,
    image_name,
    image_size,
    items,
    names,
    noting,
    number,
    show,
    text,
)
from datamodules.annotations.files import only_file, read_json
from datamodules.annotations.marks import MAX_PIXELS, Mark, MarkedImage, Marking, Mistake, Point
from datamodules.annotations.shapes import area_of, beside_box, box, coco_runs, polygon, turn
from datamodules.index import DataError


def read_coco(path: Path) -> Marking:
    """Read a COCO file, or the folder that holds one.

    The label of a mark is the name of its category. An annotation of several polygons becomes as
    many marks, one with a box alone a weak mark.

    Raises:
        DataError: The file cannot be read, or is no COCO JSON.
    """
    path = only_file(path, ".json")
    content = read_json(path)
    for part in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f"{path}: no COCO file, it lacks the list {part!r}; export as COCO")
    mistakes: list[Mistake] = []
    images, wrong = _read_images(content["images"], path, mistakes)
    labels: dict[object, tuple[str, ...]] = {}
    for entry in items(content.get("categories")):
        if isinstance(entry, dict):
            own = names(entry.get("name"))
            if labels.setdefault(_key(entry.get("id")), own) != own:
                shared = show(entry.get("id"))
                raise DataError(f"{path}: two categories share the id {shared}; export it again")
    for place, entry in enumerate(content["annotations"]):
        about = entry if isinstance(entry, dict) else {}
        key = _key(about.get("image_id"))
        image = images.get(key)
        name = f"annotation {show(about['id'])}" if "id" in about else f"annotation number {place}"
        if key in wrong:
            continue
        whose = image.name if image else ""
        where = f"{path}: {name}" + (f" on {whose}" if whose else "")
        category = _key(about.get("category_id"))
        classes = labels.get(category, ())
        with noting(mistakes, where, whose, classes):
            if labels and category not in labels:
                given = show(about.get("category_id"))
                raise EntryError(f"its category_id {given} is not listed; export it again")
            if key is None:
                given = show(field(entry, "image_id"))
                raise EntryError(f"has the image_id {given}; export it again")
            if image is None:
                raise EntryError(f"is of image {show(key)}, which is not listed; export it again")
            image.marks.extend(_marks(about, image.size, name, classes))
    note = LABEL_STUDIO if "'Label Studio'" in str(content.get("info")) else ""
    return Marking([image._replace(note=note) for image in images.values()], mistakes)


def _read_images(
    entries: list[Any], path: Path, mistakes: list[Mistake]
) -> tuple[dict[Any, MarkedImage], set[Any]]:
    """Return images by their id, and the ids of those that are wrong."""
    images: dict[Any, MarkedImage] = {}
    wrong = set()
    for place, entry in enumerate(entries):
        where = f"{path}: image number {place}"
        key = _key(entry.get("id")) if isinstance(entry, dict) else None
        with noting(mistakes, where) as whose:
            if key is None:
                raise EntryError(f"has the id {show(field(entry, 'id'))}; export it again")
            wrong.add(key)
            name = image_name(field(entry, "file_name"))
            whose.append(name)
            if key in images:
                whose.append(images[key].name)
                raise EntryError(
                    f"{images[key].name} and {name} share the id {show(key)}: nobody can tell "
                    "whose its annotations are; export it again"
                )
            extra = entry.get("extra")  # Roboflow's
            named = extra.get("name") if isinstance(extra, dict) else None
            given = (entry.get("path"), entry.get("coco_url"), named)
            also = tuple(image_name(value) for value in given if text(value))
            size = image_size(field(entry, "height"), field(entry, "width"))
            images[key] = MarkedImage(name, size, [], where, also=also)
            wrong.remove(key)
    return {key: image for key, image in images.items() if key not in wrong}, wrong


def _marks(
    entry: dict[str, Any], size: tuple[int, int] | None, name: str, labels: tuple[str, ...]
) -> list[Mark]:
    if entry.get("ignore") or entry.get("deleted"):
        raise EntryError("is flagged as ignored or deleted; take off the flag, or take it out")
    segmentation, corners = entry.get("segmentation"), items(entry.get("bbox"))
    edges: tuple[Point, ...] = ()
    areas = []
    if len(corners) == 4 and any(corners[2:]) and entry.get("bbox_mode", 1) == 1:
        x, y, width, height = (number(value, "bbox") for value in corners)
        attributes = entry.get("attributes")
        turned = turn({**entry, **(attributes if isinstance(attributes, dict) else {})})
        edges = box(x, y, width, height, turned)
        areas = [width * height]  # which many tools write for outlines, too
    outlines = items(segmentation)
    if outlines and not any(isinstance(points, list) for points in outlines):
        outlines = [outlines]  # one polygon, not nested
    elif outlines and all(isinstance(point, list) and len(point) == 2 for point in outlines):
        outlines = [[value for point in outlines for value in point]]  # of pairs
    marks = [Mark(name, _outline(points), labels=labels) for points in outlines if points != []]
    if isinstance(segmentation, dict):
        marks = [Mark(name, runs=(runs := coco_runs(segmentation, size)), labels=labels)]
        beside_box(box(*rle.toBbox(runs)), edges)
        areas.append(float(rle.area(runs)))
    elif marks:
        beside_box(tuple(point for mark in marks for point in mark.outline), edges)
        areas.append(sum(map(area_of, (mark.outline for mark in marks))))
    elif edges:
        marks = [Mark(name, edges, labels=labels, is_box=True)]
    else:
        raise EntryError(
            f"has no segmentation and no box of four ({show(corners)}); draw an outline"
        )
    area = number(entry.get("area") or 0, "area", MAX_PIXELS)
    if area and all(abs(area - own) > 0.1 * own + 2 * own**0.5 for own in areas):
        raise EntryError(
            f"marks {areas[-1]:.0f} pixels, but its area says {area:.0f}: a box that is no x, y, "
            "width, height, a hole, or an outline that was left out? export it again"
        )
    return marks


def _outline(points: object) -> tuple[Point, ...]:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        raise EntryError("a polygon is x, y, x, y, ... of three points or more; draw it again")
    return polygon(zip(points[::2], points[1::2], strict=True))


def _key(value: object) -> int | str | None:
    """Return an id as key: 1, 1.0 and "1" are the same, "01", True and 1.5 are not."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,18}", value):
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None
