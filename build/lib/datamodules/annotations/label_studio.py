"""Label Studio JSON and JSON-MIN: polygons, rectangles, ellipses and brush strokes.

Source: https://labelstud.io/guide/export and the tags' pages. Coordinates are percent of width and
height, angles degrees clockwise; a rectangle turns about its upper left corner, an ellipse about
its centre. Raters are numbered as they come: who they are stays in the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.annotations.entries import (
    EntryError,
    field,
    image_name,
    image_size,
    items,
    names,
    no_area,
    noting,
    number,
    show,
    text,
)
from datamodules.annotations.files import only_file, read_json
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake
from datamodules.annotations.shapes import box, ellipse, placed_runs, polygon
from datamodules.decode import IMAGE_SUFFIXES
from datamodules.index import DataError

# Controls that draw an area, with a field that tells them apart where JSON-MIN drops their type.
DRAWN = {"polygon": "points", "ellipse": "radiusX", "brush": "rle", "rectangle": "width"}
NO_AREA = ("keypoint", "vector")
# Answers about an image or a region: they draw nothing, and nothing is lost without them.
ANSWERS = (
    *("choices", "datetime", "labels", "number", "pairwise", "ranker", "rating", "relation"),
    *("taxonomy", "textarea"),
)
# Fields of a task that hold an image whatever its address looks like, such as image_2.
IMAGE_KEY = re.compile(r"(image|img)s?(_?(url|path))?[_-]?\d*|url", re.IGNORECASE)
# Without a suffix, or with a query, anything may come from an address; documents are no images.
ADDRESS = re.compile(r"(\w+://|/data/)(?!.*\.(pdf|html?|txt|json|csv|docx?)$)", re.IGNORECASE)
CHANNELS = 4
DAMAGED = "its brush strokes cannot be read; export them again"
UPLOADED = re.compile(r"(?<=/)[0-9a-f]{8}-(?=[^/]+$)")


def read_label_studio(path: Path) -> Marking:
    """Read an export, or the folder that holds one.

    Cancelled annotations, predictions, and answers that draw nothing are left out.

    Raises:
        DataError: The file cannot be read, or is no export of Label Studio.
    """
    path = only_file(path, ".json")
    content = read_json(path)
    tasks = [content] if isinstance(content, dict) else content
    if not isinstance(tasks, list) or not any(task_images(task) for task in tasks):
        raise DataError(
            f"{path}: no export of Label Studio, a list of tasks with an image each; export as "
            "JSON or JSON-MIN"
        )
    images: dict[tuple[str, str], MarkedImage] = {}
    mistakes: list[Mistake] = []
    raters: dict[str, str] = {}
    for place, task in enumerate(tasks):
        identity = show(task.get("id", place) if isinstance(task, dict) else place)
        where = f"{path}: task {identity}"
        with noting(mistakes, where) as whose:
            whose += [image_name(address) for address in task_images(task)]
            name, *also = whose or [image_name(None)]
            made = list(_annotations(task, raters))
            drawn = [each for _, results in made for each in results if isinstance(each, dict)]
            drawn = [each for each in drawn if _kind(each) in DRAWN]
            if (
                any(not _is_end(one, name) and not _is_end(name, one) for one in also)
                or len({text(each.get("to_name")) for each in drawn} - {""}) > 1
                or any(each.get("item_index") for each in drawn)
            ):
                raise EntryError(
                    f"holds several images ({', '.join(whose[:2])}), and the export does not tell "
                    "which of them a region is on; annotate one image a task"
                )
            # JSON-MIN has a row an annotation: those of a task belong together.
            key = (identity, name)
            image = images.setdefault(key, MarkedImage(name, None, [], where, also=tuple(also)))
            for rater, results in made:
                size = _read_results(results, image, rater, mistakes)
                image = images[key] = image._replace(size=size)
    return Marking(list(images.values()), mistakes)


def _annotations(task: dict[str, Any], raters: dict[str, str]) -> Iterator[tuple[str, list[Any]]]:
    """Give of each annotation who made it ("rater 1") and its results."""
    given = task.get("annotations", task.get("completions"))  # the latter before version 1
    if given is None:  # JSON-MIN: the results of each control, under its name
        drawn = [entry for value in task.values() for entry in items(value)]
        drawn = [entry for entry in drawn if isinstance(entry, dict) and _is_region(entry)]
        yield _number(task.get("annotator"), raters), [{**entry, "value": entry} for entry in drawn]
        return
    kept = [
        entry
        for entry in items(given)
        if isinstance(entry, dict) and not entry.get("was_cancelled", entry.get("skipped"))
    ]
    for place, entry in enumerate(kept):
        who = entry.get("completed_by")
        if who is None and len(kept) > 1:  # not named, but not one person's either
            who = f"annotation {place}"
        if not isinstance(entry.get("result"), list):
            raise EntryError("has annotations without a 'result': of another tool? export as JSON")
        yield _number(who, raters), entry["result"]


def _number(who: object, raters: dict[str, str]) -> str:
    """Return "rater 1" for the first, and so on: neither names nor addresses."""
    if isinstance(who, dict):
        who = who.get("id", who.get("email"))
    if who is None:
        return ""
    return raters.setdefault(text(who), f"rater {len(raters) + 1}")


def _read_results(
    results: list[Any], image: MarkedImage, rater: str, mistakes: list[Mistake]
) -> tuple[int, int] | None:
    """Add what ``results`` draw to the marks of ``image``; return the image's size."""
    size = image.size
    apart = _labels_apart(results)
    for place, result in enumerate(results):
        about = result if isinstance(result, dict) else {}
        kind, identity = _kind(about), about.get("id", place)
        if kind in ANSWERS:
            continue
        entry, labels = f"result {show(identity)}", _labels(kind, about.get("value"))
        labels = labels or apart.get(text(identity), ())
        with noting(mistakes, f"{image.where}: {entry}", image.name, labels):
            value = field(result, "value")
            if kind in NO_AREA:
                raise no_area(kind)
            if kind not in DRAWN or not isinstance(value, dict):
                raise EntryError(
                    f"{kind[:40] or 'its shape'!r} is not read; draw it as polygon, ellipse, brush "
                    "or rectangle"
                )
            own = image_size(field(result, "original_height"), field(result, "original_width"))
            if own != (size or own):
                raise EntryError(
                    f"its image is of {own[1]} x {own[0]} pixels, that of others of the task not; "
                    "export it again"
                )
            if result.get("image_rotation"):
                raise EntryError("the image was turned in Label Studio; annotate it upright")
            mark = Mark(entry, labels=labels, rater=rater)
            image.marks.append(mark._replace(**_shape(kind, value, own)))
            size = own
    return size


