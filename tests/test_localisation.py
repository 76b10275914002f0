"""Localisation figures on drawn masks with known answers, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import distributed, multiprocessing

from lightning_modules.metrics import HitRate, PixelAveragePrecision
from lightning_modules.metrics.localisation import hit, pixel_average_precision

LESION = """
    . . . . . .
    . # # . . .
    . # # # . .
    . . # # . .
    . . . . . .
"""


def drawn(picture, marks):
    rows = [line.split() for line in picture.strip().splitlines()]
    return torch.tensor([[marks[cell] for cell in row] for row in rows])[None, None]


MASK = drawn(LESION, {".": 0.0, "#": 1.0})


def draw(images, size, seed=0, levels=None):
    """Maps, masks, numbers and has_lesion of a batch; the maps know something of the masks."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(images, 1, *size, generator=generator) > 0.8).float()
    mask[..., 1, 1] = 1  # no mask is empty
    map = (torch.rand(images, 1, *size, generator=generator) + 0.3 * mask) / 1.3
    if levels:
        map = (map * (levels - 1)).round() / (levels - 1)
    has_lesion = torch.arange(images) % 3 != 1
    return map, mask * has_lesion.view(-1, 1, 1, 1), torch.arange(images) + 100 * seed, has_lesion


def reference(*batches):
    """Average precision of all pixels of all images, each image weighing 1."""
    score, target, weight = [], [], []
    for map, mask, _, has_lesion in batches:
        for m, lesion, counts in zip(map, mask, has_lesion, strict=True):
            if counts:
                score.append(m.numpy().ravel())
                target.append(lesion.numpy().ravel() >= 0.5)
                weight.append(np.full(m.numel(), 1 / m.numel()))
    return average_precision_score(
        np.concatenate(target), np.concatenate(score), sample_weight=np.concatenate(weight)
    )


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (". . . . . .\n. # . . . .\n. . . . . .\n. . . . . .\n. . . . . .", True),
        # beside the lesion, and inside its bounding box only
        (". . . . . .\n. . . # . .\n. . . . . .\n. . . . . .\n. . . . . .", False),
        # the middle of a plateau counts, not its first pixel
        ("# # # # # .\n# # # # # .\n# # # # # .\n# # # # # .\n# # # # # .", True),
        # nor the middle between two plateaus
        ("# . . . . .\n. . . . . .\n. . . . . .\n. . . . . .\n. . . # . .", False),
        # a map of one value
        (". . . . . .\n. . . . . .\n. . . . . .\n. . . . . .\n. . . . . .", False),
    ],
)
def test_hit_on_drawn_maps(picture, expected):
    map = drawn(picture, {".": 0.1, "#": 0.6})
    assert hit(map, MASK).tolist() == [expected]
    assert hit(-1 + map, MASK).tolist() == [expected]


def test_full_map_misses_even_where_the_lesion_is_in_the_middle():
    assert hit(torch.ones(1, 1, 5, 6), MASK).tolist() == [False]


def test_hit_rate_counts_images_with_a_lesion_only():
    good, bad = MASK * 0.3, 1 - MASK
    map = torch.cat([good, bad, good, bad, good])
    mask = torch.cat([MASK, MASK, MASK, MASK, torch.zeros_like(MASK)])
    metric = HitRate()
    has_lesion = torch.tensor([True, True, True, False, True])  # the last mask is empty
    metric.update(map, mask, torch.arange(5), has_lesion)
    assert metric.compute().item() == pytest.approx(2 / 3)
    metric.update(map[1:2], mask[1:2], torch.tensor([9]), torch.tensor([True]))
    assert metric.compute().item() == pytest.approx(2 / 4)
    metric.update(map[1:2], mask[1:2], torch.tensor([9]), torch.tensor([True]))
    assert metric.compute().item() == pytest.approx(2 / 4)


def test_lesion_is_a_mask_of_at_least_one_half():
    map = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    for edge, expected in ((0.5, True), (0.49, False)):
        mask = torch.tensor([1.0, edge]).view(1, 1, 1, 2)
        assert hit(map, mask).tolist() == [expected]
        metric = PixelAveragePrecision()
        metric.update(map, mask, torch.tensor([0]), torch.tensor([True]))
        assert metric.compute().item() == (1.0 if expected else 0.5)


def test_pixel_average_precision_known_answers():
    # ranks of the lesion's pixels: 1, 3 -> (1/1 + 2/3) / 2
    score, target = torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([1, 0, 1, 0])
    ap = pixel_average_precision(score, target, torch.ones(4))
    assert ap.item() == pytest.approx(5 / 6)
    # one threshold for all: the share of lesion
    constant = pixel_average_precision(torch.ones(4), target, torch.tensor([1.0, 2.0, 1.0, 4.0]))
    assert constant.item() == pytest.approx(2 / 8)
    # the negative pixel on top weighs 3: 1/4 and 2/5
    weighted = pixel_average_precision(
        torch.tensor([4.0, 3.0, 2.0]), torch.tensor([0, 1, 1]), torch.tensor([3.0, 1.0, 1.0])
    )
    assert weighted.item() == pytest.approx((1 / 4 + 2 / 5) / 2)


