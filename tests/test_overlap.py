"""Overlap figures on drawn masks with known answers, and against plain loops and OpenCV."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from lightning_modules.metrics import (
    EnergyInMask,
    HitRate,
    MaxBoxAccuracy,
    MeanDice,
    MeanIoU,
    PixelAveragePrecision,
    UpperBoundIoU,
    overlap,
)
from lightning_modules.metrics.localisation import peak_distance
from tests.test_localisation import MASK, draw, drawn

METRICS = {
    "iou": lambda: MeanIoU(0.6),
    "otsu": lambda: MeanIoU("otsu"),
    "dice": lambda: MeanDice(0.6),
    "energy": EnergyInMask,
    "bound": lambda: UpperBoundIoU(levels=32),
    "near": lambda: HitRate(tolerance=0.2),
    "boxes": MaxBoxAccuracy,
}


def slow_iou(map, mask, threshold):
    both = either = 0
    for value, lesion in zip(map.flatten().tolist(), mask.flatten().tolist(), strict=True):
        both += value >= threshold and lesion >= 0.5
        either += value >= threshold or lesion >= 0.5
    return both / either if either else math.nan


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


def judged(batch):
    """Maps and masks of the images that count, one by one."""
    map, mask, _, has_lesion = batch
    return [(m, lesion) for m, lesion, counts in zip(map, mask, has_lesion, strict=True) if counts]


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
    assert overlap.area(claimed).item() == pytest.approx(6 / 30)
    assert overlap.area(MASK).item() == pytest.approx(7 / 30)
    assert overlap.iou(claimed, MASK).item() == pytest.approx(4 / 9)
    assert overlap.dice(claimed, MASK).item() == pytest.approx(8 / 13)
    energy = (4 * 0.8 + 3 * 0.2) / (6 * 0.8 + 24 * 0.2)
    assert overlap.energy_in_mask(REGION, MASK).item() == pytest.approx(energy)


def test_extremes():
    empty, full = torch.zeros_like(MASK), torch.ones_like(MASK)
    for figure in (overlap.iou, overlap.dice):
        assert figure(MASK, MASK) == 1
        assert figure(1 - MASK, MASK) == 0
        assert figure(empty, MASK) == 0
        assert figure(MASK, empty) == 0
        assert figure(empty, empty).isnan()
    assert overlap.energy_in_mask(full, MASK).item() == pytest.approx(7 / 30)
    assert overlap.energy_in_mask(empty, MASK) == 0
    assert overlap.energy_in_mask(-full, MASK) == 0
    assert overlap.energy_in_mask(MASK - 0.5, MASK) == 1  # what speaks against counts as nothing
    assert overlap.energy_in_mask(full, empty).isnan()


def test_energy_does_not_depend_on_the_maps_scale():
    map, mask, *_ = draw(4, (5, 6))
    mask[:, :, 1, 1] = 1
    expected = [(m * w).sum() / m.sum() for m, w in zip(map, mask, strict=True)]
    for scale in (1.0, 1e-30, 1e30):
        energy = overlap.energy_in_mask(map * scale, mask)
        torch.testing.assert_close(energy, torch.stack(expected))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.77, 1.0])
def test_iou_equals_the_slow_reference(threshold):
    batches = [draw(6, (5, 6), 0), draw(3, (9, 4), 1)]
    metric, dice = MeanIoU(threshold), MeanDice(threshold)
    for batch in batches:
        metric.update(*batch)
        dice.update(*batch)
    slow = [slow_iou(m, w, threshold) for batch in batches for m, w in judged(batch)]
    assert metric.compute().item() == pytest.approx(np.mean(slow), abs=1e-6)
    assert dice.compute().item() == pytest.approx(np.mean([2 * j / (1 + j) for j in slow]))


def test_each_map_may_have_a_threshold_of_its_own():
    map = torch.cat([REGION, REGION])
    claimed = overlap.claimed(map, torch.tensor([0.8, 0.9]))
    assert claimed.sum(dim=(1, 2, 3)).tolist() == [6, 0]


def test_otsu_equals_the_slow_reference_whatever_the_maps_scale():
    for seed in range(8):
        map, *_ = draw(3, (12, 9), seed)
        map = map ** (1 + seed)
        expected = [slow_otsu(m.numpy()) for m in map]
        assert overlap.otsu_threshold(map).tolist() == pytest.approx(expected, abs=0)
        wide = map.double() * 100 - 40
        expected = [slow_otsu(m.numpy()) for m in wide]
        assert overlap.otsu_threshold(wide).tolist() == pytest.approx(expected, abs=0)


def test_otsu_equals_opencv_on_maps_of_8_bits():
    rng = np.random.default_rng(5)
    for _ in range(10):
        grey = (255 * rng.random((30, 20)) ** rng.uniform(0.3, 4)).astype(np.uint8)
        grey[0, :2] = 0, 255
        level, binary = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        map = torch.from_numpy(grey / 255.0)[None, None]
        claimed = overlap.claimed(map, overlap.otsu_threshold(map))[0, 0].numpy()
        assert np.array_equal(claimed, binary > 0), level


def test_a_map_of_one_value_claims_nothing_by_otsu():
    for value in (0.0, 0.7):
        threshold = overlap.otsu_threshold(torch.full((2, 1, 3, 3), value))
        assert threshold.tolist() == [math.inf] * 2
    metric = MeanIoU("otsu")
    metric.update(0 * MASK, MASK, torch.tensor([0]), torch.tensor([True]))
    assert metric.compute() == 0


@pytest.mark.parametrize("levels", [2, 11, 256])
def test_histograms_hold_what_each_threshold_claims(levels):
    map, mask, *_ = draw(4, (7, 8), levels=levels if levels < 256 else None)
    map[0] = 0
    map[1, 0, 0] = 1
    counts = overlap.level_counts(map, mask, levels)
    curves = overlap.iou_curve(*counts)
    assert counts[1].sum(dim=1).tolist() == [56] * 4
    grid = overlap.threshold_grid(levels)
    for place, threshold in enumerate(grid.tolist()):  # as numbers, the way a setting is read
        claimed = overlap.claimed(map, threshold)
        expected = overlap.iou(claimed, mask)
        torch.testing.assert_close(curves[:, place], expected, equal_nan=True)
        slow = [slow_iou(m, w, threshold) for m, w in zip(map, mask, strict=True)]
        assert curves[:, place].tolist() == pytest.approx(slow, abs=1e-6, nan_ok=True)


def test_values_of_8_bit_files_keep_their_level():
    grey = torch.arange(256)
    for map in (grey / 255.0, torch.from_numpy(np.arange(256) / 255.0)):
        _, pixels = overlap.level_counts(map.view(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
        assert pixels.tolist() == [[1] * 256]


def test_best_threshold_is_one_for_all_images():
    first = drawn("# . .", {"#": 0.9, ".": 0.4})
    second = drawn("# . .", {"#": 0.4, ".": 0.1})
    mask = drawn("# . .", {"#": 1.0, ".": 0.0})
    map, masks = torch.cat([first, second]), torch.cat([mask, mask])
    curves = overlap.iou_curve(*overlap.level_counts(map, masks, levels=11))
    # up to 0.4: 1/3 and 1; from 0.5 to 0.9: 1 and 0 (0.1 reaches the threshold 0.1)
    threshold, mean = overlap.best_threshold(curves)
    assert (threshold, mean) == (pytest.approx(0.2), pytest.approx(2 / 3))
    metric = UpperBoundIoU(levels=11)
    metric.update(map, masks, torch.arange(2), torch.ones(2, dtype=torch.bool))
    assert metric.compute().item() == pytest.approx(2 / 3)
    assert all(math.isnan(value) for value in overlap.best_threshold(curves[:0]))


def test_no_best_threshold_claims_dark_maps():
    dark = torch.zeros(2, 1, 3, 3)
    mask = torch.eye(3).expand(2, 1, 3, 3)
    curves = overlap.iou_curve(*overlap.level_counts(dark, mask))
    assert curves[:, 0].tolist() == pytest.approx([1 / 3] * 2)
    assert overlap.best_threshold(curves) == (pytest.approx(1 / 255), 0.0)
    bound = UpperBoundIoU()
    bound.update(dark, mask, torch.arange(2), torch.ones(2, dtype=torch.bool))
    assert bound.compute() == 0


def test_no_threshold_beats_the_upper_bound():
    batch = draw(9, (6, 7))
    bound = UpperBoundIoU(levels=64)
    bound.update(*batch)
    reached = []
    for threshold in overlap.threshold_grid(64).tolist()[1:]:
        metric = MeanIoU(threshold)
        metric.update(*batch)
        reached.append(metric.compute().item())
    assert bound.compute().item() == pytest.approx(max(reached))


@pytest.mark.parametrize(
    ("picture", "pixels"),
    [
        (". . . . . .\n. # . . . .\n. . . . . .\n. . . . . .\n. . . . . .", 0.0),
        (". . . . . .\n. . . # . .\n. . . . . .\n. . . . . .\n. . . . . .", 1.0),
        (". . . . . .\n. . . . # .\n. . . . . .\n. . . . . .\n. . . . . .", math.sqrt(2)),
        (". . . . . .\n. . . . . .\n. . . . . .\n. . . . . .\n# . . . . .", math.sqrt(5)),
        (". . . . . .\n. . . . . .\n. . . . . .\n. . . . . .\n. . . . . .", math.inf),
    ],
)
def test_a_peak_hits_within_the_tolerance(picture, pixels):
    map = drawn(picture, {".": 0.1, "#": 0.6})
    fraction = pixels / math.hypot(5, 6)
    assert peak_distance(map, MASK).tolist() == [pytest.approx(fraction)]
    for tolerance in (0.0, 0.1, 0.15, 0.2, 0.3, 1.0):
        metric = HitRate(tolerance)
        metric.update(map, MASK, torch.tensor([0]), torch.tensor([True]))
        assert metric.compute() == float(fraction <= tolerance)


def test_distance_equals_opencvs_distance_transform():
    map, mask, *_ = draw(12, (20, 31), seed=3)
    thin = torch.rand(12, 1, 20, 31, generator=torch.Generator().manual_seed(4)) > 0.9
    mask = mask * thin
    mask[:, 0, 4, 5] = 1
    expected = []
    for m, lesion in zip(map[:, 0].numpy(), mask[:, 0].numpy(), strict=True):
        outside = (lesion < 0.5).astype(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        expected.append(distance.ravel()[m.argmax()] / math.hypot(20, 31))
    assert peak_distance(map, mask).tolist() == pytest.approx(expected, abs=1e-5)
    assert peak_distance(map, 0 * mask).tolist() == [math.inf] * 12


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_repeated_images_count_once_and_images_without_lesion_do_not(make):
    map, mask, index, has_lesion = draw(6, (5, 6))
    once, repeated, alone = make(), make(), make()
    once.update(map, mask, index, has_lesion)
    for rows in ([2, 0, 1], [2, 3], [5, 4, 0, 0]):
        repeated.update(map[rows], mask[rows], index[rows], has_lesion[rows])
    for rows in has_lesion.nonzero():
        alone.update(map[rows], mask[rows], index[rows], has_lesion[rows])
    assert 0 < once.compute() <= 1
    torch.testing.assert_close(repeated.compute(), once.compute())
    torch.testing.assert_close(alone.compute(), once.compute())


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_without_any_mask_the_figure_is_nan_without_warning(make):
    metric = make()
    assert metric.compute().isnan()
    map, mask, index, has_lesion = draw(2, (4, 4))
    metric.update(map, mask, index, torch.zeros(2, dtype=torch.bool))
    metric.update(map, 0 * mask, index, torch.ones(2, dtype=torch.bool))
    metric.update(map[:0], mask[:0], index[:0], has_lesion[:0])
    assert metric.compute().isnan()


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_wrong_input_is_refused(make):
    map, mask, index, has_lesion = draw(3, (4, 4))
    with pytest.raises(ValueError, match=r"map of shape \(3, 1, 4, 2\).*one size"):
        make().update(map[..., :2], mask, index, has_lesion)
    map[0, 0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="model has diverged"):
        make().update(map, mask, index, has_lesion)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="'ostu': it must be a number or 'otsu'"):
        MeanIoU("ostu")
    with pytest.raises(ValueError, match="tolerance is 15: a fraction of the diagonal, 0 to 1"):
        HitRate(tolerance=15)
    with pytest.raises(ValueError, match="levels is 1: it must be at least 2"):
        UpperBoundIoU(levels=1)
    with pytest.raises(ValueError, match=r"reaches from .* must lie in \[0, 1\]; scale it"):
        overlap.level_counts(2 * MASK, MASK)


def test_histograms_give_the_pixel_average_precision():
    batch = draw(5, (9, 9), levels=17)
    lesion_pixels, pixels = overlap.level_counts(batch[0][batch[3]], batch[1][batch[3]], 17)
    metric = PixelAveragePrecision(levels=17)
    metric.update(*batch)
    found = lesion_pixels.double().flip(1).sum(dim=0).cumsum(0)
    region = pixels.double().flip(1).sum(dim=0).cumsum(0)
    gain = found.diff(prepend=found.new_zeros(1)) / found[-1]
    expected = (gain * found / region.clamp(min=1)).sum().item()
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def run_rank(rank, folder, shares):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    batch = draw(9, (5, 6))
    results = []
    for share in shares:
        for make in METRICS.values():
            metric = make()
            for rows in share[rank]:
                metric.update(*(values[rows] for values in batch))
            results.append(metric.compute().item())
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_equal_one_on_all_images(tmp_path):
    batch = draw(9, (5, 6))
    expected = []
    for make in METRICS.values():
        metric = make()
        metric.update(*batch)
        expected.append(metric.compute().item())
    shares = [
        # a sampler repeats image 0, the ranks see different numbers of images and masks
        [[[0, 2, 4], [6, 8]], [[1, 3, 5, 7], [0]]],
        # one rank without images, one with images but none with a mask
        [[list(range(9))], []],
        [[[1, 4]], [[0, 2, 3, 5, 6, 7, 8]]],
    ]
    multiprocessing.spawn(run_rank, args=(str(tmp_path), shares), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected * 3, abs=1e-6)
