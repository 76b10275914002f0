"""How much of the lesion a map claims: pure functions, a value an image.

A region is what a map claims at a threshold; a lesion is a mask of at least 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Bins of Otsu's histogram: as many as an 8-bit image has values.
OTSU_BINS = 256


def claimed(maps: Tensor, threshold: float | Tensor) -> Tensor:
    """What maps ``(B, 1, H, W)`` claim, bool: all pixels that reach the threshold.

    ``threshold`` is one for all maps, or ``(B,)``, one for each.
    """
    if isinstance(threshold, Tensor) and threshold.ndim:
        threshold = threshold.view(-1, 1, 1, 1)
    return _precise(maps) >= threshold


def iou(region: Tensor, lesion: Tensor) -> Tensor:
    """Intersection over union: ``|R and L| / |R or L|`` (Jaccard 1901).

    Of regions and lesions ``(B, 1, H, W)``, bool or masks, float32 ``(B,)``; NaN where both are
    empty, as in CheXlocalize (Saporta et al. 2022).
    """
    one, other = _bool(region).flatten(1), _bool(lesion).flatten(1)
    return ((one & other).sum(dim=1).double() / (one | other).sum(dim=1)).float()


def energy_in_mask(maps: Tensor, lesion: Tensor) -> Tensor:
    """Share of the map's sum that lies in the lesion, without any threshold.

    The proportion of the energy-based pointing game (Wang et al. 2020, Score-CAM, arXiv
    1910.01279), with the lesion's outline where they have a box. A map that knows nothing, the same
    everywhere, gets the lesion's share of the image. Negative values count as 0: they are no
    evidence for the class.

    Returns:
        float32 ``(B,)`` in [0, 1]; 0 for a map without positive values, which claims nothing; NaN
        without a lesion.
    """
    check_finite(maps)
    energy = maps.double().relu().flatten(1)
    inside = _bool(lesion).flatten(1)
    total = energy.sum(dim=1)
    share = (energy * inside).sum(dim=1) / torch.where(total > 0, total, 1.0)
    return torch.where(inside.any(dim=1), share, float("nan")).float()


def otsu_threshold(maps: Tensor) -> Tensor:
    """Otsu's threshold of each map: the split of its values that explains most of their variance.

    Otsu 1979, "A threshold selection method from gray-level histograms", on a histogram of
    :data:`OTSU_BINS` equal bins between the map's own minimum and maximum: the split maximises ``w0
    w1 (m0 - m1)^2``; of equal ones the lowest. It knows the map alone, no mask.

    Returns:
        ``(B,)`` of the map's type: the smallest value above the split, so that
        ``maps >= threshold`` is exactly the upper class. Infinite for a constant map: it claims
        nothing.
    """
    check_finite(maps)
    values = maps.flatten(1)
    if not len(values):
        return values.new_zeros(0)
    low = values.amin(dim=1, keepdim=True)
    span = values.amax(dim=1, keepdim=True) - low
    unit = (values - low).double() / torch.where(span > 0, span, 1.0)
    bins = (unit * OTSU_BINS).long().clamp(max=OTSU_BINS - 1)
    pixels = _histogram(bins, OTSU_BINS).double()
    # Positions of bins stand for values: an affine change of the map changes nothing.
    centre = torch.arange(OTSU_BINS, dtype=torch.float64, device=maps.device)
    below, moment = pixels.cumsum(dim=1), (pixels * centre).cumsum(dim=1)
    total, mean = below[:, -1:], moment[:, -1:] / below[:, -1:]
    between = (mean * below - moment).square() / (below * (total - below)).clamp(min=1)
    split = between[:, :-1].argmax(dim=1, keepdim=True)
    upper = torch.where(bins > split, values, float("inf"))
    return torch.where(span[:, 0] > 0, upper.amin(dim=1), float("inf"))


def threshold_grid(levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The thresholds ``0, 1 / (levels - 1), ..., 1``, ``(levels,)``; 256: those of 8-bit maps."""
    return torch.arange(levels, dtype=dtype) / (levels - 1)


def level_counts(maps: Tensor, lesion: Tensor, levels: int = 256) -> tuple[Tensor, Tensor]:
    """Histograms of maps: from them follow IoU at any threshold and pixel average precision.

    A pixel has level l if it reaches the threshold l of :func:`threshold_grid` and not the next:
    the levels from l on hold exactly the pixels that :func:`claimed` claims at that threshold.

    Returns:
        Pixels of the lesion and all pixels of each level, two int64 ``(B, levels)``.

    Example:
        >>> import torch
        >>> maps = torch.tensor([0.0, 0.4, 0.5, 1.0]).view(1, 1, 1, 4)
        >>> level_counts(maps, maps > 0.45, levels=3)
        (tensor([[0, 1, 1]]), tensor([[2, 1, 1]]))
    """
    check_finite(maps)
    if maps.numel() and not bool(((maps >= 0) & (maps <= 1)).all()):
        raise ValueError(
            f"maps: expected values in [0, 1], got {maps.min():.3g} to {maps.max():.3g}. Fix: "
            "attention.scale_map."
        )
    values = _precise(maps).flatten(1)
    grid = threshold_grid(levels, values.dtype).to(maps.device)
    level = torch.bucketize(values, grid, right=True) - 1
    # Pixels outside the lesion are sent to a level of their own, which is dropped.
    inside = torch.where(_bool(lesion).flatten(1), level, levels)
    return _histogram(inside, levels + 1)[:, :levels], _histogram(level, levels)


def best_threshold(curves: Tensor) -> tuple[float, float]:
    """The one threshold at which the mean IoU over images is largest, and that mean.

    Tuned on val it is a setting; found on the masks that judge, the mean is an upper bound. The
    threshold 0 is not tried: it claims every pixel of every image, also where a map is dark. Of
    equal ones the lowest; both NaN without an image.

    Args:
        curves: IoU at each threshold of :func:`threshold_grid`, ``(N, levels)``; NaN is left out.
    """
    mean = curves.double().nanmean(dim=0).nan_to_num(-1.0)
    place = 1 + int(mean[1:].argmax())
    if mean[place] < 0:
        return float("nan"), float("nan")
    return float(threshold_grid(len(mean), torch.float64)[place]), float(mean[place])


def check_finite(maps: Tensor) -> None:
    """Raise a ValueError if a map has NaN or infinite values."""
    if not bool(maps.isfinite().all()):
        raise ValueError("a map has NaN or infinite values: the model has diverged")


def _bool(region: Tensor) -> Tensor:
    return region if region.dtype == torch.bool else region >= 0.5


def _precise(maps: Tensor) -> Tensor:
    """Half precision to float32: a threshold must not be rounded to it."""
    return maps if maps.dtype in (torch.float32, torch.float64) else maps.float()


def _histogram(place: Tensor, bins: int) -> Tensor:
    """Numbers of each row's entries 0 to bins - 1: int64 ``(B, bins)`` of ``(B, n)``."""
    row = torch.arange(len(place), device=place.device).unsqueeze(1)
    counts = torch.bincount((place + row * bins).flatten(), minlength=len(place) * bins)
    return counts.view(len(place), bins)
