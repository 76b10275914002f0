"""Lesion masks: the canonical folder they come in, their images, and which of them are trained on.

A lesion folder holds ``lesions.csv`` (header ``image,mask,lesion_type``: the image relative to
``data.root``, the mask relative to the folder) and 8-bit PNG masks, 0 background and 255 lesion, of
the size of the upright original. Masks follow their image's split.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from datamodules.decode import decode, is_opaque, upright_size
from datamodules.files import usable_cores, whole_folder
from datamodules.geometry import wrong_size
from datamodules.index import DataError, check_rows, digest, lacks_class, read_csv

log = logging.getLogger(__name__)

CSV = "lesions.csv"
# The split of images whose masks judge a training that must not see them (cross-fitting).
LEFT_OUT = "left_out"
COLUMNS = ["image", "mask", "lesion_type"]
TWICE = "the {0} {{{0}}} is listed twice. Fix: join all lesions of an image in one mask"
# A larger share of an image is hardly a lesion's.
MOST, NEARLY_ALL = 0.5, 0.95


class Lesion(NamedTuple):
    """What is marked on an image: its path below ``data.root``, mask uint8 (H, W) 0 / 255, type."""

    image: str
    mask: np.ndarray
    lesion_type: str = ""


def read_lesions(folder: Path) -> pd.DataFrame:
    """Read ``lesions.csv``: image, mask, lesion_type ("" where unknown), by row of the file."""
    csv = folder / CSV
    if not csv.is_file():
        raise DataError(
            f"{folder}: expected a folder with {CSV} in it. Fix: give the folder, or "
            f"write the file with the header {','.join(COLUMNS)} and a row a mask"
        )
    rows = read_csv(csv, COLUMNS[:2]).reindex(columns=COLUMNS, fill_value="")
    for name in COLUMNS[:2]:
        check_rows(csv, rows, {f"no {name} is given": rows[name] == ""})
        rows[name] = rows[name].map(os.path.normpath)
        check_rows(csv, rows, {TWICE.format(name): rows[name].duplicated()})
    return rows


def attach_lesions(table: pd.DataFrame, folder: Path, root: Path) -> pd.DataFrame:
    """Return ``table`` with ``lesion_mask`` and ``lesion_type`` of a lesion folder, "" = no mask.

    Images may have the name of ``root`` in front (``MURA-v1.1/train/...``).
    """
    rows = read_lesions(folder)
    bare = rows["image"].str.removeprefix(f"{root.resolve().name}/")
    rows["image"] = rows["image"].where(rows["image"].isin(table["path"]), bare)
    return attach_masks(table, rows, folder / CSV, folder, root)


def attach_masks(
    table: pd.DataFrame, rows: pd.DataFrame, csv: Path, folder: Path, root: Path
) -> pd.DataFrame:
    """Check the masks of ``rows`` (image, mask below ``folder``, lesion_type) and attach them.

    Messages name ``csv`` and the row.
    """
    labels = table.set_index("path")["label"]
    absent = ~rows["image"].isin(labels.index)
    inside = ~rows["image"].str.match(r"/|\.\./")  # else a mask would pass for one left out
    is_file = inside & rows["image"].map(lambda path: os.path.isfile(root / path)).astype(bool)
    unknown = "unknown image {image}. Fix: give its path relative to data.root"
    normal = "{image} is labelled normal but has a lesion mask. Fix: take out the mask, also an "
    normal += "empty one, or correct the label"
    checks = {TWICE.format("image"): rows["image"].duplicated(), unknown: absent & ~is_file}
    check_rows(csv, rows, checks | {normal: rows["image"].map(labels) == 0})
    if absent.any():
        example = rows["image"][absent].iloc[0]
        log.warning("%s: %d masks are of images left out, such as %s", csv, absent.sum(), example)
    rows = rows[~absent]
    files = [folder / mask for mask in rows["mask"]], [root / image for image in rows["image"]]
    with ThreadPoolExecutor(usable_cores()) as pool:
        faults = pd.Series(list(pool.map(_fault_of_file, *files)), rows.index, dtype=str)
    check_rows(csv, rows.assign(fault=faults), {"the mask {mask} {fault}": faults != ""})
    rows = rows.set_index("image").reindex(table["path"], fill_value="")
    # Links within the folder stay: where one leads elsewhere later, the masks have changed.
    masks = [mask and str(folder.resolve() / mask) for mask in rows["mask"]]
    return table.assign(lesion_mask=masks, lesion_type=rows["lesion_type"].tolist())


def write_lesions(
    folder: Path, lesions: Iterable[Lesion], finish: Callable[[Path], None] | None = None
) -> int:
    """Write a lesion folder, whole or not at all; returns the number of masks.

    ``finish`` may put more files into the folder, which has another name until all is there.
    """
    if folder.exists():
        raise DataError(f"{folder} already exists. Fix: remove it, or choose another folder")
    rows = []
    try:
        with whole_folder(folder) as draft:
            for lesion in lesions:
                if fault := _fault(lesion.mask):
                    raise DataError(f"mask of {lesion.image}: {fault}")
                mask = f"masks/{lesion.image}.png"
                (draft / mask).parent.mkdir(parents=True, exist_ok=True)
                # Not cv2.imwrite: on a full disk it only returns False.
                (draft / mask).write_bytes(cv2.imencode(".png", lesion.mask)[1].tobytes())
                rows.append((lesion.image, mask, lesion.lesion_type))
            pd.DataFrame(rows, columns=COLUMNS).to_csv(draft / CSV, index=False)
            if finish is not None:
                finish(draft)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return len(rows)


def choose_lesions(table: pd.DataFrame, count: int, seed: int) -> np.ndarray:
    """Pick at most ``count`` train images whose lesion masks are trained on: ascending row numbers.

    One a patient before any patient's second, body parts in turn, then by hashes of ``seed`` and
    names: the choice for 50 is part of that for 100.
    """
    rows = np.flatnonzero((table["split"] == "train") & (table["lesion_mask"] != ""))
    pool = table.iloc[rows][["path", "patient", "body_part"]].assign(row=rows)
    pool["key"] = [digest(f"{seed}/{path}") for path in pool["path"]]
    pool = pool.sort_values("key")
    pool["round"] = pool.groupby("patient").cumcount()
    pool["turn"] = pool.groupby(["round", "body_part"]).cumcount()
    return np.sort(pool.sort_values(["round", "turn", "key"])["row"].to_numpy(np.int64)[:count])


def leave_out_fold(
    table: pd.DataFrame, rows: np.ndarray, folds: int, fold: int, seed: int
) -> pd.DataFrame:
    """Give the train images of one fold of the patients of ``rows`` the split ``left_out``.

    ``folds`` trainings, each judged on the masks that it has not seen, together judge all ``rows``.
    """
    names = table["patient"].iloc[rows].unique()
    patients = sorted(names, key=lambda name: digest(f"fold/{seed}/{name}"))
    train = table["split"] == "train"
    chosen = train & table["patient"].isin(patients[fold::folds])
    if len(patients) < folds or lacks_class(table["label"][train & ~chosen]):
        raise DataError(
            f"lesions.folds={folds}: the lesion masks of train are of {len(patients)} patients, "
            "too few for a mask a fold and both classes in train. Fix: other folds, or more data"
        )
    return table.assign(split=table["split"].mask(chosen, LEFT_OUT))


def _fault_of_file(path: Path, image: Path) -> str:
    """Why a mask file cannot serve its image, or ""."""
    try:
        mask, opaque = decode(path), is_opaque(path)
    except (DataError, OSError) as error:
        return f"cannot be read: {error}"
    if not opaque:
        return "has see-through pixels. Fix: flatten it to grey, 0 for background, 255 for lesion"
    try:
        size = upright_size(image)
    except DataError:  # whether an unreadable image is an error is for the cache to decide
        size = mask.shape
    return _fault(mask) if mask.shape == size else wrong_size(mask.shape, size)


def _fault(mask: np.ndarray) -> str:
    """Why ``mask`` uint8 (H, W) is not canonical, or ""."""
    values = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256)).tolist()
    if odd := [value for value in values if value not in (0, 255)]:
        return f"holds the grey value {odd[0]}. Fix: use 0 for background and 255 for lesion"
    if values == [0]:
        return "is empty. Fix: mark the lesion, or take the mask out"
    share, inverted = coverage(mask)
    what = f"covers {share * 100:.1f} % of the image and most of its border: is it inverted? Fix: "
    return f"{what}mark the lesion alone" if inverted else ""


def coverage(mask: np.ndarray) -> tuple[float, bool]:
    """Share of the image that a mask (H, W) marks, and whether that looks inverted."""
    share = float((mask > 0).mean())
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return share, share > NEARLY_ALL or (share > MOST and float((border > 0).mean()) > MOST)
