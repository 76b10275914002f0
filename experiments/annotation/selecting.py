"""A choice of images from end to end: a pool, a choice, a package to draw on, next steps."""

from __future__ import annotations

import argparse
import logging
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.decode import decode
from datamodules.files import usable_cores
from datamodules.index import SPLITS, DataError
from datamodules.lesions import LEFT_OUT
from datamodules.radiographs import RadiographDataModule
from experiments.annotation.choosing import choose_images, look_at, maps_of
from experiments.annotation.describe import fill, index_words
from experiments.annotation.package import check_new, outline, write_package
from experiments.build import Run, build_data, open_run
from experiments.config import load_config
from experiments.runs import RunError

log = logging.getLogger(__name__)
# Share of the map's scale that is outlined where val tuned no threshold: without lesion masks,
# which whoever chooses what to annotate may not have yet.
HALF = 0.5


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Choose, write and print; return the exit status.

    Args:
        options: Of ``experiments.select_lesions``.
        settings: ``key=value`` words.
    """
    for is_wrong, what in (
        (options.count < 1, f"--count {options.count}: choose one image or more"),
        (options.outlines and not options.run, "--outlines are of a run's map: add --run RUN_DIR"),
    ):
        if is_wrong:
            raise DataError(what)
    check_new(options.out)
    opened = look = None
    if options.run:
        opened = _open(options.run, settings)
        config, data, table = opened.config, opened.data, opened.data.table
    else:
        config = load_config("stage1", settings)
        data = build_data(config)
        data.prepare_source()
        if not data.root.is_dir():
            raise DataError(f"data.root={data.root} is no folder; give the data set's own folder")
        table = data.checked_index()
    pool = _pool(table, options.split, options.masked)
    if opened:
        look = look_at(opened.module, data, pool.index.to_numpy())
        pool["probability_abnormal"] = look.probability
    elif data.on_unreadable == "skip":  # a run's cache has left them out already
        pool = _readable(pool, options.count, data)
    places, unsure = choose_images(pool, options.count, data.seed, look)
    if not len(places):
        raise DataError("none of the abnormal images could be read; check data.root")
    chosen = pool.iloc[places].rename(columns={"path": "image"})
    chosen["reason"] = np.where(unsure, "uncertain", "certain") if look else "random"
    outlines, maker = None, ""
    method, threshold, is_tuned = _shown_map(opened) if opened else ("", HALF, False)
    if options.outlines and opened:
        maker = f"{opened.module.stage} {method}"
        maps = maps_of(opened.module, data, method, chosen.index.to_numpy())
        outlines = [outline(shown, threshold) for shown in maps]
    words = [f"data.name={data.name}", *index_words(config)]
    write_package(options.out, data.root, chosen, outlines, maker, words)
    back = ["--mapping", str(options.out / "mapping.csv"), words[0], f"data.root={data.root}"]
    text = fill(
        "selection.txt",
        options=options,
        data=data,
        chosen=chosen,
        free=(~pool["masked"]).sum(),
        where=_named(options.split),
        outlines=[len(own) for own in outlines or []],
        map={"method": method, "threshold": threshold, "is_tuned": is_tuned},
        back=shlex.join([*back, *words[1:]]),
    )
    print(text)
    return 0


def _open(run: Path, settings: list[str]) -> Run:
    """Open a run that can choose; ``settings`` may change paths, workers and ``lesions.*``."""
    opened = open_run(run, settings, ("data.batch_size", "lesions."))
    if not opened.module.classifies:
        raise RunError(
            f"{opened.folder} was trained on lesion masks alone and does not classify: its "
            "uncertainty means nothing; name a stage 1 run"
        )
    if not opened.data.judges_as(opened.trained_on):
        raise RunError(
            f"{opened.folder} was trained on other images than {opened.data.root} holds now, or "
            "they were split otherwise; name the data.root that it had, or train a run on these"
        )
    return opened


def _shown_map(opened: Run) -> tuple[str, float, bool]:
    """The run's best map, the value from which it shows a lesion, whether val tuned it."""
    method = "fcn" if "fcn" in opened.module.judged_maps else "pcam"
    decisions = opened.decisions()
    maps = decisions[0]["fitted"].get("maps", {}) if decisions else {}
    threshold = maps.get(method, {}).get("threshold")
    return method, threshold or HALF, threshold is not None


def _pool(table: pd.DataFrame, split: str, masked: bool) -> pd.DataFrame:
    """The abnormal images of the split, and which of them are not to be chosen (``masked``)."""
    wanted = SPLITS if split == "all" else (split,)
    # What a run with folds leaves out of training is of train to others.
    table = table.assign(split=table["split"].replace(LEFT_OUT, "train"))
    pool = table[(table["label"] == 1) & table["split"].isin(wanted)]
    pool = pool.assign(masked=False if masked else pool["lesion_mask"] != "")
    if pool["masked"].all():
        raise DataError(
            f"all {len(pool):,} abnormal images of {_named(split)} have a lesion mask already; "
            "another --split may have some without, --masked chooses from these (for a second "
            "rater, or to try this out)"
        )
    return pool.assign(probability_abnormal=float("nan"))


def _readable(pool: pd.DataFrame, count: int, data: RadiographDataModule) -> pd.DataFrame:
    """The pool without images that would be chosen but cannot be read."""

    def fault(path: str) -> str:
        try:
            decode(data.root / path)
        except DataError as error:
            return str(error)
        return ""

    tried: dict[str, str] = {}
    with ThreadPoolExecutor(usable_cores()) as workers:
        while True:
            places, _ = choose_images(pool, count, data.seed)
            new = [path for path in pool["path"].iloc[places] if path not in tried]
            tried |= zip(new, workers.map(fault, new), strict=True)
            bad = [path for path in new if tried[path]]
            if not bad:
                return pool
            faults = "\n".join(tried[path] for path in bad)
            log.warning("left out, it cannot be read: %s", faults)
            pool = pool[~pool["path"].isin(bad)]


def _named(split: str) -> str:
    return "train, val and test" if split == "all" else split
