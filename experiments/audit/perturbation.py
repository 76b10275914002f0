"""Deletion and insertion: does the class score follow the pixels that a map names first?

Petsiuk et al. 2018 (RISE), section 4.2. What is gone is blurred, where Petsiuk et al. delete to
grey: on radiographs a grey patch is an abnormality itself (docs/audit.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.audit.maps import AT_ONCE, Maps, Sample, paired
from experiments.evaluation.methods import FINE, smooth
from experiments.evaluation.statistics import estimate, mean
from lightning_modules.attention import upsample
from lightning_modules.stage1 import ABNORMAL

# Shares of the image at which the score is read: densely at the size of a lesion, 1 to 4 %.
SHARES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
# Until here the area is reported: beyond it, the score depends on what is no lesion. Over all
# shares, an edge filter's order deletes better than that of the lesion mask itself.
EARLY = 0.1
# Standard deviation of the blur as a share of the side: at 1/16 no lesion is left to see.
BLUR = 1 / 16
RANDOM, EDGES, LESION = "random order", "edges", "lesion mask"
Score = Callable[[Tensor], Tensor]  # from images (B, 1, H, W) to (B,)


def audit_perturbation(
    module: torch.nn.Module, sample: Sample, maps: Maps, stride: int
) -> dict[str, dict[str, Any]]:
    """Areas under the deletion and insertion curves of each method's maps.

    Returns:
        Of each method, of :data:`RANDOM` and, where images have a mask, of :data:`LESION`:
        ``deletion`` and ``insertion``, the areas up to :data:`EARLY`; ``deletion_whole`` and
        ``insertion_whole``, as Petsiuk et al. define them; ``less``, by these names, the paired
        difference from :data:`RANDOM` and :data:`EDGES`; ``curves``, the mean at :data:`SHARES`.
    """
    image, marked, weights = sample.batch["image"], sample.batch["has_lesion"], sample.weights
    numbers = sample.batch["index"].tolist()
    noise = [random_map(image[i : i + 1], number, stride) for i, number in enumerate(numbers)]
    every = {RANDOM: torch.cat(noise), **maps}
    if marked.any():
        # Smoothed: a mask's outline is drawn by hand.
        every[LESION] = smooth(sample.batch["lesion_mask"], FINE / 2)

    def score(images: Tensor) -> Tensor:
        return module(images).softmax(1)[:, ABNORMAL]

    results: dict[str, dict[str, Any]] = {}
    areas: dict[str, dict[str, np.ndarray]] = {}
    for name, map in tqdm(every.items(), desc="deletion, insertion", leave=False, disable=None):
        pairs = zip(image.split(AT_ONCE), map.split(AT_ONCE), strict=True)
        with torch.inference_mode():
            parts = [perturbed(score, *pair) for pair in pairs]
        curves = {way: torch.cat([part[way] for part in parts]).double() for way in parts[0]}
        if name == LESION:
            curves = {way: c.masked_fill(~marked[:, None], np.nan) for way, c in curves.items()}
        areas[name] = {
            f"{way}{ending}": area_under(scores, until=until).cpu().numpy()
            for way, scores in curves.items()
            for ending, until in (("", EARLY), ("_whole", 1.0))
        }
        results[name] = {
            "curves": {way: scores.nanmean(0).tolist() for way, scores in curves.items()},
            **{area: estimate(mean(values), weights) for area, values in areas[name].items()},
        }
    for name, result in results.items():
        rivals = [one for one in (RANDOM, EDGES) if one in areas and name not in (RANDOM, one)]
        result["less"] = {
            area: {rival: paired(values, areas[rival][area], weights) for rival in rivals}
            for area, values in areas[name].items()
        }
    return results


def perturbed(score: Score, image: Tensor, map: Tensor) -> dict[str, Tensor]:
    """Scores of images ``(B, 1, H, W)`` while their pixels go and come, the map's highest first.

    ``deletion``, from the whole to the blurred image, and ``insertion``, the way back, each
    ``(B, len(SHARES))``.
    """
    order, gone = pixel_order(map), smooth(image, BLUR)
    return {
        "deletion": curve(score, image, gone, order),
        "insertion": curve(score, gone, image, order),
    }


def curve(score: Score, start: Tensor, end: Tensor, order: Tensor) -> Tensor:
    """Scores ``(B, len(SHARES))`` while images ``start`` become ``end``, pixel by pixel."""
    place, count = order.argsort(dim=1).view_as(start), order.shape[1]
    changed = (torch.where(place < round(share * count), end, start) for share in SHARES)
    return torch.stack([score(images) for images in changed], dim=1)


def area_under(scores: Tensor, until: float = 1.0) -> Tensor:
    """Mean height ``(B,)`` of curves ``(B, len(SHARES))`` up to a share of the pixels."""
    end = SHARES.index(until) + 1
    x = torch.tensor(SHARES[:end], device=scores.device)
    return torch.trapezoid(scores[:, :end], x, dim=1) / until


def pixel_order(map: Tensor) -> Tensor:
    """Pixel numbers ``(B, H * W)`` from the highest value of a map down; ties in random order.

    Ties are many: a map that is cut at 0 has nothing to say of most pixels.
    """
    values, generator = map.flatten(1), torch.Generator().manual_seed(0)
    shuffled = torch.randperm(values.shape[1], generator=generator).to(map.device)
    return shuffled[values[:, shuffled].argsort(dim=1, descending=True, stable=True)]


def random_map(image: Tensor, number: int, stride: int) -> Tensor:
    """Noise ``(1, 1, H, W)`` drawn by ``number``, as coarse as the maps of an encoder's ``stride``.

    A random order of single pixels would destroy every texture at once; this one leaves and takes
    patches as a map does.
    """
    size = [side // stride for side in image.shape[-2:]]
    cells = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(number))
    return upsample(cells.to(image.device), image.shape[-2:])
