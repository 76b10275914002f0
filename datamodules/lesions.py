"""Lesion masks: the canonical folder they come in, their images, and which of them are trained on.

A lesion folder holds ``lesions.csv`` (header ``image,mask,lesion_type``: the image relative to
``data.root``, the mask relative to the folder) and 8-bit PNG masks, 0 background and 255 lesion, of
the size of the upright original. Masks follow their image's split.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from datamodules.decode import IMAGE_SUFFIXES, decode, is_opaque, upright_size
from datamodules.files import usable_cores
from datamodules.index import DataError

log = logging.getLogger(__name__)

CSV = "lesions.csv"
# The split of images whose masks judge a training that must not see them (cross-fitting).
LEFT_OUT = "left_out"
COLUMNS = ["image", "mask", "lesion_type"]


class Lesion(NamedTuple):
    """What is marked on an image: its path below ``data.root``, mask uint8 (H, W) 0 / 255, type."""

    image: str
    mask: np.ndarray
    lesion_type: str = ""


def read_text(csv: Path) -> str:
    """Read a CSV that a person may have edited: UTF-8, or UTF-16 as Excel's "Unicode text" is.

    Raises:
        DataError: It cannot be read, or is saved in another encoding.
    """
    try:
        data = csv.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeError as error:
        raise DataError(f"{csv}: is no UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{csv}: cannot be read ({reason}); check its rights") from error
    if "\0" in text:  # UTF-16 without byte order mark passes for UTF-8
        raise DataError(f"{csv}: is no UTF-8 text (it holds zero bytes); save it as UTF-8")
    return text


def read_csv(csv: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV with header as str; the table's index is the row of the file (the header is 1).

    Spreadsheets write semicolons or tabs for commas, programs on Windows backslashes in paths: the
    header settles what separates, and the columns image and mask get slashes.

    Raises:
        DataError: See ``read_text``; or it is no CSV, lacks one of ``columns``, or its rows are
            longer than the header.
    """
    text = read_text(csv)
    settled = text[:5].strip('"').lower().startswith("sep=")  # Excel's own first line
    header = "".join(text.lstrip().split("\n", 2)[settled:][:1]).strip()
    names = {sign: {name.strip(' "') for name in header.split(sign)} for sign in ",;\t"}
    separator = max(names, key=lambda sign: (len(names[sign] & {*columns}), header.count(sign)))
    try:
        rows = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            dtype=str,
            keep_default_na=False,
            skiprows=int(settled),
            skip_blank_lines=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{csv}: cannot be read as CSV ({str(error).strip()})") from error
    if not isinstance(rows.index, pd.RangeIndex):  # pandas takes what is over for names of rows
        raise DataError(
            f"{csv}: its rows have more fields than the header; take the separators at their ends "
            f"out, or put a field that holds one ({separator!r}) in quotes"
        )
    rows.index += 2 + settled
    rows = rows.rename(columns=str.strip).fillna("").apply(lambda fields: fields.str.strip())
    if lacking := [name for name in columns if name not in rows.columns]:
        raise DataError(
            f"{csv}: lacks the column {lacking[0]!r}; the header is {','.join(columns)} (or with "
            f"semicolons or tabs), not {header[:80]!r}"
        )
    for name in rows.columns.intersection(["image", "mask"]):
        rows[name] = rows[name].str.replace("\\", "/", regex=False)
    return rows[(rows != "").any(axis=1)]


def read_lesions(folder: Path) -> pd.DataFrame:
    """Read ``lesions.csv``; the table's index is the row of the file (the header is row 1).

    Returns:
        Columns image, mask, lesion_type (str; the last "" where unknown or where the column lacks).

    Raises:
        DataError: No such folder or CSV, it is no UTF-8 or no CSV, a column or a field is missing,
            or an image or a mask is listed twice, however it is spelled.
    """
    csv = folder / CSV
    if not csv.is_file():
        raise DataError(
            f"lesions.path={folder} is a file; give the folder that it lies in"
            if folder.is_file()
            else f"lesions.path={folder} holds no {CSV}; write one with the header "
            f"{','.join(COLUMNS)}, a row a mask"
        )
    rows = read_csv(csv, COLUMNS[:2]).reindex(columns=COLUMNS, fill_value="")
    for name in COLUMNS[:2]:
        blank = rows.index[rows[name] == ""]
        if len(blank):
            raise DataError(
                f"{csv}, row {blank[0]}: no {name} is given, or not separated as the header"
            )
    rows["image"] = rows["image"].map(os.path.normpath)
    _check_once(csv, rows, "image", rows["image"].tolist())
    _check_once(csv, rows, "mask", [os.path.realpath(folder / mask) for mask in rows["mask"]])
    return rows


