"""The paper's losses, equations (3) and (4): pure functions.

alpha weighs the confidence in the attention, lambda the lesion location (the paper writes lambda
and lambda' for them).
"""

from __future__ import annotations

import torch
from torch import Tensor


def guided_loss(l1: Tensor, l2: Tensor, alpha: float | Tensor) -> Tensor:
    """Loss of stage 2, equation (3): ``L = (1 - alpha) L1 + alpha L2``.

    Args:
        l1: Classification loss on the image, a scalar.
        l2: Classification loss on the masked image, a scalar.
        alpha: Confidence in [0, 1], e^P / e of the accuracy P.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> guided_loss(torch.tensor(1.0), torch.tensor(3.0), alpha=0.75)
        tensor(2.5000)
    """
    return (1 - alpha) * l1 + alpha * l2


def weakly_supervised_loss(
    l1: Tensor, l2: Tensor, l3: Tensor, alpha: float | Tensor, lambda_: float | Tensor
) -> Tensor:
    """Loss of stage 3, equation (4): ``L = (1 - alpha) L1 + alpha L2 + lambda L3``.

    With lambda 0 the third term still belongs to the graph: every parameter gets a gradient, as
    training on several devices needs.

    Args:
        l1: Classification loss on the image, a scalar.
        l2: Classification loss on the masked image, a scalar.
        l3: Lesion loss, a scalar, see :func:`lesion_loss`.
        alpha: Confidence in [0, 1], e^P / e of the accuracy P.
        lambda_: Weight of the lesion loss, at least 0; the paper sets 1.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> l1, l2, l3 = torch.tensor([1.0, 3.0, 0.5])
        >>> weakly_supervised_loss(l1, l2, l3, alpha=0.75, lambda_=2.0)
        tensor(3.5000)
    """
    return guided_loss(l1, l2, alpha) + lambda_ * l3


def lesion_loss(
    output: Tensor, mask: Tensor, has_lesion: Tensor, images: float | Tensor | None = None
) -> Tensor:
    """Lesion loss L3: mean squared error between FCN output and lesion mask.

    The mean runs over the pixels of an image, then over the images that have a mask.

    Args:
        output: The FCN's map, ``(B, 1, H, W)`` in [0, 1].
        mask: Lesion masks, ``(B, 1, H, W)`` in [0, 1]; ignored where ``has_lesion`` is false.
        has_lesion: bool ``(B,)``, which images have a mask.
        images: Number of images to divide by; None: those with a mask. On several devices, their
            mean number: the mean of the devices' losses is then the mean over all their images.

    Returns:
        A float32 scalar. Without any mask it is 0 and still part of the graph, with zero gradients.

    Raises:
        ValueError: If the shapes do not fit each other.

    Example:
        >>> import torch
        >>> output = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1)
        >>> lesion_loss(output, torch.zeros(2, 1, 1, 1), torch.tensor([True, False]))
        tensor(0.2500)
    """
    if output.shape != mask.shape or has_lesion.shape != output.shape[:1]:
        raise ValueError(
            f"FCN output {tuple(output.shape)}, lesion mask {tuple(mask.shape)} and has_lesion "
            f"{tuple(has_lesion.shape)} do not fit: they must be twice (B, 1, H, W), and (B,)"
        )
    squared = (output.float() - mask.float()).square().flatten(1).mean(dim=1)
    masked = has_lesion.to(squared.dtype)
    count = masked.sum() if images is None else squared.new_ones(()) * images
    return (squared * masked).sum() / torch.where(count > 0, count, torch.ones_like(count))
