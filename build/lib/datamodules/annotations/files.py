"""Reading annotation files and folders that may hold anything, safely, or saying what is wrong."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from datamodules.index import DataError

# Hundred thousand outlines take a tenth of it; parsed, a file may fill twenty times its size.
MAX_BYTES = 256 << 20


def read_bytes(path: Path) -> bytes:
    """Read a regular file of at most ``MAX_BYTES``.

    Raises:
        DataError: It is missing, empty, too large or no file.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a folder cannot be read, a pipe would never end
            raise DataError(f"{path}: is no file; give the file itself")
        if about.st_size > MAX_BYTES:
            raise DataError(
                f"{path}: holds {about.st_size >> 20} MiB, no annotation file does; split it below "
                f"{MAX_BYTES >> 20} MiB"
            )
        data = path.read_bytes()
    except DataError:  # a ValueError, too
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); check its rights") from error
    if not data:
        raise DataError(f"{path}: the file is empty; export it again")
    return data


def read_json(path: Path) -> Any:
    """Read UTF-8 JSON, with or without a byte order mark.

    Raises:
        DataError: See ``read_bytes``; or it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8-sig"))
    except RecursionError as error:
        raise DataError(f"{path}: no JSON (nested too deeply); export it again") from error
    except DataError:
        raise
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise DataError(f"{path}: no JSON ({error}); export it again") from error


def read_xml(path: Path) -> ElementTree.Element:
    """Read XML; its parser bounds what entities expand to.

    Raises:
        DataError: See ``read_bytes``; or it is no XML.
    """
    content = read_bytes(path)
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter: its encoding
        raise DataError(f"{path}: no XML ({error}); export it again") from error


def list_files(source: Path, *suffixes: str) -> list[Path]:
    """Return ``source`` itself if it is no folder, else the files below it, sorted.

    Hidden files are left out, links are followed once.

    Args:
        source: File or folder.
        suffixes: Only files that end so, in any case: ".json".

    Raises:
        DataError: There is no such file or folder, or a folder cannot be listed.
    """
    if not source.is_dir():
        return [source]
    found, folders, seen = [], [source], set()
    while folders:
        folder = folders.pop()
        try:
            about = folder.stat()
            if (about.st_dev, about.st_ino) in seen:  # a link to a folder above
                continue
            seen.add((about.st_dev, about.st_ino))
            names = [name for name in os.listdir(folder) if not name.startswith(".")]
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be listed ({error.strerror}); check its rights"
            ) from error
        for path in (folder / name for name in names):
            if path.is_dir():
                folders.append(path)
            elif path.name.lower().endswith(suffixes):
                found.append(path)
    return sorted(found)


def only_file(source: Path, *suffixes: str) -> Path:
    """Return ``source``, or the one file that ends in one of ``suffixes`` below it if a folder.

    Raises:
        DataError: There is none or several.
    """
    files = list_files(source, *suffixes)
    if len(files) != 1:
        names = [os.path.relpath(file, source) for file in files[:3]]
        names += ["..."] if len(files) > 3 else []
        these = f" ({', '.join(names)})" if names else ""
        kinds = " or ".join(suffixes)
        raise DataError(f"{source}: holds {len(files)} files {kinds}{these}; give the one to read")
    return files[0]
