"""Label Studio JSON and JSON-MIN: polygons, rectangles, ellipses and brush strokes.

Source: https://labelstud.io/guide/export and the tags' pages. Coordinates are percent of width and
height, angles degrees clockwise; a rectangle turns about its upper left corner, an ellipse about
its centre. Raters are numbered as they come: who they are stays in the file.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import EntryError, catch, check, field, items, show, text
from datamodules.annotations.files import only_file, read_json
from datamodules.annotations.marks import Mark, MarkedImage, Marking
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
UPLOADED = re.compile(r"(?<=/)[0-9a-f]{8}-(?=[^/]+$)")
CHANNELS = 4
DAMAGED = "its brush strokes cannot be read; export them again"


def read_label_studio(path: Path) -> Marking:
    """Read an export, or the folder that holds one.

    Cancelled annotations, predictions, and answers that draw nothing are left out.
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
    marking = Marking([], [])
    raters: dict[str, str] = {}
    for place, task in enumerate(tasks):
        identity = show(task.get("id", place) if isinstance(task, dict) else place)
        where = f"{path}: task {identity}"
        with catch(marking, where) as concerned:
            concerned += [fields.image_name(address) for address in task_images(task)]
            name, *also = concerned or [fields.image_name(None)]
            regions = _regions(task, raters)
            _check_one_image(concerned, regions)
            # JSON-MIN has a row an annotation: those of a task belong together.
            key = (identity, name)
            image = images.setdefault(key, MarkedImage(name, None, [], where, also=tuple(also)))
            for region in regions:
                with catch(marking, f"{where}: {region.entry}", name, region.labels):
                    mark, size = _read_region(region, image.size)
                    image.marks.append(mark)
                    image = images[key] = image._replace(size=size)
    marking.images.extend(images.values())
    return marking


class Region(NamedTuple):
    """A result of an annotation that is no answer."""

    entry: str  # for messages: "result 'r1'"
    kind: str
    labels: tuple[str, ...]
    rater: str
    result: Any


def task_images(task: object) -> list[str]:
    """The addresses of all images of a task, none twice."""
    about = task if isinstance(task, dict) else {}
    data = about.get("data", about)
    addresses = [
        given
        for key, value in (data.items() if isinstance(data, dict) else ())
        for given in (value if isinstance(value, list) else [value])
        if isinstance(given, str)
        and (IMAGE_KEY.fullmatch(key) or ADDRESS.match(given) or _is_image(given.split("?")[0]))
    ]
    uploaded = about.get("file_upload")
    if addresses and isinstance(uploaded, str) and _is_image(uploaded):
        addresses.append(uploaded)
    return list(dict.fromkeys(addresses))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _check_one_image(names: list[str], regions: list[Region]) -> None:
    """Check that a task has one image, perhaps under several names, and all regions are on it."""
    drawn = [region.result for region in regions if region.kind in DRAWN]
    # A name may be a path's end, perhaps without the digits of an upload.
    first, *others = (UPLOADED.sub("", f"/{name}") for name in names)
    is_one = (
        all(first.endswith(one) or one.endswith(first) for one in others)
        and len({text(result.get("to_name")) for result in drawn} - {""}) < 2
        and not any(result.get("item_index") for result in drawn)
    )
    what = f"holds several images ({', '.join(names[:2])}), and the export does not tell which of "
    check(is_one, f"{what}them a region is on; annotate one image a task")


def _regions(task: dict[str, Any], raters: dict[str, str]) -> list[Region]:
    """What a task's annotations hold, but for answers; raters become "rater 1" and so on."""
    given: Any = task.get("annotations", task.get("completions"))  # the latter before version 1
    if given is None:  # JSON-MIN: the results of each control, under its name
        listed = [entry for value in task.values() for entry in items(value)]
        # Lists of a task's own data may hold objects, too.
        results = [
            {**entry, "value": entry}
            for entry in listed
            if isinstance(entry, dict)
            and ("original_width" in entry or _kind(entry) in (*DRAWN, *NO_AREA))
        ]
        given = [{"completed_by": task.get("annotator"), "result": results}]
    entries = [entry for entry in items(given) if isinstance(entry, dict)]
    kept = [one for one in entries if not one.get("was_cancelled", one.get("skipped"))]
    regions = []
    for number, entry in enumerate(kept):
        who, drawn = entry.get("completed_by"), entry.get("result")
        if not isinstance(drawn, list):
            raise EntryError("has annotations without a 'result': of another tool? export as JSON")
        if isinstance(who, dict):
            who = who.get("id", who.get("email"))
        if who is None and len(kept) > 1:  # not named, but not one person's either
            who = f"annotation {number}"
        rater = "" if who is None else raters.setdefault(text(who), f"rater {len(raters) + 1}")
        about = [result if isinstance(result, dict) else {} for result in drawn]
        # Beside Rectangle, Labels are a result of their own, of the same id.
        apart = {
            text(one.get("id")): _labels("", one) for one in about if one.get("type") == "labels"
        }
        for place, (one, result) in enumerate(zip(about, drawn, strict=True)):
            kind, identity = _kind(one), one.get("id", place)
            if kind not in ANSWERS:
                labels = _labels(kind, one) or apart.get(text(identity), ())
                regions.append(Region(f"result {show(identity)}", kind, labels, rater, result))
    return regions


