"""YOLO text files, one an image: a line a box or a segment, in shares of the image's sides.

A box is ``class cx cy width height``, a segment ``class x y x y x y ...``. The class is a number;
its name comes from ``classes.txt``, ``labels.txt``, ``obj.names`` or ``data.yaml`` beside them, or
above where folders are laid out as YOLO's.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from datamodules.annotations.entries import (
    LABEL_STUDIO,
    EntryError,
    image_name,
    items,
    noting,
    noting_file,
    show,
    text,
)
from datamodules.annotations.files import list_files, read_bytes
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake
from datamodules.annotations.shapes import box, polygon
from datamodules.index import DataError

CLASSES = ("classes.txt", "labels.txt", "obj.names", "data.yaml", "dataset.yaml")
# Lists of images that lie beside the annotations.
LISTS = ("train.txt", "val.txt", "valid.txt", "test.txt")
# Folders of a data set that holds the names of its classes further up: train/labels, labels/train.
LAYOUT = ("labels", "train", "val", "valid", "test", "obj_train_data")
# Shares a little outside the image are for the importer to judge; these are pixels.
PIXELS = 2.0
IN_PIXELS = "is in pixels or no number"
MAX_CLASSES_BYTES = 1 << 16  # YAML is read slowly
HINT = "YOLO's values are shares of width and height: class cx cy width height"


def read_yolo(path: Path) -> Marking:
    """Read a YOLO file, or all below a folder; an image's name is the file's, without suffix.

    A folder ``labels`` is left out of names: images lie in its twin ``images``. An empty file is an
    image without marks.

    Raises:
        DataError: There is no such file or folder, none of YOLO in it, the names of classes cannot
            be read, or all that is marked is in pixels.
    """
    names = read_classes(path)
    images: list[MarkedImage] = []
    mistakes: list[Mistake] = []
    files = list_yolo(path)
    if not files:
        raise DataError(f"{path}: holds no .txt file of YOLO; give their folder")
    beside = [folder / "notes.json" for folder in _folders(path)]
    is_lossy = any(b"Label Studio" in read_bytes(file) for file in beside if file.is_file())
    for file in files:
        with noting_file(mistakes, file, path) as whose:
            folder = Path(os.path.relpath(file.parent, path)).parts if file != path else ()
            parts = [part for part in (*folder, file.stem) if part != "labels"]
            whose[:] = [image_name("/".join(parts))]
            lines = _lines(file)
            note = LABEL_STUDIO if is_lossy else ""
            image = MarkedImage(whose[0], None, [], str(file), in_shares=True, note=note)
            images.append(image)
            for place, line in enumerate(lines, 1):
                with noting(mistakes, f"{file}: line {place}", image.name):
                    if line.strip():
                        image.marks.append(_mark(line.split(), f"line {place}", names))
    wrong = [mistake for mistake in mistakes if IN_PIXELS in mistake.what]
    if wrong and not any(image.marks for image in images):
        raise DataError(f"{wrong[0].where}: {wrong[0].what}")
    return Marking(images, mistakes)


def list_yolo(path: Path) -> list[Path]:
    """Return the files that may be annotations: text, but no names of classes, list or README."""
    return [
        file
        for file in list_files(path, ".txt")
        if file.name not in (*CLASSES, *LISTS) and not file.name.lower().startswith("readme.")
    ]


def is_yolo(file: Path) -> bool:
    """Whether a text file holds nothing but numbers in YOLO's order; an empty one may be it.

    Raises:
        DataError: It cannot be read.
    """
    fields = [line.split() for line in _lines(file) if line.strip()]
    try:
        return all(len([float(value) for value in line[1:]]) >= 4 for line in fields)
    except ValueError:
        return False


def read_classes(path: Path) -> list[str]:
    """Return the names of classes, from beside the annotations or above; [] where there are none.

    Raises:
        DataError: They cannot be read, two files contradict each other, or it is a set of poses.
    """
    lists: dict[Path, list[str]] = {}
    for file in (folder / name for folder in _folders(path) for name in CLASSES):
        if file.is_file() and (names := _read_names(file)):
            lists[file] = names
    first, *others = lists or [path]
    for file in others:
        if lists[file] != lists[first]:
            raise DataError(
                f"{first} and {file}: name different classes, nobody can tell which were drawn by; "
                "keep the right one"
            )
    return lists.get(first, [])


def _folders(path: Path) -> list[Path]:
    """The folder of the annotations, and those above it where they are laid out as YOLO's."""
    folders = [(path if path.is_dir() else path.parent).absolute()]
    while folders[-1].name in LAYOUT and len(folders) < 3:
        folders.append(folders[-1].parent)
    return folders


