"""How alike maps are, against SciPy, the formula by hand, and maps that are known."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from experiments.audit.similarity import rank_correlation, similarity, ssim, top_region

SIDE = 24


def maps(seed, images=3):
    return torch.rand(images, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def slow_ssim(one, other):
    """Wang et al. 2004, equation (13), a window at each pixel, edges reflected."""
    one, other = (np.pad(map, 5, mode="reflect") for map in (one, other))
    offset = np.arange(-5, 6)
    kernel = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    found = []
    for y in range(5, SIDE + 5):
        for x in range(5, SIDE + 5):
            a, b = (map[y - 5 : y + 6, x - 5 : x + 6] for map in (one, other))
            mean_a, mean_b = (kernel * a).sum(), (kernel * b).sum()
            var_a = (kernel * a * a).sum() - mean_a**2
            var_b = (kernel * b * b).sum() - mean_b**2
            both = (kernel * a * b).sum() - mean_a * mean_b
            found.append(
                (2 * mean_a * mean_b + 0.01**2)
                * (2 * both + 0.03**2)
                / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))
            )
    return np.mean(found)


def stretched(map):
    return (map - map.min()) / (map.max() - map.min())


def test_a_map_is_like_itself():
    one = maps(0)
    for name, value in similarity(one, one.clone()).items():
        torch.testing.assert_close(value, torch.ones(3), msg=name)


def test_ssim_equals_the_formula():
    one, other = maps(0), maps(1)
    expected = [
        slow_ssim(stretched(a.double().numpy()[0]), stretched(b.double().numpy()[0]))
        for a, b in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(ssim(one, other), expected, atol=1e-4)


def test_only_the_shape_counts():
    one, other = maps(0), maps(1)
    for name, value in similarity(one, other).items():
        torch.testing.assert_close(similarity(7 * one, other / 9)[name], value, msg=name)


@pytest.mark.parametrize("cut", [0.0, 0.6, 0.95])
def test_rank_correlation_equals_scipy_with_ties(cut):
    one, other = (maps(0) - cut).relu(), (maps(0) + 0.5 * maps(1) - cut).relu()
    expected = [
        spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(rank_correlation(one, other), expected, atol=1e-5)


def test_a_dark_map_has_no_shape():
    one, other = maps(0), maps(1)
    other[1] = 0.0
    found = similarity(one, other)
    for name in ("ssim", "rank"):
        assert found[name].isnan().tolist() == [False, True, False]
    # A region and none: nothing in common.
    assert found["iou"][1] == 0
    assert similarity(other[1:2], other[1:2])["iou"].isnan().all()


def test_the_top_region_is_of_the_size_asked_for():
    assert top_region(maps(0), 0.25).flatten(1).sum(1).tolist() == [SIDE * SIDE / 4] * 3


def test_the_top_region_leaves_out_the_dark_rest():
    map = torch.zeros(1, 1, SIDE, SIDE)
    map[..., 3, 4] = 1.0
    assert top_region(map).nonzero().tolist() == [[0, 0, 3, 4]]


def test_overlap_of_top_regions_that_share_a_half():
    one, other = torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20)
    one[..., 0, :], other[..., 0, 10:], other[..., 1, :10] = 1.0, 1.0, 1.0  # 20 of 400 pixels each
    assert similarity(one, other)["iou"].item() == pytest.approx(10 / 30)


def test_maps_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="expected two of shape"):
        similarity(maps(0), maps(0)[..., 1:])
