"""Maps of what a classifier looks at: pure functions on tensors, no hooks, no second backward pass.

All of them are differentiable, work inside in at least float32 (bf16 keeps 8 bits of a map, too few
for a peak or a quantile) and return that type. The named steps from features to a mask are

    cam / pcam  ->  non_negative  ->  normalise  ->  upsample  ->  soft_mask

Two scales exist and must not be mixed: ``normalise`` stretches each image's own map to [0, 1] (soft
mask, display), ``scale_map`` divides by one number for the whole run (scores, comparisons between
images: a normal image may stay dark).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.encoder import enlarge


def cam(features: Tensor, weight: Tensor) -> Tensor:
    """Class activation map, equation (1): ``CAM_c = sum_i w_{c,i} h_i``.

    The FC bias is left out, as in the paper: it says nothing about where.

    Args:
        features: Feature maps before global average pooling, ``(B, C, h, w)``.
        weight: Weights of the FC layer, ``(K, C)``.

    Returns:
        Raw maps ``(B, K, h, w)``, any sign.

    Raises:
        ValueError: If the shapes do not fit each other.

    Example:
        >>> import torch
        >>> features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
        >>> cam(features, torch.tensor([[1.0, -1.0]]))
        tensor([[[[-2., -2.]]]])
        >>> pcam(features, torch.tensor([[1.0, -1.0]]))
        tensor([[[[1., 2.]]]])
    """
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features of shape {tuple(features.shape)} and FC weights of shape "
            f"{tuple(weight.shape)} do not fit: they must be (B, C, h, w) and (K, C)"
        )
    # Under autocast a matrix product falls back to bf16 whatever its inputs: switched off here.
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bchw,kc->bkhw", _precise(features), _precise(weight))


def pcam(features: Tensor, weight: Tensor) -> Tensor:
    """Positive class activation map, equation (2): ``PCAM_c = sum_i max(w_{c,i}, 0) h_i``.

    Only feature maps that speak for the class take part. Features after a ReLU make it >= 0.

    Args:
        features: Feature maps before global average pooling, ``(B, C, h, w)``.
        weight: Weights of the FC layer, ``(K, C)``.

    Returns:
        Raw maps ``(B, K, h, w)``.

    Raises:
        ValueError: If the shapes do not fit each other.
    """
    return cam(features, weight.clamp(min=0))


def non_negative(map: Tensor) -> Tensor:
    """Cut negative values of a raw map of any shape: evidence against the class is no evidence."""
    return _precise(map).relu()


def normalise(map: Tensor) -> Tensor:
    """Stretch each map to [0, 1] by its own minimum and maximum over the last two dimensions.

    Args:
        map: ``(..., h, w)``, any range.

    Returns:
        The same shape in [0, 1]. A constant map becomes all zeros with zero gradient.

    Example:
        >>> import torch
        >>> normalise(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
        tensor([[0.0000, 0.2500],
                [0.5000, 1.0000]])
        >>> normalise(torch.full((1, 2), 7.0))
        tensor([[0., 0.]])
    """
    map = _precise(map)
    if not map.numel():
        return map
    low = map.amin(dim=(-2, -1), keepdim=True)
    span = map.amax(dim=(-2, -1), keepdim=True) - low
    # A replaced divisor rather than an added epsilon: weak maps keep their exact range, and neither
    # branch of the `where` can divide by zero, so that gradients stay finite as well.
    flat = span <= 0
    stretched = (map - low) / torch.where(flat, torch.ones_like(span), span)
    return torch.where(flat, torch.zeros_like(map), stretched)


def scale_map(map: Tensor, scale: float | Tensor) -> Tensor:
    """Cut negative values, divide by one scale for all images and clip to [0, 1].

    Args:
        map: Raw map of any shape.
        scale: Value that becomes 1, the same for every image of a run; a number or a 0-d tensor.

    Returns:
        The same shape in [0, 1]; all zeros where the scale is 0 (a model without evidence).

    Raises:
        ValueError: If the scale is negative or not finite.
    """
    value = float(scale)
    if not 0 <= value < float("inf"):
        raise ValueError(f"the map scale is {value}: it must be finite and not negative")
    if value == 0:
        return torch.zeros_like(_precise(map))
    return (non_negative(map) / value).clamp(max=1)


def upsample(map: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize a map of the encoder bilinearly to the image, see :func:`encoder.enlarge`.

    Args:
        map: ``(B, C, h, w)``.
        size: Target ``(H, W)`` in pixels.

    Returns:
        ``(B, C, H, W)``, never outside the range of the map.
    """
    map = _precise(map)
    if not map.shape[0]:
        return map.new_zeros((0, map.shape[1], *size))  # interpolate refuses an empty batch
    return enlarge(map, size)


def soft_mask(map: Tensor, omega: float = 10.0, sigma: float = 0.5) -> Tensor:
    """Soft threshold of a normalised map: ``T(A) = sigmoid(omega * (A - sigma))``.

    From GAIN (Li et al. 2018, section 3.1). The image times this mask keeps the activated area.

    Args:
        map: Values in [0, 1], see :func:`normalise`; any shape.
        omega: Steepness; the larger, the closer to a hard threshold.
        sigma: Threshold, where the mask is 0.5.

    Returns:
        The same shape, in (0, 1).
    """
    return torch.sigmoid(omega * (_precise(map) - sigma))


def has_peak(map: Tensor) -> Tensor:
    """Tell maps that point somewhere from those of one value, which point nowhere.

    Args:
        map: ``(B, 1, H, W)``.

    Returns:
        bool ``(B,)``.
    """
    if not map.numel():
        return torch.zeros(map.shape[0], dtype=torch.bool, device=map.device)
    values = _precise(map.detach()).flatten(1)
    return values.amin(dim=1) < _plateau_floor(values.amax(dim=1))


def peak(map: Tensor) -> Tensor:
    """Locate the maximum of each map, in the middle of its plateau.

    A clipped or upsampled map often reaches its maximum on several pixels, and the first of them
    would be a biased answer. The rule: of the pixels at the maximum, take the one nearest to their
    centre of mass; then repeat with those that form one plateau with it (8-connected). So of two
    separate plateaus one is chosen and its own middle returned, never the gap between them. The
    answer is always a pixel at the maximum; ties go to the upper, then to the left one. A map of
    one value (see :func:`has_peak`) peaks in the middle of the image.

    "At the maximum" allows for 1e-6 of its size: interpolation rounds inside a flat area.

    Args:
        map: ``(B, 1, H, W)``, H and W at least 1, any range.

    Returns:
        float32 ``(B, 2)``: x (column) and y (row) of the pixel, counted from 0, without gradient.

    Raises:
        ValueError: If the map has another shape, no pixels or values that are not finite.

    Example:
        >>> import torch
        >>> peak(torch.tensor([[[[0.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]]]))
        tensor([[2., 0.]])
    """
    if map.ndim != 4 or map.shape[1] != 1 or not map.shape[2] * map.shape[3]:
        raise ValueError(f"a map of shape {tuple(map.shape)} has no peak: it must be (B, 1, H, W)")
    values = _precise(map.detach())[:, 0]
    if not bool(values.isfinite().all()):
        raise ValueError("a map with NaN or infinite values has no peak: the model has diverged")
    if not len(map):
        return torch.zeros(0, 2, device=map.device)
    # Of all maps at once, and only their few pixels from here on: a GPU is waited for three times a
    # batch, and once more for each round below, and not for each map.
    pixels = (values >= _plateau_floor(values.amax((1, 2), keepdim=True))).nonzero()
    joined = _connected(pixels, _nearest_to_centroid(pixels, len(map)))
    pixels = pixels[joined.nonzero()[:, 0]]
    return pixels[_nearest_to_centroid(pixels, len(map))].flip(1)[:, :2].float()


def _plateau_floor(maximum: Tensor) -> Tensor:
    return maximum - 1e-6 * maximum.abs()


def _nearest_to_centroid(pixels: Tensor, maps: int) -> Tensor:
    """Row in ``pixels`` of each map's chosen one, ``(maps,)``; ``pixels`` are rows (map, y, x)."""
    map, place = pixels[:, 0], pixels[:, 1:]
    count = place.new_zeros(maps, 1).index_add(0, map, torch.ones_like(place[:, :1]))
    total = place.new_zeros(maps, 2).index_add(0, map, place)
    # Integers, so that symmetric plateaus tie exactly and the first, upper left pixel wins. Only
    # the order counts: |n p - sum|^2 less its constant part is n (n p^2 - 2 p sum), over n.
    distance = (count[map] * place**2 - 2 * place * total[map]).sum(dim=1)
    least = _least(distance, map, maps)
    row = torch.arange(len(pixels), device=pixels.device)
    return _least(row.where(distance == least[map], torch.full_like(row, len(row))), map, maps)


def _least(values: Tensor, map: Tensor, maps: int) -> Tensor:
    return values.new_zeros(maps).scatter_reduce(0, map, values, "amin", include_self=False)


def _connected(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Which rows (map, y, x) of ``pixels`` are 8-connected to their map's ``chosen`` row.

    Each round fills whole runs along rows and columns, so that the number of rounds follows the
    turns of the plateau's outline and not its size in pixels: at full resolution that is a handful.
    """
    map, y, x = pixels.unbind(1)
    # Each plateau in the upper left corner of a sheet that is just large enough for all.
    y, x = (axis - _least(axis, map, len(chosen))[map] for axis in (y, x))
    height, width = (torch.stack([y.amax(), x.amax()]) + 1).tolist()
    top = torch.zeros(len(chosen), height, width, dtype=torch.bool, device=pixels.device)
    grown = torch.zeros_like(top)
    top[map, y, x] = torch.ones_like(map, dtype=torch.bool)
    grown[map[chosen], y[chosen], x[chosen]] = torch.ones_like(chosen, dtype=torch.bool)
    before = torch.zeros_like(top)
    while not torch.equal(grown, before):
        before = grown
        near = functional.max_pool2d(grown[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
        grown = _fill_runs(near & top, top)
        grown = _fill_runs(grown.mT, top.mT).mT
    return grown[map, y, x]


def _fill_runs(seed: Tensor, top: Tensor) -> Tensor:
    """Extend ``seed`` to the whole horizontal runs of ``top`` that it touches."""
    # Runs are numbered by the gaps before them; a gap column between rows keeps rows apart.
    gaps = functional.pad(~top, (0, 1), value=True)
    run = gaps.flatten().cumsum(0).view_as(gaps)[..., :-1]
    seeds = torch.zeros(gaps.numel() + 1, dtype=torch.int32, device=top.device)
    seeds.index_add_(0, run.flatten(), seed.flatten().int())
    return top & (seeds > 0)[run]


def _precise(tensor: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