def attach_lesions(table: pd.DataFrame, folder: Path, root: Path) -> pd.DataFrame:
    """Fill ``lesion_mask`` and ``lesion_type`` of the index ``table`` from a lesion folder.

    An image may also be given with the name of ``root`` in front (``MURA-v1.1/train/...``), or by
    its absolute path. Masks of images that exist but that the index left out on purpose are not
    used, with a notice.

    Args:
        table: Index table with path and label.
        folder: Lesion folder in the canonical form.
        root: Folder that the table's paths count from.

    Returns:
        A copy of ``table`` with both columns filled, "" where an image has no mask.

    Raises:
        DataError: See ``read_lesions``; or an unknown image, a mask on a normal image, a mask file
            that is missing, see-through, marks nothing or the whole image, is not of 0 and 255, or
            of another size than its image.
    """
    csv, rows = folder / CSV, read_lesions(folder)
    place = pd.Series(np.arange(len(table)), index=table["path"])
    labels = table["label"].to_numpy()
    rows["image"] = rows["image"].map(lambda image: _below(root, image))
    # The folder may be known by a link's name, too.
    inner = rows["image"].str.removeprefix(f"{root.name}/")
    inner = inner.str.removeprefix(f"{root.resolve().name}/")
    rows["image"] = rows["image"].where(rows["image"].isin(place.index), inner)
    _check_once(csv, rows, "image", rows["image"].tolist())
    absent = ~rows["image"].isin(place.index)
    for row in rows[absent].itertuples():
        is_image = row.image.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(root / row.image)
        if not is_image or _lies_outside(row.image):
            raise DataError(
                f"{csv}, row {row.Index}: unknown image {row.image}; give its path relative to "
                f"{root}"
            )
    if absent.any():
        log.warning(
            "%s: %d masks are of images that the index left out, such as %s",
            csv,
            absent.sum(),
            rows["image"][absent].iloc[0],
        )
    rows = rows[~absent]
    places = place.reindex(rows["image"]).to_numpy(np.int64)
    normal = rows[labels[places] == 0]
    if len(normal):
        row = normal.iloc[0]
        raise DataError(
            f"{csv}, row {normal.index[0]}: {row['image']} is labelled normal but has a lesion "
            "mask; take the row out, or correct the label"
        )
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(lambda row: _check_mask(csv, row, folder, root), rows.itertuples()))
    masks, types = np.full((2, len(table)), "", dtype=object)
    # Links within the folder stay: where one leads elsewhere later, the masks have changed.
    masks[places] = [str(folder.resolve() / mask) for mask in rows["mask"]]
    types[places] = rows["lesion_type"].to_numpy()
    return table.assign(lesion_mask=masks.tolist(), lesion_type=types.tolist())


def write_lesions(
    folder: Path, lesions: Iterable[Lesion], finish: Callable[[Path], None] | None = None
) -> int:
    """Write a lesion folder, whole or not at all; returns the number of masks.

    ``lesions`` may be a generator: one mask is held at a time. ``finish`` may put more files into
    the folder, which has another name until all is there.

    Raises:
        DataError: The folder already exists, or cannot be written.
        ValueError: A mask is not uint8 (H, W) of 0 and 255 or marks nothing or all, or an image
            does not lie below ``data.root``.
    """
    if folder.exists():
        raise DataError(f"{folder} already exists; remove it first, or choose another folder")
    # A name that no other process has, on any node that shares the disk.
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    rows = []
    try:
        for lesion in lesions:
            fault = _fault(lesion.mask)
            if fault:
                raise ValueError(f"mask of {lesion.image}: {fault}")
            if _lies_outside(lesion.image):
                raise ValueError(f"{lesion.image} does not lie below data.root")
            mask = f"masks/{lesion.image}.png"
            (draft / mask).parent.mkdir(parents=True, exist_ok=True)
            # Not cv2.imwrite: on a full disk it only returns False.
            (draft / mask).write_bytes(cv2.imencode(".png", lesion.mask)[1].tobytes())
            rows.append((lesion.image, mask, lesion.lesion_type))
        draft.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=COLUMNS).to_csv(draft / CSV, index=False)
        if finish is not None:
            finish(draft)
        draft.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return len(rows)


def choose_lesions(table: pd.DataFrame, count: int, seed: int) -> np.ndarray:
    """Pick the train images whose lesion masks are trained on.

    One image a patient before any patient's second, body parts in turn; within that an order that
    only hashes of ``seed`` and names decide. So the choice for 50 is part of the choice for 100,
    and does not depend on the order of the table.

    Args:
        table: Index table with path, patient, body_part, split and lesion_mask.
        count: Images wanted; all there are where there are fewer.
        seed: ``data.seed``.

    Returns:
        int64 ``(n,)``, ascending row numbers of ``table``, n <= count.
    """
    rows = np.flatnonzero((table["split"] == "train") & (table["lesion_mask"] != ""))
    pool = table.iloc[rows][["path", "patient", "body_part"]].assign(row=rows)
    pool["key"] = [hashlib.sha256(f"{seed}/{path}".encode()).hexdigest() for path in pool["path"]]
    pool = pool.sort_values("key")
    pool["round"] = pool.groupby("patient").cumcount()
    pool["turn"] = pool.groupby(["round", "body_part"]).cumcount()
    chosen = pool.sort_values(["round", "turn", "key"])["row"].to_numpy(np.int64)[: max(count, 0)]
    return np.sort(chosen)


