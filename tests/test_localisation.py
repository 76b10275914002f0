"""Localisation figures on drawn masks with known answers, and against scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score

from lightning_modules.metrics.localisation import (
    Localisation,
    average_precision,
    hit,
    peak_distance,
)


def drawn(picture, marks):
    rows = [line.split() for line in picture.strip().splitlines()]
    return torch.tensor([[marks[cell] for cell in row] for row in rows])[None, None]


MASK = drawn(
    """
    . . . . . .
    . # # . . .
    . # # # . .
    . . # # . .
    . . . . . .
    """,
    {".": 0.0, "#": 1.0},
)


def draw(images, size, seed=0, levels=None):
    """Maps and masks, every third empty; the maps know something of the masks."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(images, 1, *size, generator=generator) > 0.8).float()
    mask[..., 1, 1] = 1  # no mask is empty
    maps = (torch.rand(images, 1, *size, generator=generator) + 0.3 * mask) / 1.3
    if levels:
        maps = (maps * (levels - 1)).round() / (levels - 1)
    return maps, mask * (torch.arange(images) % 3 != 1).view(-1, 1, 1, 1)


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
        assert peak_distance(shown, 0 * MASK).tolist() == [math.inf]


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
    value = average_precision(torch.tensor(score), torch.tensor(lesion)).item()
    assert value == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("levels", [None, 2, 7])
def test_figures_of_an_epoch_equal_the_reference_also_from_two_ranks(levels):
    maps, mask = draw(9, (15, 12), levels=levels)
    maps = (10 * maps - 3).double()  # raw maps of any range and precision are taken
    pixel_ap = average_precision_score(mask.flatten(), maps.flatten())
    expected = {"hit": hit(maps, mask).double().mean().item(), "pixel_ap": pixel_ap}
    for ranks in (
        [[range(6), range(6, 9)]],
        [[[0, 2, 4], [6, 8]], [[1, 3, 5, 7]]],
        [[range(9)], []],
    ):
        first, *others = (metric_of(maps, mask, batches) for batches in ranks)
        for other in others:
            first.merge_state(other)
        assert {name: value.item() for name, value in first.compute().items()} == pytest.approx(
            expected, abs=1e-6
        )
    nothing = metric_of(maps, mask, []).compute()  # without any mask, and no warning
    assert all(value.isnan() for value in nothing.values())


def metric_of(maps, mask, batches):
    """The metric after batches, which are rows of the images."""
    metric = Localisation()
    metric.update(maps[:0], mask[:0] >= 0.5)  # of a batch without lesions
    for rows in batches:
        metric.update(maps[rows], mask[rows] >= 0.5)
    return metric
