"""Which content each row of predictions is of: an input may change, or go, before the next time."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from datamodules import DataError
from datamodules.decode import read_content
from datamodules.files import usable_cores
from experiments.prediction.inputs import Input, readable

SOURCES = "inputs.csv"


class Source(NamedTuple):
    """A line of inputs.csv.

    Attributes:
        path: Name of the input, as in predictions.csv.
        file: Where it lies, as :func:`experiments.prediction.inputs.readable` has it.
        content_hash: SHA-256 of its content, or "" where that could not be read.
    """

    path: str
    file: str
    content_hash: str

    @classmethod
    def of(cls, item: Input, content: str) -> Source:
        """Of an input whose content has this hash."""
        return cls(item.name, readable(item.file.absolute()), content)


def content_hash(data: bytes) -> str:
    """SHA-256 of the content of a file."""
    return hashlib.sha256(data).hexdigest()


def read_sources(path: Path) -> dict[str, Source]:
    """The lines of an inputs.csv by name, the last of a name; of a cut one those that are whole."""
    if not path.is_file():
        return {}
    text = path.read_bytes().decode("utf-8", errors="backslashreplace")
    whole = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(whole, newline="")))[1:]
    return {line[0]: Source(*line) for line in lines if len(line) == len(Source._fields)}


def changed(inputs: Iterable[Input], sources: Mapping[str, Source]) -> list[Input]:
    """The inputs whose content is another than when they were looked at."""
    known = [item for item in inputs if item.name in sources]
    with ThreadPoolExecutor(usable_cores()) as pool:
        hashes = pool.map(_hash_now, known)
        return [
            item
            for item, now in zip(known, hashes, strict=True)
            if now != sources[item.name].content_hash
        ]


def gone(inputs: Sequence[Input], sources: Mapping[str, Source]) -> list[Input]:
    """What was looked at and is no longer among the inputs."""
    names = {item.name for item in inputs}
    return [Input(name, Path(each.file)) for name, each in sources.items() if name not in names]


def _hash_now(item: Input) -> str:
    try:
        return "" if item.error else content_hash(read_content(item.file))
    except DataError:
        return ""
