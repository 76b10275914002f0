"""Maps of what a classifier looks at: pure functions on tensors, no hooks, no second backward pass.

All but ``peak`` are differentiable and work in at least float32, as bf16 keeps 8 bits of a map. Two
scales must not be mixed: ``normalise`` stretches each image's own map to [0, 1] (soft mask,
display), ``scale_map`` divides by one number a run (a normal image may stay dark, images compare).
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from lightning_modules.encoder import enlarge


def cam(features: Tensor, weight: Tensor) -> Tensor:
    """Class activation map, equation (1): ``CAM_c = sum_i w_{c,i} h_i``, any sign.

    From features ``(B, C, h, w)`` and FC weights ``(K, C)`` to ``(B, K, h, w)``. The FC bias is
    left out, as in the paper: it says nothing about where.
    """
    # Under autocast a matrix product falls back to bf16 whatever its inputs: switched off here.
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bchw,kc->bkhw", precise(features), precise(weight))


def pcam(features: Tensor, weight: Tensor) -> Tensor:
    """Positive class activation map, equation (2): ``PCAM_c = sum_i max(w_{c,i}, 0) h_i``."""
    return cam(features, weight.clamp(min=0))


def non_negative(maps: Tensor) -> Tensor:
    """Cut negative values: evidence against the class is no evidence for it."""
    return precise(maps).relu()


def normalise(maps: Tensor) -> Tensor:
    """Stretch each map ``(..., h, w)`` to [0, 1] by its own minimum and maximum.

    A constant map becomes all zeros with zero gradient.
    """
    maps = precise(maps)
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    # A replaced divisor rather than an added epsilon: weak maps keep their exact range, and neither
    # branch of the `where` can divide by zero, so that gradients stay finite as well.
    flat = span <= 0
    stretched = (maps - low) / torch.where(flat, torch.ones_like(span), span)
    return torch.where(flat, torch.zeros_like(maps), stretched)


def scale_map(maps: Tensor, scale: float | Tensor) -> Tensor:
    """Cut negative values, divide by one ``scale`` for all images and clip to [0, 1]."""
    value = float(scale)
    if value == 0:  # a model without evidence
        return torch.zeros_like(precise(maps))
    return (non_negative(maps) / value).clamp(max=1)


def upsample(maps: Tensor, size: tuple[int, int] | torch.Size, offset: float = 0.0) -> Tensor:
    """Resize maps ``(B, C, h, w)`` to the image's ``(H, W)``, see ``enlarge``.

    Maps that are as large as the image already, such as the FCN's, stay as they are.
    """
    maps = precise(maps)
    if maps.shape[-2:] == torch.Size(size):
        return maps
    if not maps.shape[0]:  # len() would fix the batch of an exported model
        return maps.new_zeros((0, maps.shape[1], *size))  # interpolate refuses an empty batch
    return enlarge(maps, size, offset)


class View(NamedTuple):
    """A way to show an image to the network: at another size, mirrored, or as it is."""

    scale: float = 1.0
    mirrored: bool = False

    def of(self, image: Tensor) -> Tensor:
        """The view of images ``(B, 1, H, W)``."""
        size = [self.side(side) for side in image.shape[-2:]]
        if self.scale != 1:
            image = functional.interpolate(image, size, mode="bilinear")
        return image.flip(-1) if self.mirrored else image

    def side(self, side: int) -> int:
        """The view's side in pixels: a multiple of 32, as encoders want."""
        return side if self.scale == 1 else max(1, int(side * self.scale / 32 + 0.5)) * 32

    def back(self, maps: Tensor, size: torch.Size) -> Tensor:
        """Maps as large as the view, on the image of ``(H, W)`` that it is of."""
        if maps.shape[-2:] != size:
            maps = functional.interpolate(maps, size, mode="bilinear")
        return maps.flip(-1) if self.mirrored else maps


def views(mirror: bool, zoom: float) -> list[View]:
    """Those of whose answers a network gives the mean: ``model.mirror`` and ``model.zoom``."""
    scales = [1.0] if zoom == 1 else [1.0, 1 / zoom, zoom]
    return [View(scale, mirrored) for scale in scales for mirrored in (False, True)[: 1 + mirror]]


