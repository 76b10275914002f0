"""The saliency audit: do maps depend on what was learned, come again, and matter to the score?

Four tests, on abnormal images drawn from a split; docs/audit.md says what each of them asks and
cannot tell. Nothing is passed or failed by a threshold: each figure has a yardstick from the same
images, and counts as different from it where the 95 % interval of the paired difference (bootstrap
over patients) leaves 0 out.

    cascade         weights random from the top down   yardstick: the map of another image (as Arun
                                                       et al. 2021)
    repeatability   another seed's run                 yardstick: its map of another image
    perturbation    deletion and insertion             yardstick: a random order
    leak            masked by the other class's map    yardstick: one answer for all images
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from experiments import perturbation
from experiments.judge import classifies, own_methods
from experiments.map_methods import Batch, MapMethod, raw_map
from experiments.map_similarity import MEASURES, similarity
from experiments.randomise import cascade
from experiments.statistics import Difference, Estimate, difference, estimate, patient_weights
from experiments.weighted import mean
from lightning_modules.attention import has_peak, non_negative, upsample
from lightning_modules.stage1 import ABNORMAL

IMAGES = 64
AT_ONCE = 32
RANDOM = "random order"
# Maps are compared at every fourth pixel in x and y: the FCN draws no finer, CAM's cells are 16
# apart, and both look at these very pixels. SSIM's window of 11 then spans 44 pixels of the image,
# cells and not the slopes between them.
GRID = 4
Maps = dict[str, Tensor]


class Sample(NamedTuple):
    """The images of an audit.

    Attributes:
        batch: As the network gets it, all of the images.
        patient: The patient of each, ``(N,)``.
        other: For each image the place of another one, of another patient, ``(N,)``; -1: none.
    """

    batch: Batch
    patient: np.ndarray
    other: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Resamples of the patients, see :func:`statistics.patient_weights`."""
        return patient_weights(self.patient)


def draw_sample(data: Any, split: str, images: int = IMAGES, seed: int = 0) -> Sample:
    """Draw abnormal images of a split, in random order: all of them where there are fewer.

    Args:
        data: The data module, set up.
        split: Where from.
        images: How many at most.
        seed: Draws them; of the same data always the same, whatever run is audited.

    Raises:
        ValueError: The split has fewer than two abnormal images.
    """
    rows = np.asarray(data.rows_of(split))
    rows = rows[(data.table["label"].to_numpy()[rows] == ABNORMAL)]
    if len(rows) < 2:
        raise ValueError(f"{split} has {len(rows)} abnormal images: an audit needs two or more")
    drawn = np.random.default_rng(seed).permutation(rows)[:images]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = []
    for batch in data.evaluation_dataloader(split):
        wanted = torch.from_numpy(np.isin(batch["index"].numpy(), drawn))
        parts.append({name: values[wanted].to(device) for name, values in batch.items()})
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    place = {row: place for place, row in enumerate(whole["index"].tolist())}
    order = torch.tensor([place[row] for row in drawn.tolist()], device=device)
    batch = data.on_after_batch_transfer({name: v[order] for name, v in whole.items()}, 0)
    patient = data.table["patient"].to_numpy()[drawn].astype(str)
    return Sample(batch, patient, _others(patient))


def draw_maps(module: Any, methods: Sequence[MapMethod], batch: Batch) -> Maps:
    """Maps of all images, the network's own and those of ``methods``.

    Returns:
        Each float32 ``(N, 1, S, S)``, raw, negative values cut, enlarged to the image: no scale is
        needed where only the shape counts.
    """
    own = own_methods(module)
    found: dict[str, list[Tensor]] = {name: [] for name in (*own, *(m.name for m in methods))}
    for start in range(0, len(batch["image"]), AT_ONCE):
        part = {name: values[start : start + AT_ONCE] for name, values in batch.items()}
        image = part["image"]
        with torch.inference_mode():
            raw = module.raw_maps(module.encoder(image))
        drawn = {name: raw[name] for name in own}
        drawn |= {method.name: raw_map(method, module, image, part) for method in methods}
        for name, maps in drawn.items():
            size, maps = image.shape[-2:], non_negative(maps)
            found[name].append(maps if maps.shape[-2:] == size else upsample(maps, size))
    return {name: torch.cat(parts) for name, parts in found.items()}