def leave_out_fold(
    table: pd.DataFrame, rows: np.ndarray, folds: int, fold: int, seed: int
) -> pd.DataFrame:
    """Take one fold of the lesion subset out of training, whole patients, to judge maps on it.

    For who owns masks of train images only: ``folds`` trainings, each judged on the masks that it
    has not seen, together judge all of them.

    Args:
        table: Index table.
        rows: The lesion subset, as ``choose_lesions`` picks it.
        folds: Number of parts, at least 2.
        fold: Which of them is left out, from 0.
        seed: ``data.seed``.

    Returns:
        A copy of ``table``; all train images of the fold's patients have the split ``left_out``.

    Raises:
        DataError: The subset has fewer patients than there are folds, or without the fold train
            lacks a class.
    """
    patients = sorted(
        table["patient"].iloc[rows].unique(),
        key=lambda name: hashlib.sha256(f"fold/{seed}/{name}".encode()).hexdigest(),
    )
    if len(patients) < folds:
        raise DataError(
            f"lesions.folds={folds}, but the lesion masks of train are of {len(patients)} "
            "patients; choose fewer folds, or give more masks"
        )
    chosen = table["patient"].isin(patients[fold::folds]) & (table["split"] == "train")
    left = set(table["label"][(table["split"] == "train") & ~chosen])
    if left != {0, 1}:
        found = {0: "only normal", 1: "only abnormal"}.get(next(iter(left), -1), "no")
        raise DataError(
            f"lesions.folds={folds}: without fold {fold} train holds {found} images, and needs "
            "both classes; choose more folds, or give more data"
        )
    return table.assign(split=table["split"].mask(chosen, LEFT_OUT))


def _check_once(csv: Path, rows: pd.DataFrame, name: str, files: list[str]) -> None:
    """Raise a DataError where two rows give the same one of ``files``, whatever they call it."""
    twice = np.flatnonzero(pd.Index(files).duplicated())
    if len(twice):
        first, second = files.index(files[twice[0]]), twice[0]
        raise DataError(
            f"{csv}, row {rows.index[second]}: the {name} {rows[name].iat[second]} is listed twice "
            f"(row {rows.index[first]}: {rows[name].iat[first]}); an image has one mask (join "
            "several lesions in it), a mask belongs to one image"
        )


def _below(root: Path, image: str) -> str:
    """Return ``image``, absolute or counted from ``root``, as a path that counts from ``root``."""
    path = os.path.abspath(root / image)
    # First as it is spelled: folders inside root may be links to elsewhere.
    for place, base in (
        (path, os.path.abspath(root)),
        (os.path.realpath(path), os.path.realpath(root)),
    ):
        if Path(place).is_relative_to(base):
            return Path(place).relative_to(base).as_posix()
    return image


def _lies_outside(image: str) -> bool:
    return ".." in Path(image).parts or Path(image).is_absolute()


def _check_mask(csv: Path, row: tuple, folder: Path, root: Path) -> None:
    """Raise a DataError where the mask of one CSV row cannot serve."""
    number, image, name = row[:3]
    path = folder / name
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise DataError(
            f"{csv}, row {number}: the mask {path} does not exist; add it (its name may "
            "be too long for the disk), or take its row out"
        )
    mask = decode(path)
    fault = _fault(mask)
    if not is_opaque(path):
        fault = "has see-through pixels; flatten it to grey, 0 for background and 255 for lesion"
    if fault:
        raise DataError(f"{csv}, row {number}: the mask {path} {fault}")
    try:
        size = upright_size(root / image)
    except DataError:  # whether an unreadable image is an error is for the cache to decide
        return
    if mask.shape != size:
        raise DataError(
            f"{csv}, row {number}: the mask {path} is {_size(mask.shape)} px, its image {image} "
            f"upright {_size(size)} px (width x height); draw it on the upright original, neither "
            "scaled nor turned"
        )


def _fault(mask: np.ndarray) -> str:
    """What keeps ``mask`` from being a canonical one, or ""."""
    if mask.ndim != 2 or mask.dtype != np.uint8:
        return f"must be uint8 (H, W), is {mask.dtype} {mask.shape}"
    counts = np.bincount(mask.reshape(-1), minlength=256)
    if counts[0] == mask.size:
        return "is empty; mark the lesion, or take its row out"
    if counts[255] == mask.size:
        return "covers the whole image: is it inverted? mark the lesion alone, or take its row out"
    if counts[0] + counts[255] != mask.size:
        value = int(np.flatnonzero(counts[1:255])[0]) + 1
        return f"holds the grey value {value}; use 0 for background and 255 for lesion"
    return ""


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
