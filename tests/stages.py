"""Small networks and batches for the tests of the three stages."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.config import load_config
from lightning_modules.stages import STAGES, Stage1Classifier

SIZE = 64  # 4 x 4 positions at the last features


def network(
    stage: str = "stage1", *words: str, kind: type[Stage1Classifier] | None = None, **data: object
) -> Stage1Classifier:
    """A narrow network with the options of ``key=value`` words; ``data``: facts of the data."""
    config = load_config(stage, ["model.width=0.25", *words])
    sections = config.model, config.loss, config.attention, config.optimizer
    return (kind or STAGES[stage])(*sections, **data)


def small_batch(lesions: bool = True, images: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random images, half of them abnormal; the last has a lesion mask if ``lesions``."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(images, 1, SIZE, SIZE)
    mask[-1, :, 8:24, 8:24] = float(lesions)
    has_lesion = torch.arange(images) == (images - 1 if lesions else images)
    return {
        "image": torch.randn(images, 1, SIZE, SIZE, generator=generator),
        "label": torch.arange(images) * 2 // images,
        "lesion_mask": mask,
        "has_lesion": has_lesion,
        "index": torch.arange(images),
    }


def settled(module: torch.nn.Module) -> torch.nn.Module:
    """The module with running statistics of real passes, so that it also works in evaluation."""
    torch.manual_seed(1)
    module.train()
    with torch.no_grad():
        for _ in range(5):
            module(torch.randn(8, 1, SIZE, SIZE))
    return module


def names_without_gradient(module: torch.nn.Module) -> list[str]:
    """Parameters that a backward pass has not reached."""
    return [name for name, parameter in module.named_parameters() if parameter.grad is None]
