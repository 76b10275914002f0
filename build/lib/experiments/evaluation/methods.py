"""What a map method is to an evaluation; the network's own maps come with its class scores.

A method is judged beside the network's own maps (``cam``, ``pcam``, ``fcn``) when
:func:`experiments.evaluation.judge.judge` is given it; nothing else has to know of it. Whoever has
maps from elsewhere, at the image's original size, needs no method:
:class:`experiments.evaluation.map_rows.MapRecorder` takes them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_modules.attention import scale_map, upsample
from lightning_modules.stage1 import SCALE_QUANTILE

Batch = dict[str, Tensor]


class MapMethod(Protocol):
    """Draws a map of an image, given a network or not.

    Attributes:
        name: Of columns and figures, such as ``gradcam``: letters, digits and ``_``.
    """

    name: str

    def __call__(self, module: Any, image: Tensor, batch: Batch) -> Tensor:
        """Raw maps of a batch, the higher, the more lesion.

        Gradients are off when this is called: a method that needs them says
        ``torch.enable_grad()``, and leaves ``module`` as it found it.

        Args:
            module: The trained network in evaluation mode on the device of ``image``, whose weights
                are not to be changed; None where no network takes part.
            image: ``(B, 1, S, S)`` float32, as the network gets it.
            batch: The whole batch, also on the device; ``batch["index"]`` are rows of the index
                table.

        Returns:
            ``(B, 1, S, S)``, or a smaller ``(B, 1, h, w)`` that is enlarged as the encoder's own
            maps are (cell i looks at pixel i * S / h). Values are at least 0 (what is negative is
            cut) and of one unit for all images: never stretched image by image. The maps of val are
            kept until their scale is known, so give coarse maps as they are.
        """
        ...


def raw_map(method: MapMethod, module: Any, image: Tensor, batch: Batch) -> Tensor:
    """The map of a method, checked: float32 ``(B, 1, h, w)``, finite.

    Raises:
        ValueError: If it is of another shape, or has values that are not finite.
    """
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
    """The value that becomes 1 in a method's maps: a high quantile of the peaks over val.

    The same rule as that of the network's own maps (``Stage1Classifier.map_scale``).

    Example:
        >>> fit_scale([0.0, 1.0, 3.0])
        2.96
    """
    values = torch.tensor(peaks, dtype=torch.float64).clamp(min=0)
    return round(float(values.quantile(SCALE_QUANTILE)), 12)
