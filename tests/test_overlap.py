"""Overlap figures on drawn masks with known answers, and against plain loops and OpenCV."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_modules import overlap
from tests.test_metrics import MASK, draw


def slow_iou(claims, lesion):
    either = (claims | lesion).sum()
    return (claims & lesion).sum() / either if either else math.nan


def their_otsu(values):
    """OpenCV's, of the same bins."""
    low, high = values.min(), values.max()
    bins = np.minimum((values[0].astype(np.float64) - low) / (high - low) * 256 // 1, 255)
    return cv2.threshold(bins.astype(np.uint8), 0, 1, cv2.THRESH_OTSU)[1][None] > 0


def test_iou_and_energy_known_answers():
    region = torch.full(MASK.shape, 0.2)
    region[..., 2:4, 2:5] = 0.8
    # 6 pixels claimed, 7 of lesion, 4 of both; 30 of the image
    assert overlap.iou(region >= 0.5, MASK).item() == pytest.approx(4 / 9)
    energy = (4 * 0.8 + 3 * 0.2) / (6 * 0.8 + 24 * 0.2)
    assert overlap.energy_in_mask(region, MASK).item() == pytest.approx(energy)
    empty, full = torch.zeros_like(MASK), torch.ones_like(MASK)
    regions, lesions = (MASK, ~MASK, empty, MASK, empty), (MASK, MASK, MASK, empty, empty)
    values = overlap.iou(torch.cat(regions), torch.cat(lesions))
    assert values.tolist() == pytest.approx([1, 0, 0, 0, math.nan], nan_ok=True)
    # a constant map, nothing, what speaks against, some of both; whatever the map's scale
    maps = torch.cat([full.float(), empty.float(), -full.float(), MASK.float() - 0.5])
    for scale in (1.0, 1e-30, 1e30):
        energy = overlap.energy_in_mask(maps * scale, MASK.expand(4, -1, -1, -1)).tolist()
        assert energy == pytest.approx([7 / 30, 0, 0, 1])
    assert overlap.energy_in_mask(full.float(), empty).isnan()


def test_otsu_equals_opencvs_whatever_the_maps_scale():
    for seed in range(4):
        maps = draw(3, (12, 9), seed)[0] ** (1 + seed)
        for scaled in (maps, maps.double() * 100 - 40):
            expected = np.stack([their_otsu(m.numpy()) for m in scaled])
            assert np.array_equal(overlap.otsu_region(scaled), expected)
    assert not overlap.otsu_region(torch.full((2, 1, 3, 3), 0.7)).any()


@pytest.mark.parametrize("levels", [2, 11, 256])
def test_histograms_hold_what_each_threshold_claims(levels):
    maps, mask = draw(4, (7, 8), levels=levels if levels < 256 else None)
    maps[0] = 0
    maps[1, 0, 0] = 1
    lesion, pixels = (x.flip(1).cumsum(1).flip(1) for x in overlap.level_counts(maps, mask, levels))
    assert pixels[:, 0].tolist() == [56] * 4
    curves = lesion / (pixels + lesion[:, :1] - lesion)
    maps, mask = maps.numpy(), mask.numpy()
    for place in range(levels):
        threshold = np.float32(place) / np.float32(levels - 1)
        slow = [slow_iou(one >= threshold, other) for one, other in zip(maps, mask, strict=True)]
        assert curves[:, place].tolist() == pytest.approx(slow, abs=1e-6, nan_ok=True)


def test_values_of_8_bit_files_keep_their_level_and_wrong_maps_are_refused():
    nothing = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    for maps in (torch.arange(256) / 255.0, torch.from_numpy(np.arange(256) / 255.0)):
        _, pixels = overlap.level_counts(maps.view(1, 1, 16, 16), nothing)
        assert pixels.tolist() == [[1] * 256]
    for value in (2.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got .*scale_map"):
            overlap.level_counts(torch.full(nothing.shape, value), nothing)


def test_best_threshold_is_one_for_all_images():
    curves = np.array([[0.5, 0.5, 0.5, 0.8, 0.0], [0.9, 0.9, 0.9, 0.5, 0.0]])  # 0.05 +- 0.25
    assert (overlap.best_threshold(curves), overlap.best_threshold(curves, 1.0)) == (0.5, 0.75)
    assert math.isnan(overlap.best_threshold(curves[:0]))
    curves = np.array([[0.9, 0.0, 0.0], [math.nan] * 3])  # 0 claims all: it is not tried
    assert overlap.best_threshold(curves) == 1.0


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
    lesions = slow_boxes(mask)
    return [
        max((slow_box_iou(a, b) for a in slow_boxes(level > cut) for b in lesions), default=0.0)
        for cut in range(255)
    ]


@pytest.mark.parametrize("levels", [None, 5, 40])
def test_box_curves_equal_the_slow_reference(levels):
    maps, mask = draw(3, (9, 11), 1, levels)
    mask[1, 0, 2:5, 3:9] = True
    # A ring, whose hole is no area, with an area in it, the lesion.
    maps[2], mask[2], mask[2, 0, 2, 2] = 0, False, True
    maps[2, 0, :5, :5], maps[2, 0, 1:4, 1:4], maps[2, 0, 2, 2] = 1, 0, 1
    for curve, map, lesion in zip(overlap.box_iou_curve(maps, mask), maps, mask, strict=True):
        expected = slow_box_curve(map[0].numpy(), lesion[0].numpy())
        assert curve.tolist() == pytest.approx(expected, abs=1e-6)
    assert not overlap.box_iou_curve(torch.full_like(maps, 0.5), mask).any()
