"""The folder that ``experiments.predict`` writes: a table that is appended to, and pictures.

A kill at any moment loses a batch at most: the same command continues. An image that has changed
since, by the hash of its content, is predicted again.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from datamodules.decode import read_content
from datamodules.files import take, usable_cores, write_text
from datamodules.index import DataError, digest
from experiments.runs import LOCK, RunError

ABOUT, ROWS = "about.json", "rows.jsonl"
NOTE = "note: "
WHOLE = ("predicted_abnormal", "map_peak_x", "map_peak_y")  # columns of whole numbers
STUDY = r"(?i)(.*/study\d+(?:_positive|_negative)?)/[^/]+$"  # the image's folder, as in MURA
# What is written depends on these values of about.json: other values need another folder.
REQUEST = ("checkpoint_hash", "inputs", "methods", "dicom", "threshold", "map_thresholds")


class Row(NamedTuple):
    """An input and, once it was looked at, its prediction; six columns of ``predictions.csv``."""

    path: str  # by which outputs are called: of its own
    probability_abnormal: float | None = None
    predicted_abnormal: int | None = None
    map_peak_x: int | None = None  # pixels of the upright image, from 0
    map_peak_y: int | None = None
    error: str = ""  # why there is no prediction or picture; after NOTE what to know of the image
    file: str = ""
    content_hash: str = ""  # SHA-256; "" where the content could not be read

    @property
    def failed(self) -> bool:
        """Whether something could not be made; a note alone is no failure."""
        return bool(self.error) and not self.error.startswith(NOTE)


class PredictionFolder:
    """The files of one request (``about``, also ``about.json``), and ``rows``: what is done."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, about
        folder.mkdir(parents=True, exist_ok=True)
        begun = folder / ABOUT
        if not begun.is_file() and any(path.name != LOCK for path in folder.iterdir()):
            raise RunError(f"{folder} is not empty. Fix: a new folder with --out")
        before = json.loads(begun.read_text()) if begun.is_file() else about
        if differ := ", ".join(name for name in REQUEST if before.get(name) != about[name]):
            raise RunError(f"{folder}: another request ({differ}). Fix: a new folder with --out")
        self._lock = (folder / LOCK).open("w")
        with contextlib.suppress(OSError):  # a file system without locks
            if not take(self._lock):
                raise RunError(f"another process writes {folder}. Fix: wait, or name another --out")
        write_text(begun, json.dumps(about, indent=2) + "\n")
        self.rows = read_rows(folder)

    def settle(self, inputs: Iterable[Row]) -> None:
        """Drop the rows of images that have changed, and of those that failed and are gone."""
        now, rows = {item.path: item for item in inputs}, list(self.rows.values())

        def stale(row: Row) -> bool:
            here = now.get(row.path)
            return _hash(here) != row.content_hash if here else row.failed

        with ThreadPoolExecutor(usable_cores()) as pool:
            dropped = list(itertools.compress(rows, pool.map(stale, rows)))
        best = self.about["best_map"]
        for name in (row.path for row in dropped):
            del self.rows[name]
            maps = [f"maps/{name}.{method}.png" for method in self.about["methods"]]
            for picture in (*maps, f"overlays/{name}.{best}.png", f"dicom/{name}.{best}.dcm"):
                (self.folder / picture).unlink(missing_ok=True)
        write_text(self.folder / ROWS, _lines(self.rows.values()))  # a kill may have cut the last

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; they are on the disk when this returns."""
        with (self.folder / ROWS).open("a") as table:
            table.write(_lines(rows))
            table.flush()
            os.fsync(table.fileno())
        self.rows |= {row.path: row for row in rows}

    def finish(self, study_threshold: float | None) -> None:
        """Write ``predictions.csv``, and ``studies.csv`` where there are studies."""
        table = pd.DataFrame(self.rows.values(), columns=Row._fields)
        table = table.astype({"probability_abnormal": float, **dict.fromkeys(WHOLE, "Int64")})
        shown = table.drop(columns=["file", "content_hash"])
        write_text(self.folder / "predictions.csv", shown.to_csv(index=False))
        if study_threshold is not None and len(joined := studies(table, study_threshold)):
            write_text(self.folder / "studies.csv", joined.to_csv(index=False))

    def write(self, kind: str, name: str, content: bytes) -> None:
        """Write a file of an input, such as ``maps/<name>``."""
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()


def read_rows(folder: Path) -> dict[str, Row]:
    """The rows of a folder by path, finished or not."""
    path = folder / ROWS
    whole = path.read_text().split("\n")[:-1] if path.is_file() else []
    return {row.path: row for row in (Row(**json.loads(line)) for line in whole)}


def studies(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Join the views of each study by the mean of their probabilities (Rajpurkar et al. 2018).

    Part, patient and study name one, its whole path where another has that name.
    """
    study = table["file"].str.extract(STUDY, expand=False)
    views = table["probability_abnormal"].groupby(study, sort=False)
    mean, failed = views.mean(), views.size() - views.count()
    name = mean.index.to_series()
    short = name.map(lambda folder: "/".join(folder.strip("/").split("/")[-3:]))
    return pd.DataFrame(
        {
            "study": short.where(~short.duplicated(), name),
            "views": views.count(),
            "probability_abnormal": mean,
            "predicted_abnormal": (mean > threshold).where(mean.notna()).astype("Int64"),
            "failed_views": failed,
        }
    )


def _hash(row: Row) -> str:
    try:
        return digest(read_content(Path(row.file)))
    except DataError:
        return ""


def _lines(rows: Iterable[Row]) -> str:
    return "".join(f"{json.dumps(row._asdict())}\n" for row in rows)
