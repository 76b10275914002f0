"""Localisation figures on drawn masks with known answers, and against scikit-learn and OpenCV."""

import math

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import distributed, multiprocessing

from lightning_modules.metrics.localisation import (
    Localisation,
    average_precision,
    hit,
    peak_distance,
)

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
    maps = (torch.rand(images, 1, *size, generator=generator) + 0.3 * mask) / 1.3
    if levels:
        maps = (maps * (levels - 1)).round() / (levels - 1)
    has_lesion = torch.arange(images) % 3 != 1
    return maps, mask * has_lesion.view(-1, 1, 1, 1), torch.arange(images) + 100 * seed, has_lesion


@pytest.mark.parametrize(
    ("picture", "expected", "pixels"),
    [
        (". . . . . .\n. # . . . .\n. . . . . .\n. . . . . .\n. . . . . .", True, 0),
        # beside the lesion, and inside its bounding box only
        (". . . . . .\n. . . # . .\n. . . . . .\n. . . . . .\n. . . . . .", False, 1),
        (". . . . . .\n. . . . # .\n. . . . . .\n. . . . . .\n. . . . . .", False, math.sqrt(2)),
        (". . . . . .\n. . . . . .\n. . . . . .\n. . . . . .\n# . . . . .", False, math.sqrt(5)),
        # the middle of a plateau counts, not its first pixel
        ("# # # # # .\n# # # # # .\n# # # # # .\n# # # # # .\n# # # # # .", True, 0),
        # nor the middle between two plateaus
        ("# . . . . .\n. . . . . .\n. . . . . .\n. . . . . .\n. . . # . .", False, math.sqrt(2)),
        # a constant map, also of a lesion in its middle
        (". . . . . .\n. . . . . .\n. . . . . .\n. . . . . .\n. . . . . .", False, math.inf),
    ],
)
def test_peaks_of_drawn_maps(picture, expected, pixels):
    maps = drawn(picture, {".": 0.1, "#": 0.6})
    for shown in (maps, maps - 1):
        assert hit(shown, MASK).tolist() == [expected]
        assert peak_distance(shown, MASK).tolist() == [pytest.approx(pixels / math.hypot(5, 6))]


def test_distance_equals_opencvs_distance_transform():
    maps, mask, *_ = draw(12, (20, 31), seed=3)
    thin = torch.rand(12, 1, 20, 31, generator=torch.Generator().manual_seed(4)) > 0.9
    mask = mask * thin
    mask[:, 0, 4, 5] = 1
    expected = []
    for one, lesion in zip(maps[:, 0].numpy(), mask[:, 0].numpy(), strict=True):
        outside = (lesion < 0.5).astype(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        expected.append(distance.ravel()[one.argmax()] / math.hypot(20, 31))
    assert peak_distance(maps, mask).tolist() == pytest.approx(expected, abs=1e-5)
    assert peak_distance(maps, 0 * mask).tolist() == [math.inf] * 12


@pytest.mark.parametrize(("edge", "expected"), [(0.5, True), (0.49, False)])
def test_lesion_is_a_mask_of_at_least_one_half(edge, expected):
    maps = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert hit(maps, torch.tensor([1.0, edge]).view(1, 1, 1, 2)).tolist() == [expected]


@pytest.mark.parametrize(
    ("score", "lesion", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], (1 + 2 / 3) / 2),  # ranks of the lesion: 1, 3
        ([1.0, 1.0, 1.0, 1.0], [1, 0, 1, 0], 1 / 2),  # one threshold: the share of lesion
        ([0.9, 0.8], [0, 0], math.nan),
        ([], [], math.nan),
    ],
)
def test_average_precision_known_answers(score, lesion, expected):
    found = average_precision(torch.tensor(score), torch.tensor(lesion)).item()
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("levels", [None, 2, 7])
def test_figures_of_an_epoch_equal_the_reference(levels):
    metric, score, target, hits = Localisation(), [], [], []
    for seed, images in enumerate((6, 0, 3)):
        maps, mask, *_ = draw(images, (15, 12), seed, levels)
        maps = (10 * maps - 3).double()  # raw maps of any range and precision are taken
        metric.update(maps, mask >= 0.5)
        score += maps.flatten().tolist()
        target += mask.flatten().tolist()
        hits += hit(maps, mask).tolist()
    found = {name: value.item() for name, value in metric.compute().items()}
    expected = {"hit": np.mean(hits), "pixel_ap": average_precision_score(target, score)}
    assert found == pytest.approx(expected, abs=1e-6)


def test_without_any_mask_the_figures_are_nan_without_warning():
    metric = Localisation()
    metric.update(torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4, dtype=torch.bool))
    assert all(value.isnan() for value in metric.compute().values())


def run_rank(rank, folder, shares):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    maps, mask, *_ = draw(9, (5, 6))
    results = []
    for share in shares:
        metric = Localisation()
        metric.update(maps[:0], mask[:0] >= 0.5)  # of a batch without lesions
        for rows in share[rank]:
            metric.update(maps[rows], mask[rows] >= 0.5)
        results.append({name: value.item() for name, value in metric.compute().items()})
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_equal_one_on_all_images(tmp_path):
    maps, mask, *_ = draw(9, (5, 6))
    metric = Localisation()
    metric.update(maps, mask >= 0.5)
    expected = {name: value.item() for name, value in metric.compute().items()}
    # uneven shares; one rank without a lesion
    shares = [[[[0, 2, 4], [6, 8]], [[1, 3, 5, 7]]], [[list(range(9))], []]]
    multiprocessing.spawn(run_rank, args=(str(tmp_path), shares), nprocs=2)
    for rank in range(2):
        for result in torch.load(tmp_path / f"{rank}.pt"):
            assert result == pytest.approx(expected, abs=1e-6)
