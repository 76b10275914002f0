"""A folder of anybody's maps, judged as a run's are, but for the network; see docs/maps.md.

A map is called as ``predict`` calls it, ``<image's path below data.root>.<method>.png`` or
``.npy``.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from datamodules.decode import PNG, check_png
from datamodules.files import usable_cores
from datamodules.index import DataError
from datamodules.radiographs import RadiographDataModule
from experiments.build import build_data
from experiments.config import load_config
from experiments.evaluation.judge import Judged, SplitRecorder, one_thread
from experiments.evaluation.run import Evaluation, leaks, missing, whole_table
from lightning_modules.attention import has_peak

NAME = re.compile(r"(?P<image>.+)\.(?P<method>[\w+-]+)\.(png|npy)", re.ASCII)
# Faults and names that are listed; of the others the number.
SHOWN = 3
# Values may leave [0, 1] by so much (interpolation rounds); they are cut.
ROUNDING = 1e-6

Files = dict[str, dict[str, Path]]
"""Of each method, the file of each image (its path in the index table)."""


def evaluate_maps(
    folder: Path, split: str, overrides: list[str], out: Path | None = None
) -> Evaluation:
    """Judge the maps in ``folder`` against the lesion masks of ``split``, with val's thresholds.

    Args:
        folder: laid out as the data set below ``data.root``.
        split: test or val.
        overrides: ``key=value`` words of ``data.*`` and ``lesions.*``.
        out: where ``<split>/`` is to be written; None: ``<folder>.evaluation`` beside it.
    """
    config = load_config("stage1", overrides)
    whole = folder.resolve()  # "." has no name to put anything beside
    target = (out or whole.with_name(f"{whole.name}.evaluation")) / split
    if whole in target.resolve().parents:
        raise DataError(f"--out {out} lies in the folder of maps; choose another one")
    if not folder.is_dir():
        raise DataError(f"--maps {folder} is no folder; give the one that holds the maps")
    data = build_data(config)
    if whole == data.root.resolve():
        raise DataError(f"--maps {folder} is data.root, whose images are no maps; give another one")
    data.prepare_data()
    data.setup()
    if not len(masked_rows(data, split)):
        raise DataError(
            f"no image in {split} has a lesion mask: there is nothing to judge maps by; "
            "lesions.path=... adds masks"
        )
    files = find_maps(folder, data.table["path"].tolist())
    rows = choose_rows(files, data.table.iloc[data.rows_of(split)], folder)
    of_val = data.table.iloc[masked_rows(data, "val")]
    tuned = any(image in maps for maps in files.values() for image in of_val["path"])
    val_rows = choose_rows(files, of_val, folder) if tuned else []
    constant = check_maps(_sizes(files, data, {*rows, *val_rows}))
    judged = _judge(data, files, rows, split)
    val = judged if split == "val" else _judge(data, files, val_rows, "val", tuning=True)
    thresholds = {
        name: val.maps[name].best_threshold() if tuned else float("nan") for name in files
    }
    table = whole_table(judged, thresholds)
    notes = _notes(files, data, rows, split, constant)
    if tuned:
        notes += missing(val.table, table, split, None)
    else:
        why = f"{folder} holds no map of val" if len(of_val) else "no lesion mask in val"
        notes.append(
            f"{why}: no threshold can be tuned; IoU, Dice and what is shown on normal images are "
            "null (IoU at Otsu's threshold and the upper bounds are not)"
        )
    return Evaluation(
        folder=folder,
        target=target,
        config=config,
        about={"maps": str(folder), "data": config.data.name, "split": split, **leaks(config)},
        table=table,
        maps={name: maps.rows for name, maps in judged.maps.items()},
        fitted=None,
        thresholds=thresholds,
        scales={},
        notes=notes,
    )


def masked_rows(data: RadiographDataModule, split: str) -> np.ndarray:
    """Index rows of a split that have a lesion mask."""
    rows = data.rows_of(split)
    return rows[(data.table["lesion_mask"].iloc[rows] != "").to_numpy()]


def find_maps(folder: Path, images: Sequence[str]) -> Files:
    """Which file in ``folder`` is the map of which of all ``images``; nothing is opened."""
    files: Files = {}
    surplus: list[str] = []
    indexed = set(images)
    for name in _walk(folder):
        match = NAME.fullmatch(name)
        # Columns of the table of images begin with "lesion", those of a method with its name.
        if not match or match["image"] not in indexed or match["method"] == "lesion":
            surplus.append(name)
            continue
        of_method = files.setdefault(match["method"], {})
        other = of_method.setdefault(match["image"], folder / name)
        if other != folder / name:
            raise DataError(
                f"{other} and {folder / name} are both maps of {match['image']}; keep one of them"
            )
    like = f"call each map as its image below data.root, such as {images[0]}.mine.png"
    if surplus:
        raise DataError(f"{folder} holds files of no image: {_first(surplus)}. Fix: {like}")
    if not files:
        raise DataError(f"--maps {folder} holds no file. Fix: {like}")
    return files


def choose_rows(files: Files, rows: pd.DataFrame, folder: Path) -> list[int]:
    """Which of these rows of the index table are judged: the same ones for every method.

    Images with a lesion mask must all have a map; of the normal ones, and of the abnormal ones
    without a mask, all or none: they are judged for whether anything is shown on them.
    """
    (first, maps), *others = files.items()
    for name, other in others:
        lone = [image for image in rows["path"] if (image in maps) != (image in other)]
        if lone:
            raise DataError(
                f"{folder}: only one of {first} and {name} has a map of {_first(lone)}; methods "
                "are compared on the same images: add what is missing, or take these maps out"
            )
    masked, abnormal = rows["lesion_mask"] != "", rows["label"] == 1
    for group, name, optional in (
        (masked, "images with a lesion mask", False),
        (~masked & ~abnormal, "normal images", True),
        (~masked & abnormal, "abnormal images without a lesion mask", True),
    ):
        lacking = [image for image in rows["path"][group] if image not in maps]
        if lacking and not (optional and len(lacking) == group.sum()):
            remedy = f"make them, or leave all {group.sum()} out" if optional else "make them"
            raise DataError(
                f"{folder}: no map of {len(lacking)} of the {group.sum()} {name} in "
                f"{rows['split'].iloc[0]}: {_first(lacking)}; {remedy}"
            )
    return rows.index[rows["path"].isin(list(maps))].tolist()


def check_maps(sizes: dict[Path, tuple[int, int]]) -> set[Path]:
    """Read every map once, so that none is found faulty after minutes of judging.

    Args:
        sizes: file -> height and width of its upright image, pixels.

    Returns:
        Files whose map is constant: allowed, it points nowhere.
    """

    def check(path: Path) -> tuple[bool, str]:
        try:
            values = read_map(path, sizes[path])
        except DataError as error:
            return False, str(error)
        return not has_peak(torch.from_numpy(values)[None, None]).item(), ""

    with ThreadPoolExecutor(usable_cores()) as pool:
        results = dict(zip(sizes, pool.map(check, sizes), strict=True))
    faults = [fault for _, fault in results.values() if fault]
    if len(faults) == 1:
        raise DataError(faults[0])
    if faults:
        listed = "\n  ".join(faults[:SHOWN])
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError(f"{len(faults)} of {len(sizes)} maps cannot be used:\n  {listed}{more}")
    return {path for path, (constant, _) in results.items() if constant}


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a map file, float32 ``(H, W)`` in [0, 1]; DataError: it is not as docs/maps.md says.

    Nothing in a file is run (no pickles), and nothing is allocated before its header is checked.

    Args:
        path: PNG or ``.npy``.
        size: height and width of the upright image, pixels, which the map must have.
    """
    try:
        values = (_read_npy if path.suffix == ".npy" else _read_png)(path, size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    finite = np.isfinite(values)
    if not finite.all():
        raise DataError(
            f"{path}: {values.size - finite.sum():,} of {values.size:,} values are NaN or "
            "infinite; write 0 where nothing is claimed"
        )
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise DataError(
            f"{path}: its values reach from {low:.3g} to {high:.3g}; scale the maps, all alike, "
            "into [0, 1]"
        )
    return values.clip(0, 1).astype(np.float32)


def _read_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(PNG):
        raise DataError(f"{path}: is no whole PNG file; write it again")
    width, height, depth, colour = struct.unpack(">IIBB", header[16:])
    if colour != 0 or depth not in (8, 16):
        raise DataError(f"{path}: is not 8- or 16-bit grey; save the map so")
    _check_size(path, (height, width), size)
    # Of noise, which does not compress, a PNG is hardly larger than its pixels.
    if path.stat().st_size > 2 * height * (width + 1) * depth // 8 + 2**20:
        raise DataError(f"{path}: is far larger than a map of {width}x{height} px; write it again")
    data = path.read_bytes()
    check_png(data, path)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape != size:  # OpenCV has told the reason on stderr
        raise DataError(f"{path}: damaged image (its content cannot be decoded); write it again")
    return pixels.astype(np.float32) / np.float32(2**depth - 1)


def _read_npy(path: Path, size: tuple[int, int]) -> np.ndarray:
    fix = "Fix: np.save(file, map.astype(np.float32))"
    try:
        values = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # the header is a stranger's text, parsed in many ways
        raise DataError(
            f"{path}: is no whole .npy file of numbers ({str(error)[:80]}). {fix}"
        ) from error
    if values.dtype.kind != "f" or values.itemsize > 8:
        raise DataError(f"{path}: holds {values.dtype}, not floats in [0, 1]. {fix}")
    if values.ndim != 2 and (values.ndim != 3 or len(values) != 1):
        raise DataError(f"{path}: has the shape {values.shape}; a map is (H, W), or (1, H, W)")
    _check_size(path, values.shape[-2:], size)
    if path.stat().st_size != values.offset + values.nbytes:
        raise DataError(f"{path}: is longer than its header says; write it again")
    return np.array(values).reshape(size)


def _check_size(path: Path, given: tuple[int, int], wanted: tuple[int, int]) -> None:
    if given != wanted:
        raise DataError(
            f"{path}: is {given[1]}x{given[0]} px, its image upright {wanted[1]}x{wanted[0]} px "
            "(width x height). Fix: make it of the whole upright image (EXIF orientation applied, "
            f"nothing cropped or added) and resize it: cv2.resize(map, {wanted[::-1]})"
        )


def _judge(
    data: RadiographDataModule, files: Files, rows: Iterable[int], split: str, tuning: bool = False
) -> Judged:
    recorder = SplitRecorder(data, list(files), tuning)
    with one_thread():
        for row in tqdm(rows, desc=f"{split} maps", unit=" images", leave=False, disable=None):
            image, size = data.table["path"][row], data.original_size(row)
            lesion = recorder.add_image(row, {})
            shown = {name: read_map(maps[image], size) for name, maps in files.items()}
            recorder.add_maps(shown, lesion)
    return recorder.finish({})


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files below ``folder``, relative, in order; links followed, no hidden ones."""
    places = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in places:  # a link that leads back up
            folders.clear()
            continue
        places.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(name for name in names if name[0] != "."):
            path = Path(place, name)
            if not path.is_file():  # a pipe would be waited for
                raise DataError(f"{path}: is no file (a broken link, or a device); take it out")
            yield path.relative_to(folder).as_posix()


def _sizes(
    files: Files, data: RadiographDataModule, rows: Iterable[int]
) -> dict[Path, tuple[int, int]]:
    """The files of these rows, with the sizes that they must have."""
    return {
        maps[data.table["path"][row]]: data.original_size(row)
        for maps in files.values()
        for row in sorted(rows)
    }


def _notes(
    files: Files, data: RadiographDataModule, rows: list[int], split: str, constant: set[Path]
) -> list[str]:
    """What a reader must know of these maps, a sentence each."""
    notes = []
    table = data.table.iloc[data.rows_of(split)]
    for label, kind in ((1, "abnormal images without a lesion mask"), (0, "normal images")):
        group = table[(table["label"] == label) & (table["lesion_mask"] == "")]
        if len(group) and not group.index.isin(rows).any():
            notes.append(
                f"no map of the {len(group)} {kind} in {split}: what is shown there is null"
            )
    for name, maps in files.items():
        flat = [row for row in rows if maps[table["path"][row]] in constant]
        if flat:
            missed = int((table["lesion_mask"][flat] != "").sum())
            notes.append(
                f"{len(flat)} of {len(rows)} maps of {name} are constant: {missed} misses, the "
                "others are of images without a lesion mask"
            )
    unread = data.table["path"][~data.table["split"].isin(["val", split])]
    if count := sum(image in maps for maps in files.values() for image in unread):
        where = "not in val" if split == "val" else f"in neither val nor {split}"
        notes.append(f"{count} maps of images that are {where} were not read")
    return notes


def _first(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
