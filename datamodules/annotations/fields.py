"""The door to all readers: files are opened, fields checked, and what is wrong is listed.

Readers take a file to be as its tool writes it; what they stumble over is caught here, once.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake
from datamodules.decode import read_content
from datamodules.index import DataError, read_text

# A larger image is a mistake in the file, not a radiograph, and would only eat memory.
MAX_PIXELS = 1 << 28
# What Label Studio 1.23 leaves out of these exports, and where it puts turned boxes, was measured.
LABEL_STUDIO = (
    "Label Studio wrote this: its COCO, YOLO and VOC exports drop ellipses, brush strokes and "
    "other shapes without a word, and misplace turned rectangles; export JSON"
)
# What a reader raises on a file that is not as its tool writes it.
STUMBLES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
Reader = Callable[[Path], Marking]


class EntryError(ValueError):
    """One entry is wrong: what, and the fix. Files that cannot be read are a ``DataError``."""


def check(is_right: object, what: str) -> None:
    """Raise an ``EntryError`` that says ``what`` is wrong, unless ``is_right``."""
    if not is_right:
        raise EntryError(what)


def _explain(error: Exception) -> str:
    if isinstance(error, (EntryError, DataError)):
        return str(error)
    what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error!s:.200})"
    return f"{what}; export it again"


@contextmanager
def catch(
    marking: Marking, where: str, image: str = "", labels: tuple[str, ...] = ()
) -> Iterator[list[str]]:
    """List what goes wrong in the block as a mistake about the images in the yielded list."""
    concerned = [image] if image else []
    try:
        yield concerned
    except STUMBLES as error:
        marking.mistakes.append(Mistake(where, _explain(error), tuple(concerned), labels))


@contextmanager
def catch_file(marking: Marking, file: Path, source: Path) -> Iterator[list[str]]:
    """:func:`catch` for one file below ``source``: the list begins with the file's own name."""
    own = name_beside(file, source, file.stem)
    concerned = [own]
    try:
        yield concerned
    except STUMBLES as error:
        if isinstance(error, DataError) and file == source:
            raise
        what, is_file = _explain(error).removeprefix(f"{file}: "), concerned == [own]
        marking.mistakes.append(Mistake(str(file), what, tuple(concerned), is_file=is_file))


def read_only(
    read: Callable[[Path, Marking], None], suffixes: tuple[str, ...], source: Path
) -> Marking:
    """What ``read`` finds in a file, or in the only one of these suffixes in a folder."""
    files, marking = list_files(source, *suffixes), Marking([], [])
    if len(files) != 1:
        names = ", ".join([os.path.relpath(file, source) for file in files[:3]])
        kinds = f"{len(files)} files {' or '.join(suffixes)}"
        raise DataError(f"{source}: holds {kinds} ({names}); give the one to read")
    try:
        read(files[0], marking)
    except DataError:
        raise
    except STUMBLES as error:
        raise DataError(f"{files[0]}: {_explain(error)}") from error
    return marking


def list_files(source: Path, *suffixes: str, wanted: str = "") -> list[Path]:
    """``source`` itself, or the files below it; if something is ``wanted``, there must be some."""
    if not source.is_dir():
        return [source]

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename}: cannot be listed. Fix: check its rights") from error

    files: list[Path] = []
    for folder, folders, names in os.walk(source, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        kept = (name for name in names if not name.startswith("."))
        files += [Path(folder, name) for name in kept if name.lower().endswith(suffixes)]
    if wanted and not files:
        raise DataError(f"{source}: holds no {suffixes[0]} file; give {wanted}")
    return sorted(files)


def read_json(path: Path) -> Any:
    """Read JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: no JSON ({error}); export it again") from error


def read_xml(path: Path) -> ElementTree.Element:
    """Read XML; its parser bounds what entities expand to."""
    content = read_content(path)
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter: its encoding
        raise DataError(f"{path}: no XML ({error}); export it again") from error


def read_mark(
    marking: Marking, image: MarkedImage, about: Mark, read: Callable[..., Mark], *given: object
) -> None:
    """Add the area that ``read(*given)`` makes of an entry, and what is known ``about`` it."""
    with catch(marking, f"{image.where}, {about.entry}", image.name, about.labels):
        area = read(*given)
        image.marks.append(about._replace(outline=area.outline, runs=area.runs, is_box=area.is_box))


def text(value: object) -> str:
    """A label or name without blanks around, "" for None."""
    # JSON can hold halves of characters, which nothing can print.
    return "" if value is None else str(value).strip().encode("utf-8", "replace").decode()


def names(*values: object) -> tuple[str, ...]:
    """Labels as :func:`text`, without those that are empty."""
    return tuple(filter(None, map(text, values)))


def number(value: Any, name: str) -> float:
    """A coordinate or length, from a JSON number or from text."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    check(math.isfinite(result), f"{name} is no number; export it again")
    return result


def numbers(values: Mapping[str, object], *names: str) -> list[float]:
    """Several fields of one entry, each as :func:`number`."""
    return [number(values.get(name), name) for name in names]


def image_size(height: object, width: object) -> tuple[int, int]:
    """``(height, width)`` of an image of at least one and at most ``MAX_PIXELS`` pixels."""
    sides = number(height, "its height"), number(width, "its width")
    is_whole = all(side >= 1 and side.is_integer() for side in sides)
    is_right = is_whole and math.prod(sides) <= MAX_PIXELS
    check(is_right, f"has the size {width} x {height}; export it again")
    return int(sides[0]), int(sides[1])


def image_name(value: object) -> str:
    """The path of an image as a tool wrote it: forward slashes, no address, no drive, no ".."."""
    name = text(value).replace("\\", "/")
    is_path = not name.startswith("data:")
    check(is_path, "holds the image instead of its name; export with the images' paths")
    address = urlsplit(name)
    if address.path.endswith("/data/local-files/"):
        name = parse_qs(address.query).get("d", [""])[0].replace("\\", "/")
    elif "://" in name or "/data/upload/" in name:
        # Behind the folder of uploads may follow a number, the project's.
        name = re.sub(r".*/data/upload/(\d+/(?=[^/]+$))?", "", unquote(address.path))
    name = name[2:] if name[1:2] == ":" else name
    kept = [part for part in PurePosixPath(name).parts if part not in ("/", "//", ".", "..")]
    check(kept, f"its image is {value!r:.60}, no name; export it again")
    return "/".join(kept)


def name_beside(file: Path, source: Path, value: object) -> str:
    """:func:`image_name`, from ``source`` on, of a path that counts from the folder of ``file``."""
    name = text(value).replace("\\", "/")
    if file == source or name.startswith(("/", "data:")) or ":" in name[:8]:  # absolute, address
        return image_name(name)
    return image_name(os.path.normpath(f"{os.path.relpath(file.parent, source)}/{name}"))
