"""FracAtlas (Abedeen et al. 2023, doi:10.1038/s41597-023-02432-4), the public archive's own tree.

::

    dataset.csv                                     one row an image
    images/{Fractured,Non_fractured}/IMG0000019.jpg
    Annotations/COCO JSON/COCO_fracture_masks.json  polygons in the upright (EXIF-applied) frame

Upstream gives no patients: numbers run along with examinations, so blocks of 20 consecutive numbers
stand in for them, joined where an image of one block reappears in another.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules import index
from datamodules.annotations.coco import read_coco
from datamodules.annotations.fields import read_only
from datamodules.annotations.marks import draw
from datamodules.decode import decode
from datamodules.files import usable_cores
from datamodules.index import DataError, check_files, check_rows, read_csv
from datamodules.lesions import Lesion, attach_lesions, write_lesions
from datamodules.radiographs import RadiographDataModule

log = logging.getLogger(__name__)

CSV = "dataset.csv"
COCO = "Annotations/COCO JSON/COCO_fracture_masks.json"
FOLDERS = {"Non_fractured": 0, "Fractured": 1}
BODY_PARTS = ["hand", "leg", "hip", "shoulder"]
BLOCK = 20  # consecutive numbers that stand in for a patient
# Upstream shows these images under several numbers, fractured under one and not under another:
# 2886 = 4243, 2998 = 4280, 3034 = 4314 = 4341, 2952 = 4262.
CONTRADICTIONS = {2886, 4243, 2998, 4280, 3034, 4314, 4341, 2952, 4262}
# Near-duplicates: correlation from which a block of an image counts as the same; share of blocks
# that must be. Of 1,389 images, duplicates have a share of 0.57 to 0.94, other pairs up to 0.38.
ALIKE, SHARE = 0.98, 0.5
CONTRAST = 8.0  # standard deviation in grey levels from which a block has structure
FEWEST = 8  # blocks with structure, or nothing is the same
LESION_FORMAT = 2  # raise it when masks are drawn differently, so that older ones are not reused


class FracAtlasDataModule(RadiographDataModule):
    """FracAtlas: hand, leg, hip and shoulder; ``lesions.path`` replaces the outlined fractures."""

    name = "fracatlas"
    default_crop = "content"  # much film is empty, and a median fracture is 0.25 % of the image
    default_contrast = "stretch"  # scans differ in how bright their film is
    licence = "CC BY 4.0 (Abedeen et al., Scientific Data 10, 521, 2023)"
    index_version = LESION_FORMAT
    patients_are = "number blocks"  # nobody knows the patients
    unreadable = "skip"  # 59 upstream JPEGs are cut short

    def build_index(self) -> pd.DataFrame:
        """Read the CSV, settle contradictions, group by number block, draw the split."""
        table = group_duplicates(read_fracatlas_tree(self.root), self.root)
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
        coco, paths = self.root / COCO, {Path(path).name: path for path in table["path"]}
        marking = read_only(read_coco, (".json",), coco)
        if mistakes := marking.mistakes:
            raise DataError(f"{mistakes[0].where}: {mistakes[0].what}")
        outlined = {image.name.rpartition("/")[2]: image for image in marking.images if image.marks}
        shared = [(paths[name], outlined[name]) for name in sorted(outlined.keys() & paths.keys())]
        if not shared:
            raise DataError(f"{coco}: outlines none of the images. Fix: give these images' file")
        key = index.digest(coco.read_bytes(), f"{LESION_FORMAT} {sorted(table['path'])}")[:12]
        folder = self.cache_dir / f"fracatlas-lesions-{key}"
        if folder.is_dir():
            return folder
        # Of the size that the file states: whether the image has it, attach_lesions checks.
        masks = ((path, draw(image.marks, *(image.size or (0, 0)))) for path, image in shared)
        try:
            write_lesions(folder, (Lesion(path, mask) for path, mask in masks))
        except DataError:
            if not folder.is_dir():  # else another process was faster, with the same masks
                raise
        return folder


def read_fracatlas_tree(root: Path) -> pd.DataFrame:
    """Index the archive's tree, checked: a patient is a number block, a study an image."""
    csv, folders = root / CSV, _list_images(root)
    flags = [*BODY_PARTS, "hardware", "fractured"]
    rows = read_csv(csv, ["image_id", *flags, "fracture_count"])
    number = rows["image_id"].str.extract(r"\A[^/\\]*?(\d+)\.[A-Za-z]+\Z")[0]
    no_number = "{image_id}: expected a number in the name, as in IMG0000019.jpg, for the patient"
    no_flag = f"{{image_id}}: expected 0 or 1 in {', '.join(flags)}, and a whole fracture_count"
    is_flag = rows[flags].isin(["0", "1"]).all(axis=1)
    checks = {
        no_flag: ~is_flag | ~rows["fracture_count"].str.fullmatch(r"\d+"),
        no_number: number.isna(),
        "{image_id} is listed twice. Fix: list it once": rows["image_id"].duplicated(),
    }
    check_rows(csv, rows, checks)
    check_files(csv, rows["image_id"], rows["image_id"].isin(folders))
    rows = rows.assign(folder=rows["image_id"].map(folders))
    return pd.DataFrame(
        {
            "path": "images/" + rows["folder"] + "/" + rows["image_id"],
            "label": _settle_labels(rows, csv),
            "patient": "block" + (number.astype(int) // BLOCK).astype(str).str.zfill(4),
            "study": rows["image_id"].str.rpartition(".")[0],
            "body_part": [
                "+".join(part for part in BODY_PARTS if row[part] == "1") or "unknown"
                for row in rows.to_dict("records")
            ],
            "hardware": rows["hardware"].astype(int),
        }
    ).reset_index(drop=True)


def group_duplicates(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Join the blocks of images that show the same, drop those whose labels contradict."""
    pairs = near_duplicates([root / path for path in table["path"]])
    labels = table["label"].groupby(components(len(table), pairs))
    numbers = table["path"].str.extract(r"(\d+)\.[A-Za-z]+$")[0].astype(int)
    doubtful = (labels.transform("nunique") > 1) | numbers.isin(CONTRADICTIONS)
    if doubtful.any():
        examples = ", ".join(table["study"][doubtful])
        notice = "%s: %d near-identical images carry both labels and are left out: %s"
        log.warning(notice, root, doubtful.sum(), examples)
    blocks, names = pd.factorize(table["patient"], sort=True)
    joined = components(len(names), [(blocks[a], blocks[b]) for a, b in pairs])
    return table.assign(patient=names[joined[blocks]])[~doubtful].reset_index(drop=True)


def near_duplicates(paths: list[Path]) -> list[tuple[int, int]]:
    """Find images that show the same, though re-encoded, resized, brightened or partly damaged.

    Each is cut into 8 x 8 blocks of 8 x 8 cells: enough of those in which either has structure must
    be correlated (a shift by 1 %, a turn or a flip goes unnoticed). Returns ascending pairs.
    """
    side, cells = 8, 8
    with ThreadPoolExecutor(usable_cores()) as pool:
        thumbnails = np.stack(list(pool.map(_thumbnail, paths)))
    count = len(thumbnails)
    blocks = thumbnails.reshape(count, side, cells, side, cells).transpose(1, 3, 0, 2, 4)
    blocks = blocks.reshape(side * side, count, cells * cells)
    blocks = blocks - blocks.mean(axis=2, keepdims=True)
    length = np.linalg.norm(blocks, axis=2)
    structured = length >= CONTRAST * cells  # the norm of 64 cells is 8 standard deviations
    blocks = np.where(structured[..., None], blocks / np.maximum(length, 1e-6)[..., None], 0)
    seen = structured.T.astype(np.float32)
    same = np.zeros((count, count), np.int16)
    for block in blocks:
        same += block @ block.T > ALIKE
    either = seen.sum(1)[:, None] + seen.sum(1) - seen @ seen.T
    alike = np.triu((either >= FEWEST) & (same >= SHARE * either), 1)
    return [(int(first), int(second)) for first, second in np.argwhere(alike)]


def components(count: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    """The lowest member of the group that each item is joined to, ``(count,)``."""
    first, second = np.array(pairs, dtype=int).reshape(-1, 2).T
    joined = coo_array((np.ones(len(pairs)), (first, second)), shape=(count, count))
    _, group = connected_components(joined, directed=False)
    return np.unique(group, return_index=True)[1][group]


def _thumbnail(path: Path) -> np.ndarray:
    try:
        return cv2.resize(decode(path), (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    except DataError:  # the cache reports it, here it only resembles nothing
        return np.zeros((64, 64), np.float32)


def _list_images(root: Path) -> dict[str, str]:
    """The folder of each image by its name, without macOS's ``._`` files."""
    files = [path for folder in FOLDERS for path in (root / "images" / folder).glob("[!.]*")]
    if not files:
        what = f"data.root={root}: expected images/Fractured and images/Non_fractured in it"
        raise DataError(f"{what}. Fix: give the unpacked FracAtlas")
    return {path.name: path.parent.name for path in files}


def _settle_labels(rows: pd.DataFrame, csv: Path) -> pd.Series:
    """Return int labels: the folder's, which ``fractured`` or (IMG0003298) the count confirms."""
    by_folder = rows["folder"].map(FOLDERS)
    by_column = rows["fractured"].astype(int) == by_folder
    by_count = (rows["fracture_count"].astype(int) > 0) == by_folder
    what = "{image_id} has fractured={fractured} and fracture_count={fracture_count} but is in "
    what += "images/{folder}"
    check_rows(csv, rows, {what + ". Fix: move it or correct the row": ~by_column & ~by_count})
    for number, row in rows[~(by_column & by_count)].iterrows():
        log.warning("%s, row %d: %s; taken as %s", csv, number, what.format(**row), row["folder"])
    return by_folder
