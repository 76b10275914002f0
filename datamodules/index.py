"""The index table: one row an image, the only thing that differs between sources."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = {
    "path": "str",  # image file, POSIX, relative to data.root
    "label": "int64",  # 1 = abnormal, 0 = normal
    "patient": "str",  # whoever the image is of; splits never cut a patient
    "study": "str",  # one visit of one patient; views of a study share it
    "body_part": "str",  # lower case, "hand"; several joined by "+"
    "split": "str",  # train, val or test (left_out of training: cross-fitting)
    "lesion_mask": "str",  # absolute path of a PNG mask in the upright original frame, "" = none
    "lesion_type": "str",  # "" = unknown
    "hardware": "int64",  # 1 = plates, nails, wires seen; 0 = none; -1 = unknown
}
SPLITS = ("train", "val", "test")


class DataError(ValueError):
    """Something is wrong with the user's data: the message says what, where and the remedy."""


def check_index(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return ``table`` with the columns in order and of their types; DataError: it cannot serve."""
    table = table[list(COLUMNS)].astype(COLUMNS).reset_index(drop=True)
    wrong = table["path"].duplicated() | ~table["label"].isin([0, 1])
    if wrong.any():
        row = table[wrong].iloc[0]
        raise DataError(
            f"{source}: expected each path once, with label 0 (normal) or 1, got {row.path} (label "
            f"{row.label}). Fix: correct its rows"
        )
    for split in SPLITS:
        if held := lacks_class(table.loc[table["split"] == split, "label"]):
            raise DataError(
                f"{source}: the {split} split holds {held} images, and needs both classes. Fix: "
                "more data, another data.seed, or a larger data.limit"
            )
    return table


def lacks_class(labels: pd.Series) -> str:
    """What images of these labels are if a class is missing ("only normal", "no"), else ""."""
    names = {(): "no", (0,): "only normal", (1,): "only abnormal"}
    return names.get(tuple(sorted(labels.unique())), "")


def check_patients_apart(table: pd.DataFrame, source: str) -> None:
    """Raise a DataError that names a patient who is in more than one split."""
    splits = table.groupby("patient")["split"].nunique()
    if (shared := splits[splits > 1]).any():
        rows = table[table["patient"] == shared.index[0]].drop_duplicates("split")
        where = " and ".join(f"{row.split} ({row.path})" for row in rows.itertuples())
        raise DataError(
            f"{source}: {len(shared)} patients are in two splits, such as {shared.index[0]} in "
            f"{where}. Fix: move all images of a patient to one split, or test leaks"
        )


def assign_groups(
    table: pd.DataFrame, seed: int, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> pd.DataFrame:
    """Draw train / val / test by patient, so that both classes come near ``fractions``.

    Patients with most images first (then in the seed's order) go to the split that lacks them most.
    """
    counts = pd.crosstab(table["patient"], table["label"]).reindex(columns=[0, 1], fill_value=0)
    keys = [digest(f"{seed}/{name}") for name in counts.index]
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
    splits = assign_groups(table[train], seed, (1 - fraction, fraction, 0.0))["split"]
    return table.assign(split=table["split"].mask(train, splits.reindex(table.index)))


def limit_split(table: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """At most ``limit`` images a split, as balanced as the split allows, for quick tries."""
    if limit is None:
        return table
    # Rank within the class, then take the lowest ranks of both: alternate normal and abnormal.
    rank = table.groupby(["split", "label"]).cumcount().sort_values(kind="stable")
    kept = rank.groupby(table["split"]).head(limit).index
    return table.loc[sorted(kept)].reset_index(drop=True)


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
    """Hash of images, labels, patients, splits and which are masked."""
    content = table[["path", "label", "patient", "split"]]
    return hash_rows(content.assign(mask=table["lesion_mask"] != ""))


def hash_judges(table: pd.DataFrame) -> str:
    """Hash of which images are val and which are test."""
    judges = table.loc[table["split"].isin(("val", "test")), ["path", "split"]]
    return hash_rows(judges.sort_values("path"))


def hash_rows(table: pd.DataFrame) -> str:
    """Hash of all of a table."""
    return digest(table.to_csv(index=False))[:16]


def hash_files(paths: list[Path]) -> str:
    """Hash of names and contents of small files (CSV, JSON)."""
    return digest(*(part for path in sorted(paths) for part in (path.name, path.read_bytes())))[:16]


def digest(*parts: str | bytes) -> str:
    """SHA-256 of ``parts`` in a row, 64 hex digits."""
    whole = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(whole).hexdigest()
