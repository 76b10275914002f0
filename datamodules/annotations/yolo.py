"""YOLO text files, one an image: a line a box or a segment, in shares of the image's sides.

A box is ``class cx cy width height``, a segment ``class x y x y x y ...``. The class is a number;
its name comes from ``classes.txt``, ``labels.txt``, ``obj.names`` or ``data.yaml`` beside them, or
above where folders are laid out as YOLO's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import EntryError, catch, check, show
from datamodules.annotations.files import catch_file, list_files, read_bytes
from datamodules.annotations.marks import Mark, MarkedImage, Marking
from datamodules.index import DataError

CLASSES = ("classes.txt", "labels.txt", "obj.names", "data.yaml", "dataset.yaml", "notes.json")
# Lists of images, and LabelImg's of what may be drawn, that lie beside the annotations.
LISTS = ("train.txt", "val.txt", "valid.txt", "test.txt", "predefined_classes.txt")
# Folders of a data set that holds the names of its classes further up: train/labels, labels/train.
LAYOUT = ("labels", "train", "val", "valid", "test", "obj_train_data")
# Shares a little outside the image are for the importer to judge; these are pixels.
PIXELS, SLACK = 2.0, 0.001
IN_PIXELS = "is in pixels or no number"
MAX_CLASSES_BYTES = 1 << 16  # YAML is read slowly
HINT = "YOLO's values are shares of width and height: class cx cy width height"


def read_yolo(path: Path) -> Marking:
    """Read a YOLO file, or all below a folder; an image's name is the file's, without suffix.

    A folder ``labels`` is left out of names: images lie in its twin ``images``. An empty file is an
    image without marks.
    """
    classes, files = _read_classes(path), list_yolo(path)
    if not files:
        raise DataError(f"{path}: holds no .txt file of YOLO; give their folder")
    exports = [read_bytes(file) for file in _class_files(path) if file.suffix == ".json"]
    note = fields.LABEL_STUDIO if any(b"Label Studio" in export for export in exports) else ""
    marking = Marking([], [])
    for file in files:
        with catch_file(marking, file, path) as concerned:
            folders = Path(os.path.relpath(file.parent, path)).parts if file != path else ()
            parts = [part for part in (*folders, file.stem) if part != "labels"]
            name = fields.image_name("/".join(parts))
            concerned[:] = [name]
            lines = _lines(file)
            image = MarkedImage(name, None, [], str(file), in_shares=True, note=note)
            marking.images.append(image)
            for place, line in enumerate(lines, 1):
                with catch(marking, f"{file}: line {place}", name):
                    if line.strip():
                        image.marks.append(_mark(line.split(), f"line {place}", classes))
    wrong = [mistake for mistake in marking.mistakes if IN_PIXELS in mistake.what]
    if wrong and not any(image.marks for image in marking.images):
        raise DataError(f"{wrong[0].where}: {wrong[0].what}")
    return marking


def list_yolo(path: Path) -> list[Path]:
    """The files that may be annotations: text, but no names of classes, list or README."""
    return [
        file
        for file in list_files(path, ".txt")
        if file.name not in (*CLASSES, *LISTS) and not file.name.lower().startswith("readme.")
    ]


def is_yolo(file: Path) -> bool:
    """Whether a text file holds nothing but numbers in YOLO's order; an empty one may be it."""
    rows = [line.split() for line in _lines(file) if line.strip()]
    try:
        return all(len([float(value) for value in row[1:]]) >= 4 for row in rows)
    except ValueError:
        return False


def _lines(file: Path) -> list[str]:
    if file.is_file() and file.stat().st_size == 0:
        return []
    try:
        return read_bytes(file).decode("utf-8-sig").splitlines()
    except UnicodeError as error:
        raise DataError(f"{file}: is no UTF-8 text; export it again") from error


def _read_classes(path: Path) -> list[str]:
    """The names of classes, from beside the annotations or above; [] where there are none."""
    lists = {file: names for file in _class_files(path) if (names := _read_names(file))}
    first, *others = lists or [path]
    for file in others:
        if lists[file] != lists[first]:
            both = f"{first} and {file}: name different classes"
            raise DataError(f"{both}, nobody can tell which were drawn by; keep the right one")
    return lists.get(first, [])


