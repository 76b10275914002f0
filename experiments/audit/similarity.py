"""How alike two maps of one image are: pure functions on tensors, a value an image."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_modules.attention import has_peak, normalise
from lightning_modules.metrics.overlap import iou

# Of the image: what counts as a map's strongest region.
TOP = 0.05
MEASURES = ("ssim", "rank", "iou")


def similarity(one: Tensor, other: Tensor) -> dict[str, Tensor]:
    """All :data:`MEASURES` of two maps ``(B, 1, H, W)``, each float32 ``(B,)``."""
    if one.ndim != 4 or one.shape[1] != 1 or one.shape != other.shape:
        raise ValueError(
            f"maps cannot be compared: expected two of shape (B, 1, H, W), got {tuple(one.shape)} "
            f"and {tuple(other.shape)}"
        )
    return {
        "ssim": ssim(one, other),
        "rank": rank_correlation(one, other),
        "iou": iou(top_region(one), top_region(other)),
    }


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of two maps, each stretched to [0, 1] by itself.

    The mean over Gaussian windows of 11 pixels, sigma 1.5, one at each pixel, edges reflected. Only
    the shapes are compared: a map and its tenfold are the same. Two dark areas are alike, so that
    maps with little in them score high whatever they show.

    Returns:
        float32 ``(B,)`` in [-1, 1]; NaN where a map is constant and so has no shape.

    Example:
        >>> import torch
        >>> map = torch.arange(400.0).view(1, 1, 20, 20)
        >>> ssim(map, 10 * map + 3)
        tensor([1.])
        >>> ssim(map, torch.zeros_like(map))
        tensor([nan])
    """
    value = structural_similarity_index_measure(
        normalise(one).float(), normalise(other).float(), data_range=1.0, reduction="none"
    )
    assert isinstance(value, Tensor)
    return _where_both_peak(value.view(-1), one, other)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation over the pixels of two maps; ties share their mean rank.

    Returns:
        float32 ``(B,)`` in [-1, 1]; NaN where a map is constant.

    Example:
        >>> import torch
        >>> one = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
        >>> rank_correlation(one, one.square()), rank_correlation(one, -one)
        (tensor([1.]), tensor([-1.]))
    """
    a, b = (_ranks(map) for map in (one, other))
    spread = (a.square().sum(1) * b.square().sum(1)).sqrt()
    value = (a * b).sum(1) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return _where_both_peak(value.float(), one, other)


def top_region(map: Tensor, share: float = TOP) -> Tensor:
    """The pixels of the highest values, ``share`` of the image.

    More where the last of them ties with others; fewer where fewer rise above the map's minimum:
    the dark rest of a map is no region, nor is a constant map.

    Example:
        >>> import torch
        >>> top_region(torch.tensor([0.0, 5.0, 0.0, 7.0]).view(1, 1, 1, 4), 0.25).int().flatten()
        tensor([0, 0, 0, 1], dtype=torch.int32)
        >>> top_region(torch.tensor([0.0, 5.0, 0.0, 7.0]).view(1, 1, 1, 4), 0.75).int().flatten()
        tensor([0, 1, 0, 1], dtype=torch.int32)
    """
    values = map.flatten(1)
    count = max(1, round(share * values.shape[1]))
    least = values.topk(count, dim=1).values[:, -1:]
    raised = (values >= least) & (values > values.amin(dim=1, keepdim=True))
    return raised.view_as(map) & has_peak(map).view(-1, 1, 1, 1)


def _ranks(map: Tensor) -> Tensor:
    """Ranks float64 ``(B, N)`` of each map's pixels, less their mean."""
    # Not torchmetrics' spearman_corrcoef: it adds up tied ranks in int32, which overflows from
    # 65,536 equal pixels on, and the dark of a map may be more.
    ranks = torch.from_numpy(rankdata(map.flatten(1).cpu().numpy(), axis=1)).to(map.device)
    return ranks - ranks.mean(dim=1, keepdim=True)


def _where_both_peak(value: Tensor, one: Tensor, other: Tensor) -> Tensor:
    nothing = torch.full_like(value, float("nan"))
    return torch.where(has_peak(one) & has_peak(other), value, nothing)
