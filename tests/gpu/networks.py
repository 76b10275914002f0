"""Networks of the three stages for the GPU tests, made from the configuration as training does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.build import build_data, build_module
from experiments.config import load_config
from tests.runs import tiny_words

# Float32 rounds as the CPU's does: TF32, cuDNN's own choice, keeps ten bits only.
torch.backends.cudnn.allow_tf32 = False


def made(stage: str, root: Path):
    """The tiny phantom, a stage's network and a batch for it, all on the CPU."""
    config = load_config(stage, [*tiny_words(root), "data.num_workers=0"])
    data = build_data(config)
    data.prepare_data()
    data.setup()
    torch.manual_seed(0)
    module = build_module(config, data)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    with torch.no_grad():  # with BatchNorm's first statistics it would multiply rounding errors
        for batch in 2 * batches:
            module.losses(batch)
    return data, module, batches[0]


def gradient(module: nn.Module) -> Tensor:
    """Gradients of all parameters as one vector of float64 on the CPU."""
    parts = [one.grad.flatten() for one in module.parameters() if one.grad is not None]
    return torch.cat(parts).double().cpu()


def apart(one: Tensor, other: Tensor) -> float:
    """Length of the difference of two vectors, as a share of the second one's."""
    return float((one - other).norm() / other.norm())
