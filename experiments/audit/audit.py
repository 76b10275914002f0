"""The saliency audit: do maps depend on what was learned, come again, and matter to the score?

Nothing passes or fails by a threshold. Each figure has a yardstick from the same images, and
differs from it where the 95 % interval of the paired difference (bootstrap over patients) excludes
0.

    cascade         weights random from the top down   yardstick: the map of another image (as Arun
                                                       et al. 2021)
    repeatability   another seed's run                 yardstick: its map of another image
    perturbation    deletion and insertion             yardsticks: a random order, an edge filter
    leak            masked by the other class's map    yardstick: one answer for all images
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.audit import perturbation
from experiments.audit.cascade import cascade
from experiments.audit.sample import AT_ONCE, Maps, Sample, make_maps
from experiments.audit.similarity import MEASURES, similarity
from experiments.evaluation import statistics
from experiments.evaluation.methods import FINE, MapMethod, smooth
from experiments.evaluation.statistics import difference, estimate, mean, patient_weights
from lightning_modules import Stage1Classifier
from lightning_modules.attention import has_peak
from lightning_modules.stage1 import ABNORMAL

# Seeds of random weights, several since a random FC layer's map depends on the draw. Far from the
# seeds of trainings, or "random" would be the very weights that this training began with.
DRAWS = (900_001, 900_002, 900_003)
RANDOM, EDGES, LESION = "random order", "edges", "lesion mask"
# Maps are compared at every fourth pixel in x and y: the FCN draws no finer, CAM's cells are 16
# apart, and both look at these very pixels. SSIM's window of 11 then spans 44 pixels of the image,
# cells and not the slopes between them.
GRID = 4
Alike = dict[str, np.ndarray]  # each measure, an image a value


def audit_run(
    module: Stage1Classifier, methods: Sequence[MapMethod], sample: Sample, table: pd.DataFrame
) -> tuple[dict[str, Any], Maps]:
    """All tests of one run alone, and the maps, for :func:`audit_repeatability`.

    Args:
        module: the trained network in evaluation mode.
        methods: map methods beside its own.
        sample: the images.
        table: rows of the whole split, for the leak test.
    """
    maps = make_maps(module, methods, sample.batch)
    results: dict[str, Any] = {"cascade": audit_cascade(module, methods, sample, maps)}
    if module.classifies:
        results["perturbation"] = audit_perturbation(
            module, sample, maps, module.encoder.strides[-1]
        )
        if "swapped_masked_probability" in table:
            results["leak"] = audit_leak(table)
    return results, maps


def audit_cascade(
    module: Stage1Classifier,
    methods: Sequence[MapMethod],
    sample: Sample,
    trained: Maps,
    draws: Sequence[int] = DRAWS,
) -> dict[str, dict[str, Any]]:
    """How similar the trained network's maps are to those of ever more random networks.

    Returns:
        Of each method ``floor`` (similarity to the map of another image), ``steps`` (by the name of
        the step), ``excess`` (of each step over the floor, paired), each by measure; ``draws`` (the
        mean of each draw) by step and measure; ``dark`` (the share of constant maps, which have no
        shape and are left out) by step; and ``unchanged``: whether no map changed at all.
    """
    identical = {name: _alike(maps, maps) for name, maps in trained.items()}
    alike: dict[str, dict[str, list[Alike]]] = {name: {} for name in trained}
    dark = {name: {"trained": [_dark(maps)]} for name, maps in trained.items()}
    unchanged = dict.fromkeys(trained, True)
    for seed in tqdm(draws, desc="random weights", leave=False, disable=None):
        for step, changed in cascade(module, sample.batch["image"], seed):
            for name, maps in make_maps(changed, methods, sample.batch).items():
                same = torch.equal(maps, trained[name])
                now = identical[name] if same else _alike(trained[name], maps)
                alike[name].setdefault(step, []).append(now)
                dark[name].setdefault(step, []).append(_dark(maps))
                unchanged[name] &= same
    return {
        name: {
            **_beside_floor(steps, _of_others(trained[name], trained[name], sample.other), sample),
            "draws": {
                step: {m: [_mean(one[m]) for one in each] for m in MEASURES}
                for step, each in steps.items()
            },
            "dark": {step: float(np.mean(shares)) for step, shares in dark[name].items()},
            "unchanged": unchanged[name],
        }
        for name, steps in alike.items()
    }


def _beside_floor(
    steps: dict[str, list[Alike]], floor: Alike, sample: Sample
) -> dict[str, dict[str, Any]]:
    weights = sample.weights
    joined = {
        step: {m: _mean_over([one[m] for one in each]) for m in MEASURES}
        for step, each in steps.items()
    }
    return {
        "floor": {m: estimate(mean(floor[m]), weights) for m in MEASURES},
        "steps": {
            step: {m: estimate(mean(values[m]), weights) for m in MEASURES}
            for step, values in joined.items()
        },
        "excess": {
            step: {m: _paired(values[m], floor[m], weights) for m in MEASURES}
            for step, values in joined.items()
        },
    }


def audit_repeatability(runs: Sequence[Maps], sample: Sample) -> dict[str, dict[str, Any]]:
    """How similar the maps of runs are that differ in the seed alone.

    Returns:
        Of each method, by measure: ``alike`` (mean over pairs of runs), ``floor`` (the other run's
        map of another image), ``excess`` (paired) and ``pairs``, the mean of each pair.
    """
    if len(runs) < 2:
        raise ValueError("repeatability needs two runs that differ in the seed")
    results: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        pairs = list(itertools.combinations([run[name] for run in runs], 2))
        alike = [_alike(one, other) for one, other in pairs]
        floors = [_of_others(one, other, sample.other) for one, other in pairs]
        floor = {m: _mean_over([one[m] for one in floors]) for m in MEASURES}
        beside = _beside_floor({"alike": alike}, floor, sample)
        results[name] = {
            "alike": beside["steps"]["alike"],
            "floor": beside["floor"],
            "excess": beside["excess"]["alike"],
            "pairs": {m: [_mean(one[m]) for one in alike] for m in MEASURES},
        }
    return results


def audit_perturbation(
    module: torch.nn.Module, sample: Sample, maps: Maps, stride: int
) -> dict[str, dict[str, Any]]:
    """Areas under the deletion and insertion curves of each method's maps.

    Returns:
        Of each method, of :data:`RANDOM` and, where images have a mask, of :data:`LESION`, the mask
        itself: ``deletion`` and ``insertion``, the areas up to :data:`perturbation.EARLY`;
        ``deletion_whole`` and ``insertion_whole``, as Petsiuk et al. define them; ``less``, by
        these names, the paired difference from :data:`RANDOM` and :data:`EDGES`; and ``curves``,
        the mean score at each of :data:`perturbation.SHARES`.
    """
    image, marked = sample.batch["image"], sample.batch["has_lesion"]
    numbers = sample.batch["index"].tolist()
    noise = [perturbation.random_map(image[i : i + 1], n, stride) for i, n in enumerate(numbers)]
    every = {RANDOM: torch.cat(noise), **maps}
    if marked.any():
        # Smoothed: a mask's outline is drawn by hand.
        every[LESION] = smooth(sample.batch["lesion_mask"], FINE / 2)

    def score(images: Tensor) -> Tensor:
        return module(images).softmax(1)[:, ABNORMAL]

    weights = sample.weights
    results: dict[str, dict[str, Any]] = {}
    areas: dict[str, dict[str, np.ndarray]] = {}
    for name, order in tqdm(every.items(), desc="deletion, insertion", leave=False, disable=None):
        with torch.inference_mode():
            parts = [
                perturbation.perturbed(score, *part)
                for part in zip(image.split(AT_ONCE), order.split(AT_ONCE), strict=True)
            ]
        curves = {way: torch.cat([part[way] for part in parts]).double() for way in parts[0]}
        if name == LESION:
            for way, scores in curves.items():
                curves[way] = torch.where(marked[:, None], scores, float("nan"))
        areas[name] = {
            f"{way}{ending}": perturbation.area_under(scores, until=until).cpu().numpy()
            for way, scores in curves.items()
            for ending, until in (("", perturbation.EARLY), ("_whole", 1.0))
        }
        results[name] = {
            "curves": {way: scores.nanmean(0).tolist() for way, scores in curves.items()},
            **{area: estimate(mean(values), weights) for area, values in areas[name].items()},
        }
    for name, result in results.items():
        result["less"] = {
            area: {
                rival: _paired(values, areas[rival][area], weights)
                for rival in (RANDOM, EDGES)
                if rival in areas and name not in (RANDOM, rival)
            }
            for area, values in areas[name].items()
        }
    return results


def audit_leak(table: pd.DataFrame) -> dict[str, Any]:
    """Whether the masked pass reads the class off the mask (stages 2 and 3).

    Returns:
        ``masked_accuracy``; ``swapped_accuracy``, under the other class's map; ``one_answer``, the
        accuracy of the commoner class for all images, and ``answer``, which that is; ``excess`` of
        the swapped accuracy over it (paired); ``swapped_abnormal``, the share of the abnormal and
        of the normal images that is called abnormal then.
    """
    weights = patient_weights(table["patient"].to_numpy())
    label = (table["label"] == ABNORMAL).to_numpy()
    masked = (table["masked_probability"] > 0.5).to_numpy()
    swapped = (table["swapped_masked_probability"] > 0.5).to_numpy()
    answer = label.mean() > 0.5
    right, constant = swapped == label, label == answer
    return {
        "images": len(table),
        "masked_accuracy": estimate(mean(masked == label), weights),
        "swapped_accuracy": estimate(mean(right), weights),
        "one_answer": estimate(mean(constant), weights),
        "answer": "abnormal" if answer else "normal",
        "excess": _paired(right.astype(float), constant.astype(float), weights),
        "swapped_abnormal": {
            "abnormal": _mean(swapped[label].astype(float)),
            "normal": _mean(swapped[~label].astype(float)),
        },
    }


def _of_others(one: Tensor, other: Tensor, places: np.ndarray) -> Alike:
    """Similarity of the maps ``one`` to the maps ``other`` of the images at ``places``."""
    chosen = torch.from_numpy(np.maximum(places, 0)).to(one.device)
    alike = _alike(one, other[chosen])
    return {name: np.where(places < 0, np.nan, values) for name, values in alike.items()}


def _alike(one: Tensor, other: Tensor) -> Alike:
    """Every measure of maps ``(N, 1, S, S)``, each ``(N,)``."""
    measures = similarity(*(maps[..., ::GRID, ::GRID] for maps in (one, other)))
    return {name: values.double().cpu().numpy() for name, values in measures.items()}


def _paired(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> statistics.Difference:
    """Mean of ``one`` less mean of ``other``, over the images that have both."""
    missing = np.isnan(one) | np.isnan(other)
    first, second = (np.where(missing, np.nan, values) for values in (one, other))
    return difference(mean(first), mean(second), weights)


def _mean_over(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over pairs of runs or draws, of each image over those that have it; NaN: none has."""
    values = np.stack(parts)
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    return float(pd.Series(values).mean())


def _dark(maps: Tensor) -> float:
    return float((~has_peak(maps)).double().mean())
