"""Cascading randomisation: a trained network whose layers are initialised anew, from the top down.

Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

# Images a batch when running statistics are measured, as many as a step of training takes.
AT_ONCE = 32


def steps(module: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Steps of the cascade, from the class score and the drawn map down to the stem.

    Args:
        module: A network of any stage.

    Returns:
        Name of each step, and the beginnings of the names of the weights that it initialises.

    Example:
        >>> from lightning_modules import STAGES
        >>> [name for name, _ in steps(STAGES["stage1"]())][:3]
        ['fc', 'stages.2.3', 'stages.2.2']
        >>> [name for name, _ in steps(STAGES["stage3"]())][:3]
        ['fc', 'decoder', 'stages.2.3']
    """
    draws = hasattr(module, "decoder")
    # CAM does not read the decoder, the FCN's map not the FC layer: their tops share a step.
    found = [("fc", ("fc", "decoder.output") if draws else ("fc",))]
    if draws:
        found.append(("decoder", ("decoder",)))
    for number, stage in reversed(list(enumerate(module.encoder.stages))):
        for block in reversed(range(len(stage))):
            found.append((f"stages.{number}.{block}", (f"encoder.stages.{number}.{block}",)))
    return [*found, ("stem", ("encoder.stem",))]


def cascade(module: Any, images: Tensor, seed: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield a copy of the network, one step of :func:`steps` more of it random each time.

    Weights come from a network of the same arguments, initialised as training initialises it, from
    a seed of its own. BatchNorm begins anew as well; the running statistics of random layers are
    those of ``images`` in the network at hand. With those of the trained network, or with mean 0
    and variance 1, features would explode or vanish, and maps change for that reason alone.

    Args:
        module: The trained network in evaluation mode; it stays as it is.
        images: ``(N, 1, S, S)`` as the network gets them.
        seed: Of the random weights.

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


def measure_statistics(module: Any, beginnings: Sequence[str], images: Tensor) -> None:
    """Set BatchNorm's running statistics below ``beginnings`` to those of ``images``.

    Args:
        module: In evaluation mode, which all of it is in afterwards, too.
        beginnings: Of the names of the layers.
        images: ``(N, 1, S, S)``.
    """
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
