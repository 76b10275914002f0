"""Judge a folder of anybody's maps; what a run's maps are put through, but for the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datamodules.index import DataError
from datamodules.radiographs import RadiographDataModule
from experiments.build import build_data
from experiments.config import load_config
from experiments.evaluation.foreign_maps import (
    PLAIN,
    Files,
    check_folder,
    check_maps,
    choose_maps,
    find_maps,
)
from experiments.evaluation.judge import IDS, Judged, lesion_area, lesion_of
from experiments.evaluation.map_files import read_map
from experiments.evaluation.map_rows import MapRecorder, one_thread
from experiments.evaluation.run import Evaluation, notes, with_thresholds

Chosen = dict[str, dict[int, Path]]
"""Of each method, the file of each row of the index table."""


def evaluate_maps(
    folder: Path, split: str, overrides: list[str], out: Path | None = None
) -> Evaluation:
    """Judge the maps in ``folder`` against the lesion masks of ``split``, with val's thresholds.

    Args:
        folder: Laid out as the data set below ``data.root``, see :mod:`foreign_maps`.
        split: test or val.
        overrides: ``key=value`` words of ``data.*`` and ``lesions.*``.
        out: Where ``<split>/`` is to be written; None: ``<folder>.evaluation`` beside it.

    Raises:
        DataError: The folder or a map does not keep the contract, the split has no lesion mask, or
            the results cannot be written or would lie in the folder of maps.
        ConfigError: A word is unknown or of a wrong value.
    """
    config = load_config("stage1", overrides)
    target = _target(folder, out) / split
    check_folder(folder)
    data = build_data(config)
    if folder.resolve() == data.root.resolve():
        raise DataError(f"--maps {folder} is data.root, whose images are no maps; give another one")
    data.prepare_data()
    data.setup()
    rows, tuning_rows = (masked_rows(data, name) for name in (split, "val"))
    if not len(rows):
        raise DataError(
            f"no image in {split} has a lesion mask: there is nothing to judge maps by; "
            "lesions.path=... adds masks"
        )
    found = find_maps(folder, data.table["path"].tolist())
    chosen = _choose(found, data, folder, data.rows_of(split))
    tuning = _choose(found, data, folder, tuning_rows) if _any_of(found, data, tuning_rows) else {}
    constant = check_maps(_sizes(found, data, split))
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written ({error.strerror}); choose another folder with --out"
        ) from error
    judged = judge_maps(data, chosen, split)
    val = judged if split == "val" else judge_maps(data, tuning, "val", tuning=True)
    thresholds = {
        name: val.maps[name].best_threshold() if name in val.maps else float("nan")
        for name in judged.maps
    }
    table, maps = with_thresholds(judged, thresholds)
    said = _notes(found, chosen, data, split, constant)
    if tuning:
        said += notes(val.table, table, split, None)
    else:
        why = f"{folder} holds no map of val" if len(tuning_rows) else "no lesion mask in val"
        said.append(
            f"{why}: no threshold can be tuned; IoU, Dice and what is shown on normal images are "
            "null (IoU at Otsu's threshold and the upper bounds are not)"
        )
    about = {"maps": str(folder), "data": config.data.name, "split": split}
    if config.data.split == "image":
        about["leaks"] = "split by image"
    return Evaluation(folder, target, config, about, table, maps, None, thresholds, {}, said)


def judge_maps(
    data: RadiographDataModule, chosen: Chosen, split: str, tuning: bool = False
) -> Judged:
    """Put maps against the lesion masks, as :func:`judge.judge` does with those of a network.

    Args:
        data: The data module, set up.
        chosen: Of each method the files of the same rows.
        split: For the progress bar.
        tuning: They only decide on thresholds, see :class:`map_rows.MapRecorder`.
    """
    recorders = {name: MapRecorder(name, tuning) for name in chosen}
    rows = list(next(iter(chosen.values()), {}))
    areas = []
    with one_thread():
        for row in tqdm(rows, desc=f"{split} maps", unit=" images", leave=False, disable=None):
            lesion = lesion_of(data, row)
            areas.append(lesion_area(lesion))
            for name, recorder in recorders.items():
                shown = read_map(chosen[name][row], data.original_size(row))
                recorder.add(torch.from_numpy(shown)[None, None], lesion)
    table = data.table.loc[rows, IDS].assign(lesion_area=np.array(areas))
    maps = {name: recorder.finish() for name, recorder in recorders.items()}
    return Judged(table.reset_index(drop=True), maps, {})


def masked_rows(data: RadiographDataModule, split: str) -> np.ndarray:
    """Index rows of a split that have a lesion mask."""
    rows = data.rows_of(split)
    return rows[(data.table["lesion_mask"].iloc[rows] != "").to_numpy()]


def _target(folder: Path, out: Path | None) -> Path:
    whole = folder.resolve()  # "." has no name to put anything beside
    if out is None:
        return whole.with_name(f"{whole.name}.evaluation")
    if whole in (out.resolve(), *out.resolve().parents):
        raise DataError(
            f"--out {out} lies in the folder of maps, where results would be taken for maps; "
            "choose another one"
        )
    return out


def _any_of(found: Files, data: RadiographDataModule, rows: np.ndarray) -> bool:
    paths = data.table["path"].iloc[rows]
    return any(image in files for files in found.values() for image in paths)


def _choose(found: Files, data: RadiographDataModule, folder: Path, rows: np.ndarray) -> Chosen:
    """The files of these rows that are judged: of every method those of the same images."""
    chosen = {name: choose_maps(files, data.table, folder, rows) for name, files in found.items()}
    (first, files), *others = chosen.items()
    for name, other in others:
        if lone := other.keys() ^ files.keys():
            raise DataError(
                f"{folder}: {first} has {len(files)} maps, {name} {len(other)} (only one of them "
                f"has {data.table['path'][min(lone)]}); methods are compared on the same images: "
                "add what is missing, or take these maps out"
            )
    return chosen


def _sizes(found: Files, data: RadiographDataModule, split: str) -> dict[Path, tuple[int, int]]:
    """The files of val and of the split, with the sizes that they must have."""
    paths = data.table["path"][data.table["split"].isin(["val", split])]
    return {
        files[image]: data.original_size(int(row))
        for files in found.values()
        for row, image in zip(paths.index, paths, strict=True)
        if image in files
    }


def _notes(
    found: Files, chosen: Chosen, data: RadiographDataModule, split: str, constant: set[Path]
) -> list[str]:
    """What a reader must know of these maps, a sentence each."""
    said = []
    rows = data.table.iloc[data.rows_of(split)]
    for label, kind in ((1, "abnormal images without a lesion mask"), (0, "normal images")):
        group = rows[(rows["label"] == label) & (rows["lesion_mask"] == "")]
        if len(group) and not group.index.isin([*next(iter(chosen.values()))]).any():
            said.append(
                f"no map of the {len(group)} {kind} in {split}: what is shown there is null"
            )
    for name, files in chosen.items():
        flat = [row for row, path in files.items() if path in constant]
        if flat:
            missed = int((data.table["lesion_mask"].loc[flat] != "").sum())
            said.append(
                f"{len(flat)} of {len(files)} maps{'' if name == PLAIN else f' of {name}'} are of "
                f"one value, which points nowhere: {missed} misses, the others are of images "
                "without a lesion mask"
            )
    unread = data.table["path"][~data.table["split"].isin(["val", split])]
    if count := sum(image in files for files in found.values() for image in unread):
        where = "not in val" if split == "val" else f"in neither val nor {split}"
        said.append(f"{count} maps of images that are {where} were not read")
    return said
