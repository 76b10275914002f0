"""Fields of annotation files that may hold anything: numbers, sizes and names, or what is wrong.

Where a file as a whole cannot be read, that is a ``DataError``; where one entry is wrong, an
:class:`EntryError`, which readers turn into a ``Mistake`` and go on with the next entry.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from datamodules.annotations.marks import MAX_COORDINATE, MAX_PIXELS, Mistake
from datamodules.index import DataError

# What Label Studio 1.23 leaves out of these exports, and where it puts turned boxes, was measured.
LABEL_STUDIO = (
    "Label Studio wrote this: its COCO, YOLO and VOC exports drop ellipses, brush strokes and "
    "other shapes without a word, and misplace turned rectangles; export JSON"
)
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 1  # [1, 2, {...}]


class EntryError(ValueError):
    """One entry is wrong: what, and the remedy."""


@contextmanager
def noting(
    mistakes: list[Mistake], where: str, image: str = "", labels: tuple[str, ...] = ()
) -> Iterator[list[str]]:
    """Add an ``EntryError`` from within, of ``image``, to ``mistakes`` and go on behind.

    Gives the names of the images that the mistake will concern: add those that are read within.
    """
    whose = [image] if image else []
    try:
        yield whose
    except EntryError as error:
        mistakes.append(Mistake(where, str(error), tuple(whose), labels))


@contextmanager
def noting_file(mistakes: list[Mistake], file: Path, source: Path) -> Iterator[list[str]]:
    """The same for one file below ``source``, with a ``DataError`` too, unless it is ``source``.

    Gives at first the file's own name, which is all that is known where it cannot be read; clear
    the list where the file is known to mark nothing.
    """
    whose: list[str] = []
    own = ""
    try:
        own = name_beside(file, source, file.stem)
        whose.append(own)
        yield whose
    except (DataError, EntryError) as error:
        if isinstance(error, DataError) and file == source:
            raise
        what = str(error).removeprefix(f"{file}: ")
        mistakes.append(Mistake(str(file), what, tuple(whose), is_file=whose == [own]))


def field(entry: object, name: str) -> Any:
    """Return a field of a JSON object that must be there.

    Raises:
        EntryError: It is no object, or lacks the field.
    """
    if not isinstance(entry, dict) or entry.get(name) is None:
        raise EntryError(f"lacks {name!r}; export it again")
    return entry[name]


def items(value: object) -> list[Any]:
    """Return a JSON list as it is, and for all else an empty one."""
    return value if isinstance(value, list) else []


def text(value: object) -> str:
    """Return a label or name: text or a number as text without blanks around; else ""."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    # JSON can hold halves of characters, which nothing can print.
    return str(value).strip().encode("utf-8", "replace").decode()


def names(*values: object) -> tuple[str, ...]:
    """Return labels as :func:`text`, without those that are empty."""
    return tuple(name for name in map(text, values) if name)


def number(value: object, name: str, most: float = MAX_COORDINATE) -> float:
    """Return a coordinate or length in pixels, from a JSON number or from text.

    Raises:
        EntryError: It is missing, no number, not finite, or far outside any image.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise EntryError(f"{name} is {show(value)}, no number; draw it again") from error
    if not abs(found) <= most:  # so written that "not a number" fails too
        raise EntryError(f"{name} is {show(value)}, far outside the image; draw it again")
    return found


def numbers(values: Mapping[str, object], *names: str) -> list[float]:
    """Return several fields of one entry, each as ``number`` does.

    Raises:
        EntryError: See ``number``.
    """
    return [number(values.get(name), name) for name in names]


def whole(value: object, name: str) -> int:
    """Return a number that must be whole, see ``number``."""
    found = number(value, name)
    if found != int(found):
        raise EntryError(f"{name} is {show(value)}, no whole number; export it again")
    return int(found)


def image_size(height: object, width: object) -> tuple[int, int]:
    """Return ``(height, width)`` of an image.

    Raises:
        EntryError: A side is no whole positive number, or the image has over ``MAX_PIXELS``.
    """
    try:
        sides = whole(height, "height"), whole(width, "width")
    except EntryError:
        sides = (0, 0)
    if min(sides) <= 0 or sides[0] * sides[1] > MAX_PIXELS:
        raise EntryError(f"has the size {show(width)} x {show(height)}; export it again")
    return sides


def image_name(value: object) -> str:
    """Return the path of an image as a tool wrote it: forward slashes, no drive, no "..".

    Of an address remains the path, of Label Studio's local files and uploads what lies below the
    storage. Text that a file holds never leads outside a folder.

    Raises:
        EntryError: It is empty or no text, or holds the image itself.
    """
    name = text(value).replace("\\", "/")
    if name.startswith("data:"):
        raise EntryError("holds the image instead of its name; export with the images' paths")
    try:
        parts = urlsplit(name)
        if "://" in name:
            name = unquote(parts.path)
        if parts.path.endswith("/data/local-files/"):
            name = parse_qs(parts.query).get("d", [""])[0].replace("\\", "/")
        elif "/data/upload/" in parts.path:  # a number, the project's, may follow
            folder, _, file = unquote(parts.path).partition("/data/upload/")[2].rpartition("/")
            name = file if folder.isdigit() else f"{folder}/{file}"
    except ValueError as error:
        raise EntryError(f"its image {show(value)} is no address; export it again") from error
    name = name[2:] if name[1:2] == ":" else name
    kept = [part for part in PurePosixPath(name).parts if part not in ("/", "//", ".", "..")]
    if not kept or any(ord(character) < 32 for character in name):
        raise EntryError(f"its image is {show(value)}, no name; export it again")
    return "/".join(kept)


def name_beside(file: Path, source: Path, value: object) -> str:
    """Return ``image_name`` of a path that counts from the folder of ``file``.

    Seen from ``source``, so that images of one name in several folders stay apart.

    Raises:
        EntryError: See ``image_name``.
    """
    name = text(value).replace("\\", "/")
    if file == source or name.startswith(("/", "data:")) or ":" in name[:8]:  # absolute, address
        return image_name(name)
    return image_name(os.path.normpath(f"{os.path.relpath(file.parent, source)}/{name}"))


def no_area(kind: object) -> EntryError:
    """Return the error of a shape, such as a line or a point, that marks no area."""
    return EntryError(f"{text(kind)[:40] or 'its shape'!r} marks no area; outline the lesion")


def show(value: object) -> str:
    """Return a value for a message, short, and without what an object says of people."""
    return "an object" if isinstance(value, dict) else _SHORT.repr(value)
