"""Which images are worth a lesion mask: spread over patients, body parts and studies.

Two ways, both a sequence whose beginning is the choice of a smaller number:

- at random, by hashes of ``data.seed`` and the image's path, as ``datamodules.lesions`` chooses the
  masks that are trained on;
- by a run's uncertainty and coverage: the greedy core set of Sener & Savarese, "Active Learning for
  Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, algorithm 1 (each time the image
  whose features lie farthest from all that have a mask or are chosen), among the less certain half
  of each body part first (uncertainty sampling: Settles, "Active Learning Literature Survey", 2009,
  section 3.1). Uncertainty alone would draw images that are alike, coverage alone odd ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.radiographs import RadiographDataModule
from experiments.runs import RunError
from lightning_modules import Stage1Classifier


class Look(NamedTuple):
    """What a network makes of images, in their order, float32."""

    features: np.ndarray  # (N, C), the encoder's last ones, averaged over positions
    # (N,), distance of the two class scores: 0 is a probability of 0.5. Not the probability: on its
    # train images a network reaches 1.0 by rounding.
    margin: np.ndarray
    probability: np.ndarray  # (N,), of abnormal


def choose_images(
    table: pd.DataFrame, count: int, seed: int, look: Look | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pick images to draw lesions on, in the order in which they are worth it.

    At each step: of the patients with fewest images that are masked or chosen; of the body part
    with fewest; of the study with fewest; with ``look`` of the less certain half of its body part,
    and of these the farthest from what is masked or chosen; without ``look`` the first by hash.
    What ties is decided by hash, so that the order of ``table`` does not matter.

    Args:
        table: Abnormal images: path, patient, study, body_part, and bool ``masked``: has a mask
            already, is not picked, but counts for its patient, body part and study.
        count: Images wanted; all there are where there are fewer.
        seed: ``data.seed``.
        look: What a network makes of the rows of ``table``.

    Returns:
        int64 ``(n,)``, places in ``table``, n <= count, those of a smaller count first; and bool
        ``(n,)``, whether each is of the less certain half (none is without ``look``).
    """
    keys = [hashlib.sha256(f"{seed}/{path}".encode()).hexdigest() for path in table["path"]]
    rank = np.argsort(np.argsort(keys))
    groups = [pd.factorize(table[name])[0] for name in ("patient", "body_part", "study")]
    masked = table["masked"].to_numpy(bool)
    taken = [np.bincount(group[masked], minlength=len(table)) for group in groups]
    free = ~masked
    certain = np.ones(len(table), bool)
    farness = np.full(len(table), np.inf)
    if look:
        certain = _is_certain(look.margin, groups[1], rank, free)
        for place in np.flatnonzero(masked).tolist():
            farness = np.minimum(farness, _distances(look, place))
    chosen: list[int] = []
    while len(chosen) < count and free.any():
        left = np.flatnonzero(free)
        for group, counts in zip(groups, taken, strict=True):
            left = _lowest(left, counts[group[left]])
        left = _lowest(left, certain[left])
        if look:
            left = _lowest(left, -farness[left])
            left = _lowest(left, look.margin[left])  # before anything is taken, all are far
        place = _lowest(left, rank[left]).tolist()[0]
        chosen.append(place)
        free[place] = False
        for group, counts in zip(groups, taken, strict=True):
            counts[group[place]] += 1
        if look:
            farness = np.minimum(farness, _distances(look, place))
    places = np.array(chosen, dtype=np.int64)
    return places, ~certain[places]


def _is_certain(
    margin: np.ndarray, part: np.ndarray, rank: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Whether an image is of the more certain half of the free ones of its body part.

    Of an odd number the middle one is uncertain; ``rank`` decides where margins are equal.
    """
    certain = np.zeros(len(margin), dtype=bool)
    for code in np.unique(part[free]):
        places = np.flatnonzero(free & (part == code))
        places = places[np.lexsort((rank[places], margin[places]))]
        certain[places[(len(places) + 1) // 2 :]] = True
    return certain


def _distances(look: Look, place: int) -> np.ndarray:
    """Euclidean distances of all features to those of one image, ``(N,)``."""
    return np.linalg.norm(look.features - look.features[place], axis=1)


def _lowest(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    return places[values == values.min()]


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
        raise RunError("the run's class scores are NaN or infinite: it diverged; name another run")
    return Look(
        torch.cat(features).numpy(),
        (both[:, 1] - both[:, 0]).abs().numpy(),
        both.softmax(1)[:, 1].numpy(),
    )


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
    assert data.pixels is not None, "a run's data are set up"
    device = next(module.parameters()).device
    starts = range(0, len(rows), data.batch_size)
    for start in tqdm(starts, desc=what, unit=" batches", leave=False, disable=None):
        part = rows[start : start + data.batch_size]
        squares = np.stack([data.pixels.image(int(row)) for row in part])
        batch = {"image": torch.from_numpy(squares)[:, None].to(device)}
        yield part, data.on_after_batch_transfer(batch, 0)["image"]
