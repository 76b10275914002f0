"""MURA v1.1 (Rajpurkar et al. 2018) as downloaded: four CSVs without header, a folder a study.

::

    train_image_paths.csv      MURA-v1.1/train/XR_HAND/patient00001/study1_positive/image1.png
    train_labeled_studies.csv  MURA-v1.1/train/XR_HAND/patient00001/study1_positive/,1
    valid_image_paths.csv      MURA-v1.1/valid/...
    valid_labeled_studies.csv
    train/ valid/

The official valid split is the test split here; val is a patient-grouped tenth of train.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pandas as pd

from datamodules import index
from datamodules.decode import IMAGE_SUFFIXES
from datamodules.index import DataError, folders, look_around
from datamodules.lesions import attach_lesions, read_text
from datamodules.radiographs import RadiographDataModule

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "valid": "test"}
IMAGES_CSV = "{}_image_paths.csv"
STUDIES_CSV = "{}_labeled_studies.csv"
LABELS = {"negative": 0, "positive": 1}
# The first folder is the archive's own name, MURA-v1.1, whatever the user calls it now.
STUDY = re.compile(
    r"(?:(?P<archive>[^/]+)/)?(?P<split>train|valid)/XR_(?P<part>[A-Za-z]+)/(?P<patient>patient\d+)"
    r"/(?P<study>study\d+_(?P<label>positive|negative))/(?P<image>[^/]*)"
)


class MuraDataModule(RadiographDataModule):
    """MURA: seven parts of the upper limb, labels by study; lesion masks only where supplied.

    ``data.root`` is the folder ``MURA-v1.1`` or the one that holds it; ``lesions.path`` a folder in
    the canonical form of ``datamodules.lesions``.
    """

    name = "mura"
    default_image_size = 320
    default_crop = "none"
    unreadable = "error"
    licence = "MURA's own research use agreement, accepted on download: non-commercial"
    # Cohen's kappa on studies; Stanford's 0.705 is on a hidden test set.
    published: ClassVar[dict[str, dict[str, float]]] = {
        "DenseNet-169, ImageNet": {"overall": 0.629, "shoulder": 0.54, "elbow": 0.72}
        | {"humerus": 0.72, "hand": 0.43, "wrist": 0.71, "forearm": 0.65, "finger": 0.59},
        "DenseNet-201, ImageNet": {"overall": 0.645},
        "ResNet-50, ImageNet": {"overall": 0.618},
        "CNN from scratch": {"overall": 0.386},
    }
    published_by = "published, MURA's valid split, github.com/ilias-ant/x-ray-abnormality-detection"

    def build_index(self) -> pd.DataFrame:
        """Index both splits, check them against the files, draw val, attach the lesion masks."""
        folder, table = find_mura(self.root), read_mura_tree(self.root)
        if self.split == "patient":  # split by image, the official splits do not count
            _check_official_splits(folder, table)
        table = index.assign_val(table, self.seed)
        table = table.assign(lesion_mask="", lesion_type="", hardware=-1)
        if self.lesions_path is None:
            return table
        if folder == self.root:
            return attach_lesions(table, self.lesions_path, self.root)
        # Lesion paths count from MURA-v1.1, so that one lesion folder serves either data.root.
        inner = table["path"].str.removeprefix(f"{folder.name}/")
        attached = attach_lesions(table.assign(path=inner), self.lesions_path, folder)
        return attached.assign(path=table["path"])

    def fingerprint(self) -> list[Path]:
        """The four CSVs."""
        try:
            folder = find_mura(self.root)
        except DataError:  # build_index explains it
            folder = self.root
        return [
            folder / name.format(split) for split in SPLITS for name in (IMAGES_CSV, STUDIES_CSV)
        ]


def find_mura(root: Path) -> Path:
    """Return the folder that holds MURA's CSVs: ``root`` itself or the only such folder in it.

    Raises:
        DataError: ``root`` is too deep, too high, MURA v1.0, or elsewhere altogether.
    """
    if not root.is_dir():
        raise DataError(f"data.root={root} is no folder; give the folder MURA-v1.1")
    if _holds_csvs(root):
        return root
    inside = [child for child in folders(root) if _holds_csvs(child)]
    if len(inside) == 1:
        return inside[0]
    if len(inside) > 1:
        names = ", ".join(child.name for child in inside)
        raise DataError(
            f"data.root={root} holds several copies of MURA ({names}); name one of them"
        )
    error = look_around(root, _holds_csvs)
    if error:
        raise error
    for folder in (root, *folders(root)):
        if "v1.0" in folder.name:
            raise _withdrawn(folder)
    wanted = ", ".join(name.format(s) for s in SPLITS for name in (IMAGES_CSV, STUDIES_CSV))
    raise DataError(
        f"data.root={root}: no MURA here, it lacks {wanted}; give the unpacked folder MURA-v1.1"
    )


def read_mura_tree(root: Path) -> pd.DataFrame:
    """Index a MURA tree and check every row against the files.

    Args:
        root: ``MURA-v1.1``, or the folder that holds it.

    Returns:
        One row an image: path (relative to ``root``), label, patient, study, body_part, split
        (``train`` or ``test``: the official valid split).

    Raises:
        DataError: A CSV is missing, empty or no UTF-8; a row is no MURA path, names no file,
            carries another label than its folder or than 0 and 1, or a study without label; the
            data is MURA v1.0.
    """
    folder = find_mura(root)
    prefix = "" if folder == root else f"{folder.name}/"
    tables = []
    for split in SPLITS:
        labels = _read_studies(folder / STUDIES_CSV.format(split), split)
        tables.append(_read_images(folder / IMAGES_CSV.format(split), split, labels))
    table = pd.concat(tables, ignore_index=True)
    _check_files(folder, table)
    return table.drop(columns=["csv", "line"]).assign(path=prefix + table["path"])


def _read_studies(csv: Path, split: str) -> dict[str, int]:
    """Labels by study folder, each checked against the folder's name."""
    labels: dict[str, int] = {}
    for number, line in _rows(csv):
        study, _, label = re.sub(r"[;\t]", ",", line).rpartition(",")
        match = _parse(study.rstrip("/") + "/", csv, number, split)
        if label.strip() not in ("0", "1"):
            raise DataError(
                f"{csv}, row {number}: label {label.strip()!r} of {study}; use 0 (negative) or "
                "1 (positive)"
            )
        if int(label) != LABELS[match["label"]]:
            raise DataError(
                f"{csv}, row {number}: label {label.strip()} contradicts the folder {study}; "
                "correct the one that is wrong"
            )
        labels[_folder(match)] = int(label)
    return labels


