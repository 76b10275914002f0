"""The encoder's first convolution, with a faster gradient at its one-channel image.

From stage 2 on the mask learns through the image of the second pass. On a processor the usual
kernel for that gradient fills vectors with channels, and the image has one: it took a quarter of a
stage 1 step.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_KERNEL, _STRIDE, _PADDING = 7, 2, 3
# The gradient is computed in blocks of 4 x 4 pixels: 16 channels, which fill a vector.
_BLOCK = 4


class StemConvolution(nn.Conv2d):
    """7 x 7 convolution of stride 2 on one channel, without bias.

    Attributes:
        fast_gradient: Take the gradient at an image on a processor by :func:`image_gradient`, the
            same sums in another order, where its sides are divisible by 4. All else is
            :class:`torch.nn.Conv2d`'s.

    Args:
        channels: Channels out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, _KERNEL, stride=_STRIDE, padding=_PADDING, bias=False)
        self.fast_gradient = False

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(B, 1, H, W)`` to ``(B, channels, H / 2, W / 2)``; odd sides are rounded up."""
        learns = torch.is_grad_enabled() and image.requires_grad
        blocks = not (image.shape[-2] % _BLOCK or image.shape[-1] % _BLOCK)
        if not (self.fast_gradient and learns and blocks) or image.device.type != "cpu":
            return super().forward(image)
        weight = self.weight
        if torch.is_autocast_enabled("cpu") and image.dtype == torch.float32:
            kind = torch.get_autocast_dtype("cpu")
            image, weight = image.to(kind), weight.to(kind)
        out: Tensor = _Convolve.apply(image, weight)
        return out


def image_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient at the image of a convolution of stride 2, as a convolution of the gradient.

    A pixel 2 j + a (a = 0 or 1, in y as in x) was seen through every second weight by the outputs
    around j: ``sum_d g[j - d] w[2 d + a + 3]``. For each of the 4 x 4 pixels of a block this is one
    channel of a 6 x 6 convolution, of which 4 x 4 weights are not 0; the blocks are then laid out.

    Args:
        gradient: At the output, ``(B, C, H / 2, W / 2)``, sides even.
        weight: ``(C, 1, 7, 7)``.

    Returns:
        ``(B, 1, H, W)``.
    """
    channels = len(weight)
    # An eighth weight, 0, before the seven: [c, t, a, u, b] is then weight 2 t + a, 2 u + b.
    pairs = functional.pad(weight, (1, 0, 1, 0)).view(channels, 4, 2, 4, 2).flip(1, 3)
    taps = pairs.permute(2, 4, 0, 1, 3)
    kernel = weight.new_zeros(2, 2, 2, 2, channels, 6, 6)
    for down, across in itertools.product((0, 1), repeat=2):
        rows, columns = slice(down + 1, down + 5), slice(across + 1, across + 5)
        kernel[down, :, across, :, :, rows, columns] = taps
    kernel = kernel.view(_BLOCK**2, channels, 6, 6).to(memory_format=torch.channels_last)
    blocks = functional.conv2d(gradient, kernel, stride=2, padding=2)
    return functional.pixel_shuffle(blocks, _BLOCK)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(image, weight)
        return functional.conv2d(image, weight, stride=_STRIDE, padding=_PADDING)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        image, weight = ctx.saved_tensors
        at_image = image_gradient(gradient, weight) if ctx.needs_input_grad[0] else None
        at_weight = None
        if ctx.needs_input_grad[1]:
            at_weight = torch.ops.aten.convolution_backward(
                gradient,
                image,
                weight,
                None,
                [_STRIDE] * 2,
                [_PADDING] * 2,
                [1, 1],
                False,
                [0, 0],
                1,
                [False, True, False],
            )[1]
        return at_image, at_weight
