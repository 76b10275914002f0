"""COCO JSON: polygons, run-length encoding compressed or not, and boxes where there is no more."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import catch, check
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake, Point

Images = dict[str, MarkedImage | None]  # by their id; None are wrong


def read_coco(path: Path, marking: Marking) -> None:
    """Read a COCO file; an annotation may be several marks."""
    content = fields.read_json(path)
    for part in ("images", "annotations"):
        check(part in content, f"no COCO file, it lacks the list {part!r}; export as COCO")
    labels: dict[str, tuple[str, ...]] = {}
    for entry in content.get("categories") or ():
        key, own = _key(entry["id"]), fields.names(entry.get("name"))
        is_one = labels.setdefault(key, own) == own
        check(is_one, f"two categories share the id {key}; export it again")
    images = _read_images(content, path, marking)
    for place, entry in enumerate(content["annotations"]):
        name = f"annotation {entry.get('id', f'number {place}')}"
        key, category = _key(entry.get("image_id")), _key(entry.get("category_id"))
        image, classes = images.get(key), labels.get(category, ())
        if image is None:
            if key not in images:  # else it is a mistake of its own
                what = f"is of image {key}, which is not listed; export it again"
                marking.mistakes.append(Mistake(f"{path}: {name}", what))
            continue
        with catch(marking, f"{path}: {name} on {image.name}", image.name, classes):
            is_listed = not labels or category in labels
            check(is_listed, f"its category_id {category} is not listed; export it again")
            areas = _areas(entry, image.size or (0, 0))
            image.marks.extend(area._replace(entry=name, labels=classes) for area in areas)
    marking.images.extend(image for image in images.values() if image)


def _read_images(content: dict[str, Any], path: Path, marking: Marking) -> Images:
    images: Images = {}
    note = fields.LABEL_STUDIO if "'Label Studio'" in str(content.get("info")) else ""
    for place, entry in enumerate(content["images"]):
        where = f"{path}: image number {place}"
        with catch(marking, where) as concerned:
            key = _key(entry["id"])
            is_first, other = key not in images, images.get(key)
            images[key] = None
            name = fields.image_name(entry["file_name"])
            concerned += [name, other.name] if other else [name]
            check(is_first, f"shares its id {key} with another image; export it again")
            also = [entry[key] for key in ("path", "coco_url") if entry.get(key)]
            names = tuple(map(fields.image_name, also))
            size = fields.image_size(entry["height"], entry["width"])
            images[key] = MarkedImage(name, size, [], where, also=names, note=note)
    return images


def _areas(entry: dict[str, Any], size: tuple[int, int]) -> list[Mark]:
    is_flagged = entry.get("ignore") or entry.get("deleted")
    check(not is_flagged, "is flagged as ignored or deleted; take off the flag, or take it out")
    segmentation, corners = entry.get("segmentation") or [], entry.get("bbox") or []
    edges: tuple[Point, ...] = ()
    areas = []
    if len(corners) == 4 and any(corners[2:]) and entry.get("bbox_mode", 1) == 1:
        x, y, width, height = (fields.number(value, "bbox") for value in corners)
        angle = shapes.box_angle(entry | (entry.get("attributes") or {}))
        edges = shapes.box(x, y, width, height, angle)
        areas = [width * height]  # which many tools write for outlines, too
    if isinstance(segmentation, dict):
        runs = shapes.coco_runs(segmentation, size)
        marks = [Mark(runs=runs)]
        shapes.check_beside_box(shapes.box(*rle.toBbox(runs)), edges)
        areas.append(float(rle.area(runs)))
    elif outlines := _outlines(segmentation):
        marks = [Mark(outline=outline) for outline in outlines]
        shapes.check_beside_box([point for outline in outlines for point in outline], edges)
        areas.append(sum(cv2.contourArea(np.array(outline, np.float32)) for outline in outlines))
    else:
        check(edges, f"has no segmentation and no box of four ({corners}); draw an outline")
        marks = [Mark(outline=edges, is_box=True)]
    area = fields.number(entry.get("area") or 0, "area")
    is_near = any(abs(area - own) <= 0.1 * own + 2 * own**0.5 for own in areas)
    what = f"marks {areas[-1]:.0f} pixels, but its area says {area:.0f}: a box that is no x, y, "
    check(not area or is_near, f"{what}width, height, a hole, or a lost outline? export it again")
    return marks


def _outlines(segmentation: list[Any]) -> list[tuple[Point, ...]]:
    if not all(isinstance(points, list) and len(points) != 2 for points in segmentation):
        segmentation = [segmentation]  # one polygon, not nested, or of pairs
    parts = [np.reshape(points, (-1, 2)).tolist() for points in segmentation if points]
    return [shapes.polygon(points) for points in parts]


def _key(value: object) -> str:
    """An id as key: 1, 1.0 and "1" are the same, "01" is not."""
    return str(value).removesuffix(".0")
