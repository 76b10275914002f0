"""Annotation files and folders: listed and read safely, or a ``DataError`` says what is wrong."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

from datamodules.annotations.fields import EntryError, image_name, text
from datamodules.annotations.marks import Marking, Mistake
from datamodules.index import DataError

# Hundred thousand outlines take a tenth of it; parsed, a file may fill twenty times its size.
MAX_BYTES = 256 << 20


def read_bytes(path: Path) -> bytes:
    """Read a regular file that is not empty and of at most ``MAX_BYTES``."""
    try:
        about = path.stat()
        is_file, is_small = stat.S_ISREG(about.st_mode), about.st_size <= MAX_BYTES
        data = path.read_bytes() if is_file and is_small else b""  # a pipe would never end
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its rights") from error
    size, most = about.st_size >> 20, MAX_BYTES >> 20
    for is_right, what in (
        (is_file, "is no file; give the file itself"),
        (is_small, f"holds {size} MiB, no annotation file does; split it below {most} MiB"),
        (data, "the file is empty; export it again"),
    ):
        if not is_right:
            raise DataError(f"{path}: {what}")
    return data


def read_json(path: Path) -> Any:
    """Read UTF-8 JSON, with or without a byte order mark."""
    content = read_bytes(path)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (RecursionError, ValueError) as error:  # also: no UTF-8, a number of 5,000 digits
        raise DataError(f"{path}: no JSON ({error}); export it again") from error


def read_xml(path: Path) -> ElementTree.Element:
    """Read XML; its parser bounds what entities expand to."""
    content = read_bytes(path)
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter: its encoding
        raise DataError(f"{path}: no XML ({error}); export it again") from error


def list_files(source: Path, *suffixes: str, wanted: str = "") -> list[Path]:
    """``source`` itself if it is no folder, else the files below it, sorted.

    Hidden files are left out, links are followed once.

    Args:
        source: File or folder.
        suffixes: Only files that end so, in any case: ".json".
        wanted: What to give instead where there are none, for the error; "": none is no error.
    """
    if not source.is_dir():
        return [source]

    def refuse(error: OSError) -> NoReturn:
        why = f"cannot be listed ({error.strerror}); check its rights"
        raise DataError(f"{error.filename}: {why}") from error

    files, seen = [], set()
    for folder, folders, names in os.walk(source, onerror=refuse, followlinks=True):
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            Path(folder, name)
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    if wanted and not files:
        raise DataError(f"{source}: holds no {suffixes[0]} file; give {wanted}")
    return sorted(files)


def only_file(source: Path, *suffixes: str) -> Path:
    """``source``, or if it is a folder the one file below it that ends in one of ``suffixes``."""
    files = list_files(source, *suffixes)
    if len(files) == 1:
        return files[0]
    first = [os.path.relpath(file, source) for file in files[:3]] + ["..."] * (len(files) > 3)
    these = f" ({', '.join(first)})" if files else ""
    kinds = " or ".join(suffixes)
    raise DataError(f"{source}: holds {len(files)} files {kinds}{these}; give the one to read")


def name_beside(file: Path, source: Path, value: object) -> str:
    """``image_name`` of a path that counts from the folder of ``file``.

    It begins at ``source``, so that images of one name in several folders stay apart.
    """
    name = text(value).replace("\\", "/")
    if file == source or name.startswith(("/", "data:")) or ":" in name[:8]:  # absolute, address
        return image_name(name)
    return image_name(os.path.normpath(f"{os.path.relpath(file.parent, source)}/{name}"))


@contextmanager
def catch_file(marking: Marking, file: Path, source: Path) -> Iterator[list[str]]:
    """``catch`` for one file below ``source``, with a ``DataError``, too, unless it is ``source``.

    Gives at first the file's own name, which is all that is known where it cannot be read; clear
    the list where the file is known to mark nothing.
    """
    concerned: list[str] = []
    own = ""
    try:
        own = name_beside(file, source, file.stem)
        concerned.append(own)
        yield concerned
    except (DataError, EntryError) as error:
        if isinstance(error, DataError) and file == source:
            raise
        what = str(error).removeprefix(f"{file}: ")
        is_file = concerned == [own]
        marking.mistakes.append(Mistake(str(file), what, tuple(concerned), is_file=is_file))
