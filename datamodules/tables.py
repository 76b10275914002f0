"""Read a CSV that a person may have edited, and name the first row in which something is wrong."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from datamodules.index import DataError


def read_text(csv: Path) -> str:
    """The text of a CSV: UTF-8, or UTF-16 as Excel's "Unicode text" is; else a DataError."""
    try:
        data = csv.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{csv}: cannot be read ({error}). Fix: save it as UTF-8") from error


def read_csv(csv: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV with header as str; the table's index is the row of the file (the header is 1).

    The header settles whether commas, semicolons or tabs separate; paths get slashes.
    """
    text = read_text(csv)
    header = text.lstrip().partition("\n")[0].strip()
    names = {sign: {name.strip(' "') for name in header.split(sign)} for sign in ",;\t"}
    separator = max(names, key=lambda sign: (len(names[sign] & {*columns}), header.count(sign)))
    file = io.StringIO(text)
    try:
        rows = pd.read_csv(
            file, sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False
        )
        if not isinstance(rows.index, pd.RangeIndex):  # pandas takes what is over for names of rows
            raise ValueError("its rows have more fields than the header")
    except ValueError as error:
        raise DataError(
            f"{csv}: cannot be read as CSV ({str(error).strip()}). Fix: put a field that holds a "
            f"separator ({separator!r}) in quotes"
        ) from error
    rows.index += 2
    rows = rows.rename(columns=str.strip).fillna("").apply(lambda fields: fields.str.strip())
    if lacking := [name for name in columns if name not in rows.columns]:
        raise DataError(
            f"{csv}: lacks the column {lacking[0]!r}: expected the header {','.join(columns)} (or "
            f"with semicolons or tabs), got {header[:80]!r}"
        )
    for name in rows.columns.intersection(["image", "mask"]):
        rows[name] = rows[name].str.replace("\\", "/", regex=False)
    return rows[(rows != "").any(axis=1)]


def check_rows(csv: Path, rows: pd.DataFrame, checks: Mapping[str, pd.Series]) -> None:
    """Raise a DataError for the first row that fails a check, its message filled with the row."""
    for message, wrong in checks.items():
        if wrong.any():
            row = rows[wrong].iloc[0]
            raise DataError(f"{csv}, row {row.name}: {message.format(**row)}")


def check_files(csv: Path, listed: pd.Series, present: Collection[str]) -> None:
    """Raise a DataError for files that are ``listed`` but not present."""
    missing = listed[~listed.isin(present)]
    if len(missing):
        examples = "; ".join(f"row {row}: {name}" for row, name in missing[:3].items())
        raise DataError(
            f"{csv}: {len(missing):,} of {len(listed):,} images that it lists are missing, such as "
            f"{examples}. Fix: unpack the archive again, or take their rows out"
        )
