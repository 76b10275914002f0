"""The paper's losses, equations (3) and (4): pure functions.

alpha weighs the confidence in the attention, lambda the lesion location (the paper writes lambda
and lambda' for them).
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
    """Equation (4), ``L = (1 - alpha) L1 + alpha L2 + lambda L3``, of scalars.

    With lambda 0 the third term still belongs to the graph: every parameter gets a gradient, as
    training on several devices needs.
    """
    return guided_loss(l1, l2, alpha) + lambda_ * l3


def lesion_loss(
    output: Tensor, mask: Tensor, has_lesion: Tensor, images: float | Tensor | None = None
) -> Tensor:
    """L3: mean squared error over an image's pixels, then over the images that have a mask.

    A float32 scalar; without any mask 0 and still part of the graph, with zero gradients.

    Args:
        output: The FCN's map, ``(B, 1, H, W)`` in [0, 1].
        mask: Lesion masks, ``(B, 1, H, W)`` in [0, 1].
        has_lesion: bool ``(B,)``, which images have a mask.
        images: Number of images to divide by; None: those with a mask. On several devices, their
            mean number: the mean of the devices' losses is then the mean over all their images.

    Example:
        >>> import torch
        >>> output = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1)
        >>> lesion_loss(output, torch.zeros(2, 1, 1, 1), torch.tensor([True, False]))
        tensor(0.2500)
    """
    if output.shape != mask.shape or has_lesion.shape != output.shape[:1]:
        raise ValueError(
            f"shapes do not fit: expected output and mask (B, 1, H, W) and has_lesion (B,), got "
            f"{tuple(output.shape)}, {tuple(mask.shape)} and {tuple(has_lesion.shape)}"
        )
    squared = (output.float() - mask.float()).square().flatten(1).mean(dim=1)
    masked = has_lesion.to(squared.dtype)
    count = masked.sum() if images is None else squared.new_ones(()) * images
    return (squared * masked).sum() / torch.where(count > 0, count, torch.ones_like(count))