def _read_images(csv: Path, split: str, labels: dict[str, int]) -> pd.DataFrame:
    """One row an image of ``csv``, with paths relative to MURA's folder, and its line there."""
    rows, hidden = [], 0
    for number, line in _rows(csv):
        match = _parse(line, csv, number, split)
        if not match["image"]:
            raise DataError(f"{csv}, row {number}: {line!r} is a folder; give an image file")
        if match["image"].startswith("._"):  # what macOS writes beside a file; never an image
            hidden += 1
            continue
        study = _folder(match)
        if study not in labels:
            raise DataError(
                f"{csv}, row {number}: the study {study} has no row in "
                f"{STUDIES_CSV.format(split)}; add it with its label, or take the image out"
            )
        part, patient = match["part"].lower(), match["patient"]
        rows.append(
            (
                f"{study}/{match['image']}",
                labels[study],
                patient,
                f"{patient}/{part}/{match['study']}",
                part,
                number,
            )
        )
    if hidden:
        log.warning("%s: rows that name ._* files (macOS leftovers), left out: %d", csv, hidden)
    if not rows:
        raise DataError(f"{csv}: no image stands in it; unpack the MURA archive again")
    table = pd.DataFrame(rows, columns=["path", "label", "patient", "study", "body_part", "line"])
    empty = len(labels) - table["study"].nunique()
    if empty:
        log.warning("%s: %d labelled studies have no image", csv, empty)
    return table.assign(split=SPLITS[split], csv=csv.name)


