"""What an audit looks at: a sample of images, each method's maps of them, how alike maps are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from datamodules.radiographs import RadiographDataModule
from experiments.build import choose_device
from experiments.evaluation import statistics
from experiments.evaluation.methods import Batch, MapMethod, raw_map, views_of
from experiments.evaluation.statistics import Difference, Estimate, estimate, mean
from experiments.runs import RunError
from lightning_modules.attention import View, has_peak, non_negative, normalise
from lightning_modules.overlap import iou
from lightning_modules.stage1 import ABNORMAL, Stage1Classifier

IMAGES = 64
AT_ONCE = 32
# Maps are compared at every fourth pixel in x and y: the FCN draws no finer, CAM's cells are 16
# apart, and both look at these very pixels. SSIM's window of 11 then spans 44 pixels of the image,
# cells and not the slopes between them.
GRID = 4
TOP = 0.05  # of the image: what counts as a map's strongest region
MEASURES = ("ssim", "rank", "iou")
Maps = dict[str, Tensor]


class Sample(NamedTuple):
    """The images of an audit."""

    batch: Batch  # as the network gets it, all N images
    patient: np.ndarray  # of each image, (N,)
    other: np.ndarray  # for each image the place of one of another patient, (N,); -1: none

    @property
    def weights(self) -> np.ndarray:
        """Resamples of the patients, see :func:`statistics.patient_weights`."""
        return statistics.patient_weights(self.patient)


def draw_sample(
    data: RadiographDataModule, split: str, images: int = IMAGES, seed: int = 0
) -> Sample:
    """At most ``images`` abnormal images of a split, in random order, whatever run is audited."""
    rows = np.asarray(data.rows_of(split))
    rows = rows[data.table["label"].to_numpy()[rows] == ABNORMAL]
    if len(rows) < 2:
        raise RunError(f"{split} has {len(rows)} abnormal images: an audit needs two or more")
    chosen = np.random.default_rng(seed).permutation(rows)[:images]
    parts = []
    for batch in data.evaluation_dataloader(split):
        wanted = torch.from_numpy(np.isin(batch["index"].numpy(), chosen))
        parts.append({name: values[wanted] for name, values in batch.items()})
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = [whole["index"].tolist().index(row) for row in chosen]
    batch = {name: values[order].to(choose_device()) for name, values in whole.items()}
    patient = data.table["patient"].to_numpy()[chosen].astype(str)
    return Sample(data.on_after_batch_transfer(batch, 0), patient, _others(patient))


def _others(patient: np.ndarray) -> np.ndarray:
    """For each place the next one, going round, of another patient; -1 where all are of one."""
    place, count = np.arange(len(patient)), len(patient)
    steps = (place - place[:, None]) % count
    steps[patient == patient[:, None]] = count
    return np.where(steps.min(axis=1) < count, steps.argmin(axis=1), -1)


def make_maps(module: Stage1Classifier, methods: Sequence[MapMethod], batch: Batch) -> Maps:
    """The network's own maps of all images and those of ``methods``, float32 ``(N, 1, S, S)``.

    Raw, negative values cut, enlarged to the image: only the shape counts, which needs no scale.
    """
    every: dict[str, list[Tensor]] = {}
    for start in range(0, len(batch["image"]), AT_ONCE):
        part = {name: values[start : start + AT_ONCE] for name, values in batch.items()}
        seen = [_large(module, methods, part, view) for view in views_of(module)]
        for name in seen[0]:
            every.setdefault(name, []).append(torch.stack([maps[name] for maps in seen]).mean(0))
    return {name: torch.cat(parts) for name, parts in every.items()}


def _large(
    module: Stage1Classifier, methods: Sequence[MapMethod], batch: Batch, view: View
) -> Maps:
    image = view.of(batch["image"])
    with torch.inference_mode():
        own, size = module.raw_maps(module.unmasked_pass(image)), image.shape[-2:]
    large = {name: module.upsample(non_negative(own[name]), size) for name in module.judged_maps}
    for method in methods:
        raw = raw_map(method, module, image, batch)
        large[method.name] = method.enlarge(non_negative(raw), module, size)
    return {name: view.back(maps, batch["image"].shape[-2:]) for name, maps in large.items()}


def alike(one: Tensor, other: Tensor, places: np.ndarray | None = None) -> np.ndarray:
    """Each of :data:`MEASURES` between maps ``(N, 1, S, S)``, ``(3, N)``.

    With ``places``, between each of ``one`` and that of ``other`` at its place; NaN where it is -1.
    """
    there = np.arange(len(one)) if places is None else places
    pair = [maps[..., ::GRID, ::GRID] for maps in (one, other[np.maximum(there, 0)])]
    regions = [top_region(maps) for maps in pair]
    values = torch.stack([ssim(*pair), rank_correlation(*pair), iou(*regions)])
    return np.where(there < 0, np.nan, values.double().cpu().numpy())


def beside_floor(
    steps: dict[str, list[np.ndarray]], floors: list[np.ndarray], sample: Sample
) -> dict[str, Any]:
    """Similarities of each step, several :func:`alike`, beside those to other images' maps.

    Returns:
        ``floor``; by step, ``steps`` and ``excess`` (paired), each of the mean of several, and
        ``draws``, the mean of each; all by measure.
    """
    weights, floor = sample.weights, _mean(floors)
    results: dict[str, Any] = {"floor": _estimates(floor, weights)}
    results |= {"steps": {}, "excess": {}, "draws": {}}
    for step, each in steps.items():
        values = _mean(each)
        results["steps"][step] = _estimates(values, weights)
        results["excess"][step] = {
            measure: paired(values[i], floor[i], weights) for i, measure in enumerate(MEASURES)
        }
        results["draws"][step] = {
            measure: [float(_mean(one[i])) for one in each] for i, measure in enumerate(MEASURES)
        }
    return results


def _estimates(values: np.ndarray, weights: np.ndarray) -> dict[str, Estimate]:
    return {m: estimate(mean(values[i]), weights) for i, m in enumerate(MEASURES)}


def _mean(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Mean along the first axis of what is defined; NaN where nothing is."""
    return torch.from_numpy(np.asarray(values)).nanmean(0).numpy()


