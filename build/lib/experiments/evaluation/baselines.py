"""Trivial maps, which know nothing of the image's class: what a map method has to beat.

They take part as any other method does
(:class:`experiments.evaluation.methods.MapMethod`), but need no network: of several
runs on the same data they are judged once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.evaluation.methods import Batch, MapMethod

# Pixels from one value of a map to the next. Cell i looks at pixel STEP * i, as the encoder's do.
STEP = 4
# Standard deviations, as a share of the square's side: of a cell of a 20 x 20 map.
FINE = 0.05
# Of the bump of the centre prior, as a share of the content's width and height.
BUMP = 0.25


def baselines(data: Any) -> list[MapMethod]:
    """All of them; the mean mask only where there are lesion masks in training.

    Args:
        data: The data module, set up.
    """
    mean = [MeanMask(data)] if len(data.lesion_rows) else []
    return [Centre(data), *mean, Edges(), Noise()]


class Centre:
    """Centre prior: a Gaussian bump in the middle of the image, whatever it shows.

    Args:
        data: The data module, which knows where in the square an image lies.
    """

    name = "centre"

    def __init__(self, data: Any) -> None:
        self.data = data

    def __call__(self, module: Any, image: Tensor, batch: Batch) -> Tensor:
        """Maps ``(B, 1, h, w)`` in [0, 1]."""
        return torch.stack([self._bump(image, int(row)) for row in batch["index"]]).unsqueeze(1)

    def _bump(self, image: Tensor, row: int) -> Tensor:
        place = self.data.pixels.geometry_of(row)
        y, x = (torch.arange(0, side, STEP, device=image.device) for side in image.shape[2:])
        across = (x - place.left - (place.inner_width - 1) / 2) / (BUMP * place.inner_width)
        down = (y - place.top - (place.inner_height - 1) / 2) / (BUMP * place.inner_height)
        return torch.exp(-(across.square() + down.square()[:, None]) / 2)


class MeanMask:
    """Mean of the lesion masks in training, smoothed: where lesions lie, whoever the patient is.

    Args:
        data: The data module; only the masks that a stage may train on are taken.
    """

    name = "mean_mask"

    def __init__(self, data: Any) -> None:
        masks = [data.pixels.mask(row) for row in data.lesion_rows]
        mean = torch.from_numpy(np.mean(masks, axis=0, dtype=np.float64)).float() / 255.0
        self.map = smooth(mean[None, None], FINE)[..., ::STEP, ::STEP]

    def __call__(self, module: Any, image: Tensor, batch: Batch) -> Tensor:
        """The same map for all, ``(B, 1, h, w)``."""
        return self.map.to(image.device).expand(len(image), -1, -1, -1)


class Edges:
    """Magnitude of the grey values' gradient, smoothed: where an image has edges."""

    name = "edges"

    def __call__(self, module: Any, image: Tensor, batch: Batch) -> Tensor:
        """Maps ``(B, 1, h, w)``."""
        down, across = torch.gradient(image, dim=(2, 3))
        return smooth((down.square() + across.square()).sqrt(), FINE / 2)[..., ::STEP, ::STEP]


class Noise:
    """Smooth noise, a pure function of the image's row in the index."""

    name = "noise"

    def __call__(self, module: Any, image: Tensor, batch: Batch) -> Tensor:
        """Maps ``(B, 1, h, w)``, at least 0."""
        drawn = [
            torch.rand(1, *image.shape[2:], generator=torch.Generator().manual_seed(int(row)))
            for row in batch["index"]
        ]
        # What rises above the mean of noise: as much as stays below it.
        raised = smooth(torch.stack(drawn).to(image.device), FINE) - 0.5
        return raised.relu()[..., ::STEP, ::STEP]


def smooth(map: Tensor, deviation: float) -> Tensor:
    """Blur with a Gaussian, edges continued.

    Args:
        map: ``(B, 1, S, S)``.
        deviation: Standard deviation as a share of S.
    """
    sigma = deviation * map.shape[-1]
    reach = max(1, min(round(3 * sigma), map.shape[-1] - 1))
    offset = torch.arange(-reach, reach + 1, device=map.device, dtype=map.dtype)
    kernel = torch.exp(-(offset / sigma).square() / 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(map, (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel.view(1, 1, 1, -1))
    return functional.conv2d(rows, kernel.view(1, 1, -1, 1))
