"""The saliency audit: do maps depend on what was learned, come again, and matter to the score?

Four tests, on abnormal images drawn from a split; docs/audit.md says what each of them asks and
cannot tell. Nothing is passed or failed by a threshold: each figure has a yardstick from the same
images, and counts as different from it where the 95 % interval of the paired difference (bootstrap
over patients) leaves 0 out.

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
from experiments.audit.sample import AT_ONCE, Maps, Sample, draw_maps
from experiments.audit.similarity import MEASURES, similarity
from experiments.evaluation.baselines import FINE, smooth
from experiments.evaluation.judge import classifies
from experiments.evaluation.methods import MapMethod
from experiments.evaluation.statistics import Difference, difference, estimate, patient_weights
from experiments.evaluation.weighted import mean
from lightning_modules.attention import has_peak
from lightning_modules.stage1 import ABNORMAL

# Draws of random weights: what a random FC layer makes of the features hangs on the draw. Far from
# the seeds of trainings, or "random" would be the very weights that this training began with.
DRAWS = (900_001, 900_002, 900_003)
RANDOM, EDGES, LESION = "random order", "edges", "lesion mask"
# Maps are compared at every fourth pixel in x and y: the FCN draws no finer, CAM's cells are 16
# apart, and both look at these very pixels. SSIM's window of 11 then spans 44 pixels of the image,
# cells and not the slopes between them.
GRID = 4


def audit_cascade(
    module: Any,
    methods: Sequence[MapMethod],
    sample: Sample,
    trained: Maps,
    draws: Sequence[int] = DRAWS,
) -> dict[str, dict[str, Any]]:
    """How like the trained network's maps are those of ever more random networks.

    Args:
        module: The trained network.
        methods: Map methods beside its own.
        sample: The images.
        trained: The trained network's maps of them.
        draws: Seeds of the random weights; an image's figure is its mean over them.

    Returns:
        Of each method ``floor`` (how like the map of another image is), ``steps`` (by the name of
        the step), ``excess`` (of each step over the floor, paired), each by measure; ``draws`` (the
        mean of each draw) by step and measure; ``dark`` (the share of maps of one value, which have
        no shape and are left out) by step; and ``unchanged``: whether no map changed at all.
    """
    weights = sample.weights
    identical = {name: _alike(maps, maps) for name, maps in trained.items()}
    drawn: dict[str, dict[str, list[dict[str, np.ndarray]]]] = {name: {} for name in trained}
    dark: dict[str, dict[str, list[float]]] = {
        name: {"trained": [_dark(maps)]} for name, maps in trained.items()
    }
    unchanged = dict.fromkeys(trained, True)
    for seed in tqdm(draws, desc="random weights", leave=False, disable=None):
        for step, changed in cascade(module, sample.batch["image"], seed):
            for name, maps in draw_maps(changed, methods, sample.batch).items():
                same = torch.equal(maps, trained[name])
                alike = identical[name] if same else _alike(trained[name], maps)
                drawn[name].setdefault(step, []).append(alike)
                dark[name].setdefault(step, []).append(_dark(maps))
                unchanged[name] &= same
    floor = {name: _of_others(maps, maps, sample.other) for name, maps in trained.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, steps in drawn.items():
        joined = {
            step: {m: _mean_over([alike[m] for alike in each]) for m in MEASURES}
            for step, each in steps.items()
        }
        found[name] = {
            "floor": {m: estimate(mean(floor[name][m]), weights) for m in MEASURES},
            "steps": {
                step: {m: estimate(mean(alike[m]), weights) for m in MEASURES}
                for step, alike in joined.items()
            },
            "excess": {
                step: {m: _paired(alike[m], floor[name][m], weights) for m in MEASURES}
                for step, alike in joined.items()
            },
            "draws": {
                step: {m: [_mean(alike[m]) for alike in each] for m in MEASURES}
                for step, each in steps.items()
            },
            "dark": {step: float(np.mean(shares)) for step, shares in dark[name].items()},
            "unchanged": unchanged[name],
        }
    return found


def audit_repeatability(runs: Sequence[Maps], sample: Sample) -> dict[str, dict[str, Any]]:
    """How like each other the maps of runs are that differ in the seed alone.

    Args:
        runs: Maps of each run of the same images.
        sample: The images.

    Returns:
        Of each method, by measure: ``alike`` (mean over pairs of runs), ``floor`` (the other run's
        map of another image), ``excess`` (paired) and ``pairs``, the mean of each pair.

    Raises:
        ValueError: There are fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError("repeatability needs two runs that differ in the seed")
    weights = sample.weights
    found: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        pairs = list(itertools.combinations([run[name] for run in runs], 2))
        alike = [_alike(one, other) for one, other in pairs]
        floor = [_of_others(one, other, sample.other) for one, other in pairs]
        found[name] = {"alike": {}, "floor": {}, "excess": {}, "pairs": {}}
        for measure in MEASURES:
            same, others = (_mean_over([pair[measure] for pair in side]) for side in (alike, floor))
            found[name]["alike"][measure] = estimate(mean(same), weights)
            found[name]["floor"][measure] = estimate(mean(others), weights)
            found[name]["excess"][measure] = _paired(same, others, weights)
            found[name]["pairs"][measure] = [_mean(pair[measure]) for pair in alike]
    return found


