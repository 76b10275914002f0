"""Fields of annotation files, checked: numbers, sizes and names, or an :class:`EntryError`."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from datamodules.annotations.marks import MAX_COORDINATE, MAX_PIXELS, Marking, Mistake

# What Label Studio 1.23 leaves out of these exports, and where it puts turned boxes, was measured.
LABEL_STUDIO = (
    "Label Studio wrote this: its COCO, YOLO and VOC exports drop ellipses, brush strokes and "
    "other shapes without a word, and misplace turned rectangles; export JSON"
)
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 1  # [1, 2, {...}]


class EntryError(ValueError):
    """One entry is wrong: what, and the fix. Files that cannot be read are a ``DataError``."""


@contextmanager
def catch(
    marking: Marking, where: str, image: str = "", labels: tuple[str, ...] = ()
) -> Iterator[list[str]]:
    """Turn an ``EntryError`` of the block into a mistake, so that the next entry is read.

    Gives the names of the images that it will concern: add those that are read in the block.
    """
    concerned = [image] if image else []
    try:
        yield concerned
    except EntryError as error:
        marking.mistakes.append(Mistake(where, str(error), tuple(concerned), labels))


def check(is_right: object, what: str) -> None:
    """Raise an ``EntryError`` that says ``what`` is wrong, unless ``is_right``."""
    if not is_right:
        raise EntryError(what)


def field(entry: object, name: str) -> Any:
    """A field of a JSON object that must be there."""
    value = entry.get(name) if isinstance(entry, dict) else None
    check(value is not None, f"lacks {name!r}; export it again")
    return value


def items(value: object) -> list[Any]:
    """A JSON list as it is, and for all else an empty one."""
    return value if isinstance(value, list) else []


def text(value: object) -> str:
    """A label or name: text or a number as text without blanks around; else ""."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    # JSON can hold halves of characters, which nothing can print.
    return str(value).strip().encode("utf-8", "replace").decode()


def names(*values: object) -> tuple[str, ...]:
    """Labels as :func:`text`, without those that are empty."""
    return tuple(name for name in map(text, values) if name)


def number(value: object, name: str, most: float = MAX_COORDINATE) -> float:
    """A coordinate or length in pixels, from a JSON number or from text."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise EntryError(f"{name} is {show(value)}, no number; draw it again") from error
    # "not a number" fails, too
    check(abs(result) <= most, f"{name} is {show(value)}, far outside the image; draw it again")
    return result


def numbers(values: Mapping[str, object], *names: str) -> list[float]:
    """Several fields of one entry, each as :func:`number`."""
    return [number(values.get(name), name) for name in names]


def whole(value: object, name: str) -> int:
    """A :func:`number` that must be whole."""
    result = number(value, name)
    check(result.is_integer(), f"{name} is {show(value)}, no whole number; export it again")
    return int(result)


def image_size(height: object, width: object) -> tuple[int, int]:
    """``(height, width)`` of an image of at least one and at most ``MAX_PIXELS`` pixels."""
    try:
        sides = whole(height, "height"), whole(width, "width")
    except EntryError:
        sides = (0, 0)
    is_right = min(sides) > 0 and sides[0] * sides[1] <= MAX_PIXELS
    check(is_right, f"has the size {show(width)} x {show(height)}; export it again")
    return sides


def image_name(value: object) -> str:
    """The path of an image as a tool wrote it: forward slashes, no drive, no "..".

    Of an address remains the path, of Label Studio's local files and uploads what lies below the
    storage. Text that a file holds never leads outside a folder.
    """
    name = text(value).replace("\\", "/")
    holds_image = name.startswith("data:")
    check(not holds_image, "holds the image instead of its name; export with the images' paths")
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
    is_name = kept and all(ord(character) >= 32 for character in name)
    check(is_name, f"its image is {show(value)}, no name; export it again")
    return "/".join(kept)


def no_area(kind: object) -> EntryError:
    """The error of a shape, such as a line or a point, that marks no area."""
    return EntryError(f"{text(kind)[:40] or 'its shape'!r} marks no area; outline the lesion")


def show(value: object) -> str:
    """A value for a message, short, and without what an object says of people."""
    return "an object" if isinstance(value, dict) else _SHORT.repr(value)
