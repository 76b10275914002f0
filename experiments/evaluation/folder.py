"""A folder of anybody's maps, judged as a run's are, but for the network; see docs/evaluation.md.

A map is called as ``predict`` calls it, ``<image's path below data.root>.<method>.png`` or
``.npy``.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from datamodules.annotations.fields import list_files
from datamodules.decode import check_png, damaged, read_content
from datamodules.index import DataError
from datamodules.radiographs import RadiographDataModule
from experiments.build import build_data
from experiments.config import load_config
from experiments.evaluation.judge import Judged, one_thread
from experiments.evaluation.run import Evaluation, assemble

NAME = re.compile(r"(?P<image>.+)\.(?P<method>[\w+-]+)\.(png|npy)", re.ASCII)
SHOWN = 3  # faults or names that are listed
# Values may leave [0, 1] by so much (interpolation rounds); they are cut.
ROUNDING = 1e-6

Files = dict[str, dict[str, Path]]  # of each method, each image's file, by its path in the index


def evaluate_maps(folder: Path, split: str, overrides: list[str], out: Path | None) -> Evaluation:
    """Judge the maps in ``folder`` against the lesion masks of a split, with val's thresholds.

    Results belong into ``<split>/`` of ``out``, by default ``<folder>.evaluation`` beside it.
    """
    config = load_config("stage1", overrides)
    whole = folder.resolve()  # "." has no name to put anything beside
    target = (out or whole.with_name(f"{whole.name}.evaluation")) / split
    if not folder.is_dir():
        raise DataError(f"--maps {folder} is no folder. Fix: give the one that holds the maps")
    data = build_data(config)
    data.prepare_data()
    data.setup()
    table, of_val = (data.table.iloc[data.rows_of(name)] for name in (split, "val"))
    if split != "val":
        of_val = of_val[of_val["lesion_mask"] != ""]
    if (table["lesion_mask"] == "").all():
        raise DataError(f"no image in {split} has a lesion mask. Fix: lesions.path=... adds masks")
    files = find_maps(folder, data.table["path"].tolist())
    tuned = any(image in maps for maps in files.values() for image in of_val["path"])
    rows, val_rows = choose_rows(files, table), choose_rows(files, of_val) if tuned else []
    val = _judge(data, files, val_rows, "val", tuning=split != "val")
    judged = val if split == "val" else _judge(data, files, rows, split)
    notes = [
        f"no map of the {len(group)} {kind} in {split}: what is shown there is null"
        for kind, group in _kinds(table).items()
        if len(group) and not group.index.isin(rows).any()
    ]
    about = {"maps": str(folder), "data": config.data.name, "split": split}
    return assemble((folder, target), config, about, val, judged, notes)


def find_maps(folder: Path, images: Sequence[str]) -> Files:
    """Which file in ``folder`` is the map of which of all ``images``; nothing is opened."""
    files: Files = {}
    surplus: list[str] = []
    indexed = set(images)
    for path in list_files(folder, ""):  # links too, no hidden files
        name = path.relative_to(folder).as_posix()
        match = NAME.fullmatch(name)
        # Columns of the table of images begin with "lesion", those of a method with its name.
        if not match or match["image"] not in indexed or match["method"] == "lesion":
            surplus.append(name)
            continue
        other = files.setdefault(match["method"], {}).setdefault(match["image"], path)
        if other != path:
            raise DataError(f"{other} and {path} are both maps of {match['image']}. Fix: keep one")
    if surplus or not files:
        some = ", ".join(surplus[:SHOWN])
        raise DataError(
            f"--maps {folder}: expected maps alone, got {len(surplus)} other files ({some}) and "
            f"maps of {len(files)} methods. Fix: call each map as its image below data.root, such "
            f"as {images[0]}.mine.png"
        )
    return files


def choose_rows(files: Files, table: pd.DataFrame) -> list[int]:
    """Which of these rows of the index table are judged: the same ones for every method.

    Images with a lesion mask must all have a map; of the normal ones, and of the abnormal ones
    without a mask, all or none: they are judged for whether anything is shown on them.
    """
    mapped = pd.DataFrame({name: table["path"].isin([*maps]) for name, maps in files.items()})
    masked = table[table["lesion_mask"] != ""]
    for kind, group in {"images with a lesion mask": masked, **_kinds(table)}.items():
        maps = mapped.loc[group.index]
        lacking = group["path"][~maps.all(axis=1)]
        if len(lacking) and (group is masked or maps.any(axis=None)):
            some, split = ", ".join(lacking[:SHOWN]), table["split"].iloc[0]
            fix = "" if group is masked else f", or leave all {len(group)} out"
            raise DataError(
                f"{' and '.join(files)}: no map of {len(lacking)} of the {len(group)} {kind} in "
                f"{split}, such as {some}. Fix: make them{fix}"
            )
    return table.index[mapped.all(axis=1)].tolist()


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a map of an upright image of this size, float32 ``(H, W)`` in [0, 1]."""
    if path.suffix == ".npy":
        kind, dtypes = "floating point", "f"
        try:
            # Nothing in a file is executed, and what a damaged header claims is not allocated.
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: is no .npy of numbers ({error}). Fix: np.save it") from error
    else:
        kind, dtypes = "grey of 8 or 16 bits", "u"
        data = read_content(path)
        check_png(data, path)
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if stored is None:
            raise damaged(path, "it cannot be decoded")
    if stored.dtype.kind not in dtypes or stored.shape != size:
        raise DataError(
            f"{path}: expected {kind} of {size[1]}x{size[0]} px (width x height), as its image is "
            f"upright, got {stored.dtype} of the shape {stored.shape}. Fix: make it of the whole "
            f"image, nothing cropped or added, then cv2.resize(map, {size[::-1]})"
        )
    values = np.array(stored)
    if dtypes == "u":
        values = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    low, high = float(values.min()), float(values.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN is neither
        raise DataError(
            f"{path}: expected values in [0, 1], got {low:.3g} to {high:.3g}. Fix: scale the maps, "
            "all alike"
        )
    return values.clip(0, 1).astype(np.float32)


def _judge(
    data: RadiographDataModule, files: Files, rows: list[int], split: str, tuning: bool = False
) -> Judged:
    judged = Judged(data, list(files), tuning)
    faults: list[str] = []
    with one_thread():
        for row in tqdm(rows, desc=f"{split} maps", unit=" images", leave=False, disable=None):
            image, size = data.table["path"][row], data.original_size(row)
            try:
                shown = {name: read_map(maps[image], size) for name, maps in files.items()}
            except DataError as error:
                faults.append(str(error))
            if not faults:  # else the others are only read, to name all that is wrong
                judged.add_image(row, {})
                for name, values in shown.items():
                    judged.add_map(row, name, values)
    if faults:
        listed = "\n  ".join(["such as", *faults[:SHOWN]])
        raise DataError(
            f"maps of {len(faults)} of {len(rows)} {split} images cannot be used, {listed}"
        )
    return judged


def _kinds(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The images without a lesion mask, all or none of which have a map."""
    names = {1: "abnormal images without a lesion mask", 0: "normal images"}
    unmasked = table[table["lesion_mask"] == ""]
    return {name: unmasked[unmasked["label"] == label] for label, name in names.items()}
