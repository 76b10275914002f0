"""Which images are worth a lesion mask: spread over patients, body parts and studies.

At random, by hashes of ``data.seed`` and paths, or by a run: the greedy core set of Sener &
Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
algorithm 1, among the less certain half of each body part first. Uncertainty alone would draw
images that are alike, coverage alone odd ones.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.decode import decode
from datamodules.files import usable_cores
from datamodules.index import SPLITS, DataError
from datamodules.lesions import LEFT_OUT
from datamodules.radiographs import RadiographDataModule
from experiments.annotation.package import check_new, outline, write_package
from experiments.annotation.showing import fill, index_words
from experiments.build import Run, build_data, open_run
from experiments.config import load_config
from experiments.runs import RunError
from lightning_modules import Stage1Classifier

log = logging.getLogger(__name__)
# Share of the map's scale that is outlined where val tuned no threshold: without lesion masks,
# which whoever chooses what to annotate may not have yet.
HALF = 0.5


class Look(NamedTuple):
    """What a network makes of images, in their order, float32."""

    features: np.ndarray  # (N, C), the encoder's last ones, averaged over positions
    # (N,), distance of the two class scores: 0 is a probability of 0.5. Not the probability: on its
    # train images a network reaches 1.0 by rounding.
    margin: np.ndarray
    probability: np.ndarray  # (N,), of abnormal


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Choose images, write their package and print what to do; return the exit status."""
    if options.count < 1:
        raise DataError(f"--count {options.count}: choose one image or more")
    if options.outlines and not options.run:
        raise DataError("--outlines are of a run's map: add --run RUN_DIR")
    check_new(options.out)
    opened = look = outlines = method = threshold = None
    if options.run:
        opened = _open(options.run, settings)
        config, data, table = opened.config, opened.data, opened.data.table
    else:
        config = load_config("stage1", settings)
        data = build_data(config)
        data.prepare_source()
        table = data.checked_index()
    pool = _pool(table, options.split, options.masked)
    if opened:
        look = look_at(opened.module, data, pool.index.to_numpy())
        pool["probability_abnormal"] = look.probability
    elif data.on_unreadable == "skip":  # a run's cache has left them out already
        pool = _readable(pool, options.count, data)
    places, unsure = choose_images(pool, options.count, data.seed, look)
    chosen = pool.iloc[places].rename(columns={"path": "image"})
    chosen["reason"] = np.where(unsure, "uncertain", "certain") if look else "random"
    if opened and options.outlines:
        method = "fcn" if "fcn" in opened.module.judged_maps else "pcam"
        decisions = opened.decisions()
        tuned = decisions[0]["fitted"].get("maps", {}) if decisions else {}
        threshold = tuned.get(method, {}).get("threshold")
        maps = maps_of(opened.module, data, method, chosen.index.to_numpy())
        outlines = [outline(shown, threshold or HALF) for shown in maps]
    maker = f"{opened.module.stage} {method}" if opened and method else ""
    words = [f"data.name={data.name}", *index_words(config)]
    write_package(options.out, data.root, chosen, outlines, maker, words)
    back = ["--mapping", str(options.out / "mapping.csv"), words[0], f"data.root={data.root}"]
    text = fill(
        "selection.txt",
        options=options,
        data=data,
        chosen=chosen,
        free=(~pool["masked"]).sum(),
        outlines=[len(own) for own in outlines or []],
        map={"method": method, "threshold": threshold or HALF, "is_tuned": bool(threshold)},
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


def _pool(table: pd.DataFrame, split: str, masked: bool) -> pd.DataFrame:
    """The abnormal images of the split, and which of them are not to be chosen (``masked``)."""
    # What a run with folds leaves out of training is of train to others.
    table = table.assign(split=table["split"].replace(LEFT_OUT, "train"))
    wanted = table["split"].isin(SPLITS if split == "all" else [split])
    pool = table[(table["label"] == 1) & wanted].assign(probability_abnormal=np.nan)
    pool["masked"] = False if masked else pool["lesion_mask"] != ""
    if pool["masked"].all():
        raise DataError(
            f"all {len(pool):,} abnormal images (--split {split}) have a lesion mask already. Fix: "
            "another --split, or --masked to choose from these (as for a second rater)"
        )
    return pool


def _readable(pool: pd.DataFrame, count: int, data: RadiographDataModule) -> pd.DataFrame:
    """The pool without images that would be chosen but cannot be read."""

    def fault(path: str) -> str:
        try:
            decode(data.root / path)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(usable_cores()) as workers:
        while len(paths := pool["path"].iloc[choose_images(pool, count, data.seed)[0]]):
            faults = pd.Series([*workers.map(fault, paths)], paths)
            faults = faults[faults != ""]
            if faults.empty:
                return pool
            log.warning("left out, it cannot be read: %s", "\n".join(faults))
            pool = pool[~pool["path"].isin(faults.index)]
    raise DataError("none of the abnormal images could be read. Fix: check data.root")


def choose_images(
    table: pd.DataFrame, count: int, seed: int, look: Look | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pick at most ``count`` images to draw lesions on, in the order in which they are worth it.

    At each step: of the patients with fewest images that are masked or chosen; of the body part
    with fewest; of the study with fewest; with ``look`` of the less certain half of its body part,
    and of these the farthest from what is masked or chosen. What ties is decided by hash, so that
    the order of ``table`` does not matter. The choice of fewer images begins that of more.

    Args:
        table: Abnormal images: path, patient, study, body_part, and bool ``masked``: has a mask
            already, is not picked, but counts for its patient, body part and study.
        count: Images wanted.
        seed: ``data.seed``.
        look: What a network makes of the rows of ``table``.

    Returns:
        Places in ``table``, int64 ``(n,)``, and bool ``(n,)``: of the less certain half.
    """
    keys = [hashlib.sha256(f"{seed}/{path}".encode()).hexdigest() for path in table["path"]]
    rank = np.argsort(np.argsort(keys))
    groups = [pd.factorize(table[name])[0] for name in ("patient", "body_part", "study")]
    taken = [np.zeros(len(table), int) for _ in groups]
    farness = np.full(len(table), np.inf)
    margin = look.margin if look else np.zeros(len(table))
    free = ~table["masked"].to_numpy(bool)

    def take(place: int) -> None:
        for group, counts in zip(groups, taken, strict=True):
            counts[group[place]] += 1
        if look:
            apart = np.linalg.norm(look.features - look.features[place], axis=1)
            np.minimum(farness, apart, out=farness)

    for place in np.flatnonzero(~free).tolist():
        take(place)
    # The more certain half of the free ones of each body part; of an odd number the middle is not.
    order = pd.DataFrame({"part": groups[1], "margin": margin, "rank": rank})[free]
    parts = order.sort_values(["margin", "rank"]).groupby("part")["part"]
    is_certain = parts.cumcount() >= (parts.transform("size") + 1) // 2
    certain = np.isin(np.arange(len(table)), is_certain.index[is_certain]) | (look is None)
    chosen: list[int] = []
    while len(chosen) < count and free.any():
        left = np.flatnonzero(free)
        fewest = [counts[group] for group, counts in zip(groups, taken, strict=True)]
        # By margin before anything is taken: then all are far.
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
        last = module.encoder(image)[-1]
        features.append(last.float().mean((2, 3)).cpu())
        scores.append(module.classify(last).cpu())
    both = torch.cat(scores)
    if not both.isfinite().all():
        raise RunError("the run's class scores are NaN or infinite: it diverged. Fix: another run")
    margin = (both[:, 1] - both[:, 0]).abs()
    return Look(torch.cat(features).numpy(), margin.numpy(), both.softmax(1)[:, 1].numpy())


def maps_of(
    module: Stage1Classifier, data: RadiographDataModule, method: str, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """A map of each index row, float32 ``(H, W)`` in [0, 1], at the original size."""
    for places, image in _batches(module, data, rows, "outlining maps"):
        with torch.inference_mode():
            squares = module.maps(image)[method].cpu().numpy()
        for row, square in zip(places, squares, strict=True):
            # Interpolation may round a 1 up.
            yield data.to_original(square[0], int(row)).clip(0, 1)


def _batches(
    module: Stage1Classifier, data: RadiographDataModule, rows: np.ndarray, what: str
) -> Iterator[tuple[np.ndarray, Tensor]]:
    device = next(module.parameters()).device
    starts = range(0, len(rows), data.batch_size)
    for start in tqdm(starts, desc=what, unit=" batches", leave=False, disable=None):
        part = rows[start : start + data.batch_size]
        squares = np.stack([data.pixels.image(int(row)) for row in part])
        batch = {"image": torch.from_numpy(squares)[:, None].to(device)}
        yield part, data.on_after_batch_transfer(batch, 0)["image"]
