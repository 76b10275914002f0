"""Deletion and insertion: does the class score follow the pixels that a map names first?

Petsiuk et al. 2018 (RISE), section 4.2. What is gone is blurred, where Petsiuk et al. delete to
grey: on radiographs a grey patch is an abnormality itself (docs/audit.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from experiments.evaluation.methods import smooth
from lightning_modules.attention import upsample

# Shares of the image at which the score is read: densely at the size of a lesion, 1 to 4 %.
SHARES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
# Until here the area is reported: beyond it, the score depends on what is no lesion. Over all
# shares, an edge filter's order deletes better than that of the lesion mask itself.
EARLY = 0.1
# Standard deviation of the blur as a share of the side: at 1/16 no lesion is left to see.
BLUR = 1 / 16
Score = Callable[[Tensor], Tensor]  # from images (B, 1, H, W) to (B,)


def perturbed(score: Score, image: Tensor, map: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Scores while pixels go and while they come, the highest of the map first.

    Args:
        score: of images.
        image: ``(B, 1, H, W)``.
        map: ``(B, 1, H, W)``.
        seed: draws the order within ties.

    Returns:
        ``deletion``, from the whole to the blurred image, and ``insertion``, the way back, each
        ``(B, len(SHARES))``.
    """
    order, gone = pixel_order(map, seed), smooth(image, BLUR)
    return {
        "deletion": curve(score, image, gone, order),
        "insertion": curve(score, gone, image, order),
    }


def curve(
    score: Score, start: Tensor, end: Tensor, order: Tensor, shares: Sequence[float] = SHARES
) -> Tensor:
    """Scores ``(B, len(shares))`` while ``start`` becomes ``end``, pixel by pixel.

    Args:
        score: of images.
        start: ``(B, 1, H, W)``.
        end: the same shape.
        order: pixel numbers ``(B, H * W)``, the first to change first.
        shares: of the pixels that have changed, at each value of the curve.

    Example:
        >>> import torch
        >>> black, white = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
        >>> right = lambda image: image[:, 0, 0, 1]
        >>> curve(right, black, white, torch.tensor([[1, 0]]), (0, 0.5, 1))
        tensor([[0., 1., 1.]])
    """
    place = order.argsort(dim=1).view_as(start)
    scores = [
        score(torch.where(place < round(share * order.shape[1]), end, start)) for share in shares
    ]
    return torch.stack(scores, dim=1)


def area_under(scores: Tensor, shares: Sequence[float] = SHARES, until: float = 1.0) -> Tensor:
    """Mean height ``(B,)`` of curves ``(B, len(shares))`` up to a share of the pixels.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
        >>> area_under(scores, (0, 0.5, 1)), area_under(scores, (0, 0.5, 1), until=0.5)
        (tensor([0.2500, 1.0000]), tensor([0.5000, 1.0000]))
    """
    end = list(shares).index(until) + 1
    x = torch.tensor(shares[:end], device=scores.device)
    return torch.trapezoid(scores[:, :end], x, dim=1) / until


def pixel_order(map: Tensor, seed: int = 0) -> Tensor:
    """Pixel numbers ``(B, H * W)`` from the highest value of a map down; ties in random order.

    Ties are many: a map that is cut at 0 has nothing to say of most pixels.
    """
    values = map.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(values.shape[1], generator=generator).to(map.device)
    return shuffled[values[:, shuffled].argsort(dim=1, descending=True, stable=True)]


def random_map(image: Tensor, number: int, stride: int) -> Tensor:
    """Noise ``(1, 1, H, W)`` drawn by ``number``, as coarse as the maps of an encoder's ``stride``.

    A random order of single pixels would destroy every texture at once; this one leaves and takes
    patches as a map does.
    """
    height, width = (side // stride for side in image.shape[-2:])
    cells = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(number)).to(
        image.device
    )
    return upsample(cells, image.shape[-2:])
