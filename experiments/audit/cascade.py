"""Cascading randomisation: do maps change when the network's layers are made random, top down?

Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from experiments.audit.maps import AT_ONCE, Maps, Sample, alike, beside_floor, make_maps
from experiments.evaluation.methods import MapMethod
from lightning_modules import Stage1Classifier
from lightning_modules.attention import has_peak

# Seeds of random weights, several since a random FC layer's map depends on the draw. Far from the
# seeds of trainings, or "random" would be the very weights that this training began with.
DRAWS = (900_001, 900_002, 900_003)


def audit_cascade(
    module: Stage1Classifier,
    methods: Sequence[MapMethod],
    sample: Sample,
    trained: Maps,
    draws: Sequence[int] = DRAWS,
) -> dict[str, dict[str, Any]]:
    """How similar the trained network's maps are to those of ever more random networks.

    Returns:
        Of each method :func:`beside_floor`, by step; ``dark`` (the share of constant maps, which
        have no shape and are left out) by step; and ``unchanged``: whether no map changed at all.
    """
    similar: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in trained}
    dark = {name: {"trained": [_dark(maps)]} for name, maps in trained.items()}
    unchanged = dict.fromkeys(trained, True)
    for seed in tqdm(draws, desc="random weights", leave=False, disable=None):
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
    """Yield a copy of the network, one step of :func:`steps` more of it random each time.

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
        _measure_statistics(changed, random, images)
        yield name, changed


def _measure_statistics(
    module: Stage1Classifier, beginnings: tuple[str, ...], images: Tensor
) -> None:
    """Set BatchNorm's running statistics below ``beginnings`` to those of ``images``."""
    parts = [part for key, part in module.named_modules() if f"{key}.".startswith(beginnings)]
    norms = [part for part in parts if isinstance(part, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        for some in images.split(AT_ONCE):
            module.raw_maps(module.unmasked_pass(some))
    for norm in norms:
        norm.eval()