def audit_perturbation(module: Any, sample: Sample, maps: Maps) -> dict[str, dict[str, Any]]:
    """Areas under the deletion and insertion curves of each method's maps.

    Args:
        module: The network, which classifies.
        sample: The images.
        maps: The network's maps of them.

    Returns:
        Of each method, of :data:`RANDOM` and, where images have a mask, of :data:`LESION`, the mask
        itself: ``deletion`` and ``insertion``, the areas up to :data:`perturbation.EARLY`, and
        ``deletion_whole`` and ``insertion_whole``, as Petsiuk et al. define them; ``less``, by
        these names, the paired difference from the maps that know no network, :data:`RANDOM` and,
        where they are there, :data:`EDGES`; and ``curves``, the mean score at each of
        :data:`perturbation.SHARES`.
    """
    image, marked = sample.batch["image"], sample.batch["has_lesion"]
    numbers = sample.batch["index"].tolist()
    noise = [
        perturbation.random_map(one, n) for one, n in zip(image.split(1), numbers, strict=True)
    ]
    every = {RANDOM: torch.cat(noise), **maps}
    if marked.any():
        # Smoothed: a mask's outline is drawn by hand.
        every[LESION] = smooth(sample.batch["lesion_mask"], FINE / 2)

    def score(images: Tensor) -> Tensor:
        return module(images).softmax(1)[:, ABNORMAL]

    found: dict[str, dict[str, Any]] = {}
    areas: dict[str, dict[str, np.ndarray]] = {}
    weights = sample.weights
    for name, drawn in tqdm(every.items(), desc="deletion, insertion", leave=False, disable=None):
        areas[name], found[name] = {}, {"curves": {}, "less": {}}
        with torch.inference_mode():
            parts = [
                perturbation.perturbed(score, *part)
                for part in zip(image.split(AT_ONCE), drawn.split(AT_ONCE), strict=True)
            ]
        for way in parts[0]:
            scores = torch.cat([part[way] for part in parts]).double()
            if name == LESION:
                scores = torch.where(marked[:, None], scores, float("nan"))
            found[name]["curves"][way] = scores.nanmean(0).tolist()
            for area, until in ((way, perturbation.EARLY), (f"{way}_whole", 1.0)):
                values = perturbation.area_under(scores, until=until).cpu().numpy()
                areas[name][area] = values
                found[name][area] = estimate(mean(values), weights)
    for name, result in found.items():
        for area, values in areas[name].items():
            result["less"][area] = {
                rival: _paired(values, areas[rival][area], weights)
                for rival in (RANDOM, EDGES)
                if rival in areas and name not in (RANDOM, rival)
            }
    return found


def audit_leak(table: pd.DataFrame) -> dict[str, Any]:
    """Whether the masked pass reads the class off the mask (stages 2 and 3).

    Args:
        table: Rows of a split with ``label``, ``patient``, ``masked_probability`` and
            ``swapped_masked_probability``.

    Returns:
        ``masked_accuracy``; ``swapped_accuracy``, under the other class's map; ``one_answer``, the
        accuracy of the commoner class for all images, and ``answer``, which that is; ``excess`` of
        the swapped accuracy over it (paired); ``swapped_abnormal``, the share of the abnormal and
        of the normal images that is called abnormal then.
    """
    weights = patient_weights(table["patient"].to_numpy())
    label = (table["label"] == ABNORMAL).to_numpy()
    called = {
        name: (table[f"{name}_probability"] > 0.5).to_numpy()
        for name in ("masked", "swapped_masked")
    }
    answer = label.mean() > 0.5
    swapped, constant = called["swapped_masked"] == label, label == answer
    return {
        "images": len(table),
        "masked_accuracy": estimate(mean(called["masked"] == label), weights),
        "swapped_accuracy": estimate(mean(swapped), weights),
        "one_answer": estimate(mean(constant), weights),
        "answer": "abnormal" if answer else "normal",
        "excess": _paired(swapped.astype(float), constant.astype(float), weights),
        "swapped_abnormal": {
            "abnormal": _mean(called["swapped_masked"][label].astype(float)),
            "normal": _mean(called["swapped_masked"][~label].astype(float)),
        },
    }


def audit_run(
    module: Any,
    methods: Sequence[MapMethod],
    sample: Sample,
    table: pd.DataFrame,
) -> tuple[dict[str, Any], Maps]:
    """All tests that need one run alone.

    Args:
        module: The trained network in evaluation mode.
        methods: Map methods beside its own.
        sample: The images.
        table: Rows of the whole split, for the leak test.

    Returns:
        The results by test (perturbation and leak where the network has them), and the maps, for
        :func:`audit_repeatability`.
    """
    maps = draw_maps(module, methods, sample.batch)
    found: dict[str, Any] = {"cascade": audit_cascade(module, methods, sample, maps)}
    if classifies(module):
        found["perturbation"] = audit_perturbation(module, sample, maps)
        if "swapped_masked_probability" in table:
            found["leak"] = audit_leak(table)
    return found, maps


def _of_others(one: Tensor, other: Tensor, places: np.ndarray) -> dict[str, np.ndarray]:
    """How like the maps ``one`` are the maps ``other`` of the images at ``places``."""
    chosen = torch.from_numpy(np.maximum(places, 0)).to(one.device)
    alike = _alike(one, other[chosen])
    return {name: np.where(places < 0, np.nan, values) for name, values in alike.items()}


def _alike(one: Tensor, other: Tensor) -> dict[str, np.ndarray]:
    """Every measure of maps ``(N, 1, S, S)``, each ``(N,)``."""
    found = similarity(*(maps[..., ::GRID, ::GRID] for maps in (one, other)))
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def _paired(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> Difference:
    """Mean of ``one`` less mean of ``other``, over the images that have both."""
    missing = np.isnan(one) | np.isnan(other)
    first, second = (np.where(missing, np.nan, values) for values in (one, other))
    return difference(mean(first), mean(second), weights)


def _mean_over(pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over pairs of runs or draws, of each image over those that have it; NaN: none has."""
    values = np.stack(pairs)
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0).sum(axis=0), known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _dark(maps: Tensor) -> float:
    return float((~has_peak(maps)).double().mean())
