"""What the localisation metrics share: which images count, and the mean of a value an image."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lightning_modules.metrics.per_image import PerImageMetric, check_rows, first_rows


class MeanOverLesions(PerImageMetric):
    """Mean of one value an image over the images with a lesion mask; each weighs the same.

    Lesion is a mask of at least 0.5; images without such a pixel do not count, whatever
    ``has_lesion`` says: nothing could be found there. A subclass says what the value is.
    """

    columns: ClassVar[dict[str, torch.dtype]] = {"index": torch.int64, "value": torch.float32}

    @abstractmethod
    def values(self, map: Tensor, lesion: Tensor) -> Tensor:
        """The value of each image, ``(B,)``, of maps and boolean lesions ``(B, 1, H, W)``."""

    def update(self, map: Tensor, mask: Tensor, index: Tensor, has_lesion: Tensor) -> None:
        """Add the images of a batch.

        Args:
            map: ``(B, 1, H, W)``, the higher, the more lesion; the range is the metric's.
            mask: Lesion masks ``(B, 1, H, W)`` in [0, 1].
            index: Number of the image, ``(B,)``; of several rows with one number the first counts.
            has_lesion: bool ``(B,)``, which images have a mask.

        Raises:
            ValueError: If the shapes do not fit each other, or a map is not finite or outside the
                metric's range.
        """
        map, lesion, index = images_with_lesion(self, map, mask, index, has_lesion)
        self.append(index=index, value=self.values(map, lesion))

    def compute(self) -> Tensor:
        """Compute the mean, a float32 scalar; NaN without any lesion mask."""
        return self.column("value")[first_rows(self.column("index"))].mean()


class CurveOverLesions(PerImageMetric):
    """A figure of curves, one an image with a lesion mask; which images count: see above.

    A subclass says what the curve is and what is made of all curves.
    """

    # `curve` has `points` rows for each row of `index`.
    columns: ClassVar[dict[str, torch.dtype]] = {"index": torch.int64, "curve": torch.float32}
    points: int

    @abstractmethod
    def curves(self, map: Tensor, lesion: Tensor) -> Tensor:
        """The curve of each image, ``(B, points)``."""

    @abstractmethod
    def figure(self, curves: Tensor) -> Tensor:
        """A scalar of the curves ``(N, points)`` of N > 0 images."""

    def update(self, map: Tensor, mask: Tensor, index: Tensor, has_lesion: Tensor) -> None:
        """Add the images of a batch; arguments and errors as of :class:`MeanOverLesions`."""
        map, lesion, index = images_with_lesion(self, map, mask, index, has_lesion)
        self.append(index=index, curve=self.curves(map, lesion).flatten())

    def compute(self) -> Tensor:
        """Compute the figure, a float32 scalar; NaN without any lesion mask."""
        first = first_rows(self.column("index"))
        curves = self.column("curve").view(-1, self.points)[first]
        return self.figure(curves) if len(curves) else curves.new_full((), float("nan"))


def images_with_lesion(
    metric: PerImageMetric, map: Tensor, mask: Tensor, index: Tensor, has_lesion: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, boolean lesions and numbers of the images that count.

    Raises:
        ValueError: If the shapes do not fit each other.
    """
    check_rows(metric, index=index, has_lesion=has_lesion)
    if map.ndim != 4 or map.shape[1] != 1 or map.shape != mask.shape or len(map) != len(index):
        raise ValueError(
            f"{type(metric).__name__} got a map of shape {tuple(map.shape)}, a mask of "
            f"{tuple(mask.shape)} and {len(index)} images: both must be (B, 1, H, W) of one size"
        )
    lesion = mask >= 0.5
    # As numbers of rows: a GPU is waited for at each use of a bool index.
    counted = (has_lesion.bool() & lesion.flatten(1).any(dim=1)).nonzero()[:, 0]
    return map.detach()[counted], lesion[counted], index[counted]


def check_finite(map: Tensor) -> None:
    """Raise a ValueError if a map has NaN or infinite values."""
    if not bool(map.isfinite().all()):
        raise ValueError("a map has NaN or infinite values: the model has diverged")


def check_unit(map: Tensor, remedy: str) -> None:
    """Raise a ValueError, ending with ``remedy``, unless maps are finite and in [0, 1]."""
    check_finite(map)
    if map.numel() and not bool(((map >= 0) & (map <= 1)).all()):
        raise ValueError(f"a map reaches from {map.min():.3g} to {map.max():.3g}: {remedy}")
