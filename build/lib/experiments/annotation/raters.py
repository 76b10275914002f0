"""Several raters on one image: one mask of theirs, and how far they agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

HOW = ("union", "majority", "intersection")


class Agreement(NamedTuple):
    """How far two raters agree on one image.

    Attributes:
        raters: Their names, in alphabetical order.
        iou: Intersection over union of their masks, 0 to 1.
        dice: Twice the intersection over the sum of both areas, 0 to 1.
    """

    raters: tuple[str, str]
    iou: float
    dice: float


def combine(masks: Sequence[np.ndarray], how: str) -> np.ndarray:
    """One mask of several, uint8 (H, W), 0 or 255.

    Args:
        masks: uint8 (H, W) each, 0 or 255, at least one.
        how: ``union``; ``intersection``; or ``majority``: marked by more than half of the raters,
            so that a tie is background and, of two raters, majority is intersection.

    Example:
        >>> combine([np.uint8([[0, 255]]), np.uint8([[255, 255]])], "majority")
        array([[  0, 255]], dtype=uint8)
    """
    votes = np.sum([mask > 0 for mask in masks], axis=0)
    needed = {"union": 1, "majority": len(masks) // 2 + 1, "intersection": len(masks)}[how]
    return np.where(votes >= needed, 255, 0).astype(np.uint8)


def agreement(masks: Mapping[str, np.ndarray]) -> list[Agreement]:
    """How far each two raters agree; masks (H, W) of which at least one pixel is not 0."""
    found = []
    for one, other in combinations(sorted(masks), 2):
        a, b = masks[one] > 0, masks[other] > 0
        shared, total = int((a & b).sum()), int(a.sum() + b.sum())
        found.append(Agreement((one, other), shared / (total - shared), 2 * shared / total))
    return found


def mean_agreement(pairs: Iterable[Agreement]) -> list[tuple[tuple[str, str], int, float, float]]:
    """Of each two raters: how many images both marked, mean IoU and mean Dice over these."""
    by_pair: dict[tuple[str, str], list[Agreement]] = {}
    for pair in pairs:
        by_pair.setdefault(pair.raters, []).append(pair)
    return [
        (
            raters,
            len(found),
            float(np.mean([pair.iou for pair in found])),
            float(np.mean([pair.dice for pair in found])),
        )
        for raters, found in sorted(by_pair.items())
    ]
