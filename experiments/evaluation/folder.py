"""A folder of anybody's maps, judged as a run's are, but for the network; see docs/evaluation.md.

A map is called as ``predict`` calls it, ``<image's path below data.root>.<method>.png`` or
``.npy``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from datamodules.index import DataError
from datamodules.radiographs import RadiographDataModule
from experiments.build import build_data
from experiments.config import Config, load_config
from experiments.evaluation.judge import Judged, one_thread
from experiments.evaluation.map_file import read_map
from experiments.evaluation.run import Evaluation, leaks, missing, whole_table

NAME = re.compile(r"(?P<image>.+)\.(?P<method>[\w+-]+)\.(png|npy)", re.ASCII)
# Faults and names that are listed; of the others the number.
SHOWN = 3

Files = dict[str, dict[str, Path]]
"""Of each method, the file of each image (its path in the index table)."""


def evaluate_maps(
    folder: Path, split: str, overrides: list[str], out: Path | None = None
) -> Evaluation:
    """Judge the maps in ``folder`` against the lesion masks of a split, with val's thresholds.

    Args:
        folder: laid out as the data set below ``data.root``.
        split: test or val.
        overrides: ``key=value`` words of ``data.*`` and ``lesions.*``.
        out: where ``<split>/`` is to be written; None: ``<folder>.evaluation`` beside it.
    """
    config = load_config("stage1", overrides)
    whole = folder.resolve()  # "." has no name to put anything beside
    target = (out or whole.with_name(f"{whole.name}.evaluation")) / split
    data = _open_data(folder, target, config)
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
    thresholds = {name: maps.best_threshold() for name, maps in val.maps.items()}
    judged_table = whole_table(judged, thresholds)
    notes = _notes(data, files, rows, split)
    for name in files:
        if count := np.isinf(judged_table[f"{name}_distance"]).sum():
            notes.append(f"{count} maps of {name} of images with a lesion are constant: they miss")
    if tuned:
        notes += missing(val.table, judged.table, split, None)
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
        table=judged_table,
        maps={name: maps.rows for name, maps in judged.maps.items()},
        fitted=None,
        thresholds=thresholds,
        scales={},
        notes=notes,
    )


def _open_data(folder: Path, target: Path, config: Config) -> RadiographDataModule:
    data = build_data(config)
    whole = folder.resolve()
    for wrong, message in (
        (not folder.is_dir(), f"--maps {folder} is no folder; give the one that holds the maps"),
        (whole == data.root.resolve(), f"--maps {folder} is data.root, whose images are no maps"),
        (whole in target.resolve().parents, f"--out {target.parent} lies in the folder of maps"),
    ):
        if wrong:
            raise DataError(message)
    data.prepare_data()
    data.setup()
    return data


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
        path = folder / name
        other = files.setdefault(match["method"], {}).setdefault(match["image"], path)
        if other != path:
            raise DataError(f"{other} and {path} are both maps of {match['image']}. Fix: keep one")
    like = f"Fix: call each map as its image below data.root, such as {images[0]}.mine.png"
    if surplus:
        raise DataError(f"{folder} holds files of no image: {_first(surplus)}. {like}")
    if not files:
        raise DataError(f"--maps {folder} holds no file. {like}")
    return files


def choose_rows(files: Files, table: pd.DataFrame) -> list[int]:
    """Which of these rows of the index table are judged: the same ones for every method.

    Images with a lesion mask must all have a map; of the normal ones, and of the abnormal ones
    without a mask, all or none: they are judged for whether anything is shown on them.
    """
    first, *others = files
    mapped = table["path"].isin(list(files[first]))
    for name in others:
        lone = table["path"][mapped != table["path"].isin(list(files[name]))]
        if len(lone):
            raise DataError(
                f"only one of {first} and {name} has a map of {_first(list(lone))}; methods are "
                "compared on the same images. Fix: add what is missing, or take these maps out"
            )
    masked, abnormal = table["lesion_mask"] != "", table["label"] == 1
    for group, name, optional in (
        (masked, "images with a lesion mask", False),
        (~masked & ~abnormal, "normal images", True),
        (~masked & abnormal, "abnormal images without a lesion mask", True),
    ):
        lacking = table["path"][group & ~mapped]
        if len(lacking) and not (optional and len(lacking) == group.sum()):
            fix = f"make them, or leave all {group.sum()} out" if optional else "make them"
            raise DataError(
                f"no map of {len(lacking)} of the {group.sum()} {name} in "
                f"{table['split'].iloc[0]}: {_first(list(lacking))}. Fix: {fix}"
            )
    return table.index[mapped].tolist()


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
                faults.append(f"\n  {error}")
            if not faults:  # else the others are only read, to name all that is wrong
                judged.add_image(row, {})
                for name, values in shown.items():
                    judged.add_map(row, name, values)
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError(
            f"maps of {len(faults)} of {len(rows)} {split} images cannot be used:"
            + "".join(faults[:SHOWN])
            + more
        )
    return judged


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files below ``folder``, relative, in order; links followed, no hidden ones."""
    places = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in places:  # a link that leads back up
            folders.clear()
            continue
        places.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for path in sorted(Path(place, name) for name in names if name[0] != "."):
            if not path.is_file():  # a pipe would be waited for
                raise DataError(f"{path} is no file (a broken link, or a device). Fix: take it out")
            yield path.relative_to(folder).as_posix()


def _notes(data: RadiographDataModule, files: Files, rows: list[int], split: str) -> list[str]:
    """Which images have no map, and which maps were not read."""
    notes = []
    table = data.table.iloc[data.rows_of(split)]
    for label, kind in ((1, "abnormal images without a lesion mask"), (0, "normal images")):
        group = table[(table["label"] == label) & (table["lesion_mask"] == "")]
        if len(group) and not group.index.isin(rows).any():
            notes.append(
                f"no map of the {len(group)} {kind} in {split}: what is shown there is null"
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
