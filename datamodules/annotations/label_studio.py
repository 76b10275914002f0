"""Label Studio JSON and JSON-MIN (https://labelstud.io/guide/export, and the tags' pages).

Coordinates are percent of width and height, angles degrees clockwise; a rectangle turns about its
upper left corner. Raters are numbered as they come: who they are stays in the file.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import catch, check
from datamodules.annotations.marks import Mark, MarkedImage, Marking

# Controls that draw an area, with a field that tells them apart where JSON-MIN drops their type.
DRAWN = {"polygon": "points", "ellipse": "radiusX", "brush": "rle", "rectangle": "width"}
# Answers about an image or a region: they draw nothing, and nothing is lost without them.
ANSWERS = {"choices", "datetime", "labels", "number", "pairwise", "ranker", "rating", "relation"}
ANSWERS |= {"taxonomy", "textarea"}
# Fields of a task that hold an image whatever its address looks like, such as image_2.
IMAGE_KEY = re.compile(r"(image|img)s?(_?(url|path))?[_-]?\d*|url", re.IGNORECASE)
# Without a suffix, or with a query, anything may come from an address; documents are no images.
ADDRESS = re.compile(
    r".*\.(png|jpe?g)(\?|$)|(\w+://|/data/)(?!.*\.(pdf|html?|txt|json|csv|docx?)$)", re.IGNORECASE
)
UPLOADED = re.compile(r"(?<=/)[0-9a-f]{8}-(?=[^/]+$)")

# A result of an annotation that is no answer: its entry, labels and rater; what was drawn; itself.
Region = tuple[Mark, str, dict[str, Any]]


def read_label_studio(path: Path, marking: Marking) -> None:
    """Read an export, but for predictions and what was cancelled."""
    content = fields.read_json(path)
    tasks = [content] if isinstance(content, dict) else content
    what = "no export of Label Studio, a list of tasks with an image each; export as JSON"
    check(any(task_images(task) for task in tasks), what)
    images: dict[tuple[str, str], MarkedImage] = {}
    raters: dict[str, str] = {}
    for place, task in enumerate(tasks):
        identity = task.get("id", place)
        where = f"{path}: task {identity}"
        with catch(marking, where) as concerned:
            concerned += [fields.image_name(address) for address in task_images(task)]
            check(concerned, "its image is missing; export it again")
            regions = _regions(task, raters)
            _check_one_image(concerned, regions)
            name, *also = concerned
            # JSON-MIN has a row an annotation: those of a task belong together.
            key = (str(identity), name)
            image = images.get(key, MarkedImage(name, None, [], where, also=tuple(also)))
            sizes = {_size(result) for _, kind, result in regions if kind in DRAWN}
            check(len(sizes) < 2, "its regions state several sizes of the image; export it again")
            images[key] = image = image._replace(size=next(iter(sizes), image.size))
            for about, kind, result in regions:
                fields.read_mark(marking, image, about, _read_region, kind, result)
    marking.images.extend(images.values())


def task_images(task: dict[str, Any]) -> list[str]:
    """The addresses of all images of a task, none twice."""
    data = task.get("data", task)
    addresses = [
        address
        for key, value in data.items()
        for address in (value if isinstance(value, list) else [value])
        if isinstance(address, str) and (IMAGE_KEY.fullmatch(key) or ADDRESS.match(address))
    ]
    uploaded = task.get("file_upload") or ""
    if addresses and ADDRESS.match(uploaded):
        addresses.append(uploaded)
    return list(dict.fromkeys(addresses))


def _check_one_image(names: list[str], regions: list[Region]) -> None:
    """Check that a task has one image, perhaps under several names, and all regions are on it."""
    drawn = [result for _, kind, result in regions if kind in DRAWN]
    # A name may be a path's end, perhaps without the digits of an upload.
    first, *others = (UPLOADED.sub("", f"/{name}") for name in names)
    is_one = all(first.endswith(one) or one.endswith(first) for one in others)
    tags = {(result.get("to_name"), result.get("item_index") or 0) for result in drawn}
    is_on_one = len({name for name, _ in tags}) < 2 and not any(place for _, place in tags)
    what = f"holds several images ({', '.join(names[:2])}): which is a region on?"
    check(is_one and is_on_one, f"{what} annotate one image a task")


def _regions(task: dict[str, Any], raters: dict[str, str]) -> list[Region]:
    """What a task's annotations draw; raters become "rater 1" and so on."""
    annotations = task.get("annotations")
    if annotations is None:  # JSON-MIN: the results of each control, under its name
        listed = [entry for value in task.values() if isinstance(value, list) for entry in value]
        # Lists of a task's own data may hold objects, too.
        results = [
            {**entry, "value": entry}
            for entry in listed
            if isinstance(entry, dict) and ("original_width" in entry or _kind(entry))
        ]
        annotations = [{"completed_by": task.get("annotator"), "result": results}]
    kept = [one for one in annotations if not one.get("was_cancelled")]
    regions, seen = [], set[str]()
    for number, annotation in enumerate(kept):
        check("result" in annotation, "has annotations without a 'result'; export as JSON")
        who, results = annotation.get("completed_by"), annotation["result"]
        if isinstance(who, dict):
            who = who.get("id", who.get("email"))
        if who is None and len(kept) > 1:  # not named, but not one person's either
            who = f"annotation {number}"
        rater = "" if who is None else raters.setdefault(str(who), f"rater {len(raters) + 1}")
        if rater and any(_kind(one) in DRAWN for one in results):
            check(rater not in seen, "was annotated twice by one person; join them or keep one")
            seen.add(rater)
        # Beside Rectangle, Labels are a result of their own, of the same id.
        apart = {one.get("id"): _labels("", one) for one in results if one.get("type") == "labels"}
        for place, one in enumerate(results):
            kind, identity = _kind(one), one.get("id", place)
            if kind not in ANSWERS:
                labels = _labels(kind, one) or apart.get(identity, ())
                about = Mark(f"result {identity!r}", labels=labels, rater=rater)
                regions.append((about, kind, one))
    return regions