def _labels(kind: str, result: dict[str, Any]) -> tuple[str, ...]:
    value = result.get("value")
    given = value if isinstance(value, dict) else {}
    return fields.names(*items(given.get(f"{kind}labels", given.get("labels"))))


def _read_region(region: Region, size: tuple[int, int] | None) -> tuple[Mark, tuple[int, int]]:
    """The mark, and the image's size, which is ``size`` where other regions have told it."""
    kind, result = region.kind, region.result
    value = field(result, "value")
    if kind in NO_AREA:
        raise fields.no_area(kind)
    is_read = kind in DRAWN and isinstance(value, dict)
    what = f"{kind[:40] or 'its shape'!r} is not read; draw it as polygon, ellipse, brush or "
    check(is_read, f"{what}rectangle")
    own = fields.image_size(field(result, "original_height"), field(result, "original_width"))
    what = f"its image is of {own[1]} x {own[0]} pixels, that of others of the task not"
    check(own == (size or own), f"{what}; export it again")
    is_upright = not result.get("image_rotation")
    check(is_upright, "the image was turned in Label Studio; annotate it upright")
    area = _area(kind, value, own)
    return Mark(region.entry, labels=region.labels, rater=region.rater, **area), own


def _kind(result: dict[str, Any]) -> str:
    """What was drawn: the type without "labels", in JSON-MIN told from the fields."""
    if "type" in result:
        kind = text(result["type"])
        return kind if kind in ANSWERS else kind.removesuffix("labels")
    labelled = [name.removesuffix("labels") for name in result if name.endswith("labels")]
    shaped = [kind for kind, name in DRAWN.items() if name in result]
    return next(filter(None, labelled + shaped), "")


def _area(kind: str, value: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    if kind == "brush":
        runs = brush_runs(value.get("rle"), size)
        return {"runs": shapes.placed_runs(runs, size, 0, 0, size)}
    if kind == "polygon":
        points = items(value.get("points"))
        are_points = all(isinstance(point, list) and len(point) == 2 for point in points)
        check(are_points, "its points are not [[x, y], ...]; export it again")
        check(value.get("closed") is not False, "the polygon is not closed; close it")
        corners = [(_pixels(x, width), _pixels(y, height)) for x, y in points]
        return {"outline": shapes.polygon(corners)}
    angle = math.radians(fields.number(value.get("rotation") or 0, "rotation"))
    sides = ("radiusX", "radiusY") if kind == "ellipse" else ("width", "height")
    x, across = (_pixels(value.get(name), width) for name in ("x", sides[0]))
    y, down = (_pixels(value.get(name), height) for name in ("y", sides[1]))
    if kind == "ellipse":
        return {"outline": shapes.ellipse(x, y, across, down, angle)}
    return {"outline": shapes.box(x, y, across, down, angle, turn_at=(x, y)), "is_box": True}


def _pixels(percent: object, side: int) -> float:
    """Pixels; rounded, so that 9.999999999999998 does not fall into the pixel before."""
    return round(fields.number(percent, "a coordinate") * side / 100, 2)


def brush_runs(encoded: object, size: tuple[int, int]) -> list[int]:
    """Unpack brush strokes to runs along the rows, of background and mask in turn.

    They are a stream of bits that unpacks to the RGBA bytes of the image, row by row; what is
    opaque is marked. Source: rle-pack, https://github.com/thi-ng/umbrella: 32 bits the number of
    words, 5 the bits a word less 1, four times 4 the bits a run's length less 1; then blocks: a bit
    whether one word repeats, 2 which of the four lengths, the length less 1, and the word or words.
    """
    try:
        data = bytes(items(encoded))
    except (TypeError, ValueError, OverflowError) as error:
        raise EntryError(DAMAGED) from error
    at = 0  # bits that are read

    def read(count: int) -> int:
        """The next bits as a number, the highest first."""
        nonlocal at
        end = at + count
        if end > 8 * len(data):
            raise EntryError(DAMAGED)
        part = int.from_bytes(data[at // 8 : (end + 7) // 8], "big")
        at = end
        return (part >> (-end % 8)) & ((1 << count) - 1)

    words, expected = read(32), CHANNELS * size[0] * size[1]
    if words != expected:
        raise EntryError(
            f"its brush strokes hold {show(words)} values, the image of {size[1]} x {size[0]} has "
            f"{expected}; export them again"
        )
    if read(5) + 1 != 8:
        raise EntryError(DAMAGED)
    lengths = [read(4) + 1 for _ in range(4)]
    runs, marked, place = [0], False, 0
    while place < words:
        repeats = read(1)
        end = place + read(lengths[read(2)]) + 1
        if end > words:
            raise EntryError(DAMAGED)
        while place < end:
            value = read(8)
            stop = end if repeats else place + 1
            # Pixels whose last value, alpha, is among those from place to stop.
            count = stop // CHANNELS - place // CHANNELS
            if count and (value > 0) != marked:
                runs.append(0)
                marked = not marked
            runs[-1] += count
            place = stop
    return runs
