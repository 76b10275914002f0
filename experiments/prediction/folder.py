"""The folder that ``experiments.predict`` writes: begun once, gone on with, never overwritten."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import IO, Any

from datamodules.files import take
from experiments.prediction.inputs import Input
from experiments.prediction.sources import SOURCES, Source, changed, gone, read_sources
from experiments.runs import LOCK as NAME
from experiments.runs import RunError

PREDICTIONS, STUDIES, ABOUT = "predictions.csv", "studies.csv", "about.json"
LISTED = 5
NOTE = "note: "
STUDY_COLUMNS = ("study", "views", "probability_abnormal", "predicted_abnormal", "failed_views")
# Keys of about.json that say what is written; the others only tell where it comes from.
REQUEST = ("checkpoint_hash", "inputs", "methods", "dicom", "threshold", "map_thresholds")


@dataclass(frozen=True)
class Row:
    """A line of predictions.csv; None is an empty field.

    Attributes:
        path: Name of the input, see :class:`experiments.prediction.inputs.Input`.
        probability_abnormal: Of the unmasked pass; None for a network that does not classify.
        predicted_abnormal: 1 where it is above val's threshold, else 0.
        map_peak_x: Column of the best map's peak, pixels of the upright original, from 0.
        map_peak_y: Its row; None where the map has one value everywhere and points nowhere.
        error: Why there is no prediction; or, beside one, why there is no Secondary Capture or no
            overlay, and, behind :data:`NOTE`, what to know of the image; or "".
    """

    path: str
    probability_abnormal: float | None = None
    predicted_abnormal: int | None = None
    map_peak_x: int | None = None
    map_peak_y: int | None = None
    error: str = ""

    @property
    def answered(self) -> bool:
        """Whether the network was asked; an ``error`` is then of what was made of its answer."""
        return self.probability_abnormal is not None or self.map_peak_x is not None

    @property
    def failed(self) -> bool:
        """Whether something was not made; a note alone is no failure."""
        return bool(self.error) and not self.error.startswith(NOTE)


COLUMNS = tuple(each.name for each in fields(Row))


class PredictionFolder:
    """Rows go to ``predictions.csv.partial`` and get their name when all are there.

    A kill at any moment loses a batch at most: the same command goes on.

    Args:
        folder: The folder; new, empty, or begun by the same request.
        about: What is asked and by whom it is answered, for ``about.json``.

    Attributes:
        rows: All rows that are written, by path.
        sources: What they are of, by path.

    Raises:
        RunError: The folder cannot be written, holds something else, or another process writes it.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.partial = folder / f"{PREDICTIONS}.partial"
        self.rows: dict[str, Row] = {}
        self.sources: dict[str, Source] = {}
        self._file: IO[str] | None = None
        self._lock: IO[str] | None = None
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; name a folder with --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check(about)
            self._lock = (folder / NAME).open("w")
            if not _locked(self._lock):
                raise RunError(f"another process writes {folder}; wait for it, or name another")
            _replace(folder / ABOUT, json.dumps(about, indent=2) + "\n")
        except OSError as error:
            raise RunError(
                f"{folder} cannot be written ({error.strerror}); name another folder with --out"
            ) from error
        for name in (self.partial, folder / PREDICTIONS):
            if name.is_file():
                self.rows = {row.path: row for row in read_rows(name)}
                break
        self.sources = read_sources(folder / SOURCES)

    def close(self) -> None:
        """Let others write the folder."""
        for handle in (self._file, self._lock):
            if handle is not None:
                handle.close()

    def settle(self, inputs: Sequence[Input]) -> list[Input]:
        """Compare what was looked at with what is there now.

        A row without an answer is forgotten where its input has changed or gone: the input, if it
        is there, is looked at again. An answer is kept, also where its input has gone.

        Args:
            inputs: All that are there now.

        Returns:
            Those that have gone and whose rows are kept.

        Raises:
            RunError: An input that was answered has changed; or nobody knows what it was.
        """
        other = changed(inputs, self.sources)
        stale = [item for item in other if self._answered(item)]
        unknown = [item for item in inputs if item.name in self.rows.keys() - self.sources.keys()]
        if stale or unknown:
            listed = "".join(f"\n  {item.file}" for item in (stale + unknown)[:LISTED])
            raise RunError(
                f"{self.folder} answers for other images: {len(stale + unknown):,} have changed "
                "since, and nothing there is overwritten; name another folder with --out:"
                f"{listed}"
            )
        left = gone(inputs, self.sources)
        kept = [item for item in left if self._answered(item)]
        forgotten = [item.name for item in (*other, *left) if not self._answered(item)]
        for name in forgotten:
            self.rows.pop(name, None)
            self.sources.pop(name)
        if forgotten:
            self.add([], [])
        return kept

    def add(self, rows: Iterable[Row], sources: Iterable[Source]) -> None:
        """Append rows and what they are of; on the disk when this returns."""
        added_sources = list(sources)
        if self._file is None:
            # Begun anew from what is whole: a kill may have cut the last line.
            _replace(self.folder / SOURCES, _csv([Source._fields, *self.sources.values()]))
            _replace(self.partial, _csv([COLUMNS, *map(astuple, self.rows.values())]))
            self._file = self.partial.open("a", encoding="utf-8", errors="backslashreplace")
        # First: a line of an input without a row does no harm.
        with (self.folder / SOURCES).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_csv(added_sources))
            file.flush()
            os.fsync(file.fileno())
        self.sources |= {each.path: each for each in added_sources}
        added = {row.path: row for row in rows}
        self.rows |= added
        self._file.write(_csv(map(astuple, added.values())))
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, inputs: Iterable[Input], study_threshold: float | None) -> bool:
        """Give the rows their name; write ``studies.csv`` where inputs are of studies.

        Args:
            inputs: All of them.
            study_threshold: Of val; None for a network that does not classify.

        Returns:
            Whether there is a ``studies.csv``.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
            self.partial.replace(self.folder / PREDICTIONS)
        lines = studies(inputs, self.rows, study_threshold)
        if lines:
            _replace(self.folder / STUDIES, _csv([STUDY_COLUMNS, *lines]))
        return bool(lines)

    def write(self, kind: str, name: str, content: bytes) -> None:
        """Write a file of an input, such as ``maps/<name>``."""
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _answered(self, item: Input) -> bool:
        return item.name in self.rows and self.rows[item.name].answered

    def _check(self, about: Mapping[str, Any]) -> None:
        """Raise a RunError unless the folder is empty or of the same request."""
        known = self.folder / ABOUT
        if not known.is_file():
            if any(path.name != NAME for path in self.folder.iterdir()):
                raise RunError(
                    f"{self.folder} is not empty, and nothing there is overwritten; name a new "
                    "folder with --out"
                )
            return
        try:
            before = json.loads(known.read_text())
            changed = [name for name in REQUEST if before[name] != about[name]]
        except (ValueError, KeyError, TypeError):
            changed = ["about.json, which is damaged"]
        if changed:
            raise RunError(
                f"{self.folder} holds predictions of another request ({', '.join(changed)} "
                "differ), and nothing there is overwritten; name another folder with --out"
            )


def read_rows(path: Path) -> list[Row]:
    """The rows of a predictions.csv; of a cut one those that are whole."""
    text = path.read_bytes().decode("utf-8", errors="backslashreplace")
    whole = text[: text.rfind("\n") + 1]
    rows = []
    for line in list(csv.reader(io.StringIO(whole, newline="")))[1:]:
        if len(line) == len(COLUMNS):
            place, probability, *whole_numbers, error = line
            called, x, y = (int(value) if value else None for value in whole_numbers)
            known = float(probability) if probability else None
            rows.append(Row(place, known, called, x, y, error))
    return rows


def studies(
    inputs: Iterable[Input], rows: Mapping[str, Row], threshold: float | None
) -> list[tuple[str, int, float | None, int | None, int]]:
    """Join the views of each study by the mean of their probabilities (Rajpurkar et al. 2018).

    Returns:
        A line a study, in order of the first view: :data:`STUDY_COLUMNS`. What could not be read
        is no view; a study without any has no probability.
    """
    views: dict[Path, list[Row]] = {}
    names: dict[str, Path] = {}
    for item in inputs:
        if item.study is not None and item.name in rows:
            if item.study not in views:
                names[next(name for name in item.study_names if name not in names)] = item.study
            views.setdefault(item.study, []).append(rows[item.name])
    lines = []
    for name, study in names.items():
        failed = sum(row.failed and row.probability_abnormal is None for row in views[study])
        known = [row.probability_abnormal for row in views[study]]
        seen = [probability for probability in known if probability is not None]
        mean = sum(seen) / len(seen) if seen else None
        called = None if mean is None or threshold is None else int(mean > threshold)
        lines.append((name, len(views[study]) - failed, mean, called, failed))
    return lines


def _locked(handle: IO[str]) -> bool:
    try:
        return take(handle)
    except OSError:  # a file system without locks
        return True


def _csv(lines: Iterable[Iterable[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    unfinished.replace(path)
