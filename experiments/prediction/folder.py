"""The folder that ``experiments.predict`` writes: tables that are appended to, and pictures.

A kill at any moment loses a batch at most: the same command continues. An image that has changed
since, by the hash of its content, is predicted again.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

from datamodules.decode import read_content
from datamodules.files import take, usable_cores, write_text
from datamodules.index import DataError
from experiments.prediction.inputs import ABOUT, Input
from experiments.runs import LOCK, RunError

PREDICTIONS, INPUTS, STUDIES = "predictions.csv", "inputs.csv", "studies.csv"
PARTIAL = f"{PREDICTIONS}.partial"  # until all rows are there
NOTE = "note: "
# What is written depends on these values of about.json: other values need another folder.
REQUEST = ("checkpoint_hash", "inputs", "methods", "dicom", "threshold", "map_thresholds")
STUDY = re.compile(r"study\d+(_positive|_negative)?", re.IGNORECASE)  # a folder, as in MURA
STUDY_COLUMNS = ("study", "views", "probability_abnormal", "predicted_abnormal", "failed_views")


class Row(NamedTuple):
    """An input with its prediction; None is an empty field.

    The first six fields are the columns of ``predictions.csv``; the peak is in pixels of the
    upright image, from 0. ``error`` says why there is no prediction, or no Secondary Capture or
    overlay beside one, or, after :data:`NOTE`, what to know of the image.
    """

    path: str
    probability_abnormal: float | None = None
    predicted_abnormal: int | None = None
    map_peak_x: int | None = None
    map_peak_y: int | None = None
    error: str = ""
    file: str = ""
    content_hash: str = ""  # SHA-256; "" where the content could not be read

    @property
    def answered(self) -> bool:
        """Whether there is a prediction."""
        return self.probability_abnormal is not None or self.map_peak_x is not None

    @property
    def failed(self) -> bool:
        """Whether something could not be made; a note alone is no failure."""
        return bool(self.error) and not self.error.startswith(NOTE)


# The fields of a row in each table. Inputs first: a line there without a prediction does no harm.
TABLES = {INPUTS: (0, 6, 7), PARTIAL: tuple(range(6))}


class PredictionFolder:
    """The tables and pictures of one request, and ``rows``, what is done, by path.

    The folder must be new, empty, or begun by the same request. ``about``, the content of
    ``about.json``, is the request, and which network answers it.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, about
        self._tables: dict[str, IO[str]] = {}
        if fault := self._fault():
            raise RunError(
                f"{folder} {fault}; nothing is overwritten. Fix: a new folder with --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / LOCK).open("w")
        with contextlib.suppress(OSError):  # a file system without locks
            if not take(self._lock):
                raise RunError(f"another process writes {folder}. Fix: wait, or name another --out")
        write_text(folder / ABOUT, json.dumps(about, indent=2) + "\n")
        self.rows = read_rows(folder)

    def _fault(self) -> str:
        begun = self.folder / ABOUT
        if self.folder.exists() and not self.folder.is_dir():
            return "is a file"
        if not begun.is_file():
            there = self.folder.iterdir() if self.folder.exists() else ()
            return "is not empty" if any(path.name != LOCK for path in there) else ""
        try:
            before = json.loads(begun.read_text())
            differ = [name for name in REQUEST if before[name] != self.about[name]]
        except (ValueError, KeyError, TypeError):
            differ = ["about.json, which is damaged"]
        listed = ", ".join(differ)
        return f"holds predictions of another request ({listed} differ)" if differ else ""

    def close(self) -> None:
        """Let others write the folder."""
        for handle in (*self._tables.values(), self._lock):
            handle.close()

    def settle(self, inputs: Iterable[Input]) -> tuple[int, int]:
        """Drop the rows of images that have changed, and of those gone without a prediction.

        Returns how many predictions are dropped, and how many are kept of images that are gone.
        """
        now, rows = {item.name: item for item in inputs}, list(self.rows.values())

        def holds(row: Row) -> bool:
            return _hash(now[row.path]) == row.content_hash if row.path in now else row.answered

        with ThreadPoolExecutor(usable_cores()) as pool:
            kept = dict(zip(self.rows, pool.map(holds, rows), strict=True))
        dropped = [row for row in rows if not kept[row.path]]
        self.rows = {row.path: row for row in rows if kept[row.path]}
        best = self.about["best_map"]
        for name in (row.path for row in dropped):
            maps = [f"maps/{name}.{method}.png" for method in self.about["methods"]]
            for picture in (*maps, f"overlays/{name}.{best}.png", f"dicom/{name}.{best}.dcm"):
                (self.folder / picture).unlink(missing_ok=True)
        for table, fields in TABLES.items():  # written anew: a kill may have cut the last line
            path = self.folder / table
            write_text(path, _csv([Row._fields, *self.rows.values()], fields))
            self._tables[table] = path.open("a", encoding="utf-8", errors="backslashreplace")
        return sum(row.answered for row in dropped), len(self.rows.keys() - now.keys())

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; they are on the disk when this returns."""
        for table, handle in self._tables.items():
            handle.write(_csv(rows, TABLES[table]))
            handle.flush()
            os.fsync(handle.fileno())
        self.rows |= {row.path: row for row in rows}

    def finish(self, study_threshold: float | None) -> None:
        """Give the table its name, and write ``studies.csv`` where there are studies."""
        (self.folder / PARTIAL).replace(self.folder / PREDICTIONS)
        if lines := studies(self.rows.values(), study_threshold):
            write_text(self.folder / STUDIES, _csv([STUDY_COLUMNS, *lines], range(5)))

    def write(self, kind: str, name: str, content: bytes) -> None:
        """Write a file of an input, such as ``maps/<name>``."""
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_rows(folder: Path) -> dict[str, Row]:
    """The rows of a folder by path, finished or not."""
    inputs = {path: rest for path, *rest in _read(folder / INPUTS, columns=3)}
    table = folder / (PARTIAL if (folder / PARTIAL).is_file() else PREDICTIONS)
    rows = {}
    for path, probability, *numbers, error in _read(table, columns=6):
        called, x, y = (int(number) if number else None for number in numbers)
        chance = float(probability) if probability else None
        rows[path] = Row(path, chance, called, x, y, error, *inputs.get(path, ()))
    return rows


def studies(rows: Iterable[Row], threshold: float | None) -> list[tuple[object, ...]]:
    """Join the views of each study by the mean of their probabilities (Rajpurkar et al. 2018).

    Lines of :data:`STUDY_COLUMNS`. A view that could not be read does not count; a study without
    any has no probability.
    """
    views: dict[Path, list[Row]] = {}
    for row in rows:
        folders = [path for path in Path(row.file).parents if STUDY.fullmatch(path.name)]
        if folders:
            views.setdefault(folders[0], []).append(row)
    lines: dict[str, tuple[object, ...]] = {}
    for study, members in views.items():
        short = "/".join(study.parts[1:][-3:])  # part/patient/study
        name = str(study) if short in lines else short
        failed = sum(row.failed and row.probability_abnormal is None for row in members)
        chances = [p for p in (row.probability_abnormal for row in members) if p is not None]
        mean = sum(chances) / len(chances) if chances else None
        called = None if mean is None or threshold is None else int(mean > threshold)
        lines[name] = (name, len(members) - failed, mean, called, failed)
    return list(lines.values())


def _hash(item: Input) -> str:
    try:
        return "" if item.error else hashlib.sha256(read_content(item.file)).hexdigest()
    except DataError:
        return ""


def _read(path: Path, columns: int) -> list[list[str]]:
    """The whole lines of a table, without its header."""
    text = path.read_bytes().decode(errors="backslashreplace") if path.is_file() else ""
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    return [line for line in csv.reader(whole) if len(line) == columns][1:]


def _csv(lines: Iterable[Sequence[object]], fields: Iterable[int]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([[line[i] for i in fields] for line in lines])
    return text.getvalue()
