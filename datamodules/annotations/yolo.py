"""YOLO text files, one an image: a line a box or a segment, in shares of the image's sides.

A box is ``class cx cy width height``, a segment ``class x y x y x y ...``; classes are numbers.
"""

import os
import re
from pathlib import Path

import numpy as np
import yaml

from datamodules.annotations import fields, shapes
from datamodules.annotations.fields import catch, catch_file, check, list_files
from datamodules.annotations.marks import Mark, MarkedImage, Marking
from datamodules.index import DataError, read_text

NOTES = "notes.json"  # Label Studio's, beside its classes.txt
CLASSES = ("classes.txt", "labels.txt", "obj.names", "data.yaml", "dataset.yaml", NOTES)
# Lists of images, and LabelImg's of what may be drawn, that lie beside the annotations.
LISTS = ("train.txt", "val.txt", "valid.txt", "test.txt", "predefined_classes.txt")
# Folders of a data set that holds the names of its classes further up: train/labels, labels/train.
LAYOUT = ("labels", "train", "val", "valid", "test", "obj_train_data")
# Shares a little outside the image are for the importer to judge; these are pixels.
PIXELS, SLACK = 2.0, 0.001
HINT = "YOLO's values are shares of width and height: class cx cy width height"


def read_yolo(path: Path) -> Marking:
    """Read a YOLO file, or all below a folder; an image's name is the file's, without suffix."""
    sources = _class_files(path)
    classes = _read_classes([file for file in sources if file.name != NOTES])
    note = fields.LABEL_STUDIO if NOTES in (file.name for file in sources) else ""
    marking = Marking([], [])
    for file in list_yolo(path):
        with catch_file(marking, file, path) as concerned:
            folders = Path(os.path.relpath(file.parent, path)).parts if file != path else ()
            # Images lie in the twin, "images", of a folder "labels".
            name = "/".join(part for part in (*folders, file.stem) if part != "labels")
            concerned[:] = [name]
            lines = read_text(file).splitlines()
            image = MarkedImage(name, None, [], str(file), in_shares=True, note=note)
            marking.images.append(image)
            for place, line in enumerate(lines, 1):
                if row := line.split():
                    with catch(marking, f"{file}: line {place}", name):
                        image.marks.append(_mark(row, f"line {place}", classes))
    return marking


def list_yolo(path: Path) -> list[Path]:
    """The files that may be annotations: text, but no names of classes, list or README."""
    files = [file for file in list_files(path, ".txt") if file.name not in (*CLASSES, *LISTS)]
    return [file for file in files if not file.name.lower().startswith("readme.")]


def is_yolo(file: Path) -> bool:
    """Whether a text file holds nothing but numbers in YOLO's order; an empty one may be it."""
    lines = filter(None, map(str.strip, read_text(file).splitlines()))
    return all(re.fullmatch(r"\S+(\s+[-+.\deE]+){4,}", line) for line in lines)


def _class_files(path: Path) -> list[Path]:
    """Files that name classes: beside the annotations and below, and above in YOLO's layout."""
    folders = [(path if path.is_dir() else path.parent).absolute()]
    while folders[-1].name in LAYOUT and len(folders) < 3:
        folders.append(folders[-1].parent)
    near = [folder / name for folder in folders for name in CLASSES]
    below = [file.absolute() for file in list_files(path, *CLASSES) if file.name in CLASSES]
    return [file for file in dict.fromkeys([*near, *below]) if file.is_file()]


def _read_classes(sources: list[Path]) -> list[str]:
    """The names of classes, on which all files that have some must agree; [] where none has."""
    lists = {file: names for file in sources if (names := _names_in(file))}
    first = next(iter(lists), Path())
    for file, names in lists.items():
        if names != lists[first]:
            both = f"{first} and {file}: name different classes"
            raise DataError(f"{both}, nobody can tell which were drawn by; keep the right one")
    return lists.get(first, [])


def _names_in(file: Path) -> list[str]:
    text = read_text(file)
    if file.suffix != ".yaml":
        return [line.strip() for line in text.rstrip().splitlines()]
    try:
        # BaseLoader makes text, lists and dicts only.
        content = yaml.load(text, Loader=yaml.BaseLoader) or {}
        check("kpt_shape" not in content, "of key points (pose), which mark no area")
        names = content.get("names") or []
        if isinstance(names, dict):  # {0: fracture, 2: metal}
            places = range(1 + max(map(int, names), default=-1))
            names = [names.get(str(place), "") for place in places]
    except (*fields.STUMBLES, yaml.YAMLError) as error:
        raise DataError(f"{file}: names of classes cannot be read ({error})") from error
    return names


def _mark(row: list[str], entry: str, classes: list[str]) -> Mark:
    place = row[0].removesuffix(".0")
    values = [fields.number(value, "a value") for value in row[1:]]
    what = f"holds {len(values)} values: a box with columns more (confidence, track, key points), "
    is_clear = len(values) <= 4 or not _is_box_and_more(values)
    check(is_clear, f"{what}or a segment? export one alone; a segment of 3 points wants a fourth")
    is_share = all(abs(value) <= PIXELS for value in values)
    check(is_share, f"{' '.join(row):.60} is in pixels; {HINT}; convert it")
    check(re.fullmatch("[0-9]+", place), f"its class is no number; {HINT}")
    name = dict(enumerate(classes)).get(int(place), "") if classes else place
    check(name, f"its class is {place}, but {len(classes)} have names; add it to them")
    if len(values) == 4:
        cx, cy, width, height = values
        corners = shapes.box(cx - width / 2, cy - height / 2, width, height)
        return Mark(entry, corners, labels=(name,), is_box=True)
    is_right = len(values) >= 6 and len(values) % 2 == 0
    check(is_right, f"holds {len(values)} values behind the class, not 4 or pairs; {HINT}")
    points = zip(values[::2], values[1::2], strict=True)
    return Mark(entry, shapes.polygon(points), labels=(name,))


def _is_box_and_more(values: list[float]) -> bool:
    """Whether values may be a box and columns that a segment does not have."""
    (centre, sides), rest = np.reshape(values[:4], (2, 2)), values[4:]
    low, high = centre - sides / 2, centre + sides / 2
    is_box = ((low >= -SLACK) & (low < high) & (high <= 1 + SLACK)).all()
    points = np.reshape(rest[: len(rest) // 2 * 2], (-1, 2))
    within = ((low - SLACK <= points) & (points <= high + SLACK)).all()
    # Sides lie with the other points only by chance, as a segment's second corner does always.
    is_apart = ((sides < low + SLACK) | (sides > high - SLACK)).any()
    flags = rest[2::3] if len(rest) % 3 == 0 else []  # of key points: whether they are seen
    is_pose = (within and is_apart) or (bool(flags) and {*flags} <= {0, 1, 2})
    return bool(is_box) and (len(rest) == 2 or bool(is_pose))
