"""The paper's losses, equations (3) and (4), and others for its lesion term: pure functions.

The paper writes lambda for alpha, the confidence in the attention, and lambda' for lambda.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def guided_loss(l1: Tensor, l2: Tensor, alpha: float | Tensor) -> Tensor:
    """Equation (3), ``L = (1 - alpha) L1 + alpha L2``, of scalars."""
    return (1 - alpha) * l1 + alpha * l2


def weakly_supervised_loss(guided: Tensor, l3: Tensor, lambda_: float) -> Tensor:
    """Equation (4): what equation (3) gives, ``+ lambda L3``; scalars."""
    # With lambda 0 the third term still belongs to the graph: DDP waits for every gradient.
    return guided + lambda_ * l3


def squared_error(scores: Tensor, mask: Tensor) -> Tensor:
    """Mean over an image's pixels of the squared error, the paper's: ``(B,)``, in [0, 1].

    Of the FCN's scores before the sigmoid and lesion masks in [0, 1], both ``(B, 1, H, W)``, as in
    all of ``LESION_LOSSES``; float32.
    """
    if scores.shape != mask.shape:
        raise ValueError(
            f"lesion masks: expected {tuple(scores.shape)} as the FCN draws them, got "
            f"{tuple(mask.shape)}"
        )
    return (scores.float().sigmoid() - mask.float()).square().flatten(1).mean(dim=1)


def cross_entropy(scores: Tensor, mask: Tensor) -> Tensor:
    """Mean over an image's pixels of the binary cross-entropy: ``(B,)``, >= 0."""
    losses = binary_cross_entropy_with_logits(scores.float(), mask.float(), reduction="none")
    return losses.flatten(1).mean(dim=1)


def cross_entropy_dice(scores: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy plus, where there is a lesion, 1 - Dice of the soft map: ``(B,)``, >= 0.

    Dice as in Milletari et al. 2016 (V-Net), with plain sums and 1 added above and below: however
    few pixels a lesion has, missing it costs 1. An empty mask has no overlap to speak of.
    """
    drawn, wanted = scores.float().sigmoid().flatten(1), mask.float().flatten(1)
    area = wanted.sum(dim=1)
    dice = (2 * (drawn * wanted).sum(dim=1) + 1) / (drawn.sum(dim=1) + area + 1)
    return cross_entropy(scores, mask) + torch.where(area > 0, 1 - dice, 0.0)


LESION_LOSSES = {"mse": squared_error, "bce": cross_entropy, "bce_dice": cross_entropy_dice}


def mean_error(errors: Tensor, weight: Tensor | None, images: Tensor | None = None) -> Tensor:
    """Mean of ``errors`` ``(B,)`` over the images with a weight ``(B,)`` above 0, each times it.

    A float32 scalar, without any such image 0 and still part of the graph. ``images`` is the number
    to divide by if not theirs: on several devices their mean number, so that the mean of the
    devices' losses is the mean over all their images.
    """
    if weight is None:
        return errors.mean()
    count = (weight > 0).sum() if images is None else images
    total = (errors * weight.to(errors.dtype)).sum()
    return total / count.masked_fill(count == 0, 1)
