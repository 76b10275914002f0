"""Cascading randomisation: a trained network whose layers are initialised anew, from the top down.

Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_modules import Stage1Classifier

# Images a batch when running statistics are measured, as many as a step of training takes.
AT_ONCE = 32


def steps(module: Stage1Classifier) -> list[tuple[str, tuple[str, ...]]]:
    """Steps of the cascade, from the class score and the FCN's map down to the stem.

    Returns:
        Name of each step, and the beginnings of the names of the weights that it initialises.

    Example:
        >>> from lightning_modules import STAGES
        >>> [name for name, _ in steps(STAGES["stage1"]())][:3]
        ['fc', 'stages.2.3', 'stages.2.2']
        >>> [name for name, _ in steps(STAGES["stage3"]())][:3]
        ['fc', 'decoder', 'stages.2.3']
    """
    top: list[tuple[str, tuple[str, ...]]] = [("fc", ("fc",))]
    if "fcn" in module.map_methods:
        # CAM does not read the decoder, the FCN's map not the FC layer: their tops share a step.
        top = [("fc", ("fc", "decoder.output")), ("decoder", ("decoder",))]
    return [*top, *((name, (f"encoder.{name}",)) for name in module.encoder.blocks())]


def cascade(
    module: Stage1Classifier, images: Tensor, seed: int = 0
) -> Iterator[tuple[str, Stage1Classifier]]:
    """Yield a copy of the network, one step of :func:`steps` more of it random each time.

    Weights come from a network of the same arguments, initialised as training initialises it, from
    a seed of its own. BatchNorm begins anew as well; the running statistics of random layers are
    those of ``images`` in the network at hand. With those of the trained network, or with mean 0
    and variance 1, features would explode or vanish, and maps change for that reason alone.

    Args:
        module: the trained network in evaluation mode; it stays as it is.
        images: ``(N, 1, S, S)`` as the network gets them.
        seed: of the random weights.

    Yields:
        The name of the step and the copy, in evaluation mode; the next step changes that very copy.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(module)(**module.hparams).state_dict()
    changed = copy.deepcopy(module).eval()
    weights = changed.state_dict()  # its own tensors, not copies of them
    random: tuple[str, ...] = ()
    for name, beginnings in steps(module):
        random += beginnings
        for key in weights:
            if _below(key, beginnings):
                weights[key].copy_(fresh[key])
        measure_statistics(changed, random, images)
        yield name, changed


def measure_statistics(module: Stage1Classifier, beginnings: Sequence[str], images: Tensor) -> None:
    """Set BatchNorm's running statistics below ``beginnings`` to those of ``images``."""
    norms = [
        part
        for key, part in module.named_modules()
        if isinstance(part, _BatchNorm) and _below(key, beginnings)
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        for some in images.split(AT_ONCE):
            module.raw_maps(module.encoder(some))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _below(key: str, beginnings: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{beginning}.") for beginning in beginnings)
