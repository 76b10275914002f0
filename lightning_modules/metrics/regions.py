"""Mean IoU, Dice and energy over the images with a lesion mask."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lightning_modules.metrics import overlap
from lightning_modules.metrics.over_lesions import CurveOverLesions, MeanOverLesions


class MeanIoU(MeanOverLesions):
    """Mean intersection over union of what the map claims and the lesion.

    :func:`overlap.iou` of each image, then the mean over images (mIoU of CheXlocalize, Saporta et
    al. 2022): small lesions weigh as much as large ones. Which images count: see
    :class:`MeanOverLesions`; an image whose map claims nothing counts as 0.

    Args:
        threshold: The map claims the pixels that reach it. A number (tuned on val), or ``otsu``:
            each map's own (:func:`overlap.otsu_threshold`).
        kwargs: Further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``threshold`` is a word other than ``otsu``.

    Example:
        >>> import torch
        >>> metric = MeanIoU(threshold=0.5)
        >>> map = torch.tensor([[0.1, 0.9, 0.6], [0.7, 0.1, 0.1]]).view(2, 1, 1, 3)
        >>> mask = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).view(2, 1, 1, 3)
        >>> metric.update(map, mask, torch.tensor([4, 8]), torch.tensor([True, True]))
        >>> metric.compute()
        tensor(0.7500)
    """

    def __init__(self, threshold: float | Literal["otsu"], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(threshold, str) and threshold != "otsu":
            raise ValueError(f"threshold is {threshold!r}: it must be a number or 'otsu'")
        self.threshold = threshold

    def values(self, map: Tensor, lesion: Tensor) -> Tensor:
        """IoU of each image, ``(B,)``."""
        return overlap.iou(self.claimed(map), lesion)

    def claimed(self, map: Tensor) -> Tensor:
        """What each map claims, bool ``(B, 1, H, W)``."""
        if isinstance(self.threshold, str):
            return overlap.claimed(map, overlap.otsu_threshold(map))
        overlap.check_finite(map)
        return overlap.claimed(map, self.threshold)


class MeanDice(MeanIoU):
    """Mean Dice coefficient (:func:`overlap.dice`); all else as of :class:`MeanIoU`.

    Example:
        >>> import torch
        >>> metric = MeanDice(threshold="otsu")
        >>> map = torch.tensor([0.1, 0.9, 0.8, 0.2]).view(1, 1, 1, 4)
        >>> mask = torch.tensor([0.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)
        >>> metric.update(map, mask, torch.tensor([4]), torch.tensor([True]))
        >>> metric.compute()
        tensor(0.6667)
    """

    def values(self, map: Tensor, lesion: Tensor) -> Tensor:
        """Dice coefficient of each image, ``(B,)``."""
        return overlap.dice(self.claimed(map), lesion)


class EnergyInMask(MeanOverLesions):
    """Mean share of a map's sum that lies in the lesion, see :func:`overlap.energy_in_mask`.

    Example:
        >>> import torch
        >>> metric = EnergyInMask()
        >>> map = torch.tensor([[0.0, 0.2, 0.6, 0.2], [1.0, 1.0, 1.0, 1.0]]).view(2, 1, 1, 4)
        >>> mask = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]).view(2, 1, 1, 4)
        >>> metric.update(map, mask, torch.tensor([4, 8]), torch.tensor([True, True]))
        >>> metric.compute()
        tensor(0.5250)
    """

    def values(self, map: Tensor, lesion: Tensor) -> Tensor:
        """Energy in the lesion of each image, ``(B,)``."""
        return overlap.energy_in_mask(map, lesion)


class UpperBoundIoU(CurveOverLesions):
    """Mean IoU at the one threshold that suits these very masks best: an upper bound.

    No threshold tuned elsewhere (:func:`overlap.best_threshold`) reaches more; one above 0, of the
    grid of :func:`overlap.threshold_grid`, serves all images. Not a result: it tells how much a
    better threshold could gain.

    Args:
        levels: Number of thresholds between 0 and 1; 4 bytes each are kept of every image.
        kwargs: Further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``levels`` is less than 2.

    Example:
        >>> import torch
        >>> metric = UpperBoundIoU()
        >>> map = torch.tensor([[0.1, 0.9, 0.6], [0.7, 0.1, 0.1]]).view(2, 1, 1, 3)
        >>> mask = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).view(2, 1, 1, 3)
        >>> metric.update(map, mask, torch.tensor([4, 8]), torch.tensor([True, True]))
        >>> metric.compute()
        tensor(1.)
    """

    def __init__(self, levels: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if levels < 2:
            raise ValueError(f"levels is {levels}: it must be at least 2")
        self.points = levels

    def curves(self, map: Tensor, lesion: Tensor) -> Tensor:
        """IoU at each threshold, ``(B, levels)``."""
        return overlap.iou_curve(*overlap.level_counts(map, lesion, self.points))

    def figure(self, curves: Tensor) -> Tensor:
        """The largest mean over images."""
        return curves[:, 1:].mean(dim=0).amax()
