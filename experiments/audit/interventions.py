"""What the audit changes: the weights, ever more of them random, and the pixels a map names first.

Cascading randomisation: Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.1.
Deletion and insertion: Petsiuk et al. 2018 (RISE), section 4.2. What is gone is blurred, where
Petsiuk et al. delete to grey: on radiographs a grey patch is an abnormality itself (docs/audit.md).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from experiments.audit.maps import AT_ONCE, Maps, Sample, alike, beside_floor, make_maps, paired
from experiments.evaluation.methods import FINE, MapMethod, smooth, views_of
from experiments.evaluation.statistics import estimate, mean
from lightning_modules.attention import has_peak, upsample
from lightning_modules.stage1 import ABNORMAL, Stage1Classifier

# Seeds of random weights, several since a random FC layer's map depends on the draw. Far from the
# seeds of trainings, or "random" would be the very weights that this training began with.
DRAWS = (900_001, 900_002, 900_003)
# Shares of the image at which the score is read: densely at the size of a lesion, 1 to 4 %.
SHARES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
# Until here the area is reported: beyond it, the score depends on what is no lesion. Over all
# shares, an edge filter's order deletes better than that of the lesion mask itself.
EARLY = 0.1
# Standard deviation of the blur as a share of the side: at 1/16 no lesion is left to see.
BLUR = 1 / 16
RANDOM, EDGES, LESION = "random order", "edges", "lesion mask"
Score = Callable[[Tensor], Tensor]  # from images (B, 1, H, W) to (B,)


def audit_cascade(
    module: Stage1Classifier, methods: Sequence[MapMethod], sample: Sample, trained: Maps
) -> dict[str, dict[str, Any]]:
    """How similar the trained network's maps are to those of ever more random networks.

    Returns:
        Of each method :func:`beside_floor`, by step; ``dark`` (the share of constant maps, which
        have no shape and are left out) by step; and ``unchanged``: whether no map changed at all.
    """
    similar: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in trained}
    dark = {name: {"trained": [_dark(maps)]} for name, maps in trained.items()}
    unchanged = dict.fromkeys(trained, True)
    for seed in tqdm(DRAWS, desc="random weights", leave=False, disable=None):
        for step, changed in cascade(module, sample.batch["image"], seed):
            for name, maps in make_maps(changed, methods, sample.batch).items():
                similar[name].setdefault(step, []).append(alike(trained[name], maps))
                dark[name].setdefault(step, []).append(_dark(maps))
                unchanged[name] &= torch.equal(maps, trained[name])
    return {
        name: {
            **beside_floor(similar[name], [alike(maps, maps, sample.other)], sample),
            "dark": {step: float(np.mean(shares)) for step, shares in dark[name].items()},
            "unchanged": unchanged[name],
        }
        for name, maps in trained.items()
    }


def _dark(maps: Tensor) -> float:
    return float((~has_peak(maps)).double().mean())


def steps(module: Stage1Classifier) -> dict[str, tuple[str, ...]]:
    """From the class score and the FCN's map down to the stem: which weights each step draws."""
    top: dict[str, tuple[str, ...]] = {"fc": ("fc.",)}
    if "fcn" in module.map_methods:
        # CAM does not read the decoder, the FCN's map not the FC layer: their tops share a step.
        top = {"fc": ("fc.", "decoder.output."), "decoder": ("decoder.",)}
    return top | {name: (f"encoder.{name}.",) for name in module.encoder.blocks()}


def cascade(
    module: Stage1Classifier, images: Tensor, seed: int = 0
) -> Iterator[tuple[str, Stage1Classifier]]:
    """Yield one copy of the network, randomised further by a step of :func:`steps` each time.

    Weights are initialised as for training, from a seed of their own. BatchNorm begins anew as
    well; the running statistics of random layers are those of ``images`` ``(N, 1, S, S)``: with
    those of the trained network, or with mean 0 and variance 1, features would explode or vanish,
    and maps change for that reason alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(module)(**module.hparams).state_dict()
    changed = copy.deepcopy(module).eval()
    weights = changed.state_dict()  # its own tensors, not copies of them
    random: tuple[str, ...] = ()
    for name, beginnings in steps(module).items():
        random += beginnings
        for key in weights:
            if key.startswith(beginnings):
                weights[key].copy_(fresh[key])
        parts = [part for key, part in changed.named_modules() if f"{key}.".startswith(random)]
        _measure_statistics(changed, [p for p in parts if isinstance(p, _BatchNorm)], images)
        yield name, changed


def _measure_statistics(
    module: Stage1Classifier, norms: Sequence[_BatchNorm], images: Tensor
) -> None:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        for some in images.split(AT_ONCE):
            module.raw_maps(module.unmasked_pass(some))
    for norm in norms:
        norm.eval()


def audit_perturbation(
    module: Stage1Classifier, sample: Sample, maps: Maps
) -> dict[str, dict[str, Any]]:
    """Areas under the deletion and insertion curves of each method's maps.

    Returns:
        Of each method, of :data:`RANDOM` and, where images have a mask, of :data:`LESION`:
        ``deletion`` and ``insertion``, the areas up to :data:`EARLY`; ``deletion_whole`` and
        ``insertion_whole``, as Petsiuk et al. define them; ``less``, by these names, the paired
        difference from :data:`RANDOM` and :data:`EDGES`; ``curves``, the mean at :data:`SHARES`.
    """
    image, marked, weights = sample.batch["image"], sample.batch["has_lesion"], sample.weights
    numbers, stride = sample.batch["index"].tolist(), module.encoder.strides[-1]
    noise = [random_map(image[i : i + 1], number, stride) for i, number in enumerate(numbers)]
    every = {RANDOM: torch.cat(noise), **maps}
    if marked.any():
        # Smoothed: a mask's outline is drawn by hand.
        every[LESION] = smooth(sample.batch["lesion_mask"], FINE / 2)

    def score(images: Tensor) -> Tensor:
        answers = [module(view.of(images)).softmax(1)[:, ABNORMAL] for view in views_of(module)]
        return torch.stack(answers).mean(dim=0)

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
    """Scores ``(B, len(SHARES))`` of images ``(B, 1, H, W)`` while pixels go and come by a map.

    ``deletion``: from the whole to the blurred image, the highest first; ``insertion``: back.
    """
    # Where each pixel stands in the order.
    place, blurred = pixel_order(map).argsort(dim=1).view_as(image), smooth(image, BLUR)

    def curve(start: Tensor, end: Tensor) -> Tensor:
        counts = (round(share * image[0].numel()) for share in SHARES)
        return torch.stack([score(torch.where(place < n, end, start)) for n in counts], dim=1)

    return {"deletion": curve(image, blurred), "insertion": curve(blurred, image)}


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
