"""COCO JSON: polygons, run-length encoding compressed or not, and boxes where there is no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.annotations.entries import (
    EntryError,
    field,
    image_name,
    image_size,
    items,
    names,
    noting,
    number,
    show,
)
from datamodules.annotations.files import only_file, read_json
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake
from datamodules.annotations.shapes import box, coco_runs, polygon
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
    labels = {
        _key(entry.get("id")): names(entry.get("name"))
        for entry in items(content.get("categories"))
        if isinstance(entry, dict)
    }
    for place, entry in enumerate(content["annotations"]):
        about = entry if isinstance(entry, dict) else {}
        key = _key(about.get("image_id"))
        image = images.get(key)
        name = f"annotation {show(about['id'])}" if "id" in about else f"annotation number {place}"
        if key in wrong:
            continue
        whose = image.name if image else ""
        where = f"{path}: {name}" + (f" on {whose}" if whose else "")
        classes = labels.get(_key(about.get("category_id")), ())
        with noting(mistakes, where, whose, classes):
            if key is None:
                given = show(field(entry, "image_id"))
                raise EntryError(f"has the image_id {given}; export it again")
            if image is None:
                raise EntryError(
                    f"is of image {show(key[1])}, which is not listed; export it again"
                )
            image.marks.extend(_marks(about, image.size, name, classes))
    return Marking(list(images.values()), mistakes)


def _read_images(
    entries: list[Any], path: Path, mistakes: list[Mistake]
) -> tuple[dict[Any, MarkedImage], set[Any]]:
    """Return images by their id, and the ids of those that are wrong."""
    images: dict[Any, MarkedImage] = {}
    wrong = set()
    for place, entry in enumerate(entries):
        where = f"{path}: image number {place}"
        key = _key(entry.get("id")) if isinstance(entry, dict) else None
        with noting(mistakes, where):
            if key is None:
                raise EntryError(f"has the id {show(field(entry, 'id'))}; export it again")
            wrong.add(key)
            name = image_name(field(entry, "file_name"))
            if key in images:
                raise EntryError(
                    f"{images[key].name} and {name} share the id {show(key[1])}: nobody can tell "
                    "whose its annotations are; export it again"
                )
            size = image_size(field(entry, "height"), field(entry, "width"))
            images[key] = MarkedImage(name, size, [], where)
            wrong.remove(key)
    return {key: image for key, image in images.items() if key not in wrong}, wrong


def _marks(
    entry: dict[str, Any], size: tuple[int, int] | None, name: str, labels: tuple[str, ...]
) -> list[Mark]:
    segmentation, corners = entry.get("segmentation"), items(entry.get("bbox"))
    if isinstance(segmentation, dict):
        return [Mark(name, runs=coco_runs(segmentation, size), labels=labels)]
    if items(segmentation):
        outlines = [_outline(points) for points in items(segmentation)]
        return [Mark(name, outline, labels=labels) for outline in outlines]
    if len(corners) != 4:
        raise EntryError("has no segmentation and no box; draw an outline")
    x, y, width, height = (number(value, "bbox") for value in corners)
    return [Mark(name, box(x, y, width, height), labels=labels, is_box=True)]


def _outline(points: object) -> tuple[tuple[float, float], ...]:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        raise EntryError("a polygon is x, y, x, y, ... of three points or more; draw it again")
    return polygon(zip(points[::2], points[1::2], strict=True))


def _key(value: object) -> tuple[str, object] | None:
    """Return an id that may serve as key: 1, 1.0, True and "1" are not the same."""
    return (type(value).__name__, value) if isinstance(value, (int, str)) else None