def audit_cascade(
    module: Any, methods: Sequence[MapMethod], sample: Sample, trained: Maps, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """How like the trained network's maps are those of ever more random networks.

    Args:
        module: The trained network.
        methods: Map methods beside its own.
        sample: The images.
        trained: The trained network's maps of them.
        seed: Of the random weights.

    Returns:
        Of each method ``floor`` (how like the map of another image is), ``steps`` (by the name of
        the step), ``excess`` (of each step over the floor, paired), each by measure; ``dark`` (the
        share of maps of one value, which have no shape and are left out) by step; and
        ``unchanged``: whether no map changed at all.
    """
    weights = sample.weights
    floor = {name: _of_others(maps, maps, sample.other) for name, maps in trained.items()}
    found: dict[str, dict[str, Any]] = {
        name: {
            "floor": {m: estimate(mean(floor[name][m]), weights) for m in MEASURES},
            "steps": {},
            "excess": {},
            "dark": {"trained": _dark(maps)},
            "unchanged": True,
        }
        for name, maps in trained.items()
    }
    identical = {name: _alike(maps, maps) for name, maps in trained.items()}
    steps = cascade(module, sample.batch["image"], seed)
    for step, changed in tqdm(steps, desc="random layers", leave=False, disable=None):
        for name, maps in draw_maps(changed, methods, sample.batch).items():
            same, result = torch.equal(maps, trained[name]), found[name]
            alike = identical[name] if same else _alike(trained[name], maps)
            result["steps"][step] = {m: estimate(mean(alike[m]), weights) for m in MEASURES}
            result["excess"][step] = {
                m: _paired(alike[m], floor[name][m], weights) for m in MEASURES
            }
            result["dark"][step] = _dark(maps)
            result["unchanged"] &= same
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
        Of each method, and of :data:`RANDOM`: ``deletion`` and ``insertion`` (areas), of a method
        also ``deletion_less_random`` and ``insertion_less_random`` (paired); and ``curves``, the
        mean score at each of :data:`perturbation.SHARES`.
    """
    image = sample.batch["image"]
    weights = sample.weights
    numbers = sample.batch["index"].tolist()
    noise = [
        perturbation.random_map(one, n) for one, n in zip(image.split(1), numbers, strict=True)
    ]

    def score(images: Tensor) -> Tensor:
        return module(images).softmax(1)[:, ABNORMAL]

    found: dict[str, dict[str, Any]] = {}
    areas: dict[str, dict[str, np.ndarray]] = {}
    ways = {"deletion": perturbation.deletion, "insertion": perturbation.insertion}
    every = {RANDOM: torch.cat(noise), **maps}
    for name, drawn in tqdm(every.items(), desc="deletion, insertion", leave=False, disable=None):
        areas[name], found[name] = {}, {"curves": {}}
        for way, run in ways.items():
            with torch.inference_mode():
                parts = zip(image.split(AT_ONCE), drawn.split(AT_ONCE), strict=True)
                scores = torch.cat([run(score, *part) for part in parts])
            areas[name][way] = perturbation.area_under(scores).double().cpu().numpy()
            found[name][way] = estimate(mean(areas[name][way]), weights)
            found[name]["curves"][way] = scores.double().mean(0).tolist()
            if name != RANDOM:
                less = _paired(areas[name][way], areas[RANDOM][way], weights)
                found[name][f"{way}_less_random"] = less
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
    seed: int = 0,
) -> tuple[dict[str, Any], Maps]:
    """All tests that need one run alone.

    Args:
        module: The trained network in evaluation mode.
        methods: Map methods beside its own.
        sample: The images.
        table: Rows of the whole split, for the leak test.
        seed: Of the random weights.

    Returns:
        The results by test (perturbation and leak where the network has them), and the maps, for
        :func:`audit_repeatability`.
    """
    maps = draw_maps(module, methods, sample.batch)
    found: dict[str, Any] = {"cascade": audit_cascade(module, methods, sample, maps, seed)}
    if classifies(module):
        found["perturbation"] = audit_perturbation(module, sample, maps)
        if "swapped_masked_probability" in table:
            found["leak"] = audit_leak(table)
    return found, maps


def _others(patient: np.ndarray) -> np.ndarray:
    """For each place the next one, going round, of another patient; -1 where all are of one."""
    found = np.full(len(patient), -1)
    for place in range(len(patient)):
        for step in range(1, len(patient)):
            other = (place + step) % len(patient)
            if patient[other] != patient[place]:
                found[place] = other
                break
    return found


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
    """Mean over pairs of runs, an image where any pair has it not left out."""
    return np.mean(pairs, axis=0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _dark(maps: Tensor) -> float:
    return float((~has_peak(maps)).double().mean())


def plain(value: Any) -> Any:
    """Results as JSON holds them: figures as their fields, NaN as null.

    Example:
        >>> plain({"a": Estimate(0.5, float("nan"), float("nan"), 1.0)})
        {'a': {'value': 0.5, 'low': None, 'high': None, 'undefined': 1.0}}
    """
    if isinstance(value, (Estimate, Difference)):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and value != value else value