def _check_official_splits(folder: Path, table: pd.DataFrame) -> None:
    """Both classes must stand in both splits: no seed can draw into the official valid split."""
    for split, ours in SPLITS.items():
        labels = set(table.loc[table["split"] == ours, "label"])
        if labels != {0, 1}:
            found, lacking = ("negative", "positive") if labels == {0} else ("positive", "negative")
            raise DataError(
                f"{folder / STUDIES_CSV.format(split)}: all studies with images are {found}, but "
                f"the official {split} split needs both classes; unpack the MURA archive again, or "
                f"add {lacking} studies here and their images to {IMAGES_CSV.format(split)}"
            )


def _check_files(folder: Path, table: pd.DataFrame) -> None:
    """Compare all rows with the files: one listing a study instead of a look-up an image."""
    studies = table["path"].str.rpartition("/")[0].unique().tolist()

    def listing(study: str) -> list[str]:
        try:
            names = os.listdir(folder / study)
        except OSError:
            return []
        return [f"{study}/{name}" for name in names if not name.startswith("._")]

    with ThreadPoolExecutor(8) as pool:  # network file systems answer slowly but in parallel
        present = {path for paths in pool.map(listing, studies) for path in paths}
    wanted = set(table["path"])
    missing = table[~table["path"].isin(present)]
    if len(missing):
        first = missing[:3].itertuples()
        shown = [f"{row.csv}, row {row.line}: {row.path} is not there" for row in first]
        more = [f"and {len(missing) - 3:,} more"] if len(missing) > 3 else []
        raise DataError(
            f"{folder}: {len(missing):,} of {len(table):,} images that the CSVs list are missing: "
            f"{'; '.join(shown + more)}; unpack the archive again, or take their rows out"
        )
    surplus = sorted(path for path in present - wanted if path.lower().endswith(IMAGE_SUFFIXES))
    if surplus:
        log.warning(
            "%s: %d images stand in no CSV and are not used, such as %s",
            folder,
            len(surplus),
            ", ".join(surplus[:3]),
        )


def _rows(csv: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and contents; what Windows and spreadsheets make of a CSV does no harm."""
    if not csv.is_file():
        raise DataError(f"{csv} is missing; unpack the MURA archive again")
    text = read_text(csv)
    if not text.strip():
        raise DataError(f"{csv} is empty; unpack the MURA archive again")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip().replace("\\", "/").replace('"', "")


def _parse(path: str, csv: Path, number: int, split: str) -> re.Match[str]:
    match = STUDY.fullmatch(path)
    if match is None:
        raise DataError(
            f"{csv}, row {number}: {path!r} is no MURA path; expected "
            f"MURA-v1.1/{split}/XR_HAND/patient00001/study1_positive/..., and no header"
        )
    if "v1.0" in (match["archive"] or ""):
        raise _withdrawn(csv)
    if match["split"] != split:
        raise DataError(
            f"{csv}, row {number}: {path} lies in the split {match['split']!r}; move the row to "
            "that split's CSV"
        )
    return match


def _folder(match: re.Match[str]) -> str:
    return f"{match['split']}/XR_{match['part']}/{match['patient']}/{match['study']}"


def _holds_csvs(folder: Path) -> bool:
    return any(
        (folder / name.format(split)).is_file()
        for split in SPLITS
        for name in (IMAGES_CSV, STUDIES_CSV)
    )


def _withdrawn(where: Path) -> DataError:
    return DataError(
        f"{where}: this is MURA v1.0, which Stanford withdrew because it leaked patient data; "
        "delete it and ask for MURA v1.1"
    )
