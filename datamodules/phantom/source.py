"""The phantom: synthetic radiographs drawn on first use, in MURA's own tree and CSVs.

Whoever has no MURA yet can run every stage on it. Below ``data.root``::

    MURA-v1.1/train/XR_HAND/patient00001/study1_positive/image1.png   and the four CSVs
    lesions/lesions.csv, lesions/masks/...                            exact masks of all lesions
    phantom.json                                                      what was drawn
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
from tqdm import tqdm

from datamodules import index
from datamodules.files import locked, whole_folder
from datamodules.index import DataError
from datamodules.lesions import CSV as LESIONS_CSV
from datamodules.lesions import Lesion, attach_lesions, write_lesions
from datamodules.mura import CSVS, IMAGES_CSV, STUDIES_CSV, read_mura_tree
from datamodules.options import Data
from datamodules.phantom.drawing import VERSION, Case, case, draw
from datamodules.radiographs import RadiographDataModule

MURA = "MURA-v1.1"
NOTE = "phantom.json"
# Bytes an image takes on disk with its mask, generously: small files fill whole blocks.
BYTES = 64 * 1024


class PhantomDataModule(RadiographDataModule):
    """Synthetic radiographs of seven body parts, about 45 % abnormal, with a mask for every lesion.

    ``data.count`` images are drawn, train and test together, by ``data.seed``.
    """

    name = "phantom"
    default_image_size = 160
    shows_people = False
    licence = "MIT, as this project: drawings, no patient's images"

    def __init__(self, data: Data, *more: Any, **others: Any) -> None:
        super().__init__(data, *more, **others)
        self.count = data.count
        self.bytes_on_disk = data.count * BYTES

    @classmethod
    def default_root(cls, data: Data) -> str:
        """A folder a drawing: another seed or count never meets the one that is there."""
        return str(Path("data") / f"phantom-{data.count}-seed{data.seed}")

    def is_drawn(self) -> bool:
        """Whether the tree is there; a DataError where other things are. Nothing is written."""
        return _is_drawn(self.root, _wanted(self.seed, self.count))

    def prepare_source(self) -> None:
        """Draw the tree, unless it is there."""
        draw_tree(self.root, self.seed, self.count)

    def build_index(self) -> pd.DataFrame:
        """Read the tree as MURA is read; every abnormal image has a mask."""
        try:
            table = index.assign_val(read_mura_tree(self.root), self.seed)
            table = attach_lesions(table, self.lesions_path or self.root / "lesions", self.root)
        except DataError as error:
            if self.lesions_path:
                raise
            # What is wrong, without the remedy at its end, which is for data that was downloaded.
            what = str(error).partition(". Fix: ")[0]
            raise DataError(
                f"the phantom is damaged: {what}. Fix: delete {self.root} to have it drawn anew"
            ) from error
        return table.assign(hardware=(table["lesion_type"] == "hardware").astype(int))

    def fingerprint(self) -> list[Path]:
        """The CSVs and the note of what was drawn."""
        return [*_csvs(self.root), self.root / NOTE]


def draw_tree(root: Path, seed: int, count: int) -> None:
    """Draw ``count`` images below ``root``, unless they are there; one of two processes waits."""
    wanted = _wanted(seed, count)
    if _is_drawn(root, wanted):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.parent / f".{root.name}.lock") as alone:
            if _is_drawn(root, wanted):
                return
            with whole_folder(root, alone) as draft:
                _fill(draft, wanted)
    except OSError as error:
        if _is_drawn(root, wanted):  # without locks: another process was first
            return
        raise DataError(
            f"the phantom cannot be drawn into data.root={root} ({error.strerror or error}). Fix: "
            "choose another data.root, or make room and write access there"
        ) from error


def image_path(about: Case, split: str) -> str:
    """The path of an image in MURA's tree."""
    label = "positive" if about.label else "negative"
    return (
        f"{MURA}/{split}/XR_{about.body_part.upper()}/patient{about.patient:05d}/"
        f"study{about.visit}_{label}/image{about.view + 1}.png"
    )


def _wanted(seed: int, count: int) -> dict[str, int]:
    return {"seed": seed, "count": count, "version": VERSION}


def _csvs(root: Path) -> list[Path]:
    return [*(root / MURA / name for name in CSVS), root / "lesions" / LESIONS_CSV]


def _hash_csvs(root: Path) -> str:
    texts = (path.read_bytes() if path.is_file() else b"missing" for path in _csvs(root))
    return index.digest(*texts)[:16]


def _is_drawn(root: Path, wanted: dict[str, int]) -> bool:
    """Whether ``root`` holds the wanted phantom; anything else in it is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        note = json.loads((root / NOTE).read_text())
    except (OSError, ValueError):
        note = {}
    if note != wanted | {"csv_hash": _hash_csvs(root)}:
        state = f"holds another phantom ({note})" if note else "is no phantom and not empty"
        raise DataError(
            f"data.root={root} {state}: expected an empty folder, or {wanted} as it was drawn. "
            "Fix: choose another data.root, or delete an old phantom to have it drawn anew"
        )
    return True


def _fill(folder: Path, wanted: dict[str, int]) -> None:
    """Write images, CSVs, lesion masks and, last, the note."""
    seed, count = wanted["seed"], wanted["count"]
    cases = [case(seed, number) for number in range(count)]
    patients = [f"{about.patient:05d}" for about in cases]
    table = pd.DataFrame({"patient": patients, "label": [about.label for about in cases]})
    splits = index.assign_groups(table, seed, (0.8, 0.0, 0.2))["split"]
    if splits.nunique() < 2:
        raise DataError(
            f"data.count={count} images are of too few patients for a train and a test split. Fix: "
            "use a larger data.count"
        )
    paths = [
        image_path(about, "valid" if split == "test" else "train")
        for about, split in zip(cases, splits, strict=True)
    ]
    for study in {path.rpartition("/")[0] for path in paths}:
        (folder / study).mkdir(parents=True)
    write_lesions(folder / "lesions", _draw_images(folder, seed, paths))
    for split in ("train", "valid"):
        images = sorted(path for path in paths if path.startswith(f"{MURA}/{split}/"))
        studies = sorted({path.rpartition("/")[0] for path in images})
        rows = [f"{study}/,{int(study.endswith('positive'))}" for study in studies]
        for name, lines in ((IMAGES_CSV, images), (STUDIES_CSV, rows)):
            (folder / MURA / name.format(split)).write_text("".join(f"{x}\n" for x in lines))
    note = {**wanted, "csv_hash": _hash_csvs(folder)}
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n")


def _draw_images(folder: Path, seed: int, paths: list[str]) -> Iterator[Lesion]:
    """Draw and write all images; yield the lesion of each abnormal one."""
    progress = tqdm(paths, "drawing the phantom", unit=" images", leave=False, disable=None)
    for number, path in enumerate(progress):
        drawing = draw(seed, number)
        # Not cv2.imwrite: on a full disk it only returns False.
        (folder / path).write_bytes(cv2.imencode(".png", drawing.image)[1].tobytes())
        if drawing.label:
            yield Lesion(path, drawing.mask, drawing.lesion_type)