def _shape(kind: str, value: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    if kind == "brush":
        runs = brush_runs(value.get("rle"), size)
        return {"runs": placed_runs(runs, size, 0, 0, size)}
    if kind == "polygon":
        points = items(value.get("points"))
        if not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise EntryError("its points are not [[x, y], ...]; export it again")
        if value.get("closed") is False:
            raise EntryError("the polygon is not closed; close it")
        corners = [(_pixels(x, width), _pixels(y, height)) for x, y in points]
        return {"outline": polygon(corners)}
    angle = math.radians(number(value.get("rotation") or 0, "rotation"))
    sides = ("radiusX", "radiusY") if kind == "ellipse" else ("width", "height")
    x, across = (_pixels(value.get(name), width) for name in ("x", sides[0]))
    y, down = (_pixels(value.get(name), height) for name in ("y", sides[1]))
    if kind == "ellipse":
        return {"outline": ellipse(x, y, across, down, angle)}
    return {"outline": box(x, y, across, down, angle, turn_at=(x, y)), "is_box": True}


def _pixels(percent: object, side: int) -> float:
    """Return pixels; rounded, so that 9.999999999999998 does not fall into the pixel before."""
    return round(number(percent, "a coordinate") * side / 100, 2)


def _kind(result: dict[str, Any]) -> str:
    """Return what was drawn: the type without "labels", in JSON-MIN told from the fields."""
    if "type" in result:
        kind = text(result["type"])
        return kind if kind in ANSWERS else kind.removesuffix("labels")
    labelled = [name.removesuffix("labels") for name in result if name.endswith("labels")]
    shaped = [kind for kind, name in DRAWN.items() if name in result]
    return next(filter(None, labelled + shaped), "")


def _is_region(entry: dict[str, Any]) -> bool:
    """Whether an entry of JSON-MIN is drawn; lists of a task's own data may hold objects, too."""
    return "original_width" in entry or _kind(entry) in (*DRAWN, *NO_AREA)


def _labels_apart(results: list[Any]) -> dict[str, tuple[str, ...]]:
    """Labels of regions by their id: beside Rectangle, Labels are a result of their own."""
    return {
        text(result.get("id")): names(*items(result["value"].get("labels")))
        for result in results
        if isinstance(result, dict)
        and result.get("type") == "labels"
        and isinstance(result.get("value"), dict)
    }


def _labels(kind: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, dict):
        return ()
    return names(*items(value.get(f"{kind}labels", value.get("labels"))))


def task_images(task: object) -> list[str]:
    """Return the addresses of all images of a task, none twice."""
    data = task.get("data", task) if isinstance(task, dict) else None
    found: dict[str, None] = {}
    for key, value in data.items() if isinstance(data, dict) else ():
        for given in value if isinstance(value, list) else [value]:
            if isinstance(given, str) and (
                IMAGE_KEY.fullmatch(key)
                or ADDRESS.match(given)
                or given.lower().partition("?")[0].endswith(IMAGE_SUFFIXES)
            ):
                found[given] = None
    uploaded = task.get("file_upload") if isinstance(task, dict) else None
    if found and isinstance(uploaded, str) and uploaded.lower().endswith(IMAGE_SUFFIXES):
        found[uploaded] = None
    return [*found]


def _is_end(name: str, path: str) -> bool:
    """Whether ``name`` is how ``path`` ends, perhaps without the digits of an upload."""
    name, path = (UPLOADED.sub("", f"/{one}") for one in (name, path))
    return path.endswith(name)


def brush_runs(encoded: object, size: tuple[int, int]) -> list[int]:
    """Unpack brush strokes to runs along the rows, of background and mask in turn.

    They are a stream of bits that unpacks to the RGBA bytes of the image, row by row; what is
    opaque is marked. Source: rle-pack, https://github.com/thi-ng/umbrella: 32 bits the number of
    words, 5 the bits a word less 1, four times 4 the bits a run's length less 1; then blocks: a bit
    whether one word repeats, 2 which of the four lengths, the length less 1, and the word or words.
    Nothing of the image's size is made, whatever the stream claims.

    Args:
        encoded: The list of bytes from the file.
        size: ``(height, width)`` of the image.

    Raises:
        EntryError: It is no such list, of another size, or ends early.
    """
    try:
        bits = _Bits(bytes(encoded if isinstance(encoded, list) else []))
    except (TypeError, ValueError, OverflowError) as error:
        raise EntryError(DAMAGED) from error
    words = bits.read(32)
    if words != CHANNELS * size[0] * size[1]:
        raise EntryError(
            f"its brush strokes hold {show(words)} values, the image of {size[1]} x {size[0]} has "
            f"{CHANNELS * size[0] * size[1]}; export them again"
        )
    if bits.read(5) + 1 != 8:
        raise EntryError(DAMAGED)
    lengths = [bits.read(4) + 1 for _ in range(4)]
    runs, marked = [0], False
    place = 0
    while place < words:
        repeats = bits.read(1)
        end = place + bits.read(lengths[bits.read(2)]) + 1
        if end > words:
            raise EntryError(DAMAGED)
        while place < end:
            value = bits.read(8)
            stop = end if repeats else place + 1
            # Pixels whose last value, alpha, is among those from place to stop.
            count = stop // CHANNELS - place // CHANNELS
            if count and (value > 0) != marked:
                runs.append(0)
                marked = not marked
            runs[-1] += count
            place = stop
    return runs


class _Bits:
    """Bytes, read as numbers of so many bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def read(self, count: int) -> int:
        end = self.place + count
        if end > 8 * len(self.data):
            raise EntryError(DAMAGED)
        part = int.from_bytes(self.data[self.place // 8 : (end + 7) // 8], "big")
        self.place = end
        return (part >> (-end % 8)) & ((1 << count) - 1)
