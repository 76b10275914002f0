"""MaxBoxAccV2: boxes around what a map claims against boxes around the lesions.

Choe et al. 2022, "Evaluation for weakly supervised object localization: protocol, metrics, and
datasets", arXiv 2007.04178, and its code (clovaai/wsolevaluation, evaluation.py). Two details
differ from the published code: boxes end where the area ends (theirs are a pixel wider and higher),
and a hole in an area is no area of its own.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from lightning_modules.attention import normalise
from lightning_modules.metrics.overlap import check_finite

# Levels of a map; it is cut above each but the last, above which there is nothing.
LEVELS = 256


def box_iou_curve(maps: Tensor, lesion: Tensor) -> Tensor:
    """Largest IoU between a box around an area above a level and a box around a lesion.

    Each map is stretched to [0, 1] by its own minimum and maximum and cut down to 256 levels;
    areas are 8-connected.

    Args:
        maps: ``(B, 1, H, W)``, any range.
        lesion: ``(B, 1, H, W)``, bool, or a mask in [0, 1] that counts from 0.5 on.

    Returns:
        float32 ``(B, 255)`` in [0, 1]: above the levels 0 to 254 of 255; zeros for a constant map
        or without a lesion.
    """
    check_finite(maps)
    levels = (normalise(maps) * (LEVELS - 1)).byte().cpu().numpy()  # byte() cuts down
    masks = (lesion if lesion.dtype == torch.bool else lesion >= 0.5).cpu().numpy()
    curves = [_curve(level[0], mask[0]) for level, mask in zip(levels, masks, strict=True)]
    return torch.stack(curves).to(maps.device) if curves else maps.new_zeros(0, LEVELS - 1)


def areas(region: np.ndarray) -> np.ndarray:
    """Boxes around the 8-connected areas of a region, bool ``(H, W)``.

    Returns:
        float32 ``(K, 4)``: left, top, right and bottom edge in pixels; right and bottom are the
        first column and row outside.
    """
    # A sixth of connectedComponentsWithStats' time. In CCOMP outer outlines have no parent.
    outlines, nesting = cv2.findContours(
        region.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    boxes = [
        (x, y, x + width, y + height)
        for outline, parent in zip(outlines, nesting[0, :, 3] if outlines else (), strict=True)
        if parent < 0
        for x, y, width, height in [cv2.boundingRect(outline)]
    ]
    return np.array(sorted(boxes), dtype=np.float32).reshape(-1, 4)


def _pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU ``(K, L)`` of boxes ``(K, 4)`` with others ``(L, 4)``."""
    # Not torchvision's box_iou: on a handful of boxes, 255 times an image, it takes longer.
    corners = np.maximum(boxes[:, None, :2], others[:, :2])
    sides = (np.minimum(boxes[:, None, 2:], others[:, 2:]) - corners).clip(min=0)
    both = sides.prod(axis=2)
    one, other = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others))
    return np.asarray(both / (one[:, None] + other - both))


def _curve(level: np.ndarray, lesion: np.ndarray) -> Tensor:
    curve = torch.zeros(LEVELS - 1)
    wanted = areas(lesion)
    if not len(wanted):
        return curve
    present = np.zeros(LEVELS, dtype=bool)
    present[np.unique(level)] = True
    left, top, bottom, right = 0, 0, *level.shape
    for cut in range(int(level.max())):
        # No pixel at this level: what lies above it is what lay above the one before.
        if cut and not present[cut]:
            curve[cut] = curve[cut - 1]
            continue
        boxes = areas(level[top:bottom, left:right] > cut) + np.array([left, top, left, top])
        overlaps = _pairwise_iou(boxes, wanted)
        # Areas only shrink and split as the level rises: what is apart from every lesion's box now
        # stays apart, and only where the others lie is searched on.
        near = boxes[(overlaps > 0).any(axis=1)].astype(np.int64)
        if not len(near):
            break
        curve[cut] = float(overlaps.max())
        left, top = near[:, :2].min(axis=0)
        right, bottom = near[:, 2:].max(axis=0)
    return curve
