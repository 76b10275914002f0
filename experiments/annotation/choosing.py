"""Which images are worth a lesion mask: spread over patients, body parts and studies.

At random, or by a run: the greedy core set (Sener & Savarese, ICLR 2018, algorithm 1) among the
less certain half of each body part. Uncertainty alone would draw images that are alike, coverage
alone odd ones.
"""

import argparse
import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor
from tqdm import tqdm

from datamodules.batches import to_model_input
from datamodules.decode import decode
from datamodules.index import SPLITS, DataError, digest
from datamodules.lesions import LEFT_OUT
from datamodules.radiographs import RadiographDataModule
from experiments.annotation.package import check_new, fill, index_words, outline, write_package
from experiments.build import Run, build_data, open_run
from experiments.config import load_config
from experiments.runs import RunError
from lightning_modules.stage1 import Stage1Classifier

log = logging.getLogger(__name__)
# Share of the map's scale that is outlined where val tuned no threshold: without lesion masks,
# which whoever chooses what to annotate may not have yet.
HALF = 0.5


class Look(NamedTuple):
    """What a network makes of images, in their order, float32."""

    features: np.ndarray  # (N, C), the encoder's last ones, averaged over positions
    # (N,), log odds of abnormal: not the probability, which on train images rounds to 1.0.
    odds: np.ndarray


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Choose images, write their package and print what to do; return the exit status."""
    if options.count < 1:
        raise DataError(f"--count {options.count}: choose one image or more")
    if options.outlines and not options.run:
        raise DataError("--outlines are of a run's map: add --run RUN_DIR")
    check_new(options.out)
    opened: Run | None = None
    look: Look | None = None
    if options.run:
        opened = _open(options.run, settings)
        config, data = opened.config, opened.data
        pool = _pool(data.table, options)
        look = look_at(opened.module, data, pool.index.to_numpy())
        pool["probability_abnormal"] = expit(look.odds)
    else:
        config = load_config("stage1", settings)
        data = build_data(config)
        data.prepare_source()
        pool = _pool(data.checked_index(), options)
        if data.on_unreadable == "skip":  # a run's cache has left them out already
            pool = _readable(pool, options.count, data)
    places, unsure = choose_images(pool, options.count, data.seed, look)
    chosen = pool.iloc[places].rename(columns={"path": "image"})
    chosen["reason"] = np.where(unsure, "uncertain", "certain") if look else "random"
    chosen["outlines"], maker, shown = [[] for _ in places], "", {}
    if opened and options.outlines:
        method = opened.module.best_map
        decisions, maker = opened.decisions(), f"{opened.module.stage} {method}"
        tuned = decisions[0]["fitted"].get("maps", {}) if decisions else {}
        threshold = tuned.get(method, {}).get("threshold")
        shown = {"method": method, "threshold": threshold or HALF, "is_tuned": bool(threshold)}
        maps = maps_of(opened.module, data, method, chosen.index.to_numpy())
        chosen["outlines"] = [outline(one, threshold or HALF) for one in maps]
    words = [f"data.name={data.name}", *index_words(config)]
    # The package goes to others: without this machine's path, as data.root in its README.txt.
    table = "data.table=/path/to/the/table"
    portable = [table if word.startswith("data.table=") else word for word in words]
    write_package(options.out, data.root, chosen, maker, portable)
    back = ["--mapping", str(options.out / "mapping.csv"), words[0], f"data.root={data.root}"]
    text = fill(
        "selection.txt",
        options=options,
        data=data,
        chosen=chosen,
        free=(~pool["masked"]).sum(),
        map=shown,
        back=shlex.join([*back, *words[1:]]),
    )
    print(text)
    return 0


def _open(run: Path, settings: list[str]) -> Run:
    """Open a run that can choose; ``settings`` may change paths, workers and ``lesions.*``."""
    opened = open_run(run, settings, ("data.batch_size", "lesions."))
    if not opened.module.classifies or not opened.data.judges_as(opened.trained_on):
        raise RunError(
            f"{opened.folder} cannot choose: expected a run that classifies, and was trained on "
            f"the images and splits of {opened.data.root}. Fix: name a stage 1 run on these data"
        )
    return opened


def _pool(table: pd.DataFrame, options: argparse.Namespace) -> pd.DataFrame:
    """The abnormal images of the split, and which of them are not to be chosen (``masked``)."""
    # What a run with folds leaves out of training is of train to others.
    table = table.assign(split=table["split"].replace(LEFT_OUT, "train"))
    wanted = table["split"].isin(SPLITS if options.split == "all" else [options.split])
    pool = table[(table["label"] == 1) & wanted].assign(probability_abnormal=np.nan)
    pool["masked"] = (pool["lesion_mask"] != "") & (not options.masked)
    if pool["masked"].all():
        raise DataError(
            f"all {len(pool):,} abnormal images (--split {options.split}) have a lesion mask "
            "already. Fix: another --split, or --masked to choose from these, too"
        )
    return pool


def _readable(pool: pd.DataFrame, count: int, data: RadiographDataModule) -> pd.DataFrame:
    """The pool without images that would be chosen but cannot be read."""
    while len(paths := pool["path"].iloc[choose_images(pool, count, data.seed)[0]]):
        faulty = []
        for path in paths:
            try:
                decode(data.root / path)
            except DataError as error:
                log.warning("left out, it cannot be read: %s", error)
                faulty.append(path)
        if not faulty:
            return pool
        pool = pool[~pool["path"].isin(faulty)]
    raise DataError("none of the abnormal images could be read. Fix: check data.root")


def choose_images(
    table: pd.DataFrame, count: int, seed: int, look: Look | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pick at most ``count`` images to draw lesions on, in the order in which they are worth it.

    At each step: of the patients with fewest images that are masked or chosen; of the body part
    with fewest; of the study with fewest; with ``look`` of the less certain half of its body part,
    and of these the farthest from what is masked or chosen. What ties is decided by hash, so that
    the order of ``table`` does not matter. The choice of fewer images begins that of more.

    ``table`` holds abnormal images: path, patient, study, body_part, and bool ``masked``: is not
    picked, but counts for its patient, body part and study. Returns places in it, int64 ``(n,)``,
    and bool ``(n,)``: of the less certain half.
    """
    keys = [digest(f"{seed}/{path}") for path in table["path"]]
    rank = np.argsort(np.argsort(keys))
    groups = [pd.factorize(table[name])[0] for name in ("patient", "body_part", "study")]
    taken = [np.zeros(len(table), int) for _ in groups]
    farness = np.full(len(table), np.inf)
    margin = np.abs(look.odds) if look else np.zeros(len(table))
    free = ~table["masked"].to_numpy(bool)

    def take(place: int) -> None:
        for group, counts in zip(groups, taken, strict=True):
            counts[group[place]] += 1
        if look:
            apart = np.linalg.norm(look.features - look.features[place], axis=1)
            np.minimum(farness, apart, out=farness)

    for place in np.flatnonzero(~free).tolist():
        take(place)
    # The more certain half of each body part's free images; of an odd number the smaller half.
    order = pd.DataFrame({"part": groups[1], "margin": margin, "rank": rank})[free]
    parts = order.sort_values(["margin", "rank"]).groupby("part")["part"]
    is_certain = parts.cumcount() >= (parts.transform("size") + 1) // 2
    certain = np.isin(np.arange(len(table)), is_certain.index[is_certain]) | (look is None)
    chosen: list[int] = []
    while len(chosen) < count and free.any():
        left = np.flatnonzero(free)
        fewest = [counts[group] for group, counts in zip(groups, taken, strict=True)]
        # Until something is taken, all are equally far, and the margin decides.
        for values in (*fewest, certain, -farness, margin, rank):
            left = left[values[left] == values[left].min()]
        chosen += left.tolist()
        free[left] = False
        take(chosen[-1])
    places = np.array(chosen, dtype=np.int64)
    return places, ~certain[places]


