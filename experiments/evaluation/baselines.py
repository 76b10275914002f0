"""Trivial maps, which know nothing of the image's class: what a map method has to beat.

They need no network: of several runs on the same data they are judged once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datamodules.cache import PixelCache
from datamodules.radiographs import RadiographDataModule
from experiments.evaluation.methods import Batch, MapMethod

# Pixels from one value of a map to the next. Cell i looks at pixel STEP * i, as the encoder's do.
STEP = 4
# Standard deviations, as a share of the square's side: of a cell of a 20 x 20 map.
FINE = 0.05
# Of the bump of the centre prior, as a share of the content's width and height.
BUMP = 0.25


def baselines(data: RadiographDataModule) -> list[MapMethod]:
    """All of them; the mean mask only where there are lesion masks in training."""
    pixels, rows = data.pixels, data.lesion_rows
    assert pixels is not None, "setup() opens the cache"
    masks = [mask for row in rows if (mask := pixels.mask(row)) is not None]
    mean = [MeanMask(masks)] if masks else []
    return [Centre(pixels), *mean, Edges(), Noise()]


class Centre:
    """A Gaussian bump in the middle of the image, which may lie anywhere in the square."""

    name = "centre"

    def __init__(self, pixels: PixelCache) -> None:
        self.pixels = pixels

    def __call__(self, module: object, image: Tensor, batch: Batch) -> Tensor:
        """Maps ``(B, 1, h, w)`` in [0, 1]."""
        return torch.stack([self._bump(image, int(row)) for row in batch["index"]]).unsqueeze(1)

    def _bump(self, image: Tensor, row: int) -> Tensor:
        place = self.pixels.geometry_of(row)
        y, x = (torch.arange(0, side, STEP, device=image.device) for side in image.shape[2:])
        across = (x - place.left - (place.inner_width - 1) / 2) / (BUMP * place.inner_width)
        down = (y - place.top - (place.inner_height - 1) / 2) / (BUMP * place.inner_height)
        return torch.exp(-(across.square() + down.square()[:, None]) / 2)


class MeanMask:
    """Mean of the lesion masks in training, smoothed: where lesions lie, whoever the patient is."""

    name = "mean_mask"

    def __init__(self, masks: Sequence[np.ndarray]) -> None:
        mean = torch.from_numpy(np.mean(masks, axis=0, dtype=np.float64)).float() / 255.0
        self.map = smooth(mean[None, None], FINE)[..., ::STEP, ::STEP]

    def __call__(self, module: object, image: Tensor, batch: Batch) -> Tensor:
        """The same map for all, ``(B, 1, h, w)``."""
        return self.map.to(image.device).expand(len(image), -1, -1, -1)


class Edges:
    """Magnitude of the grey values' gradient, smoothed."""

    name = "edges"

    def __call__(self, module: object, image: Tensor, batch: Batch) -> Tensor:
        """Maps ``(B, 1, h, w)``."""
        down, across = torch.gradient(image, dim=(2, 3))
        return smooth((down.square() + across.square()).sqrt(), FINE / 2)[..., ::STEP, ::STEP]


class Noise:
    """Smooth noise, a pure function of the image's row in the index."""

    name = "noise"

    def __call__(self, module: object, image: Tensor, batch: Batch) -> Tensor:
        """Maps ``(B, 1, h, w)``, at least 0."""
        noise = [
            torch.rand(1, *image.shape[2:], generator=torch.Generator().manual_seed(int(row)))
            for row in batch["index"]
        ]
        # What rises above the mean of noise: as much as stays below it.
        raised = smooth(torch.stack(noise).to(image.device), FINE) - 0.5
        return raised.relu()[..., ::STEP, ::STEP]


def smooth(maps: Tensor, deviation: float) -> Tensor:
    """Blur ``(B, 1, S, S)`` with a Gaussian of ``deviation`` S pixels, edges continued."""
    sigma = deviation * maps.shape[-1]
    reach = max(1, min(round(3 * sigma), maps.shape[-1] - 1))
    offset = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-(offset / sigma).square() / 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(maps, (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel.view(1, 1, 1, -1))
    return functional.conv2d(rows, kernel.view(1, 1, -1, 1))
