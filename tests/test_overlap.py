"""Overlap figures on drawn masks with known answers, and against plain loops and OpenCV."""

import math

import cv2
import numpy as np
import pytest
import torch

from lightning_modules.metrics import overlap
from tests.test_localisation import MASK, draw, drawn


def slow_iou(maps, mask, threshold):
    both = either = 0
    for value, lesion in zip(maps.flatten().tolist(), mask.flatten().tolist(), strict=True):
        both += value >= threshold and lesion >= 0.5
        either += value >= threshold or lesion >= 0.5
    return both / either if either else math.nan


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


REGION = drawn(
    """
    . . . . . .
    . . . . . .
    . . # # # .
    . . # # # .
    . . . . . .
    """,
    {".": 0.2, "#": 0.8},
)


def test_known_answers_on_drawn_masks():
    # 6 pixels claimed, 7 of lesion, 4 of both; 30 of the image
    claimed = overlap.claimed(REGION, 0.5)
    assert overlap.iou(claimed, MASK).item() == pytest.approx(4 / 9)
    each = overlap.claimed(torch.cat([REGION, REGION]), torch.tensor([0.8, 0.9]))
    assert each.sum(dim=(1, 2, 3)).tolist() == [6, 0]  # each map by its own threshold
    energy = (4 * 0.8 + 3 * 0.2) / (6 * 0.8 + 24 * 0.2)
    assert overlap.energy_in_mask(REGION, MASK).item() == pytest.approx(energy)


def test_extremes():
    empty, full = torch.zeros_like(MASK), torch.ones_like(MASK)
    for region, lesion, expected in [
        (MASK, MASK, 1),
        (1 - MASK, MASK, 0),
        (empty, MASK, 0),
        (MASK, empty, 0),
        (empty, empty, math.nan),
    ]:
        assert overlap.iou(region, lesion).item() == pytest.approx(expected, nan_ok=True)
    assert overlap.energy_in_mask(full, MASK).item() == pytest.approx(7 / 30)
    assert overlap.energy_in_mask(empty, MASK) == 0
    assert overlap.energy_in_mask(-full, MASK) == 0
    assert overlap.energy_in_mask(MASK - 0.5, MASK) == 1  # what speaks against counts as nothing
    assert overlap.energy_in_mask(full, empty).isnan()


def test_energy_does_not_depend_on_the_maps_scale():
    maps, mask, *_ = draw(4, (5, 6))
    mask[:, :, 1, 1] = 1
    expected = [(m * w).sum() / m.sum() for m, w in zip(maps, mask, strict=True)]
    for scale in (1.0, 1e-30, 1e30):
        energy = overlap.energy_in_mask(maps * scale, mask)
        torch.testing.assert_close(energy, torch.stack(expected))


def test_otsu_equals_the_slow_reference_whatever_the_maps_scale():
    for seed in range(8):
        maps, *_ = draw(3, (12, 9), seed)
        maps = maps ** (1 + seed)
        expected = [slow_otsu(m.numpy()) for m in maps]
        assert overlap.otsu_threshold(maps).tolist() == pytest.approx(expected, abs=0)
        wide = maps.double() * 100 - 40
        expected = [slow_otsu(m.numpy()) for m in wide]
        assert overlap.otsu_threshold(wide).tolist() == pytest.approx(expected, abs=0)


def test_otsu_equals_opencv_on_maps_of_8_bits():
    rng = np.random.default_rng(5)
    for _ in range(10):
        grey = (255 * rng.random((30, 20)) ** rng.uniform(0.3, 4)).astype(np.uint8)
        grey[0, :2] = 0, 255
        level, binary = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        maps = torch.from_numpy(grey / 255.0)[None, None]
        claimed = overlap.claimed(maps, overlap.otsu_threshold(maps))[0, 0].numpy()
        assert np.array_equal(claimed, binary > 0), level


def test_a_map_of_one_value_claims_nothing_by_otsu():
    for value in (0.0, 0.7):
        threshold = overlap.otsu_threshold(torch.full((2, 1, 3, 3), value))
        assert threshold.tolist() == [math.inf] * 2


@pytest.mark.parametrize("levels", [2, 11, 256])
def test_histograms_hold_what_each_threshold_claims(levels):
    maps, mask, *_ = draw(4, (7, 8), levels=levels if levels < 256 else None)
    maps[0] = 0
    maps[1, 0, 0] = 1
    lesion, pixels = (x.flip(1).cumsum(1).flip(1) for x in overlap.level_counts(maps, mask, levels))
    assert pixels[:, 0].tolist() == [56] * 4
    curves = curves_of(maps, mask, levels)
    torch.testing.assert_close(
        (lesion / (pixels + lesion[:, :1] - lesion)).float(), curves, equal_nan=True
    )
    for place, threshold in enumerate(overlap.threshold_grid(levels).tolist()):
        slow = [slow_iou(m, w, threshold) for m, w in zip(maps, mask, strict=True)]
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


def test_no_best_threshold_claims_dark_maps():
    dark = torch.zeros(2, 1, 3, 3)
    mask = torch.eye(3).expand(2, 1, 3, 3)
    curves = curves_of(dark, mask)
    assert curves[:, 0].tolist() == pytest.approx([1 / 3] * 2)
    assert overlap.best_threshold(curves) == (pytest.approx(1 / 255), 0.0)


def test_wrong_maps_are_refused():
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got 0 to 2.*scale_map"):
        overlap.level_counts(2 * MASK, MASK)
    diverged = torch.full_like(MASK, math.nan)
    for figure in (overlap.level_counts, overlap.energy_in_mask):
        with pytest.raises(ValueError, match="model has diverged"):
            figure(diverged, MASK)
    with pytest.raises(ValueError, match="model has diverged"):
        overlap.otsu_threshold(diverged)