def _labels(kind: str, result: dict[str, Any]) -> tuple[str, ...]:
    value = result.get("value") or {}
    return fields.names(*value.get(f"{kind}labels", value.get("labels", ())))


def _kind(result: dict[str, Any]) -> str:
    """What was drawn: the type without "labels", in JSON-MIN told from the fields."""
    if "type" in result:
        kind = result["type"]
        return kind if kind in ANSWERS else kind.removesuffix("labels")
    labelled = [name.removesuffix("labels") for name in result if name.endswith("labels")]
    shaped = [kind for kind, name in DRAWN.items() if name in result]
    return next(filter(None, labelled + shaped), "")


def _size(result: dict[str, Any]) -> tuple[int, int]:
    return fields.image_size(result.get("original_height"), result.get("original_width"))


def _read_region(kind: str, result: dict[str, Any]) -> Mark:
    check(kind in DRAWN, f"{kind!r} is not read; draw it as polygon, ellipse, brush or rectangle")
    is_upright = not result.get("image_rotation")
    check(is_upright, "the image was turned in Label Studio; annotate it upright")
    size = height, width = _size(result)
    value = result["value"]
    if kind == "brush":
        return Mark(runs=shapes.placed(brush_mask(value["rle"], size), 0, 0, size))
    if kind == "polygon":
        check(value.get("closed") is not False, "the polygon is not closed; close it")
        corners = [(_pixels(x, width), _pixels(y, height)) for x, y in value["points"]]
        return Mark(outline=shapes.polygon(corners))
    angle = math.radians(fields.number(value.get("rotation") or 0, "rotation"))
    sides = ("radiusX", "radiusY") if kind == "ellipse" else ("width", "height")
    x, across = (_pixels(value[name], width) for name in ("x", sides[0]))
    y, down = (_pixels(value[name], height) for name in ("y", sides[1]))
    if kind == "ellipse":
        return Mark(outline=shapes.ellipse(x, y, across, down, angle))
    return Mark(outline=shapes.box(x, y, across, down, angle, pivot=(x, y)), is_box=True)


def _pixels(percent: object, side: int) -> float:
    """Pixels; rounded, so that 9.999999999999998 does not fall into the pixel before."""
    return round(fields.number(percent, "a coordinate") * side / 100, 2)


def brush_mask(encoded: list[int], size: tuple[int, int]) -> np.ndarray:
    """Unpack brush strokes, RGBA bytes packed by rle-pack, to the opaque pixels ``(H, W)``.

    https://github.com/thi-ng/umbrella: 32 bits the number of bytes, 5 the bits a byte less 1, four
    times 4 the bits a run's length less 1; then blocks: a bit whether one byte repeats, 2 which of
    the four lengths, the length less 1, and the byte or bytes.
    """
    bits = "".join(f"{byte:08b}" for byte in encoded)
    at = 0  # bits that are read

    def read(count: int) -> int:
        nonlocal at
        at += count
        check(at <= len(bits), "its brush strokes end too early; export them again")
        return int(bits[at - count : at], 2)

    count = read(32)
    read(5)
    lengths = [read(4) + 1 for _ in range(4)]
    data = bytearray()
    while len(data) < count:
        repeats, length = read(1), read(lengths[read(2)]) + 1
        data += bytes([read(8)]) * length if repeats else bytes(read(8) for _ in range(length))
    return np.frombuffer(data, np.uint8).reshape(*size, 4)[..., 3] > 0
