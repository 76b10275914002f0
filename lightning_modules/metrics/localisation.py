"""How well a map finds the lesion: hit rate and pixel average precision."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_modules.attention import has_peak, peak
from lightning_modules.metrics.over_lesions import (
    MeanOverLesions,
    check_finite,
    check_unit,
    images_with_lesion,
)
from lightning_modules.metrics.per_image import PerImageMetric, first_rows

# Of the diagonal: half a cell's diagonal in a map of 20 x 20 cells, see HitRate.
TOLERANCE = 0.025


class HitRate(MeanOverLesions):
    """Share of images with a lesion mask whose map peaks in the lesion, or close to it.

    The pointing game (Zhang et al. 2018, "Top-down neural attention by excitation backprop", IJCV),
    which CheXlocalize calls hit rate (Saporta et al. 2022). The peak is the middle of the plateau
    of the maximum (:func:`attention.peak`); a map of one value claims nothing and misses. Which
    images count: see :class:`MeanOverLesions`.

    With a ``tolerance`` a peak also hits from outside: at most that far from the nearest pixel of
    the lesion (centre to centre), as a fraction of the image's diagonal. A fraction, because images
    differ in size: the pointing game's 15 pixels are 2.4 % of the diagonal of its 500 x 375 images,
    but 0.4 % of a radiograph of 2880 x 2304. :data:`TOLERANCE` is half the diagonal of a cell of a
    20 x 20 map: the most by which the middle of a cell misses what lies in that cell.

    Args:
        tolerance: Fraction of the diagonal, 0 = the peak must lie in the lesion.
        kwargs: Further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``tolerance`` is not in [0, 1].

    Example:
        >>> import torch
        >>> metric = HitRate()
        >>> map = torch.tensor([[0.1, 0.9, 0.2], [0.7, 0.1, 0.1]]).view(2, 1, 1, 3)
        >>> mask = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]).view(2, 1, 1, 3)
        >>> metric.update(map, mask, torch.tensor([4, 8]), torch.tensor([True, True]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, tolerance: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= tolerance <= 1:
            raise ValueError(f"tolerance is {tolerance}: a fraction of the diagonal, 0 to 1")
        self.tolerance = tolerance

    def values(self, map: Tensor, lesion: Tensor) -> Tensor:
        """1 for a hit, 0 for a miss, ``(B,)``."""
        return (peak_distance(map, lesion) <= self.tolerance).float()


class PixelAveragePrecision(PerImageMetric):
    """Average precision over the pooled pixels of all images with a lesion mask.

    Every image weighs the same, whatever its size. Which images count: see :class:`HitRate`.
    Average precision is the sum over thresholds of precision times the gain in recall, ties counted
    as one threshold; nothing is interpolated or binned.

    An image is kept as its distinct map values with their numbers of pixels, 12 bytes each: exact,
    and 3 kB for a map of 8 bits. A float map of all different values takes 12 bytes a pixel (0.3 MB
    at 160 x 160, 1.2 MB at 320 x 320, 80 MB at 2880 x 2304). For large images set ``levels``.

    Args:
        levels: Round maps in [0, 1] to this many equal steps: at most 12 bytes a level and image.
            None keeps exact values of any range.
        kwargs: Further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``levels`` is less than 2.

    Example:
        >>> import torch
        >>> metric = PixelAveragePrecision()
        >>> map = torch.tensor([0.9, 0.6, 0.3, 0.1]).view(1, 1, 2, 2)
        >>> mask = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2)
        >>> metric.update(map, mask, torch.tensor([0]), torch.tensor([True]))
        >>> metric.compute()
        tensor(0.8333)
    """

    # `index` and `values` have a row an image, the others `values` rows for each of them.
    columns: ClassVar[dict[str, torch.dtype]] = {
        "index": torch.int64,
        "values": torch.int64,
        "score": torch.float32,
        "lesion_pixels": torch.int32,
        "pixels": torch.int32,
    }

    def __init__(self, levels: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if levels is not None and levels < 2:
            raise ValueError(f"levels is {levels}: it must be at least 2, or None for exact values")
        self.levels = levels

    def update(self, map: Tensor, mask: Tensor, index: Tensor, has_lesion: Tensor) -> None:
        """Add the images of a batch.

        Args:
            map: ``(B, 1, H, W)``, the higher, the more lesion; in [0, 1] if ``levels`` is set.
            mask: Lesion masks ``(B, 1, H, W)`` in [0, 1].
            index: Number of the image, ``(B,)``; of several rows with one number the first counts.
            has_lesion: bool ``(B,)``, which images have a mask.

        Raises:
            ValueError: If the shapes do not fit each other, a map is not finite, or outside [0, 1]
                although ``levels`` is set.
        """
        map, lesion, index = images_with_lesion(self, map, mask, index, has_lesion)
        if self.levels is None:
            check_finite(map)
        else:
            remedy = "it must lie in [0, 1]; scale it, or use levels=None"
            check_unit(map, f"with levels={self.levels} {remedy}")
        names = ("values", "score", "lesion_pixels", "pixels")
        counts = _count_values(map.flatten(1).float(), lesion.flatten(1), self.levels)
        self.append(index=index, **dict(zip(names, counts, strict=True)))

    def compute(self) -> Tensor:
        """Compute the average precision in [0, 1], a float32 scalar; NaN without a lesion mask."""
        values = self.column("values")
        counted = torch.zeros_like(values, dtype=torch.bool)
        counted[first_rows(self.column("index"))] = True
        image = torch.arange(len(values), device=values.device).repeat_interleave(values)
        kept = counted[image]
        pixels = self.column("pixels").double()
        size = torch.zeros_like(values, dtype=torch.float64).index_add(0, image, pixels)
        weight = (1 / size)[image][kept]
        return _average_precision(
            self.column("score")[kept],
            self.column("lesion_pixels")[kept] * weight,
            pixels[kept] * weight,
        )


def hit(map: Tensor, mask: Tensor) -> Tensor:
    """Tell whose peak lies in the lesion.

    Args:
        map: ``(B, 1, H, W)``, any range.
        mask: ``(B, 1, H, W)`` in [0, 1], or bool; lesion is at least 0.5.

    Returns:
        bool ``(B,)``; false for a map of one value.

    Raises:
        ValueError: If a map is not finite or has no pixels.

    Example:
        >>> import torch
        >>> mask = torch.ones(1, 1, 2, 2)
        >>> hit(torch.eye(2).view(1, 1, 2, 2), mask), hit(torch.zeros(1, 1, 2, 2), mask)
        (tensor([True]), tensor([False]))
    """
    x, y = peak(map).long().unbind(dim=1)
    lesion = mask[:, 0] >= 0.5
    return lesion[torch.arange(len(map), device=map.device), y, x] & has_peak(map)


def peak_distance(map: Tensor, mask: Tensor) -> Tensor:
    """Distance from a map's peak to the lesion, from pixel centre to pixel centre.

    Args:
        map: ``(B, 1, H, W)``, any range.
        mask: ``(B, 1, H, W)`` in [0, 1], or bool; lesion is at least 0.5.

    Returns:
        float32 ``(B,)``, as a fraction of the image's diagonal ``sqrt(H^2 + W^2)``: 0 in the
        lesion; infinite for a map of one value, which points nowhere, and without a lesion.

    Raises:
        ValueError: If a map is not finite or has no pixels.

    Example:
        >>> import torch
        >>> map, mask = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
        >>> map[..., 0, 0], mask[..., 0, 2:] = 1, 1
        >>> peak_distance(map, mask)  # two pixels of a diagonal of five
        tensor([0.4000])
    """
    peaks = peak(map)
    place, y, x = (mask[:, 0] >= 0.5).nonzero().unbind(dim=1)
    squared = (torch.stack([x, y], dim=1) - peaks[place]).double().square().sum(dim=1)
    nearest = squared.new_full((len(map),), float("inf"))
    nearest = nearest.scatter_reduce(0, place, squared, "amin").sqrt()
    diagonal = float(map.shape[-2] ** 2 + map.shape[-1] ** 2) ** 0.5
    return (nearest / diagonal).float().masked_fill(~has_peak(map), float("inf"))


def pixel_average_precision(score: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Average precision: the sum over thresholds of precision times the gain in recall.

    Args:
        score: ``(N,)``, the higher, the more lesion; equal scores are one threshold.
        target: ``(N,)``, 1 = lesion, 0 = not.
        weight: Weight of each pixel, ``(N,)``, not negative.

    Returns:
        A float32 scalar in [0, 1]; NaN if no lesion has weight.

    Example:
        >>> import torch
        >>> score, target = torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([1, 0, 1, 0])
        >>> pixel_average_precision(score, target, torch.ones(4))
        tensor(0.8333)
    """
    return _average_precision(score, target.double() * weight.double(), weight.double())


def _average_precision(score: Tensor, lesion_weight: Tensor, weight: Tensor) -> Tensor:
    if not bool(lesion_weight.sum() > 0):
        return torch.full((), float("nan"), device=score.device)
    score, order = score.sort(descending=True)
    found = lesion_weight[order].cumsum(dim=0)
    claimed = weight[order].cumsum(dim=0)
    # Equal scores are claimed together: only the last of each group is a threshold.
    last = torch.ones_like(score, dtype=torch.bool)
    last[:-1] = score[1:] != score[:-1]
    found, claimed = found[last], claimed[last]
    gain = found.diff(prepend=found.new_zeros(1))
    # The first thresholds may hold pixels of no weight: nothing gained, and no 0 / 0.
    precision = found / claimed.clamp(min=torch.finfo(claimed.dtype).tiny)
    return ((gain * precision).sum() / found[-1]).float()


def _count_values(
    score: Tensor, lesion: Tensor, levels: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Number of distinct scores of each image (B, n); these, their lesion pixels and all pixels."""
    if levels is None:
        score, order = score.sort(dim=1)
        new = torch.ones_like(lesion)
        new[:, 1:] = score[:, 1:] != score[:, :-1]
        first = new.flatten().nonzero()[:, 0]
        pixels = first.diff(append=first.new_full((1,), new.numel()))
        found = lesion.gather(1, order).flatten().cumsum(0)[first + pixels - 1]
        lesion_pixels = found.diff(prepend=found.new_zeros(1))
        return new.sum(dim=1), score.flatten()[first], lesion_pixels, pixels
    image = torch.arange(len(score), device=score.device).unsqueeze(1)
    place = (score * (levels - 1)).round().long() + image * levels
    pixels = torch.bincount(place.flatten(), minlength=len(score) * levels)
    lesion_pixels = torch.bincount(place[lesion], minlength=len(score) * levels)
    present = pixels.nonzero()[:, 0]
    values = (pixels > 0).view(len(score), levels).sum(dim=1)
    return values, present % levels / (levels - 1), lesion_pixels[present], pixels[present]