@torch.inference_mode()
def look_at(module: Stage1Classifier, data: RadiographDataModule, rows: np.ndarray) -> Look:
    """Features and class scores of index rows, in their order."""
    features, scores = [], []
    for _, image in _batches(module, data, rows, "looking at images"):
        last, share = module.features(image)
        features.append(last.float().mean((2, 3)).cpu())
        scores.append(module.classify(last, share).cpu())
    both = torch.cat(scores)
    if not both.isfinite().all():
        raise RunError("the run's class scores are NaN or infinite: it diverged. Fix: another run")
    return Look(torch.cat(features).numpy(), (both[:, 1] - both[:, 0]).numpy())


def maps_of(
    module: Stage1Classifier, data: RadiographDataModule, method: str, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """A map of each index row, float32 ``(H, W)`` in [0, 1], at the original size."""
    for places, image in _batches(module, data, rows, "outlining maps"):
        with torch.inference_mode():
            squares = module.maps(image)[method].cpu().numpy()
        for row, square in zip(places, squares, strict=True):
            yield data.to_original(square[0], int(row))


def _batches(
    module: Stage1Classifier, data: RadiographDataModule, rows: np.ndarray, what: str
) -> Iterator[tuple[np.ndarray, Tensor]]:
    starts = range(0, len(rows), data.batch_size)
    for start in tqdm(starts, desc=what, unit=" batches", leave=False, disable=None):
        part = rows[start : start + data.batch_size]
        squares = np.stack([data.pixels.image(int(row)) for row in part])
        yield part, to_model_input(torch.from_numpy(squares)[:, None].to(module.device))
