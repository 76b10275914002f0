"""The index table, one row an image, and the CSVs of people that it is read from."""

import hashlib
import io
import re
from collections.abc import Collection, Mapping, Sequence
from csv import Error as CsvError
from csv import reader
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
DOUBLED = "Fix: double the quotes within a text"


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
    """Raise a DataError if a patient is in more than one split; it names images, not people."""
    splits = table.groupby("patient")["split"].nunique()
    if (shared := splits[splits > 1]).any():
        rows = table[table["patient"] == shared.index[0]].drop_duplicates("split")
        where = " and ".join(f"{row.split} ({row.path})" for row in rows.itertuples())
        raise DataError(
            f"{source}: {len(shared)} patients are in two splits, such as that of "
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
    order = counts.assign(size=counts.sum(axis=1), key=keys)
    order = order.sort_values(["size", "key"], ascending=[False, True])
    wanted = np.outer(fractions, counts.sum(axis=0).to_numpy(float))
    lacking = wanted.copy()
    chosen = {}
    for patient, brings in zip(order.index, order[[0, 1]].to_numpy(float), strict=True):
        gain = (brings * lacking / np.maximum(wanted, 1e-9)).sum(axis=1)
        split = int(np.where(np.asarray(fractions) > 0, gain, -np.inf).argmax())
        lacking[split] -= brings
        chosen[patient] = SPLITS[split]
    return table.assign(split=table["patient"].map(chosen))


def assign_val(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Move a patient-grouped tenth of the train rows to val; other rows stay."""
    train = table["split"] == "train"
    splits = assign_groups(table[train], seed, (0.9, 0.1, 0.0))["split"]
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


def read_text(csv: Path) -> str:
    """The text of a CSV: UTF-8, or UTF-16 as Excel's "Unicode text" is; else a DataError."""
    try:
        data = csv.read_bytes()
        if data.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
            what = "is a ZIP file or an Excel workbook. Fix: unpack, or save as CSV UTF-8"
            raise DataError(f"{csv}: {what}")
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{csv}: cannot be read ({error}). Fix: save it as UTF-8") from error


def read_csv(csv: Path, columns: Sequence[str] = (), known: Collection[str] = ()) -> pd.DataFrame:
    """Read a CSV with header as str; the table's index is the row of the file (the header is 1).

    The header settles whether commas, semicolons or tabs separate: it must have ``columns`` and may
    have ``known`` ones, in lower case. Paths get slashes.
    """
    text, told = re.subn(r"^sep=.\s*\n", "", read_text(csv))  # Excel's first line
    header = text.lstrip().partition("\n")[0].strip()
    names = {sign: {name.strip(' "').lower() for name in header.split(sign)} for sign in ",;\t"}
    wanted = {*columns, *known}
    separator = max(names, key=lambda sign: (len(names[sign] & wanted), header.count(sign)))
    file = io.StringIO(text)
    try:
        rows = pd.read_csv(
            file, sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False
        )
        if not isinstance(rows.index, pd.RangeIndex):  # pandas makes surplus fields row labels
            raise ValueError("its rows have more fields than the header")
    except ValueError as error:
        raise DataError(
            f"{csv}: cannot be read as CSV ({str(error).strip()}). Fix: commas, semicolons or tabs "
            f"between fields; a field that holds one ({separator!r}) in quotes"
        ) from error
    rows.index += 2 + told
    fields = len(rows.columns) - 1
    # Only where lines outnumber rows does a field hold several; to ask each takes seconds.
    asked = rows if text.removesuffix("\n").count("\n") > len(rows) else rows[:0]
    lines = reader(io.StringIO(text), delimiter=separator, strict=True)
    try:
        list(lines if len(asked) else ())
    except CsvError as error:  # text after a closing quote: pandas joins two rows in silence
        what = f"a quote is not closed, or text follows one ({error}). {DOUBLED}"
        raise DataError(f"{csv}, line {lines.line_num + told}: {what}") from error
    swallowed = asked.map(lambda text: _holds_rows(str(text), separator, fields)).any(axis=1)
    if swallowed.any():
        row = f"row {swallowed.idxmax()}: its quote ends in another row"
        raise DataError(f"{csv}, {row}. {DOUBLED}")
    rows = rows.rename(columns=str.strip).fillna("").apply(lambda fields: fields.str.strip())
    if lacking := [name for name in columns if name not in rows.columns]:
        raise DataError(
            f"{csv}: lacks the column {lacking[0]!r}: expected the header {','.join(columns)} (or "
            f"with semicolons or tabs)"
        )
    for name in rows.columns.intersection(["image", "mask"]):
        rows[name] = rows[name].str.replace("\\", "/", regex=False)
    return rows[(rows != "").any(axis=1)]


def _holds_rows(text: str, separator: str, fields: int) -> bool:
    """Whether a field's further lines are rows of a table with images; a report's are not."""
    lines = (line for line in text.split("\n")[1:] if line.count(separator) >= fields > 0)
    return any(re.search(r"(?i)\.(png|jpe?g|dcm|dicom)\b", line) for line in lines)


def check_rows(csv: Path, rows: pd.DataFrame, checks: Mapping[str, pd.Series]) -> None:
    """Raise a DataError for the first row that fails a check, its message filled with the row."""
    for message, wrong in checks.items():
        if wrong.any():
            row = rows[wrong].iloc[0]
            place = f", row {row.name}" * (not isinstance(row.name, str))  # else of no CSV
            raise DataError(f"{csv}{place}: {message.format(**row)}")


def check_files(
    csv: Path,
    listed: pd.Series,
    is_there: Sequence[bool] | pd.Series,
    fix: str = "unpack the archive again, or take their rows out",
) -> None:
    """Raise a DataError for files that are ``listed`` but not there."""
    missing = listed[~np.asarray(is_there, bool)]
    if len(missing):
        examples = "; ".join(f"row {row}: {name}" for row, name in missing[:3].items())
        raise DataError(
            f"{csv}: {len(missing):,} of {len(listed):,} images that it lists are missing, such as "
            f"{examples}. Fix: {fix}"
        )
