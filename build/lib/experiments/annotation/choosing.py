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
from typing import NamedTuple

import numpy as np
import pandas as pd


class Look(NamedTuple):
    """What a network makes of images, in their order.

    Attributes:
        features: ``(N, C)`` float32, the encoder's last features, averaged over positions.
        margin: ``(N,)`` float32, distance of the two class scores, at least 0: 0 is a probability
            of 0.5. (Not the probability: on its train images a network reaches 1.0 by rounding.)
        probability: ``(N,)`` float32, of abnormal, from 0 to 1.
    """

    features: np.ndarray
    margin: np.ndarray
    probability: np.ndarray


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
    patient, study, part = (
        pd.factorize(table[name])[0] for name in ("patient", "study", "body_part")
    )
    masked = table["masked"].to_numpy(bool)
    taken = [np.bincount(codes[masked], minlength=len(table)) for codes in (patient, part, study)]
    of_patient, of_part, of_study = taken
    certain = is_certain(look.margin, part, rank, ~masked) if look else np.ones(len(table), bool)
    farness = np.full(len(table), np.inf)
    if look:
        for place in np.flatnonzero(masked).tolist():
            farness = np.minimum(farness, _distances(look, place))
    free = ~masked
    chosen: list[int] = []
    while len(chosen) < count and free.any():
        left = np.flatnonzero(free)
        left = _lowest(left, of_patient[patient[left]])
        left = _lowest(left, of_part[part[left]])
        left = _lowest(left, of_study[study[left]])
        left = _lowest(left, certain[left])
        if look:
            left = _lowest(left, -farness[left])
            left = _lowest(left, look.margin[left])  # before anything is taken, all are far
        place = _lowest(left, rank[left]).tolist()[0]
        chosen.append(place)
        free[place] = False
        for counts, codes in zip(taken, (patient, part, study), strict=True):
            counts[codes[place]] += 1
        if look:
            farness = np.minimum(farness, _distances(look, place))
    places = np.array(chosen, dtype=np.int64)
    return places, ~certain[places]


def is_certain(
    margin: np.ndarray, part: np.ndarray, rank: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Whether an image is of the more certain half of the free ones of its body part.

    Args:
        margin: ``(N,)``, see :class:`Look`.
        part: ``(N,)`` int, codes of body parts.
        rank: ``(N,)`` int, decides where margins are equal.
        free: ``(N,)`` bool, which images can be chosen.

    Returns:
        bool ``(N,)``; of an odd number the middle one is uncertain.
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
