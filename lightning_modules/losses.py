"""The paper's losses, equations (3) and (4): pure functions.

The paper writes lambda for alpha, the confidence in the attention, and lambda' for lambda.
"""

from __future__ import annotations

import torch
from torch import Tensor


def guided_loss(l1: Tensor, l2: Tensor, alpha: float | Tensor) -> Tensor:
    """Equation (3), ``L = (1 - alpha) L1 + alpha L2``, of scalars."""
    return (1 - alpha) * l1 + alpha * l2


def weakly_supervised_loss(
    l1: Tensor, l2: Tensor, l3: Tensor, alpha: float | Tensor, lambda_: float | Tensor
) -> Tensor:
    """Equation (4), ``L = (1 - alpha) L1 + alpha L2 + lambda L3``, of scalars."""
    # With lambda 0 the third term still belongs to the graph: DDP waits for every gradient.
    return guided_loss(l1, l2, alpha) + lambda_ * l3


def lesion_loss(
    output: Tensor, mask: Tensor, has_lesion: Tensor, images: Tensor | None = None
) -> Tensor:
    """L3: mean squared error over an image's pixels, then over the images that have a mask.

    Of the FCN's maps and lesion masks ``(B, 1, H, W)`` in [0, 1] and ``has_lesion``, bool ``(B,)``;
    a float32 scalar, without any mask 0 and still part of the graph. ``images`` is the number to
    divide by if not those with a mask: on several devices their mean number, so that the mean of
    the devices' losses is the mean over all their images.
    """
    if output.shape != mask.shape:
        raise ValueError(
            f"lesion masks: expected {tuple(output.shape)} as the FCN draws them, got "
            f"{tuple(mask.shape)}"
        )
    squared = (output.float() - mask.float()).square().flatten(1).mean(dim=1)
    masked = has_lesion.to(squared.dtype)
    count = masked.sum() if images is None else squared.new_ones(()) * images
    return (squared * masked).sum() / torch.where(count > 0, count, torch.ones_like(count))
