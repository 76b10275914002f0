"""What a map method is; one is judged beside the network's own maps when ``judge`` is given it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_modules import Stage1Classifier
from lightning_modules.attention import scale_map, upsample
from lightning_modules.stage1 import SCALE_QUANTILE

Batch = dict[str, Tensor]


class MapMethod(Protocol):
    """Draws a map of an image, given a network or not."""

    name: str  # of columns and figures, such as "gradcam": letters, digits and "_"

    def __call__(self, module: Stage1Classifier | None, image: Tensor, batch: Batch) -> Tensor:
        """Raw maps of a batch, the higher, the more lesion.

        Gradients are off when this is called: a method that needs them says
        ``torch.enable_grad()``, and leaves ``module`` as it found it.

        Args:
            module: in evaluation mode, on the image's device; None where no network takes part.
            image: ``(B, 1, S, S)`` float32, as the network gets it.
            batch: the whole batch; ``batch["index"]`` are rows of the index table.

        Returns:
            ``(B, 1, h, w)``, enlarged as the encoder's own maps are (cell i looks at pixel
            i * S / h). Negative values are cut. One unit for all images: never stretched image by
            image. Those of val are kept until their scale is known: give coarse maps as they are.
        """
        ...


def raw_map(
    method: MapMethod, module: Stage1Classifier | None, image: Tensor, batch: Batch
) -> Tensor:
    """The map of a method, float32 ``(B, 1, h, w)``; ValueError: of another shape or not finite."""
    with torch.no_grad():
        raw = method(module, image, batch).detach().float()
    if raw.ndim != 4 or raw.shape[:2] != (len(image), 1) or not raw.shape[2] * raw.shape[3]:
        raise ValueError(
            f"the map method {method.name} gave maps of shape {tuple(raw.shape)} for images of "
            f"{tuple(image.shape)}: they must be (B, 1, h, w)"
        )
    wrong = ~raw.isfinite().flatten(1).all(dim=1)
    if bool(wrong.any()):
        row = int(batch["index"][wrong][0])
        raise ValueError(
            f"the map method {method.name} gave NaN or infinite values for image {row} of the index"
        )
    return raw


def shown_map(raw: Tensor, scale: float, size: tuple[int, int] | torch.Size) -> Tensor:
    """A raw map as it is judged: scaled to [0, 1], then enlarged to ``(B, 1, *size)``."""
    scaled = scale_map(raw, scale)
    return scaled if scaled.shape[-2:] == tuple(size) else upsample(scaled, size)


def fit_scale(peaks: Sequence[float]) -> float:
    """The value that becomes 1, a high quantile of val's peaks: the rule of the network's own."""
    values = torch.tensor(peaks, dtype=torch.float64).clamp(min=0)
    return round(float(values.quantile(SCALE_QUANTILE)), 12)
