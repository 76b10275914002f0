"""How well a map finds the lesion: hit rate and pixel average precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_modules.attention import has_peak, peak


class Localisation(Metric):
    """``hit`` and ``pixel_ap`` over images with a lesion, all of one size; NaN without any image.

    ``hit``, the pointing game (Zhang et al. 2018, "Top-down neural attention by excitation
    backprop", IJCV): the share of images whose map peaks in the lesion. ``pixel_ap``: exact average
    precision over the pooled pixels of maps of any range; each pixel is kept, 8 bytes.

    Example:
        >>> import torch
        >>> metric = Localisation()
        >>> maps = torch.tensor([0.9, 0.6, 0.3, 0.1]).view(1, 1, 2, 2)
        >>> metric.update(maps, torch.tensor([True, False, True, False]).view(1, 1, 2, 2))
        >>> metric.compute()
        {'hit': tensor(1.), 'pixel_ap': tensor(0.8333)}
    """

    full_state_update = False
    hits: Tensor
    images: Tensor
    scores: list[Tensor]
    lesions: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("hits", "images"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx="sum")
        # float32 both, as torchmetrics takes a rank's empty state to be.
        for name in ("scores", "lesions"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, maps: Tensor, lesion: Tensor) -> None:
        """Add images: maps ``(B, 1, H, W)`` of any range and lesions, bool ``(B, 1, H, W)``."""
        self.hits += hit(maps, lesion).sum()
        self.images += len(maps)
        self.scores.append(maps.detach().float().flatten())
        self.lesions.append(lesion.float().flatten())

    def compute(self) -> dict[str, Tensor]:
        """Both figures in [0, 1], float32 scalars."""
        scores, lesions = dim_zero_cat(self.scores), dim_zero_cat(self.lesions)
        return {"hit": self.hits / self.images, "pixel_ap": average_precision(scores, lesions)}


def average_precision(score: Tensor, lesion: Tensor) -> Tensor:
    """Average precision of pixels ``(N,)``, ``lesion`` 1 or 0; NaN without a 1.

    The sum over thresholds of precision times the gain in recall; equal scores are one threshold.
    """
    score, order = score.sort(descending=True)
    hits = lesion[order].double().cumsum(dim=0)
    if not len(hits) or not bool(hits[-1] > 0):
        return torch.full((), float("nan"), device=score.device)
    # Equal scores are claimed together: only the last of each group is a threshold.
    threshold = torch.ones_like(score, dtype=torch.bool)
    threshold[:-1] = score[1:] != score[:-1]
    claimed = threshold.nonzero()[:, 0] + 1
    hits = hits[claimed - 1]
    gain = hits.diff(prepend=hits.new_zeros(1))
    return ((gain * hits / claimed).sum() / hits[-1]).float()


def hit(maps: Tensor, mask: Tensor) -> Tensor:
    """Whether each map's peak lies where the mask is at least 0.5; a constant map misses."""
    x, y = peak(maps).long().unbind(dim=1)
    lesion = mask[:, 0] >= 0.5
    return lesion[torch.arange(len(maps), device=maps.device), y, x] & has_peak(maps)


def peak_distance(maps: Tensor, mask: Tensor) -> Tensor:
    """Distance from a map's peak to the nearest pixel of the lesion.

    Returns:
        float32 ``(B,)``, as a fraction of the image's diagonal ``sqrt(H^2 + W^2)``: 0 in the
        lesion; infinite for a constant map, which points nowhere, and without a lesion.
    """
    peaks = peak(maps)
    place, y, x = (mask[:, 0] >= 0.5).nonzero().unbind(dim=1)
    squared = (torch.stack([x, y], dim=1) - peaks[place]).double().square().sum(dim=1)
    nearest = squared.new_full((len(maps),), float("inf"))
    nearest = nearest.scatter_reduce(0, place, squared, "amin").sqrt()
    diagonal = float(maps.shape[-2] ** 2 + maps.shape[-1] ** 2) ** 0.5
    return (nearest / diagonal).float().masked_fill(~has_peak(maps), float("inf"))
