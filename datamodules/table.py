"""Anybody's images: a table with a row an image, or a folder of normal and one of abnormal images.

::

    table.csv               path,label,patient[,mask,study,body_part,split,lesion_type,hardware]
    chest/0001.png ...      wherever the column path says, below data.root

or, without a table, ``normal/``, ``abnormal/`` and perhaps ``masks/`` with PNGs of images' names.
"""

import logging
import posixpath
import re
import unicodedata
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from datamodules import index
from datamodules.annotations.fields import list_files
from datamodules.files import are_files
from datamodules.index import SPLITS, DataError, check_files, check_rows, lacks_class, read_csv
from datamodules.lesions import attach_lesions, attach_masks
from datamodules.options import Data
from datamodules.radiographs import RadiographDataModule

log = logging.getLogger(__name__)

CSV = "table.csv"
# What a column may be called, whatever its case; our own name first.
NAMES = {
    "path": ("path", "image_path", "image", "filename", "file"),
    "label": ("label", "label_index", "abnormal", "target"),
    "mask": ("mask", "mask_path", "lesion_mask"),
    "patient": ("patient", "patient_id", "subject", "PatientID"),
    "study": ("study", "study_id"),
    **{name: (name,) for name in ("body_part", "split", "lesion_type", "hardware")},
}
OURS = {other.lower(): name for name, others in NAMES.items() for other in others}
LABELS = {"0": 0, "normal": 0, "negative": 0, "false": 0}
LABELS |= {"1": 1, "abnormal": 1, "positive": 1, "true": 1}
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "test": "test"}
NOTHING = ("nan", "none", "null", "na", "n/a")
HARDWARE = {"": -1, "-1": -1, "0": 0, "1": 1}
FOLDERS, MASKS = ("normal", "abnormal"), "masks"
# What data.patients takes for a patient, as people read it.
PATIENTS = {"column": "patients", "folder": "folders", "image": "images"}
STAND_INS = (
    "data.patients=folder (the first folder of a path) or data.patients=image (no patient has two "
    "images): splits must not share a patient"
)

SPELT = (
    "{{path}} has a {} whose name is also spelt otherwise (case, Unicode form, blanks, zeros in "
    "front, .0 at the end): it would count as two. Fix: one spelling"
)


class TableDataModule(RadiographDataModule):
    """The images of ``data.table``, by default ``table.csv`` in ``data.root``.

    Splits and masks are the table's, where it has them; ``lesions.path`` replaces the masks.
    """

    name = "table"

    def __init__(self, data: Data, *others: Any, **named: Any) -> None:
        super().__init__(data, *others, **named)
        self.given, self.stand_in = data.table, data.patients
        self.csv = Path(data.table) if data.table else self.root / CSV

    @classmethod
    def patients_in(cls, data: Data) -> str:
        """What ``data.patients`` takes for patients."""
        return PATIENTS[data.patients]

    @cached_property
    def listed(self) -> pd.DataFrame | None:
        """The files of ``normal`` and ``abnormal``, where these stand for a table."""
        if self.given or self.csv.is_file():
            return None
        return list_folders(self.root) if (self.root / FOLDERS[1]).is_dir() else None

    def fingerprint(self) -> list[Path]:
        """The table, if there is one."""
        return [self.csv] if self.listed is None else []

    def index_key(self) -> object:
        """With what stands in for patients, and the names of files in folders."""
        listed = "" if self.listed is None else index.hash_rows(self.listed)
        return super().index_key(), self.stand_in, listed

    def build_index(self) -> pd.DataFrame:
        """Read and check the table, draw the splits that it lacks, attach the masks."""
        rows = self.read()
        table = rows.drop(columns="mask").reset_index(drop=True)
        if self.keeps_splits(rows):
            table = table if (table["split"] == "val").any() else index.assign_val(table, self.seed)
        else:
            table = index.assign_groups(table, self.seed)
        if self.lesions_path:
            attached = attach_lesions(table, self.lesions_path, self.root)
        else:
            masks = rows.loc[rows["mask"] != "", ["path", "mask", "lesion_type"]]
            masks = masks.rename(columns={"path": "image"})
            attached = attach_masks(table, masks, self.source, self.root, self.root)
        types = attached["lesion_type"]  # an image without a mask keeps that of the table
        return attached.assign(lesion_type=types.where(types != "", table["lesion_type"]))

    def read(self) -> pd.DataFrame:
        """The table as it is understood and checked, with ``mask`` below ``data.root`` or ""."""
        rows = self.listed if self.listed is not None else read_named(self.csv, self.root)
        rows = understand(rows, self.source, self.root, self.stand_in)
        check_kinds(self.source, rows, self.patients_are)
        if self.keeps_splits(rows):
            check_splits(self.csv, rows)
        return rows

    def keeps_splits(self, rows: pd.DataFrame) -> bool:
        """Whether the splits of the table count: ``data.split=image`` draws all anew."""
        return self.split == "patient" and bool((rows["split"] != "").any())

    @property
    def source(self) -> Path:
        """What messages name: the table, or the folder that stands for one."""
        return self.csv if self.listed is None else self.root


def list_folders(root: Path) -> pd.DataFrame:
    """Path, label, mask ("" = none) and path within its folder of all files, by their paths."""
    files = {}
    for name in (*FOLDERS, MASKS):  # links, too, also broken ones; no hidden files
        found = list_files(root / name, "") if (root / name).is_dir() else []
        files[name] = sorted(path.relative_to(root / name).as_posix() for path in found)
        full = [f"{root / name}/{path}" for path in files[name]]
        if odd := [path for path in full if path != path.encode(errors="ignore").decode()]:
            raise DataError(
                f"the name of {odd[0]!r} is not UTF-8. Fix: rename it (convmv does all)"
            )
    for name in FOLDERS:
        if not files[name]:
            raise DataError(f"{root / name}: expected images in it. Fix: put them there")
    masks, rows = {path.lower(): path for path in files[MASKS]}, []
    for label, folder in enumerate(FOLDERS):
        for within in files[folder]:
            path = PurePosixPath(within)
            named = [f"{within}.png"]
            if not path.suffix[1:].isdigit():  # a UID's last number is no suffix
                named.append(str(path.with_suffix(".png")))
            own = [masks[name.lower()] for name in named if label and name.lower() in masks]
            mask = f"{MASKS}/{own[0]}" if own else ""
            rows.append((f"{folder}/{within}", str(label), mask, within))
    table = pd.DataFrame(rows, columns=["path", "label", "mask", "within"], dtype=str)
    if unclaimed := sorted({f"{MASKS}/{mask}" for mask in files[MASKS]} - {*table["mask"]}):
        raise DataError(
            f"{root / unclaimed[0]}: no image in {FOLDERS[1]}/ has this name. Fix: call a mask as "
            "its image, with .png at the end, or take it out"
        )
    return table.set_index("path", drop=False)


def read_named(csv: Path, root: Path) -> pd.DataFrame:
    """The columns of a table that are read, under our names, by the row of the file."""
    if not csv.is_file():
        raise DataError(
            f"{csv} does not exist. Fix: write it, with the header path,label,patient, name it by "
            f"data.table=FILE, or put the images in {' and '.join(FOLDERS)} in data.root={root}"
        )
    rows = read_csv(csv, known=OURS)
    read: dict[str, str] = {}  # the column by what it means
    unread = []
    for name in map(str, rows.columns):
        plain = re.sub(r"\.\d+$", "", name)  # pandas calls a second column label label.1
        ours = OURS.get((plain if plain in rows else name).lower())
        if ours in read:
            what = f"the columns {read[ours]} and {name} both mean {ours}"
            raise DataError(f"{csv}: {what}. Fix: keep one of them")
        if ours:
            read[ours] = name
        else:
            unread.append(name)
    for ours in ("path", "label"):
        if ours not in read:
            names = " or ".join(NAMES[ours])
            raise DataError(f"{csv}: no column {ours}. Fix: a header, and in it {names}")
    if rows.empty:
        raise DataError(f"{csv}: there are no rows. Fix: a row an image")
    if unread:
        tell_unread(csv, ", ".join(unread))
    rows = rows[[*read.values()]].set_axis([*read], axis="columns")
    rows = rows.mask(rows.apply(lambda fields: fields.str.lower().isin(NOTHING)), "")
    for name in rows.columns.intersection(["path", "mask"]):
        rows[name] = rows[name].str.replace("\\", "/").map(lambda x: x and posixpath.normpath(x))
        rows[name] = rows[name].map(lambda x: x if x.isascii() else as_on_disk(root, x))
    return rows


def as_on_disk(root: Path, path: str) -> str:
    """A path as the file is called: a table may compose its letters (ö) otherwise."""
    forms = [path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]
    return next((form for form in forms if (root / form).is_file()), path)


@cache
def tell_unread(csv: Path, columns: str) -> None:
    """Name the columns that nobody reads, once."""
    log.warning("%s: columns that are not read: %s", csv, columns)


def understand(rows: pd.DataFrame, source: Path, root: Path, patients: str) -> pd.DataFrame:
    """Check ``rows`` and bring them into the index's form, but for ``mask`` and blank splits.

    Messages name no more of a row than its path.
    """
    if patients == "column" and "patient" not in rows:
        names = ", ".join(NAMES["patient"][1:])
        raise DataError(f"{source}: no column patient ({names}). Fix: add it, or say {STAND_INS}")
    if patients != "column" and "patient" in rows:
        what = f"{source}: has a column patient, which data.patients={patients} would not read"
        raise DataError(f"{what}. Fix: leave data.patients out, or take the column out")
    within = rows["within"] if "within" in rows else rows["path"]
    rows = rows.reindex(columns=list(NAMES), fill_value="")
    if patients != "column":
        rows["patient"] = within.str.partition("/")[0] if patients == "folder" else rows["path"]
    blank, label, split = rows == "", rows["label"].str.lower(), rows["split"].str.lower()
    outside = rows["path"].str.match(r"([A-Za-z]:)?/|\.\.(/|$)")
    masked_twice = rows["mask"].duplicated() & ~blank["mask"]
    rounded = rows["patient"].str.fullmatch(r"\d[.,]\d+[eE]\+\d+")  # as Excel shows long ones
    flat = ~within.str.contains("/") & (patients == "folder")
    no_split = ~split.isin(SPLIT_NAMES) & ~blank["split"].all()
    labels = ", ".join(LABELS)
    checks = {
        "no path is given. Fix: fill it in, or take the row out": blank["path"],
        "{path} is absolute or leads out of data.root. Fix: a path relative to it": outside,
        "{path} is listed twice. Fix: one row an image": rows["path"].duplicated(),
        "{path} has another image's mask. Fix: a mask of its own, or none": masked_twice,
        "{path} has no label. Fix: 0 (normal) or 1 (abnormal)": blank["label"],
        f"{{path}} has an unknown label. Fix: {labels}": ~label.isin(LABELS),
        "{path} is in no patient's folder. Fix: put it into one, or take it out": flat,
        "{path} has no patient. Fix: fill it in": blank["patient"],
        "{path} has a patient that a spreadsheet rounded. Fix: export them as text": rounded,
        "{path} has no known split. Fix: train, val or test, in all rows or in none": no_split,
        "{path} has unknown hardware. Fix: 0, 1 or nothing": ~rows["hardware"].isin(HARDWARE),
    }
    check_rows(source, rows, checks)
    paths = rows["path"]
    fix = f"paths relative to data.root={root}, or take their rows out"
    check_files(source, paths, are_files(root / path for path in paths), fix)
    return rows.assign(
        label=label.map(LABELS),
        study=name_studies(source, rows, patients),
        body_part=rows["body_part"].str.lower().mask(blank["body_part"], "unknown"),
        split=split.map({**SPLIT_NAMES, "": ""}),
        hardware=rows["hardware"].map(HARDWARE),
    )


def name_studies(source: Path, rows: pd.DataFrame, patients: str) -> pd.Series:
    """The study of each row, no other patient's: many number the studies of each patient from 1."""
    study = rows["study"].mask(rows["study"] == "", rows["path"])
    shared = rows["patient"].groupby(study).transform("nunique") > 1
    cut = "{path} shares its study with other images, which data.patients=image would part. Fix: a "
    cut += "column patient (the study's name may stand there), or take the column study out"
    check_rows(source, rows, {cut: shared & (patients == "image")})
    first = study.groupby([rows["patient"], plainly(study)]).transform("first")
    wrong = (rows["study"] != "") & (study != first)
    check_rows(source, rows, {SPELT.format("study"): wrong})
    return rows["patient"] + "/" + study if shared.any() else study


def check_kinds(source: Path, rows: pd.DataFrame, people: str) -> None:
    """Raise a DataError for one class, too few patients, or two spellings of a patient."""
    if held := lacks_class(rows["label"]):
        raise DataError(f"{source} holds {held} images. Fix: both normal and abnormal ones")
    other = rows["patient"].groupby(plainly(rows["patient"])).transform("first")
    unlike = (rows["patient"] != other) & (people != PATIENTS["image"])  # a file is a file
    check_rows(source, rows, {SPELT.format("patient"): unlike})
    if rows["patient"].nunique() < len(SPLITS):
        what = f"{rows['patient'].nunique()} {people}: too few to be kept apart in three splits"
        raise DataError(f"{source}: {what}. Fix: a column patient, or another data.patients")


def plainly(names: pd.Series) -> pd.Series:
    """Names without differences in case, Unicode form, blanks, zeros in front or a last .0."""
    plain = names.str.normalize("NFKC").str.casefold().str.removesuffix(".0")
    return plain.str.replace(r"^0+(?=\d+$)", "", regex=True).str.split().str.join(" ")


def check_splits(csv: Path, rows: pd.DataFrame) -> None:
    """Raise a DataError unless the given splits keep patients apart and hold both classes."""
    of_patient = rows.assign(row=rows.index).groupby("patient")
    rows = rows.assign(other=of_patient["split"].transform("first"))
    rows = rows.assign(first=of_patient["row"].transform("first"))
    what = "{path} is in {split}, and row {first}, of the same patient, in {other}. Fix: move all "
    what += "images of a patient to one split, or test leaks"
    check_rows(csv, rows, {what: rows["split"] != rows["other"]})
    for split in (split for split in SPLITS if split != "val" or (rows["split"] == "val").any()):
        if held := lacks_class(rows.loc[rows["split"] == split, "label"]):
            raise DataError(
                f"{csv}: the {split} split holds {held} images. Fix: both classes in each split, "
                "or no column split: then they are drawn by patient"
            )
