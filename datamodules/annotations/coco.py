"""COCO JSON: polygons, compressed and uncompressed run-length encoding, as one mask an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from datamodules.index import DataError

# A larger image is a mistake in the file, not a radiograph, and would only eat memory.
MAX_PIXELS = 1 << 28
# Coordinates beyond this are a mistake of scale; those a little outside the image are clipped.
MAX_COORDINATE = 1 << 17


class CocoImage(NamedTuple):
    """One image of a COCO file and what is marked on it.

    Attributes:
        file_name: As written in the file.
        height: Height of the frame that the coordinates count in, pixels.
        width: Its width.
        regions: (annotation id, segmentation) each; the segmentation as in the file.
        categories: Names of the marked categories, sorted, without repetition.
        source: The COCO file, for error messages.
    """

    file_name: str
    height: int
    width: int
    regions: list[tuple[object, object]]
    categories: list[str]
    source: Path

    def mask(self) -> np.ndarray:
        """Draw all regions into one mask, uint8 (H, W), 0 background, 255 marked.

        A polygon marks each pixel that its outline touches or encloses (Pillow's rule), so that a
        hairline fracture outlined thinner than a pixel does not vanish. Overlapping regions add up.

        Raises:
            DataError: A polygon has less than three points, a number is missing or infinite, an RLE
                does not fill the image, or nothing at all or the whole image is marked.
        """
        canvas = Image.new("L", (self.width, self.height))
        draw = ImageDraw.Draw(canvas)
        runs = []
        for number, segmentation in self.regions:
            where = f"{self.source}: annotation {number} on {self.file_name}"
            if isinstance(segmentation, dict):
                runs.append(self._decode_rle(segmentation, where))
                continue
            for polygon in _check_polygons(segmentation, where):
                draw.polygon(polygon, fill=255, outline=255)
        marked = np.maximum.reduce([np.array(canvas), *runs])
        if not marked.any():
            raise DataError(
                f"{self.source}: nothing is marked on {self.file_name}; draw its outline again, or "
                "take its annotations out"
            )
        if marked.all():
            raise DataError(
                f"{self.source}: the whole of {self.file_name} is marked; outline the lesion "
                "alone, or take its annotations out"
            )
        return marked

    def _decode_rle(self, segmentation: dict[str, Any], where: str) -> np.ndarray:
        if segmentation.get("size") != [self.height, self.width]:
            raise DataError(
                f"{where}: its RLE is of size {segmentation.get('size')}, the image of "
                f"{[self.height, self.width]} (height, width); export it again"
            )
        counts: Any = segmentation.get("counts")
        try:
            # pycocotools refuses runs beyond the image but, after too few, returns stray memory.
            covered = sum(counts) if _are_runs(counts) else _covered(counts.encode("ascii"))
        except (AttributeError, ValueError) as error:
            raise DataError(f"{where}: its RLE counts cannot be read; export it again") from error
        if covered != self.height * self.width:
            raise DataError(
                f"{where}: its RLE covers {covered} pixels, the image has "
                f"{self.height * self.width}; export it again"
            )
        if _are_runs(counts):
            segmentation = rle.frPyObjects(segmentation, self.height, self.width)
        return rle.decode(segmentation) * np.uint8(255)


def read_coco(path: Path) -> list[CocoImage]:
    """Read a COCO file; images without annotation are left out.

    Raises:
        DataError: The file is missing or no COCO JSON, an entry lacks a field, an annotation names
            an image that the file does not hold, or two annotated images share an id.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error}); export it again") from error
    for part in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f"{path}: no COCO file, it lacks the list {part!r}; export as COCO")
    names = {
        entry["id"]: str(entry.get("name", ""))
        for entry in _list(content.get("categories"))
        if isinstance(entry, dict) and _is_key(entry.get("id"))
    }
    regions: dict[object, list[tuple[object, object]]] = {}
    categories: dict[object, set[str]] = {}
    for place, entry in enumerate(content["annotations"]):
        image = _field(entry, "image_id", path, f"annotation number {place}")
        if not _is_key(image):
            raise DataError(f"{path}: annotation number {place} has the image_id {image!r}")
        regions.setdefault(image, []).append((entry.get("id", place), entry.get("segmentation")))
        category = entry.get("category_id")
        name = names.get(category, "") if _is_key(category) else ""
        categories.setdefault(image, set()).update([name] if name else [])
    marked: dict[object, CocoImage] = {}
    for place, entry in enumerate(content["images"]):
        where = f"image number {place}"
        number = _field(entry, "id", path, where)
        if not _is_key(number) or number not in regions:
            continue
        name = str(_field(entry, "file_name", path, where))
        height, width = (_field(entry, side, path, where) for side in ("height", "width"))
        if not (_is_side(height) and _is_side(width) and height * width <= MAX_PIXELS):
            raise DataError(f"{path}: {name} has the size {width} x {height}; export it again")
        if number in marked:
            raise DataError(
                f"{path}: {marked[number].file_name} and {name} share the id {number}: nobody can "
                "tell whose its annotations are; export it again"
            )
        found = sorted(categories[number])
        marked[number] = CocoImage(name, height, width, regions[number], found, path)
    for number in regions.keys() - marked.keys():
        raise DataError(
            f"{path}: annotation {regions[number][0][0]} is of image {number}, which the file does "
            "not list; export it again"
        )
    return list(marked.values())


def _field(entry: object, name: str, path: Path, where: str) -> Any:
    if not isinstance(entry, dict) or entry.get(name) is None:
        raise DataError(f"{path}: {where} lacks {name!r}; export it again")
    return entry[name]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_key(value: object) -> bool:
    return isinstance(value, (int, str))


def _is_side(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _check_polygons(segmentation: object, where: str) -> list[list[float]]:
    """Return the polygons ``[x, y, x, y, ...]`` of an annotation, or say what is wrong."""
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{where} has no segmentation (a box alone is no mask); draw an outline")
    for points in segmentation:
        if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
            raise DataError(f"{where}: a polygon is x, y, x, y, ... of three points or more")
        # Written so that "not a number" fails too.
        if not all(_is_number(value) and abs(value) <= MAX_COORDINATE for value in points):
            raise DataError(f"{where}: a point lies far outside the image or is no number")
    return segmentation


def _are_runs(counts: object) -> bool:
    return isinstance(counts, list) and all(isinstance(run, int) and run >= 0 for run in counts)


def _covered(counts: bytes) -> int:
    """Pixels that a compressed RLE covers: runs as differences, five bits a character from "0"."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = character - 48
        if not 0 <= code < 64:
            raise ValueError(f"character {character} in an RLE")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError("negative run in an RLE")
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError("an RLE that ends within a number")
    return sum(runs)
