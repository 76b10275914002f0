"""What a map method is, and trivial ones that know nothing of the class: what others must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datamodules.cache import PixelCache
from datamodules.radiographs import RadiographDataModule
from lightning_modules import Stage1Classifier
from lightning_modules.attention import scale_map, upsample
from lightning_modules.stage1 import SCALE_QUANTILE

Batch = dict[str, Tensor]
# Pixels from one value of a trivial map to the next. Cell i looks at pixel STEP * i, as the
# encoder's do.
STEP = 4
# Standard deviations, as a share of the square's side: of a cell of a 20 x 20 map.
FINE = 0.05
# Of the bump of the centre prior, as a share of the content's width and height.
BUMP = 0.25


@dataclass(frozen=True)
class MapMethod:
    """Draws a map of an image, given a network or not.

    ``draw(module, image, batch)`` gets a network in evaluation mode (None where none takes part)
    and leaves it as it was; images ``(B, 1, S, S)`` float32 as the network gets them; the whole
    batch, whose ``index`` are rows of the index table. Gradients are off: who needs them calls
    ``torch.enable_grad()``.

    It returns raw maps ``(B, 1, h, w)``, the higher, the more lesion; negative values are cut. They
    are enlarged as the encoder's own are (cell i looks at pixel i * S / h). One unit for all
    images, never stretched image by image; coarse ones, as those of val are kept until their scale
    is known.
    """

    name: str  # of columns and figures, such as "gradcam": letters, digits and "_"
    draw: Callable[[Stage1Classifier | None, Tensor, Batch], Tensor]


def raw_map(
    method: MapMethod, module: Stage1Classifier | None, image: Tensor, batch: Batch
) -> Tensor:
    """The map of a method, float32 ``(B, 1, h, w)``; ValueError: of another shape or not finite."""
    with torch.no_grad():
        raw = method.draw(module, image, batch).detach().float()
    if raw.ndim != 4 or raw.shape[:2] != (len(image), 1):
        raise ValueError(
            f"map method {method.name}: expected maps (B, 1, h, w) of images {tuple(image.shape)}, "
            f"got {tuple(raw.shape)}"
        )
    if not bool(raw.isfinite().all()):
        raise ValueError(f"map method {method.name}: its maps hold NaN or infinite values")
    return raw


def shown_map(raw: Tensor, scale: float, size: tuple[int, int] | torch.Size) -> Tensor:
    """A raw map as it is judged: scaled to [0, 1], then enlarged to ``(B, 1, *size)``."""
    scaled = scale_map(raw, scale)
    return scaled if scaled.shape[-2:] == tuple(size) else upsample(scaled, size)


def fit_scale(peaks: Sequence[float]) -> float:
    """The value that becomes 1, a high quantile of val's peaks: the rule of the network's own."""
    values = torch.tensor(peaks, dtype=torch.float64).clamp(min=0)
    return round(float(values.quantile(SCALE_QUANTILE)), 12)


def baselines(data: RadiographDataModule) -> list[MapMethod]:
    """The trivial methods; the mean mask only where there are lesion masks in training."""
    pixels, rows = data.pixels, data.lesion_rows
    assert pixels is not None, "setup() opens the cache"
    masks = [mask for row in rows if (mask := pixels.mask(row)) is not None]
    mean = [mean_mask(masks)] if masks else []
    return [centre(pixels), *mean, EDGE_MAP, NOISE_MAP]


def centre(pixels: PixelCache) -> MapMethod:
    """A Gaussian bump in the middle of the image, which may lie anywhere in the square."""

    def bump(image: Tensor, row: int) -> Tensor:
        place = pixels.geometry_of(row)
        y, x = (torch.arange(0, side, STEP, device=image.device) for side in image.shape[2:])
        across = (x - place.left - (place.inner_width - 1) / 2) / (BUMP * place.inner_width)
        down = (y - place.top - (place.inner_height - 1) / 2) / (BUMP * place.inner_height)
        return torch.exp(-(across.square() + down.square()[:, None]) / 2)

    def draw(module: object, image: Tensor, batch: Batch) -> Tensor:
        return torch.stack([bump(image, int(row)) for row in batch["index"]]).unsqueeze(1)

    return MapMethod("centre", draw)


def mean_mask(masks: Sequence[np.ndarray]) -> MapMethod:
    """Mean of the lesion masks in training, smoothed: where lesions lie, whoever the patient is."""
    mean = torch.from_numpy(np.mean(masks, axis=0, dtype=np.float64)).float() / 255.0
    smoothed = smooth(mean[None, None], FINE)[..., ::STEP, ::STEP]
    return MapMethod(
        "mean_mask", lambda _, image, __: smoothed.to(image).repeat(len(image), 1, 1, 1)
    )


def _edges(module: object, image: Tensor, batch: Batch) -> Tensor:
    """Magnitude of the grey values' gradient, smoothed."""
    down, across = torch.gradient(image, dim=(2, 3))
    return smooth((down.square() + across.square()).sqrt(), FINE / 2)[..., ::STEP, ::STEP]


def _noise(module: object, image: Tensor, batch: Batch) -> Tensor:
    """Smooth noise, a pure function of the image's row in the index."""
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


EDGE_MAP, NOISE_MAP = MapMethod("edges", _edges), MapMethod("noise", _noise)
