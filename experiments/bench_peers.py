"""What training steps are compared with, written plainly: contiguous float32, no autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Batch = dict[str, Tensor]


def plain_loss(module: Any, batch: Batch) -> Tensor:
    """Cross-entropy of the network as anybody would write it."""
    return functional.cross_entropy(module(batch["image"]), batch["label"])


def gain_loss(module: Any, batch: Batch, omega: float = 10.0, sigma: float = 0.5) -> Tensor:
    """GAIN as published (Li et al. 2018, section 3.1): classification and attention mining.

    The attention is Grad-CAM of the image's own class: weights are the mean gradients of its score
    at the last features, ``w = GAP(d s_c / d f)``, and learn themselves: the gradient is
    differentiated again. What the attention shows is taken out of the image, ``I - T(A) I``, and
    the score of the class there is minimised.
    """
    image, label = batch["image"], batch["label"]
    features = module.encoder(image)[-1]
    scores = module.fc(features.mean((2, 3)))
    chosen = scores.gather(1, label[:, None]).sum()
    (slope,) = torch.autograd.grad(chosen, features, create_graph=True)
    attention = (slope.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    attention = functional.interpolate(attention, image.shape[-2:], mode="bilinear")
    low, high = attention.amin((2, 3), keepdim=True), attention.amax((2, 3), keepdim=True)
    mask = torch.sigmoid(omega * ((attention - low) / (high - low + 1e-8) - sigma))
    left = module(image - mask * image).softmax(1).gather(1, label[:, None]).mean()
    return functional.cross_entropy(scores, label) + left


def two_passes_loss(module: Any, batch: Batch) -> Tensor:
    """The floor of stage 2: two passes, and of the second one the gradient at its image.

    Without it no mask could learn. The mask itself and its map are not here.
    """
    second = batch["image"].detach().requires_grad_()
    whole = functional.cross_entropy(module(batch["image"]), batch["label"])
    return whole + functional.cross_entropy(module(second), batch["label"])
