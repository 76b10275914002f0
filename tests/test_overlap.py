"""Overlap figures on drawn masks with known answers, and against plain loops and OpenCV."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_modules.metrics import overlap
from tests.test_localisation import MASK, draw, drawn


def slow_iou(claims, lesion):
    return (
        (claims & lesion).sum() / (claims | lesion).sum() if (claims | lesion).any() else math.nan
    )


def curves_of(maps, mask, levels=256):
    """IoU at each threshold of the grid, ``(B, levels)``."""
    grid = overlap.threshold_grid(levels).tolist()  # as numbers, the way a setting is read
    return torch.stack([overlap.iou(overlap.claimed(maps, t), mask) for t in grid], dim=1)


def slow_otsu(values):
    """Between-class variance of every split of the bins, by its definition."""
    low, high = values.min(), values.max()
    bins = np.minimum((values.astype(np.float64) - low) / (high - low) * 256 // 1, 255)
    best, threshold = -1.0, None
    for split in range(255):
        lower, upper = bins[bins <= split], bins[bins > split]
        between = len(lower) * len(upper) * (lower.mean() - upper.mean()) ** 2
        if between > best * (1 + 1e-9):
            best, threshold = between, values[bins > split].min()
    return threshold


def test_known_answers_on_drawn_masks():
    region = torch.full_like(MASK, 0.2)
    region[..., 2:4, 2:5] = 0.8
    # 6 pixels claimed, 7 of lesion, 4 of both; 30 of the image
    assert overlap.iou(overlap.claimed(region, 0.5), MASK).item() == pytest.approx(4 / 9)
    each = overlap.claimed(torch.cat([region, region]), torch.tensor([0.8, 0.9]))
    assert each.sum(dim=(1, 2, 3)).tolist() == [6, 0]  # each map by its own threshold
    energy = (4 * 0.8 + 3 * 0.2) / (6 * 0.8 + 24 * 0.2)
    assert overlap.energy_in_mask(region, MASK).item() == pytest.approx(energy)


def test_extremes():
    empty, full = torch.zeros_like(MASK), torch.ones_like(MASK)
    regions, lesions = (MASK, 1 - MASK, empty, MASK, empty), (MASK, MASK, MASK, empty, empty)
    values = overlap.iou(torch.cat(regions), torch.cat(lesions))
    assert values.tolist() == pytest.approx([1, 0, 0, 0, math.nan], nan_ok=True)
    # a constant map, nothing, what speaks against, some of both; whatever the map's scale
    maps = torch.cat([full, empty, -full, MASK - 0.5])
    for scale in (1.0, 1e-30, 1e30):
        energy = overlap.energy_in_mask(maps * scale, MASK.expand(4, -1, -1, -1)).tolist()
        assert energy == pytest.approx([7 / 30, 0, 0, 1])
    assert overlap.energy_in_mask(full, empty).isnan()


def test_otsu_equals_the_slow_reference_whatever_the_maps_scale():
    for seed in range(8):
        maps, _ = draw(3, (12, 9), seed)
        maps = maps ** (1 + seed)
        for scaled in (maps, maps.double() * 100 - 40):
            expected = [slow_otsu(m.numpy()) for m in scaled]
            assert overlap.otsu_threshold(scaled).tolist() == pytest.approx(expected, abs=0)
    assert overlap.otsu_threshold(torch.full((2, 1, 3, 3), 0.7)).tolist() == [math.inf] * 2


@pytest.mark.parametrize("levels", [2, 11, 256])
def test_histograms_hold_what_each_threshold_claims(levels):
    maps, mask = draw(4, (7, 8), levels=levels if levels < 256 else None)
    maps[0] = 0
    maps[1, 0, 0] = 1
    lesion, pixels = (x.flip(1).cumsum(1).flip(1) for x in overlap.level_counts(maps, mask, levels))
    assert pixels[:, 0].tolist() == [56] * 4
    curves = curves_of(maps, mask, levels)
    torch.testing.assert_close(
        (lesion / (pixels + lesion[:, :1] - lesion)).float(), curves, equal_nan=True
    )
    for place, threshold in enumerate(overlap.threshold_grid(levels).tolist()):
        pairs = zip((maps >= threshold).tolist(), (mask >= 0.5).tolist(), strict=True)
        slow = [slow_iou(np.array(claims), np.array(lesion)) for claims, lesion in pairs]
        assert curves[:, place].tolist() == pytest.approx(slow, abs=1e-6, nan_ok=True)


def test_values_of_8_bit_files_keep_their_level():
    grey = torch.arange(256)
    for maps in (grey / 255.0, torch.from_numpy(np.arange(256) / 255.0)):
        _, pixels = overlap.level_counts(maps.view(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
        assert pixels.tolist() == [[1] * 256]


def test_best_threshold_is_one_for_all_images():
    first = drawn("# . .", {"#": 0.9, ".": 0.4})
    second = drawn("# . .", {"#": 0.4, ".": 0.1})
    mask = drawn("# . .", {"#": 1.0, ".": 0.0})
    maps, masks = torch.cat([first, second]), torch.cat([mask, mask])
    curves = curves_of(maps, masks, levels=11)
    # up to 0.4: 1/3 and 1; from 0.5 to 0.9: 1 and 0 (0.1 reaches the threshold 0.1)
    threshold, mean = overlap.best_threshold(curves)
    assert (threshold, mean) == (pytest.approx(0.2), pytest.approx(2 / 3))
    assert all(math.isnan(value) for value in overlap.best_threshold(curves[:0]))
    dark = curves_of(torch.zeros(2, 1, 3, 3), torch.eye(3).expand(2, 1, 3, 3))
    assert dark[:, 0].tolist() == pytest.approx([1 / 3] * 2)  # 0 claims all: it is not tried
    assert overlap.best_threshold(dark) == (pytest.approx(1 / 255), 0.0)


def test_wrong_maps_are_refused():
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got 0 to 2.*scale_map"):
        overlap.level_counts(2 * MASK, MASK)
    diverged = torch.full_like(MASK, math.nan)
    for figure in (overlap.level_counts, overlap.energy_in_mask, overlap.box_iou_curve):
        with pytest.raises(ValueError, match="model has diverged"):
            figure(diverged, MASK)


def slow_boxes(region):
    """Bounding boxes of 8-connected areas, by SciPy's labels."""
    labels, _ = ndimage.label(region, structure=np.ones((3, 3)))
    return sorted([x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(labels))


def slow_box_iou(one, other):
    """Overlap of two boxes, by counting pixels."""
    pixels = [
        {(x, y) for x in range(left, right) for y in range(top, bottom)}
        for left, top, right, bottom in (one, other)
    ]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def slow_box_curve(maps, mask):
    level = np.floor((maps - maps.min()) / (maps.max() - maps.min()) * 255)
    lesions = slow_boxes(mask >= 0.5)
    return [
        max((slow_box_iou(a, b) for a in slow_boxes(level > cut) for b in lesions), default=0.0)
        for cut in range(255)
    ]


def test_boxes_touch_at_corners_and_lie_in_holes():
    region = drawn(
        """
        # # # # # . .
        # . . . # . #
        # . # . # . .
        # . . . # . .
        # # # # # . .
        . . . . . # .
        """,
        {".": False, "#": True},
    )[0, 0].numpy()
    # the ring with the pixel at its corner, the area in its hole (no box of the hole), one more
    boxes = sorted(overlap.area_boxes(region).tolist())
    assert boxes == [[0, 0, 6, 6], [2, 2, 3, 3], [6, 1, 7, 2]] == slow_boxes(region)
    assert overlap.area_boxes(np.zeros((3, 4), dtype=bool)).shape == (0, 4)


def test_box_curves_known_answers():
    maps, mask = torch.zeros(1, 1, 5, 7), torch.zeros(1, 1, 5, 7)
    maps[..., :2, :2], maps[..., 3:, 4:] = 1.0, 0.4
    mask[..., 2, 4:], mask[..., 2:, 6] = 1, 1
    # the weak area's box is 6 pixels of the lesion's 9; 0.4 is level 102, gone above it
    curve = overlap.box_iou_curve(4 * maps.double() - 7, mask)[0].tolist()
    assert curve == pytest.approx([6 / 9] * 102 + [0] * 153)
    mask[..., :2, :2] = 1  # a second lesion, found at every level
    assert overlap.box_iou_curve(maps, mask)[0].tolist() == [1] * 255
    assert not overlap.box_iou_curve(torch.full_like(maps, 0.5), mask).any()


@pytest.mark.parametrize("levels", [None, 5, 40])
def test_box_curves_equal_the_slow_reference(levels):
    maps, mask = draw(3, (9, 11), 1, levels)
    mask[1, 0, 2:5, 3:9] = 1
    for curve, map, lesion in zip(overlap.box_iou_curve(maps, mask), maps, mask, strict=True):
        expected = slow_box_curve(map[0].numpy(), lesion[0].numpy())
        assert curve.tolist() == pytest.approx(expected, abs=1e-6)
