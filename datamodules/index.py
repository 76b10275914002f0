"""The index table: one row an image, the only thing that differs between sources.

Columns (all present, see ``COLUMNS``):

=============  =======  =====================================================================
path           str      image file, POSIX, relative to ``data.root``
label          int      1 = abnormal, 0 = normal
patient        str      whoever the image is of; splits never cut a patient
study          str      one visit of one patient; views of a study share it
body_part      str      lower case, ``hand``; several joined by ``+``
split          str      ``train``, ``val`` or ``test`` (``left_out`` of training: cross-fitting)
lesion_mask    str      absolute path of a PNG mask in the upright original frame, "" = none
lesion_type    str      "" = unknown
hardware       int      1 = plates, nails, wires seen; 0 = none; -1 = unknown
=============  =======  =====================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = {
    "path": "str",
    "label": "int64",
    "patient": "str",
    "study": "str",
    "body_part": "str",
    "split": "str",
    "lesion_mask": "str",
    "lesion_type": "str",
    "hardware": "int64",
}
SPLITS = ("train", "val", "test")


class DataError(ValueError):
    """Something is wrong with the user's data: the message says what, where and the remedy."""


def check_index(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return ``table`` with the columns in order and of their types, or say what is wrong.

    Raises:
        DataError: a column is missing, an image is listed twice, a label is not 0 or 1, a split has
            no image or only one class, or a patient stands in two splits.
    """
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataError(
            f"{source}: the index lacks {missing}; build_index() must fill every column"
        )
    if table.empty:
        raise DataError(f"{source}: no image was found; check data.root")
    table = table[list(COLUMNS)].astype(COLUMNS).reset_index(drop=True)
    twice = table["path"][table["path"].duplicated()]
    if len(twice):
        raise DataError(f"{source}: {twice.iloc[0]} is listed {1 + len(twice)} times; list it once")
    wrong = table[~table["label"].isin([0, 1])]
    if len(wrong):
        row = wrong.iloc[0]
        raise DataError(
            f"{source}: {row.path} has label {row.label}; use 0 (normal) or 1 (abnormal)"
        )
    for split in SPLITS:
        labels = set(table.loc[table["split"] == split, "label"])
        if labels != {0, 1}:
            found = {0: "only normal", 1: "only abnormal"}.get(next(iter(labels), -1), "no")
            raise DataError(
                f"{source}: the {split} split holds {found} images; each split needs both classes "
                "(more data, another data.seed, or a larger data.limit)"
            )
    return table


def check_patients_apart(table: pd.DataFrame, source: str) -> None:
    """Raise a DataError that names a patient who stands in more than one split."""
    splits = table.groupby("patient")["split"].nunique()
    shared = splits[splits > 1]
    if len(shared):
        patient = shared.index[0]
        rows = table[table["patient"] == patient].drop_duplicates("split")
        where = " and ".join(f"{row.split} ({row.path})" for row in rows.itertuples())
        raise DataError(
            f"{source}: patients stand in two splits ({len(shared)}), {patient} in {where}; the "
            "test would see patients it was trained on: move all images of a patient to one split"
        )


def assign_groups(
    table: pd.DataFrame, seed: int, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> pd.DataFrame:
    """Draw train / val / test by patient, so that both classes come near ``fractions``.

    Patients are dealt out one by one, those with most images first (equal ones in an order that
    only the seed decides), each to the split that lacks most of what the patient brings.
    """
    counts = pd.crosstab(table["patient"], table["label"]).reindex(columns=[0, 1], fill_value=0)
    keys = [hashlib.sha256(f"{seed}/{name}".encode()).hexdigest() for name in counts.index]
    order = counts.assign(size=counts.sum(axis=1), key=keys).sort_values(
        ["size", "key"], ascending=[False, True]
    )
    wanted = np.outer(fractions, counts.sum(axis=0).to_numpy(float))
    lacking = wanted.copy()
    chosen = {}
    for patient, brings in zip(order.index, order[[0, 1]].to_numpy(float), strict=True):
        gain = (brings * lacking / np.maximum(wanted, 1e-9)).sum(axis=1)
        split = int(np.where(np.asarray(fractions) > 0, gain, -np.inf).argmax())
        lacking[split] -= brings
        chosen[patient] = SPLITS[split]
    return table.assign(split=table["patient"].map(chosen))


def assign_val(table: pd.DataFrame, seed: int, fraction: float = 0.1) -> pd.DataFrame:
    """Move a patient-grouped ``fraction`` of the train rows to val; other rows stay."""
    train = table["split"] == "train"
    drawn = assign_groups(table[train], seed, (1 - fraction, fraction, 0.0))["split"]
    return table.assign(split=table["split"].mask(train, drawn.reindex(table.index)))


def assign_by_image(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Split by image: patients leak into test. Only to reproduce figures got that way."""
    alone = table.assign(patient=table["path"])
    return table.assign(split=assign_groups(alone, seed)["split"])


def limit_split(table: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """At most ``limit`` images a split, as balanced as the split allows, for quick tries."""
    if limit is None:
        return table
    kept = []
    for _, rows in table.groupby("split", sort=False):
        # Rank within the class, then take the lowest ranks of both: alternate normal and abnormal.
        rank = rows.groupby("label").cumcount()
        kept.append(rank.sort_values(kind="stable").index[:limit])
    return table.loc[sorted(np.concatenate(kept))].reset_index(drop=True)


def summarise(table: pd.DataFrame, patients: str = "patients") -> str:
    """A line a split: images, abnormal share, studies, ``patients``, lesion masks."""
    lines = []
    for split in [*SPLITS, *sorted(set(table["split"]) - set(SPLITS))]:
        rows = table[table["split"] == split]
        lines.append(
            f"{split:<8} {len(rows):>6,} images  {rows['label'].mean():>4.0%} abnormal  "
            f"{rows['study'].nunique():>6,} studies  {rows['patient'].nunique():>6,} {patients}  "
            f"{(rows['lesion_mask'] != '').sum():>5,} lesion masks"
        )
    return "\n".join(lines)


def hash_table(table: pd.DataFrame) -> str:
    """SHA-256 over images, labels, patients, splits and which are masked, 16 hex digits."""
    content = table[["path", "label", "patient", "split"]].assign(mask=table["lesion_mask"] != "")
    return hashlib.sha256(content.to_csv(index=False).encode()).hexdigest()[:16]


def hash_judges(table: pd.DataFrame) -> str:
    """SHA-256 over the images of val and of test, 16 hex digits."""
    judges = table.loc[table["split"].isin(("val", "test")), ["path", "split"]]
    content = judges.sort_values("path").to_csv(index=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def hash_pixels(table: pd.DataFrame) -> str:
    """SHA-256 over images and what they or their masks show (column drawn), 16 hex digits.

    Apart from ``hash_table``, so that what older runs were trained on keeps its hash.
    """
    content = table.loc[table["drawn"] != "", ["path", "drawn"]].to_csv(index=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def hash_files(paths: list[Path]) -> str:
    """SHA-256 over names and contents of small files (CSV, JSON), first 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def look_around(root: Path, is_it: Callable[[Path], bool]) -> DataError | None:
    """Return an error that names the data set's folder where ``root`` is too deep or too high.

    Args:
        root: The folder that was given.
        is_it: Tells whether a folder is the data set's own.

    Returns:
        The error to raise; None where nothing is found near by.
    """
    for parent in root.resolve().parents:
        if is_it(parent):
            return DataError(f"data.root={root} is too deep; did you mean data.root={parent}?")
    near = folders(root)[:100]  # only a hint: do not walk all of a large disk for it
    for folder in [*near, *(inner for child in near for inner in folders(child)[:100])]:
        if is_it(folder):
            return DataError(f"data.root={root} is too high; did you mean data.root={folder}?")
    return None


def folders(folder: Path) -> list[Path]:
    """Sub-folders in order of their names; none where they may not be listed."""
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []
