"""FracAtlas (Abedeen et al. 2023, doi:10.1038/s41597-023-02432-4), the public archive's own tree.

::

    dataset.csv                                     one row an image
    images/{Fractured,Non_fractured}/IMG0000019.jpg
    Annotations/COCO JSON/COCO_fracture_masks.json  polygons in the upright (EXIF-applied) frame

Upstream gives no patients: numbers run along with examinations, so blocks of 20 consecutive numbers
stand in for them, joined where an image of one block reappears in another.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules import index
from datamodules.annotations.coco import read_coco
from datamodules.annotations.marks import MarkedImage, draw
from datamodules.decode import upright_size
from datamodules.duplicates import components, near_duplicates
from datamodules.index import DataError, look_around
from datamodules.lesions import Lesion, attach_lesions, read_csv, write_lesions
from datamodules.radiographs import RadiographDataModule

log = logging.getLogger(__name__)

CSV = "dataset.csv"
COCO = "Annotations/COCO JSON/COCO_fracture_masks.json"
FOLDERS = {"Non_fractured": 0, "Fractured": 1}
BODY_PARTS = ("hand", "leg", "hip", "shoulder")
BLOCK = 20  # consecutive numbers that stand in for a patient
# Upstream shows these images under several numbers, fractured under one and not under another.
KNOWN_CONTRADICTIONS = ((2886, 4243), (2998, 4280), (3034, 4314, 4341), (2952, 4262))
LESION_FORMAT = 2  # raise it when masks are drawn differently, so that older ones are not reused


class FracAtlasDataModule(RadiographDataModule):
    """FracAtlas: hand, leg, hip and shoulder with outlined fractures.

    ``data.root`` is the folder that holds ``dataset.csv``. The outlines are drawn once into a
    lesion folder below ``data.cache_dir``; ``lesions.path`` replaces them.
    """

    name = "fracatlas"
    default_image_size = 320
    default_crop = "content"  # much film is empty, and a median fracture is 0.25 % of the image
    default_contrast = "stretch"  # scans differ in how bright their film is
    licence = "CC BY 4.0 (Abedeen et al., Scientific Data 10, 521, 2023)"
    index_version = LESION_FORMAT
    patients_are = "number blocks"  # nobody knows the patients
    unreadable = "skip"  # 59 upstream JPEGs are cut short

    def build_index(self) -> pd.DataFrame:
        """Read the CSV, settle contradictions, group by number block, draw the split."""
        table = read_fracatlas_tree(self.root)
        table = group_duplicates(table, self.root)
        table = index.assign_groups(table, self.seed)
        folder = self.lesions_path or self._draw_lesions(table)
        table = attach_lesions(table, folder, self.root)
        unnamed = (table["label"] == 1) & (table["lesion_type"] == "")
        return table.assign(lesion_type=table["lesion_type"].mask(unnamed, "fracture"))

    def fingerprint(self) -> list[Path]:
        """The CSV and, unless ``lesions.path`` replaces it, the COCO file."""
        return [self.root / CSV] if self.lesions_path else [self.root / CSV, self.root / COCO]

    def _draw_lesions(self, table: pd.DataFrame) -> Path:
        """Return the lesion folder of the images in ``table``, drawn on first use."""
        coco = self.root / COCO
        paths = {Path(path).name: path for path in table["path"]}
        outlined = read_outlines(self.root)
        marked = {name: image for name, image in outlined.items() if name in paths}
        sizes = {name: _size(self.root / paths[name]) for name in marked}
        unreadable = sorted(name for name, size in sizes.items() if size is None)
        if unreadable:  # whether that is an error is for the cache to decide
            log.warning(
                "%s: %d outlined images are unreadable, their masks are left out: %s",
                coco,
                len(unreadable),
                ", ".join(unreadable[:3]),
            )
        # Sizes too: an image that was replaced or fetched again since gets a mask of its own.
        content = f"{LESION_FORMAT} {sorted(table['path'])} {sorted(sizes.items())}".encode()
        key = hashlib.sha256(coco.read_bytes() + content).hexdigest()[:12]
        folder = self.cache_dir / f"fracatlas-lesions-{key}"
        if folder.is_dir():
            return folder
        drawn = (
            Lesion(paths[name], _draw(image, size, coco))
            for name, image in marked.items()
            if (size := sizes[name]) is not None
        )
        try:
            write_lesions(folder, drawn)
        except DataError:
            if not folder.is_dir():  # else another process was faster, with the same masks
                raise
        return folder


def read_fracatlas_tree(root: Path) -> pd.DataFrame:
    """Index the archive's tree and check every row of the CSV against the files.

    Where ``fractured`` contradicts the folder that the image lies in, ``fracture_count`` decides:
    for the folder with a notice (upstream: IMG0003298), against it with an error.

    Returns:
        One row an image: path, label, patient (the number block), study (the image: upstream does
        not tell views of one study), body_part, hardware.

    Raises:
        DataError: ``root`` is not FracAtlas's folder, a file or column is missing, a value is
            invalid, an image is listed twice or without file, or a label contradicts its folder.
    """
    csv, rows = root / CSV, _read_csv(root)
    found = _list_images(root)
    missing = rows["image_id"][~rows["image_id"].isin(found)]
    if len(missing):
        shown = ", ".join(f"row {line}: {name}" for line, name in missing.iloc[:3].items())
        raise DataError(
            f"{csv}: {len(missing):,} of {len(rows):,} images that it lists are not there, such as "
            f"{shown}; unpack the archive again, or take their rows out"
        )
    surplus = sorted(set(found) - set(rows["image_id"]))
    if surplus:
        log.warning(
            "%s: %d images stand in no row and are not used, such as %s",
            csv,
            len(surplus),
            ", ".join(surplus[:3]),
        )
    folders = rows["image_id"].map(found)
    numbers = rows["image_id"].str.extract(r"(\d+)\.[A-Za-z]+$")[0]
    if numbers.isna().any():
        row = rows[numbers.isna()].iloc[0]
        raise DataError(
            f"{csv}, row {row.name}: {row['image_id']} has no number, which stands in for the "
            "patient; name images as upstream, IMG0000019.jpg"
        )
    return pd.DataFrame(
        {
            "path": "images/" + folders + "/" + rows["image_id"],
            "label": _settle_labels(rows, folders.map(FOLDERS), csv),
            "patient": [f"block{int(number) // BLOCK:04d}" for number in numbers],
            "study": rows["image_id"].str.rpartition(".")[0],
            "body_part": [
                "+".join(part for part in BODY_PARTS if row[part] == "1") or "unknown"
                for row in rows.to_dict("records")
            ],
            "hardware": rows["hardware"].astype(int),
        }
    ).reset_index(drop=True)


def read_outlines(root: Path) -> dict[str, MarkedImage]:
    """Read the annotated images of the COCO file, by the names of their files.

    Names are unique in the archive, so that folders which an export puts in front do not matter.

    Raises:
        DataError: See ``read_coco``; or an entry is wrong or a mere box, a file is outlined as two
            images, or none of them is there.
    """
    coco, outlined = root / COCO, {}
    marking = read_coco(coco)
    for mistake in marking.mistakes:
        raise DataError(f"{mistake.where}: {mistake.what}")
    for image in marking.images:
        if not image.marks:
            continue
        for mark in image.marks:
            if mark.is_box:
                raise DataError(
                    f"{coco}: {mark.entry} on {image.name} has no segmentation (a box alone is no "
                    "mask); draw an outline"
                )
        name = image.name.rpartition("/")[2]
        if name in outlined:
            raise DataError(
                f"{coco}: {image.name} is outlined under two ids; give it one image id and "
                "all its annotations to that"
            )
        outlined[name] = image
    unknown = sorted(outlined.keys() - _list_images(root).keys())
    if unknown:
        found = f"{len(unknown)} of {len(outlined)} outlined images are not in {root / 'images'}"
        if len(unknown) == len(outlined):
            raise DataError(
                f"{coco}: {found}, such as {unknown[0]}; give the COCO file of these images"
            )
        log.warning("%s: %s and not used, such as %s", coco, found, ", ".join(unknown[:3]))
    return outlined


def group_duplicates(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Join the blocks of images that show the same, drop those whose labels contradict each other.

    Args:
        table: From ``read_fracatlas_tree``.
        root: Folder that the paths count from.

    Returns:
        ``table`` without contradictory images, with joined blocks under the first one's name.
    """
    pairs = near_duplicates([root / path for path in table["path"]])
    group = components(len(table), pairs)
    labels = table.groupby(group)["label"].agg(["min", "max"])
    doubtful = pd.Series(group).isin(labels.index[labels["min"] != labels["max"]]).to_numpy()
    known = {number for numbers in KNOWN_CONTRADICTIONS for number in numbers}
    numbers = table["path"].str.extract(r"(\d+)\.[A-Za-z]+$")[0].astype(int)
    doubtful = doubtful | numbers.isin(known).to_numpy()
    if doubtful.any():
        log.warning(
            "%s: %d near-identical images carry both labels and are left out: %s",
            root,
            doubtful.sum(),
            ", ".join(table["study"][doubtful]),
        )
    blocks, names = pd.factorize(table["patient"], sort=True)
    if pairs:
        log.warning(
            "%s: %d pairs of images show the same; their blocks stay in one split: %s",
            root,
            len(pairs),
            ", ".join(f"{table['study'][a]} = {table['study'][b]}" for a, b in pairs[:10]),
        )
    joined = components(len(names), [(blocks[a], blocks[b]) for a, b in pairs])
    return table.assign(patient=names[joined[blocks]])[~doubtful].reset_index(drop=True)


