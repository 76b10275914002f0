"""How well a map finds the lesion: hit rate and pixel average precision."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_modules.attention import has_peak, peak
from lightning_modules.metrics.per_image import PerImageMetric, check_rows, first_rows


class HitRate(PerImageMetric):
    """Share of images with a lesion mask whose map peaks in the lesion.

    The peak is the middle of the plateau of the maximum (:func:`attention.peak`); a map of one
    value claims nothing and misses. Lesion is a mask of at least 0.5; images without such a pixel
    do not count, whatever ``has_lesion`` says: nobody could hit there.

    Args:
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = HitRate()
        >>> map = torch.tensor([[0.1, 0.9, 0.2], [0.7, 0.1, 0.1]]).view(2, 1, 1, 3)
        >>> mask = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]).view(2, 1, 1, 3)
        >>> metric.update(map, mask, torch.tensor([4, 8]), torch.tensor([True, True]))
        >>> metric.compute()
        tensor(0.5000)
    """

    columns: ClassVar[dict[str, torch.dtype]] = {"index": torch.int64, "hit": torch.float32}

    def update(self, map: Tensor, mask: Tensor, index: Tensor, has_lesion: Tensor) -> None:
        """Add the images of a batch.

        Args:
            map: ``(B, 1, H, W)``, any range; the higher, the more lesion.
            mask: Lesion masks ``(B, 1, H, W)`` in [0, 1].
            index: Number of the image, ``(B,)``; of several rows with one number the first counts.
            has_lesion: bool ``(B,)``, which images have a mask.

        Raises:
            ValueError: If the shapes do not fit each other or a map is not finite.
        """
        map, lesion, index = _with_lesion(self, map, mask, index, has_lesion)
        self.append(index=index, hit=hit(map, lesion))

    def compute(self) -> Tensor:
        """Compute the share in [0, 1], a float32 scalar; NaN without any lesion mask."""
        return self.column("hit")[first_rows(self.column("index"))].mean()


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
        map, lesion, index = _with_lesion(self, map, mask, index, has_lesion)
        _check_scores(map, self.levels)
        for number, scores, positive in zip(index, map, lesion, strict=True):
            score, lesion_pixels, pixels = _count_values(
                scores.flatten().float(), positive.flatten(), self.levels
            )
            self.append(
                index=number.view(1),
                values=torch.tensor([len(score)]),
                score=score,
                lesion_pixels=lesion_pixels,
                pixels=pixels,
            )

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
) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores of an image, their numbers of lesion pixels and of all pixels."""
    if levels is None:
        distinct, place = score.unique(return_inverse=True)
        count = len(distinct)
    else:
        distinct = torch.arange(levels, device=score.device) / (levels - 1)
        place, count = (score * (levels - 1)).round().long(), levels
    pixels = torch.bincount(place, minlength=count)
    lesion_pixels = torch.bincount(place[lesion], minlength=count)
    present = pixels > 0
    return distinct[present], lesion_pixels[present], pixels[present]


def _with_lesion(
    metric: PerImageMetric, map: Tensor, mask: Tensor, index: Tensor, has_lesion: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, boolean lesions and numbers of the images that count."""
    check_rows(metric, index=index, has_lesion=has_lesion)
    if map.ndim != 4 or map.shape[1] != 1 or map.shape != mask.shape or len(map) != len(index):
        raise ValueError(
            f"{type(metric).__name__} got a map of shape {tuple(map.shape)}, a mask of "
            f"{tuple(mask.shape)} and {len(index)} images: both must be (B, 1, H, W) of one size"
        )
    lesion = mask >= 0.5
    counted = has_lesion.bool() & lesion.flatten(1).any(dim=1)
    return map.detach()[counted], lesion[counted], index[counted]


def _check_scores(map: Tensor, levels: int | None) -> None:
    if not bool(map.isfinite().all()):
        raise ValueError("a map has NaN or infinite values: the model has diverged")
    if levels is not None and map.numel() and not bool(((map >= 0) & (map <= 1)).all()):
        raise ValueError(
            f"a map reaches from {map.min():.3g} to {map.max():.3g}: with levels={levels} it must "
            "lie in [0, 1]; scale it, or use levels=None"
        )