def _class_files(path: Path) -> list[Path]:
    """Files that name classes: beside the annotations and below, and above in YOLO's layout."""
    folders = [(path if path.is_dir() else path.parent).absolute()]
    while folders[-1].name in LAYOUT and len(folders) < 3:
        folders.append(folders[-1].parent)
    near = [folder / name for folder in folders for name in CLASSES]
    below = [file.absolute() for file in list_files(path, *CLASSES) if file.name in CLASSES]
    return [file for file in dict.fromkeys([*near, *below]) if file.is_file()]


def _read_names(file: Path) -> list[str]:
    if file.suffix not in (".yaml", ".json"):
        return [line.strip() for line in "\n".join(_lines(file)).rstrip().splitlines()]
    data = read_bytes(file)
    try:
        check(len(data) <= MAX_CLASSES_BYTES, "is too long for names of classes; take it out")
        # BaseLoader makes text, lists and dicts only; JSON is YAML, too.
        return _listed_names(yaml.load(data, Loader=yaml.BaseLoader))
    except EntryError as error:
        raise DataError(f"{file}: {error}") from error
    except (ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError) as error:
        what = str(error).partition("\n")[0]
        raise DataError(f"{file}: names of classes cannot be read ({what})") from error


def _listed_names(content: Any) -> list[str]:
    given = content if isinstance(content, dict) else {}
    poses = "is of key points (pose), which mark no area; export segments"
    check("kpt_shape" not in given, poses)
    names = given.get("names")
    if "categories" in given:  # Label Studio's
        names = {each["id"]: each["name"] for each in given["categories"]}
    if isinstance(names, dict):  # {0: fracture, 2: metal}
        names = [names.get(str(place)) for place in range(1 + max(map(int, names), default=-1))]
    is_right = not names or fields.text(given.get("nc")) in ("", str(len(names)))
    check(is_right, f"names {len(names or [])} classes, but nc is another; correct it")
    return [fields.text(name) for name in fields.items(names)]


def _mark(row: list[str], entry: str, classes: list[str]) -> Mark:
    try:
        values = [float(value) for value in row[1:]]
    except ValueError as error:
        raise EntryError(f"holds {show(' '.join(row))}; {HINT}") from error
    what = f"holds {len(values)} values: a box with columns more (confidence, track, key points), "
    is_clear = len(values) <= 4 or not _is_box_and_more(values)
    check(is_clear, f"{what}or a segment? export one alone; a segment of 3 points wants a fourth")
    what = f"{show(' '.join(row))} {IN_PIXELS}, perhaps class xmin ymin xmax ymax; {HINT}"
    check(all(abs(value) <= PIXELS for value in values), f"{what}; convert it")
    labels = (_label(row[0], classes),)
    if len(values) == 4:
        cx, cy, width, height = values
        corners = shapes.box(cx - width / 2, cy - height / 2, width, height)
        return Mark(entry, corners, labels=labels, is_box=True)
    is_right = len(values) >= 6 and len(values) % 2 == 0
    check(is_right, f"holds {len(values)} values behind the class, not 4 or pairs; {HINT}")
    points = zip(values[::2], values[1::2], strict=True)
    return Mark(entry, shapes.polygon(points), labels=labels)


def _is_box_and_more(values: list[float]) -> bool:
    """Whether values may be a box and columns that a segment does not have."""
    (cx, cy, width, height), rest = values[:4], values[4:]
    edges = [(cx - width / 2, cx + width / 2), (cy - height / 2, cy + height / 2)]
    if not all(-SLACK <= low < high <= 1 + SLACK for low, high in edges):
        return False

    def holds(point: Sequence[float], slack: float) -> bool:
        ends = zip(point, edges, strict=True)
        return all(low - slack <= at <= high + slack for at, (low, high) in ends)

    within = all(holds(point, SLACK) for point in zip(rest[::2], rest[1::2], strict=False))
    # Sides lie with the other points only by chance, as a segment's second corner does always.
    side = holds((width, height), -SLACK)
    flags = rest[2::3] if len(rest) % 3 == 0 else []  # of key points: whether they are seen
    return len(rest) == 2 or (within and not side) or (bool(flags) and {*flags} <= {0, 1, 2})


def _label(given: str, classes: list[str]) -> str:
    number = re.fullmatch(r"([0-9]{1,5})(\.0*)?", given)
    if not number:
        raise EntryError(f"its class is {show(given)}, no number; {HINT}")
    place = int(number[1])
    if not classes:
        return str(place)
    name = classes[place] if place < len(classes) else ""
    check(name, f"its class is {place}, but {len(classes)} have names; add it to them")
    return name
