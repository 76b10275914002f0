"""How well a map finds the lesion: hit rate and pixel average precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_modules.attention import has_peak, peak


class Localisation(Metric):
    """Hit rate and pixel average precision over images of one size; NaN without any lesion.

    ``hit``, the pointing game (Zhang et al. 2018, "Top-down neural attention by excitation
    backprop", IJCV): the share of images with a lesion whose map peaks in it. ``pixel_ap``, average
    precision over the pooled pixels: the sum over thresholds of precision times the gain in recall,
    ties counted as one threshold. Nothing is binned, so that raw maps of any range will do; each
    pixel is kept, 8 bytes: 0.8 MB for an image of 320 x 320.

    Example:
        >>> import torch
        >>> metric = Localisation()
        >>> maps = torch.tensor([0.9, 0.6, 0.3, 0.1]).view(1, 1, 2, 2)
        >>> lesion = torch.tensor([True, False, True, False]).view(1, 1, 2, 2)
        >>> metric.update(maps, lesion)
        >>> metric.compute()
        {'hit': tensor(1.), 'pixel_ap': tensor(0.8333)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    images: Tensor
    scores: list[Tensor]
    lesions: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", default=torch.tensor(0.0), dist_reduce_fx="sum")
        # float32 both, as torchmetrics takes a rank's empty state to be.
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("lesions", default=[], dist_reduce_fx="cat")

    def update(self, maps: Tensor, lesion: Tensor) -> None:
        """Add images: maps ``(B, 1, H, W)`` of any range and lesions, bool ``(B, 1, H, W)``."""
        self.hits += hit(maps, lesion).sum()
        self.images += len(maps)
        self.scores.append(maps.detach().float().flatten())
        self.lesions.append(lesion.float().flatten())

    def compute(self) -> dict[str, Tensor]:
        """``hit`` and ``pixel_ap`` in [0, 1], float32 scalars."""
        scores, lesions = dim_zero_cat(self.scores), dim_zero_cat(self.lesions)
        return {"hit": self.hits / self.images, "pixel_ap": average_precision(scores, lesions)}


def average_precision(score: Tensor, lesion: Tensor) -> Tensor:
    """Exact average precision of pixels ``(N,)``, ``lesion`` 1 or 0; NaN without a 1."""
    score, order = score.sort(descending=True)
    found = lesion[order].double().cumsum(dim=0)
    if not len(found) or not bool(found[-1] > 0):
        return torch.full((), float("nan"), device=score.device)
    # Equal scores are claimed together: only the last of each group is a threshold.
    threshold = torch.ones_like(score, dtype=torch.bool)
    threshold[:-1] = score[1:] != score[:-1]
    claimed = threshold.nonzero()[:, 0] + 1
    found = found[claimed - 1]
    gain = found.diff(prepend=found.new_zeros(1))
    return ((gain * found / claimed).sum() / found[-1]).float()


def hit(maps: Tensor, mask: Tensor) -> Tensor:
    """Whose peak lies in the lesion, bool ``(B,)``; a constant map misses.

    Of maps ``(B, 1, H, W)`` of any range and masks in [0, 1], or bool; lesion is at least 0.5.
    """
    x, y = peak(maps).long().unbind(dim=1)
    lesion = mask[:, 0] >= 0.5
    return lesion[torch.arange(len(maps), device=maps.device), y, x] & has_peak(maps)


def peak_distance(maps: Tensor, mask: Tensor) -> Tensor:
    """Distance from a map's peak to the lesion, from pixel centre to pixel centre.

    Returns:
        float32 ``(B,)``, as a fraction of the image's diagonal ``sqrt(H^2 + W^2)``: 0 in the
        lesion; infinite for a constant map, which points nowhere, and without a lesion.

    Example:
        >>> import torch
        >>> maps, mask = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
        >>> maps[..., 0, 0], mask[..., 0, 2:] = 1, 1
        >>> peak_distance(maps, mask)  # two pixels of a diagonal of five
        tensor([0.4000])
    """
    peaks = peak(maps)
    place, y, x = (mask[:, 0] >= 0.5).nonzero().unbind(dim=1)
    squared = (torch.stack([x, y], dim=1) - peaks[place]).double().square().sum(dim=1)
    nearest = squared.new_full((len(maps),), float("inf"))
    nearest = nearest.scatter_reduce(0, place, squared, "amin").sqrt()
    diagonal = float(maps.shape[-2] ** 2 + maps.shape[-1] ** 2) ** 0.5
    return (nearest / diagonal).float().masked_fill(~has_peak(maps), float("inf"))
