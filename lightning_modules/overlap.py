"""How a map lies on the lesion: pure functions for the evaluation, a value or a curve an image.

Maps ``(B, 1, H, W)`` are float and without NaN, regions (what a map claims) and lesions bool.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from lightning_modules.attention import has_peak, normalise, peak

# Bins of Otsu's histogram, levels of box_iou_curve: as many as an 8-bit image has values.
LEVELS = 256


def peak_distance(maps: Tensor, lesion: Tensor) -> Tensor:
    """Distance from a map's peak to the nearest pixel of the lesion, 0 in it: float32 ``(B,)``.

    As a fraction of the image's diagonal ``sqrt(H^2 + W^2)``; infinite for a constant map, which
    points nowhere, and without a lesion.
    """
    peaks = peak(maps)
    place, y, x = lesion[:, 0].nonzero().unbind(dim=1)
    squared = (torch.stack([x, y], dim=1) - peaks[place]).double().square().sum(dim=1)
    nearest = squared.new_full((len(maps),), float("inf"))
    nearest = nearest.scatter_reduce(0, place, squared, "amin").sqrt()
    diagonal = float(maps.shape[-2] ** 2 + maps.shape[-1] ** 2) ** 0.5
    return (nearest / diagonal).float().masked_fill(~has_peak(maps), float("inf"))


def iou(region: Tensor, lesion: Tensor) -> Tensor:
    """Intersection over union of regions and lesions ``(B, 1, H, W)``: float32 ``(B,)``.

    NaN where both are empty, as in CheXlocalize (Saporta et al. 2022).
    """
    one, other = region.flatten(1), lesion.flatten(1)
    return ((one & other).sum(dim=1).double() / (one | other).sum(dim=1)).float()


def energy_in_mask(maps: Tensor, lesion: Tensor) -> Tensor:
    """Share of the map's positive sum that lies in the lesion, float32 ``(B,)`` in [0, 1].

    The energy-based pointing game (Wang et al. 2020, Score-CAM, arXiv 1910.01279), with the
    lesion's outline instead of a box: a constant map gets the lesion's share of the image, a map
    without positive values 0; NaN without a lesion.
    """
    energy, inside = maps.double().relu().flatten(1), lesion.flatten(1)
    total = energy.sum(dim=1)
    share = (energy * inside).sum(dim=1) / torch.where(total > 0, total, 1.0)
    return torch.where(inside.any(dim=1), share, float("nan")).float()


def otsu_region(maps: Tensor) -> Tensor:
    """The pixels of the upper class by Otsu's (1979) threshold of each map: bool ``(B, 1, H, W)``.

    It splits a histogram between the map's own minimum and maximum so that this explains most of
    the values' variance, of equal ones the lowest. Empty for a constant map: it claims nothing.
    """
    values = maps.flatten(1)
    low = values.amin(dim=1, keepdim=True)
    span = values.amax(dim=1, keepdim=True) - low
    unit = (values - low).double() / torch.where(span > 0, span, 1.0)
    bins = (unit * LEVELS).long().clamp(max=LEVELS - 1)
    pixels = _histogram(bins, LEVELS).double()
    # Positions of bins stand for values: an affine change of the map changes nothing.
    centre = torch.arange(LEVELS, dtype=torch.float64, device=maps.device)
    below, moment = pixels.cumsum(dim=1), (pixels * centre).cumsum(dim=1)
    total, mean = below[:, -1:], moment[:, -1:] / below[:, -1:]
    between = (mean * below - moment).square() / (below * (total - below)).clamp(min=1)
    split = between[:, :-1].argmax(dim=1, keepdim=True)
    return ((bins > split) & (span > 0)).view_as(maps)


def level_counts(maps: Tensor, lesion: Tensor, levels: int = LEVELS) -> tuple[Tensor, Tensor]:
    """Pixels of the lesion and all pixels of each level of maps in [0, 1], int64 ``(B, levels)``.

    A pixel has level l if it reaches the threshold l of ``0, 1 / (levels - 1), ..., 1`` (of 256:
    those of 8-bit maps) and not the next: so IoU at any threshold and pixel average precision
    follow from these counts.
    """
    if not bool(((maps >= 0) & (maps <= 1)).all()):  # NaN is neither
        raise ValueError(
            f"maps: expected values in [0, 1], got {maps.min():.3g} to {maps.max():.3g}. Fix: "
            "attention.scale_map, or a model that has not diverged."
        )
    grid = torch.arange(levels, dtype=maps.dtype, device=maps.device) / (levels - 1)
    level = torch.bucketize(maps.flatten(1), grid, right=True) - 1
    # Pixels outside the lesion are sent to a level of their own, which is dropped.
    inside = torch.where(lesion.flatten(1), level, levels)
    return _histogram(inside, levels + 1)[:, :levels], _histogram(level, levels)


def best_threshold(curves: np.ndarray, errors: float = 0.0) -> float:
    """The highest threshold whose mean of IoU curves ``(N, levels)`` is as good as the best.

    As good: what it lies below the best, image by image, is on average within ``errors`` standard
    errors (one: Breiman et al. 1984, Classification and Regression Trees). The threshold 0 is not
    tried: it claims every pixel of every image, also where a map is dark. NaN is left out, and the
    answer without an image.
    """
    tried = curves[~np.isnan(curves).any(axis=1), 1:].astype(np.float64)
    if not len(tried):
        return float("nan")
    worse = tried[:, [tried.mean(axis=0).argmax()]] - tried
    allowed = errors * worse.std(axis=0) / len(tried) ** 0.5
    return float(1 + np.flatnonzero(worse.mean(axis=0) <= allowed)[-1]) / tried.shape[1]


def box_iou_curve(maps: Tensor, lesion: Tensor) -> Tensor:
    """MaxBoxAccV2's largest IoU of a box around a claimed area and a box around a lesion.

    Choe et al. 2022, arXiv 2007.04178 (clovaai/wsolevaluation), but for two details: boxes end
    where the area ends (theirs are a pixel larger), and a hole in an area is no area of its own.
    Each map is stretched to [0, 1] by its own minimum and maximum and cut above 0 to 254 of 255:
    float32 ``(B, 255)`` in [0, 1], zeros for a constant map or without a lesion.
    """
    levels = (normalise(maps) * (LEVELS - 1)).byte().cpu().numpy()  # byte() cuts down
    masks = lesion.cpu().numpy()
    curves = [_box_curve(level[0], mask[0]) for level, mask in zip(levels, masks, strict=True)]
    return torch.stack(curves).to(maps.device)


def area_boxes(region: np.ndarray) -> np.ndarray:
    """Boxes ``(K, 4)`` around the 8-connected areas of a region, bool ``(H, W)``.

    Left, top, right and bottom edge in pixels; the last two are the first outside.
    """
    # A sixth of connectedComponentsWithStats' time. In CCOMP outer outlines have no parent.
    outlines, nesting = cv2.findContours(
        region.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    parents = nesting[0, :, 3] if outlines else ()
    outer = [one for one, parent in zip(outlines, parents, strict=True) if parent < 0]
    boxes = np.array([cv2.boundingRect(one) for one in outer], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _box_curve(level: np.ndarray, lesion: np.ndarray) -> Tensor:
    curve = torch.zeros(LEVELS - 1)
    wanted = area_boxes(lesion)
    present = np.bincount(level.ravel(), minlength=LEVELS) > 0
    left, top, bottom, right = 0, 0, *level.shape
    for cut in range(int(level.max()) if len(wanted) else 0):
        # No pixel at this level: what lies above it is what lay above the one before.
        if cut and not present[cut]:
            curve[cut] = curve[cut - 1]
            continue
        boxes = area_boxes(level[top:bottom, left:right] > cut) + np.array([left, top, left, top])
        overlaps = _box_iou(boxes, wanted)
        # Areas only shrink and split as the level rises: what is apart from every lesion's box now
        # stays apart, and only where the others lie is searched on.
        near = boxes[(overlaps > 0).any(axis=1)].astype(np.int64)
        if not len(near):
            break
        curve[cut] = float(overlaps.max())
        left, top = near[:, :2].min(axis=0)
        right, bottom = near[:, 2:].max(axis=0)
    return curve


def _box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU ``(K, L)`` of boxes ``(K, 4)`` with others ``(L, 4)``."""
    # Not torchvision's box_iou: on a handful of boxes, 255 times an image, it takes longer.
    corners = np.maximum(boxes[:, None, :2], others[:, :2])
    sides = (np.minimum(boxes[:, None, 2:], others[:, 2:]) - corners).clip(min=0)
    both = sides.prod(axis=2)
    one, other = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    return np.asarray(both / (one[:, None] + other - both))


def _histogram(place: Tensor, bins: int) -> Tensor:
    """Numbers of each row's entries 0 to bins - 1: int64 ``(B, bins)`` of ``(B, n)``."""
    return place.new_zeros(len(place), bins).scatter_add_(1, place, torch.ones_like(place))