def paired(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> Difference:
    """Mean of ``one`` less mean of ``other``, over the images that have both."""
    missing = np.isnan(one) | np.isnan(other)
    first, second = (np.where(missing, np.nan, values) for values in (one, other))
    return statistics.difference(mean(first), mean(second), weights)


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of two maps, each stretched to [0, 1] by itself.

    Two dark areas are alike, so that maps with little in them score high whatever they show.
    ``(B,)`` in [-1, 1]; NaN where a map is constant and so has no shape.
    """
    value = structural_similarity_index_measure(
        normalise(one).float(), normalise(other).float(), data_range=1.0, reduction="none"
    )
    assert isinstance(value, Tensor)
    return _where_both_peak(value.view(-1), one, other)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation over the pixels, ``(B,)`` in [-1, 1]; NaN: a map is constant."""
    # Not torchmetrics' spearman_corrcoef: it adds up tied ranks in int32, which overflows from
    # 65,536 equal pixels on, and the dark of a map may be more.
    a, b = (rankdata(map.flatten(1).cpu().numpy(), axis=1) for map in (one, other))
    a, b = (torch.from_numpy(ranks).to(one.device) for ranks in (a, b))
    a, b = (ranks - ranks.mean(dim=1, keepdim=True) for ranks in (a, b))
    value = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    return _where_both_peak(value.float(), one, other)


def top_region(map: Tensor, share: float = TOP) -> Tensor:
    """The pixels of the highest values, ``share`` of the image; more where the last of them ties.

    Fewer where fewer rise above the map's minimum: its dark rest is no region.
    """
    values = map.flatten(1)
    least = values.topk(max(1, round(share * values.shape[1])), dim=1).values[:, -1:]
    raised = (values >= least) & (values > values.amin(dim=1, keepdim=True))
    return raised.view_as(map) & has_peak(map).view(-1, 1, 1, 1)


def _where_both_peak(value: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return value.masked_fill(~(has_peak(one) & has_peak(other)), float("nan"))