@pytest.mark.parametrize("levels", [None, 2, 5])
def test_pixel_average_precision_equals_the_reference(levels):
    rng = np.random.default_rng(4)
    for _ in range(20):
        score = rng.random(50).astype(np.float32)
        score = score if levels is None else (score * (levels - 1)).round() / (levels - 1)
        target = rng.random(50) < 0.2
        target[0] = True
        weight = rng.random(50) * (rng.random(50) < 0.8)
        weight[0] = 0.5
        result = pixel_average_precision(*map(torch.from_numpy, (score, target, weight)))
        expected = average_precision_score(target, score, sample_weight=weight)
        assert result.item() == pytest.approx(expected, abs=1e-6)


def test_pixel_average_precision_without_lesion_is_nan():
    for target, weight in ((torch.zeros(3), torch.ones(3)), (torch.ones(3), torch.zeros(3))):
        assert pixel_average_precision(torch.rand(3), target, weight).isnan()
    assert pixel_average_precision(torch.rand(0), torch.rand(0), torch.rand(0)).isnan()


@pytest.mark.parametrize("levels", [None, 7])
def test_pooled_pixels_equal_the_reference_each_image_weighing_the_same(levels):
    batches = [draw(6, (5, 6), 0, levels), draw(3, (40, 30), 1, levels), draw(1, (3, 3), 2, levels)]
    metric = PixelAveragePrecision()
    for batch in batches:
        metric.update(*batch)
    assert metric.compute().item() == pytest.approx(reference(*batches), abs=1e-6)
    rounded = PixelAveragePrecision(levels=levels or 2**16)
    for batch in batches:
        rounded.update(*batch)
    tolerance = 1e-6 if levels else 1e-3
    assert rounded.compute().item() == pytest.approx(reference(*batches), abs=tolerance)


def test_raw_maps_of_any_range_and_precision_are_taken():
    map, *rest = draw(4, (6, 6), levels=5)
    for scaled in (10 * map - 3, map.double(), map.bfloat16()):
        metric = PixelAveragePrecision()
        metric.update(scaled, *rest)
        assert metric.compute().item() == pytest.approx(reference((map, *rest)), abs=1e-6)


def test_large_maps_of_8_bits_are_kept_compactly_and_exactly():
    batch = draw(3, (300, 200), levels=256)
    metric = PixelAveragePrecision()
    metric.update(*batch)
    assert len(metric.column("score")) <= 2 * 256
    assert metric.compute().item() == pytest.approx(reference(batch), abs=1e-6)


@pytest.mark.parametrize("metric_class", [HitRate, PixelAveragePrecision])
def test_repeated_images_count_once(metric_class):
    map, mask, index, has_lesion = draw(6, (5, 6))
    once, repeated = metric_class(), metric_class()
    once.update(map, mask, index, has_lesion)
    for rows in ([2, 0, 1], [2, 3], [5, 4, 0, 0]):
        repeated.update(map[rows], mask[rows], index[rows], has_lesion[rows])
    torch.testing.assert_close(repeated.compute(), once.compute())


@pytest.mark.parametrize("metric_class", [HitRate, PixelAveragePrecision])
def test_without_any_mask_the_figure_is_nan_without_warning(metric_class):
    metric = metric_class()
    assert math.isnan(metric.compute().item())
    map, mask, index, _ = draw(2, (4, 4))
    metric.update(map, mask, index, torch.zeros(2, dtype=torch.bool))
    metric.update(map[:0], mask[:0], index[:0], torch.zeros(0, dtype=torch.bool))
    assert math.isnan(metric.compute().item())


@pytest.mark.parametrize("metric_class", [HitRate, PixelAveragePrecision])
def test_wrong_input_is_refused(metric_class):
    map, mask, index, has_lesion = draw(3, (4, 4))
    with pytest.raises(ValueError, match=r"map of shape \(3, 1, 4, 2\).*one size"):
        metric_class().update(map[..., :2], mask, index, has_lesion)
    with pytest.raises(ValueError, match=r"must be \(B,\)"):
        metric_class().update(map, mask, index, has_lesion[:2])
    map[0, 0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="model has diverged"):
        metric_class().update(map, mask, index, has_lesion)


def test_rounding_needs_maps_between_0_and_1():
    map, *rest = draw(3, (4, 4))
    with pytest.raises(ValueError, match=r"reaches from .* with levels=16 it must lie in \[0, 1\]"):
        PixelAveragePrecision(levels=16).update(map * 3, *rest)
    with pytest.raises(ValueError, match="levels is 1: it must be at least 2"):
        PixelAveragePrecision(levels=1)


def run_rank(rank, folder, shares):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(shares[0])
    )
    batch = draw(9, (5, 6))
    results = []
    for share in shares:
        for metric in (HitRate(), PixelAveragePrecision()):
            for rows in share[rank]:
                metric.update(*(values[rows] for values in batch))
            results.append(metric.compute().item())
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_equal_one_on_all_images(tmp_path):
    batch = draw(9, (5, 6))
    expected = []
    for metric in (HitRate(), PixelAveragePrecision()):
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