def soft_mask(maps: Tensor, omega: float = 10.0, sigma: float = 0.5) -> Tensor:
    """Soft threshold ``T(A) = sigmoid(omega (A - sigma))`` of a normalised map, in (0, 1).

    From GAIN (Li et al. 2018, section 3.1). The image times this mask keeps the activated area.
    """
    return torch.sigmoid(omega * (precise(maps) - sigma))


def lesion_weight(lesion: Tensor, floor: float) -> Tensor:
    """Each pixel's weight in the classifier's mean, 1 on average, from a lesion map in [0, 1].

    ``floor`` is what a pixel without lesion weighs beside one with it, in (0, 1]: an image in which
    no lesion is seen has the plain mean. ``(B, 1, H, W)``, both.
    """
    weight = floor + (1 - floor) * precise(lesion)
    return weight / weight.mean((-2, -1), keepdim=True)


def has_peak(maps: Tensor) -> Tensor:
    """Whether each map ``(B, 1, H, W)`` has a peak, that is, is not constant: bool ``(B,)``."""
    values = precise(maps.detach()).flatten(1)
    return values.amin(dim=1) < _plateau_floor(values.amax(dim=1))


def peak(maps: Tensor) -> Tensor:
    """Locate the maximum of each map ``(B, 1, H, W)``, in the middle of its plateau.

    A clipped or upsampled map often reaches its maximum on several pixels, and the first of them
    would be a biased answer. So of the pixels at the maximum (within 1e-6 of it, since
    interpolation rounds inside a flat area) the one nearest to their centre of mass is taken; then
    again of those that form one plateau with it (8-connected): never the gap between two plateaus.
    Ties go to the upper, then to the left one. A constant map peaks in the middle of the image.
    float32 ``(B, 2)``: x (column) and y (row) of the pixel, counted from 0, without gradient.

    Example:
        >>> import torch
        >>> peak(torch.tensor([[[[0.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]]]))
        tensor([[2., 0.]])
    """
    if not len(maps):
        return torch.zeros(0, 2, device=maps.device)
    if not bool(maps.isfinite().all()):
        raise FloatingPointError(
            "a map is NaN or infinite: the model has diverged. Fix: a lower "
            "optimizer.learning_rate, or trainer.precision=32-true."
        )
    values = precise(maps.detach())[:, 0]
    # Of all maps at once: a GPU is waited for a few times a batch, and not for each map.
    top = (values >= _plateau_floor(values.amax((1, 2), keepdim=True))).nonzero().cpu().numpy()
    ends = np.searchsorted(top[:, 0], np.arange(len(maps) + 1))
    middles = np.stack([_middle(top[start:end, :0:-1]) for start, end in pairwise(ends)])
    return torch.from_numpy(middles).to(maps.device, torch.float32)


def precise(tensor: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _plateau_floor(maximum: Tensor) -> Tensor:
    return maximum - 1e-6 * maximum.abs()


def _middle(pixels: np.ndarray) -> np.ndarray:
    """The pixel (x, y) of ``pixels`` (n, 2), all at the maximum, that :func:`peak` chooses."""
    corner = pixels.min(axis=0)
    place = tuple((pixels - corner).T)
    sheet = np.zeros(pixels.max(axis=0) - corner + 1, dtype=bool)
    sheet[place] = True
    plateau = ndimage.label(sheet, np.ones((3, 3)))[0][place]
    own = pixels[plateau == plateau[_nearest_to_centroid(pixels)]]
    return np.asarray(own[_nearest_to_centroid(own)])


def _nearest_to_centroid(pixels: np.ndarray) -> int:
    # Integers, so that symmetric plateaus tie exactly and the first, upper left pixel wins. Only
    # the order counts: |n p - sum|^2 less its constant part is n (n p^2 - 2 p sum), over n.
    distance = (len(pixels) * pixels**2 - 2 * pixels * pixels.sum(axis=0)).sum(axis=1)
    return int(distance.argmin())