def _read_names(file: Path) -> list[str]:
    data = read_bytes(file)
    try:
        content = data.decode("utf-8-sig")
        if file.suffix != ".yaml":
            return [line.strip() for line in content.rstrip().splitlines()]
        if len(data) > MAX_CLASSES_BYTES:
            raise DataError(f"{file}: is too long for names of classes; take it out")
        # BaseLoader makes text, lists and dicts only.
        content = yaml.load(content, Loader=yaml.BaseLoader)
        if not isinstance(content, dict):
            return []
        if "kpt_shape" in content:
            raise DataError(f"{file}: is of key points (pose), which mark no area; export segments")
        names = content.get("names")
        if isinstance(names, dict):  # {0: fracture, 1: metal}
            names = [names.get(str(place)) for place in range(len(names))]
        if names and text(content.get("nc")) not in ("", str(len(names))):
            raise DataError(f"{file}: names {len(names)} classes, but nc is another; correct it")
        return [text(name) for name in items(names)]
    except DataError:
        raise
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        what = str(error).splitlines()[0]
        raise DataError(f"{file}: names of classes cannot be read ({what})") from error


def _lines(file: Path) -> list[str]:
    if file.is_file() and file.stat().st_size == 0:
        return []
    try:
        return read_bytes(file).decode("utf-8-sig").splitlines()
    except UnicodeError as error:
        raise DataError(f"{file}: is no UTF-8 text; export it again") from error


def _mark(fields: list[str], entry: str, names: list[str]) -> Mark:
    try:
        values = [float(value) for value in fields[1:]]
    except ValueError as error:
        raise EntryError(f"holds {show(' '.join(fields))}; {HINT}") from error
    if _is_box(values[:4]) and len(values) > 4:
        flags = values[6::3] if len(values) % 3 == 1 else []  # of key points: x, y, visibility
        if len(values) == 6 or (flags and {*flags} <= {0, 1, 2}):
            raise EntryError(
                f"holds {len(values)} values: a box with columns more (confidence, track, key "
                "points), or a segment? export boxes alone; a segment of 3 points wants a fourth"
            )
    if not all(abs(value) <= PIXELS for value in values):
        raise EntryError(
            f"{show(' '.join(fields))} {IN_PIXELS}, perhaps class xmin ymin xmax "
            f"ymax; {HINT}; convert it"
        )
    labels = (_label(fields[0], names),)
    if len(values) == 4:
        cx, cy, width, height = values
        corners = box(cx - width / 2, cy - height / 2, width, height)
        return Mark(entry, corners, labels=labels, is_box=True)
    if len(values) < 6 or len(values) % 2:
        raise EntryError(f"holds {len(values)} values behind the class, not 4 or pairs; {HINT}")
    return Mark(entry, polygon(zip(values[::2], values[1::2], strict=True)), labels=labels)


def _is_box(values: list[float]) -> bool:
    """Whether these are the centre and sides of a box within the image."""
    ends = [
        abs(2 * centre - 1) + side for centre, side in zip(values[:2], values[2:], strict=False)
    ]
    return len(ends) == 2 and max(ends) <= 1.001 and min(values[2:]) > 0


def _label(field: str, names: list[str]) -> str:
    if not (field.isascii() and field.isdigit() and len(field) < 6):
        raise EntryError(f"its class is {show(field)}, no number; {HINT}")
    if names and int(field) >= len(names):
        raise EntryError(f"its class is {field}, but {len(names)} have names; add it to them")
    return names[int(field)] if names and names[int(field)] else field
