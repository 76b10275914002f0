"""MURA v1.1 (Rajpurkar et al. 2018) as downloaded: four CSVs without header, a folder a study.

::

    train_image_paths.csv      MURA-v1.1/train/XR_HAND/patient00001/study1_positive/image1.png
    train_labeled_studies.csv  MURA-v1.1/train/XR_HAND/patient00001/study1_positive/,1
    valid_image_paths.csv      MURA-v1.1/valid/...
    valid_labeled_studies.csv
    train/ valid/

The official valid split is the test split here; val is a patient-grouped tenth of train.
"""

from pathlib import Path
from typing import ClassVar

import pandas as pd

from datamodules import index
from datamodules.files import are_files
from datamodules.index import DataError, check_files, check_rows, read_text
from datamodules.lesions import attach_lesions
from datamodules.radiographs import RadiographDataModule

SPLITS = {"train": "train", "valid": "test"}
LABELS = {"negative": "0", "positive": "1"}
IMAGES_CSV, STUDIES_CSV = "{}_image_paths.csv", "{}_labeled_studies.csv"
CSVS = [name.format(split) for split in SPLITS for name in (IMAGES_CSV, STUDIES_CSV)]
# The first folder is the archive's own name, MURA-v1.1, whatever the user calls it now; the end is
# an image's name, or a study's label.
ROW = (
    r"\A(?:(?P<archive>[^/]+)/)?(?P<folder>(?P<split>train|valid)/XR_(?P<part>[A-Za-z]+)"
    r"/(?P<patient>patient\d+)/(?P<study>study\d+_(?P<word>positive|negative)))/(?P<end>[^/]*)\Z"
)


class MuraDataModule(RadiographDataModule):
    """MURA: seven parts of the upper limb, labels by study; lesion masks only where supplied."""

    name = "mura"
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
        folder = find_mura(self.root)
        table = index.assign_val(read_mura_tree(self.root), self.seed)
        table = table.assign(lesion_mask="", lesion_type="", hardware=-1)
        if self.lesions_path is None:
            return table
        # Lesion paths count from MURA-v1.1, so that one lesion folder serves either data.root.
        inner = table["path"] if folder == self.root else table["path"].str.partition("/")[2]
        attached = attach_lesions(table.assign(path=inner), self.lesions_path, folder)
        return attached.assign(path=table["path"])

    def fingerprint(self) -> list[Path]:
        """The four CSVs."""
        folder = find_mura(self.root)
        return [folder / name for name in CSVS]


def find_mura(root: Path) -> Path:
    """The folder that holds MURA's CSVs: ``root`` itself or the only such folder in it."""
    for folders in ([root], root.iterdir() if root.is_dir() else []):
        holding = [folder for folder in folders if any((folder / name).is_file() for name in CSVS)]
        if len(holding) == 1:
            return holding[0]
    raise DataError(
        f"data.root={root}: expected {', '.join(CSVS)} in it or in one folder in it. Fix: give the "
        "unpacked folder MURA-v1.1"
    )


def read_mura_tree(root: Path) -> pd.DataFrame:
    """Index a MURA tree, ``MURA-v1.1`` or the folder that holds it; check all rows by the files."""
    folder = find_mura(root)
    prefix = "" if folder == root else f"{folder.name}/"
    table = pd.concat([_read_split(folder, split) for split in SPLITS], ignore_index=True)
    return table.assign(
        path=prefix + table["path"],
        label=table["word"].map(LABELS).astype(int),
        study=table["patient"] + "/" + table["part"].str.lower() + "/" + table["study"],
        body_part=table["part"].str.lower(),
        split=table["split"].map(SPLITS),
    )


def _read_split(folder: Path, split: str) -> pd.DataFrame:
    """The images of both CSVs of a split with their labels, indexed by the row of the file."""
    csv, labels_csv = (folder / name.format(split) for name in (IMAGES_CSV, STUDIES_CSV))
    studies, images = _read_rows(labels_csv, split), _read_rows(csv, split)
    label = studies["end"].str.lstrip(",")
    contradicts = "the label of {text} is not that of its folder. Fix: use 0 (negative) or 1"
    check_rows(labels_csv, studies, {contradicts: label != studies["word"].map(LABELS)})
    no_study = f"the study {{folder}} has no row in {labels_csv.name}. Fix: add it with its label"
    check_rows(csv, images, {no_study: ~images["folder"].isin(studies["folder"])})
    images = images.assign(path=images["folder"] + "/" + images["end"])
    check_files(csv, images["path"], are_files(folder / path for path in images["path"]))
    return images


def _read_rows(csv: Path, split: str) -> pd.DataFrame:
    """The parts of each row, indexed by line."""
    text = pd.Series((read_text(csv) if csv.is_file() else "").splitlines(), dtype=str).str.strip()
    text.index += 1
    text = text[text != ""]
    if text.empty:
        raise DataError(f"{csv} is missing or empty. Fix: unpack the MURA archive again")
    rows = pd.DataFrame({"text": text}).join(text.str.extract(ROW))
    expected = f"MURA-v1.1/{split}/XR_HAND/patient00001/study1_positive/..., and no header"
    checks = {
        "this is MURA v1.0, which Stanford withdrew because it leaked patient data. Fix: delete it "
        "and ask for MURA v1.1": rows["archive"] == "MURA-v1.0",
        f"expected {expected}, got {{text!r}}": rows["split"] != split,
    }
    check_rows(csv, rows, checks)
    return rows