def _size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) of the upright image, None where its header is unreadable."""
    try:
        return upright_size(path)
    except DataError:
        return None


def _draw(image: MarkedImage, size: tuple[int, int], coco: Path) -> np.ndarray:
    """Draw the mask of ``image`` after checking that its frame is the upright one of ``size``."""
    height, width = image.size or (0, 0)
    if (height, width) != size:
        raise DataError(
            f"{coco}: {image.name} is {width}x{height} there, the upright image "
            f"{size[1]}x{size[0]} px (width x height); annotate the upright original"
        )
    mask = draw(image.marks, height, width)
    if not mask.any():
        raise DataError(
            f"{coco}: nothing is marked on {image.name}; draw its outline again, or take its "
            "annotations out"
        )
    if mask.all():
        raise DataError(
            f"{coco}: the whole of {image.name} is marked; outline the lesion alone, or take its "
            "annotations out"
        )
    return mask


def _read_csv(root: Path) -> pd.DataFrame:
    """Return the rows of dataset.csv, str, indexed by their line (the header is 1), checked."""
    if not root.is_dir():
        raise DataError(f"data.root={root} is no folder; give FracAtlas's own, with {CSV} in it")
    csv = root / CSV
    if not csv.is_file():
        raise look_around(root, lambda folder: (folder / CSV).is_file()) or DataError(
            f"{csv} is missing; data.root is the unpacked folder FracAtlas, with {CSV} in it"
        )
    flags = [*BODY_PARTS, "hardware", "fractured"]
    rows = read_csv(csv, ["image_id", *flags, "fracture_count"])
    for name, valid, wanted in [
        *((name, r"[01]", "0 or 1") for name in flags),
        ("fracture_count", r"\d+", "a whole number"),
        ("image_id", r"[^/\\]+", "a file name"),
    ]:
        wrong = rows[~rows[name].str.fullmatch(valid)]
        if len(wrong):
            row = wrong.iloc[0]
            raise DataError(
                f"{csv}, row {row.name}: {name} of {row['image_id']} is {row[name]!r}; use {wanted}"
            )
    twice = rows[rows["image_id"].duplicated()]
    if len(twice):
        row = twice.iloc[0]
        raise DataError(f"{csv}, row {row.name}: {row['image_id']} is listed twice; list it once")
    return rows


def _list_images(root: Path) -> dict[str, str]:
    """Return the folder of each image by its name; macOS's ``._`` files are no images."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        try:
            names = sorted(os.listdir(root / "images" / folder))
        except OSError as error:
            raise DataError(
                f"{root / 'images' / folder} cannot be listed ({error.strerror}); unpack the "
                "archive again"
            ) from error
        for name in names:
            if name.startswith("."):
                continue
            if name in found:
                raise DataError(
                    f"{root}: {name} lies in images/Fractured and in images/Non_fractured; keep one"
                )
            found[name] = folder
    return found


def _settle_labels(rows: pd.DataFrame, by_folder: pd.Series, csv: Path) -> pd.Series:
    """Return int labels: the folder's, which ``fractured`` or at least the count must confirm."""
    by_column = rows["fractured"].astype(int)
    by_count = (rows["fracture_count"].astype(int) > 0).astype(int)
    for number in rows.index[(by_column != by_folder) | (by_count != by_folder)]:
        row, folder = rows.loc[number], ("Non_fractured", "Fractured")[by_folder[number]]
        what = (
            f"{csv}, row {number}: {row['image_id']} has fractured={row['fractured']} and "
            f"fracture_count={row['fracture_count']} but lies in images/{folder}"
        )
        if by_column[number] != by_folder[number] and by_count[number] != by_folder[number]:
            raise DataError(f"{what}; move the file or correct the row")
        log.warning("%s; taken as %s", what, folder)
    return by_folder
