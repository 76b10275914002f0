"""How alike maps are, and deletion and insertion: against SciPy and known answers."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from experiments.audit import perturbation
from experiments.audit.maps import MEASURES, Sample, alike, rank_correlation, top_region
from experiments.audit.perturbation import BLUR, SHARES, area_under, perturbed, pixel_order
from experiments.evaluation.methods import smooth
from tests.test_audit import against

SIDE = 24


def maps(seed, images=3, side=SIDE):
    return torch.rand(images, 1, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cut", [0.0, 0.6, 0.95])
def test_rank_correlation_equals_scipy_with_ties(cut):
    one, other = (maps(0) - cut).relu(), (maps(0) + 0.5 * maps(1) - cut).relu()
    pairs = zip(one.flatten(1), other.flatten(1), strict=True)
    expected = [spearmanr(a, b).statistic for a, b in pairs]
    np.testing.assert_allclose(rank_correlation(one, other), expected, atol=1e-5)


def test_only_the_shape_counts_and_a_constant_map_has_none():
    one, other = maps(0, side=80), maps(1, side=80)
    np.testing.assert_allclose(alike(one, one.clone()), np.ones((3, 3)), atol=1e-6)
    np.testing.assert_allclose(alike(7 * one, other / 9), alike(one, other), atol=1e-5)
    other[1] = 0.0
    values = dict(zip(MEASURES, alike(one, other), strict=True))
    assert np.isnan(values["ssim"]).tolist() == [False, True, False]
    assert np.isnan(values["rank"]).tolist() == [False, True, False]
    assert values["iou"][1] == 0  # a region and none: nothing in common
    moved = alike(one, one, np.array([1, 0, -1]))
    assert np.isnan(moved[:, 2]).all()
    assert moved[1, 0] == pytest.approx(moved[1, 1])
    assert abs(moved[1, 0]) < 0.2


def test_the_top_region_is_of_its_size_and_leaves_out_the_dark_rest():
    assert top_region(maps(0), 0.25).flatten(1).sum(1).tolist() == [SIDE * SIDE / 4] * 3
    map = torch.zeros(1, 1, SIDE, SIDE)
    assert not top_region(map).any()
    map[..., 3, 4] = 1.0
    assert top_region(map).nonzero().tolist() == [[0, 0, 3, 4]]


# Deletion and insertion ---------------------------------------------------------------------------

LESION = (slice(None), slice(None), slice(10, 14), slice(20, 24))  # 16 of 1600 pixels: 1 %
IMAGE = torch.zeros(1, 1, 40, 40)
IMAGE[LESION] = 1.0


def brightness(image):
    """The class score: how bright the lesion's place is; 1 on the whole image."""
    return image[LESION].mean((1, 2, 3))


def test_a_perfect_map_changes_the_score_at_once_and_its_reverse_last():
    scores = perturbed(brightness, IMAGE.repeat(2, 1, 1, 1), torch.cat([IMAGE, 1 - IMAGE]))
    gone, late = brightness(smooth(IMAGE, BLUR)).item(), len(SHARES) - 1
    assert gone < 0.5
    perfect, reverse = scores["deletion"]
    assert perfect.tolist() == pytest.approx([1.0] + [gone] * late)
    assert reverse.tolist() == pytest.approx([1.0] * late + [gone])
    assert scores["insertion"][0].tolist() == pytest.approx([gone] + [1.0] * late)
    whole = [1 - 0.995 * (1 - gone), 1 - 0.1 * (1 - gone)]  # trapezoids, 1 % and 20 % wide
    early = [1 - 0.95 * (1 - gone), 1]
    assert area_under(scores["deletion"]).tolist() == pytest.approx(whole)
    assert area_under(scores["deletion"], until=0.1).tolist() == pytest.approx(early)


def test_pixels_are_ordered_by_value_and_ties_by_chance():
    map = torch.zeros(1, 1, 4, 5)
    map[0, 0, 2, 3], map[0, 0, 1, 1] = 5.0, 2.0
    order = pixel_order(map)[0].tolist()
    assert order[:2] == [13, 6]
    assert sorted(order) == list(range(20))
    assert order[2:] != sorted(order[2:])


def test_a_random_map_is_of_its_number():
    one, again, other = (perturbation.random_map(IMAGE, number, 16) for number in (3, 3, 4))
    assert one.shape == IMAGE.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


class Spot(torch.nn.Module):
    """Abnormal by how bright the spot is that each image has in the middle."""

    place = (slice(None), slice(None), slice(28, 36), slice(28, 36))  # 1.6 % of 64 x 64 pixels

    def forward(self, image):
        level = 10 * (image[self.place].mean((1, 2, 3)) - 1)
        return torch.stack([torch.zeros_like(level), level], dim=1)


def test_a_perfect_map_beats_random_order_and_edges_and_its_reverse_loses():
    number, image = torch.arange(100), torch.zeros(100, 1, 64, 64)
    image[Spot.place] = 2.0
    batch = {"image": image, "index": number, "lesion_mask": image / 2, "has_lesion": number > 0}
    sample = Sample(batch, number.numpy().astype(str), np.roll(number.numpy(), 1))
    noise = torch.cat([perturbation.random_map(image[:1], n, 16) for n in range(1000, 1100)])
    every = {"edges": noise, "spot": image, "rest": 2 - image}
    results = perturbation.audit_perturbation(Spot(), sample, every, 16)
    assert list(results) == [perturbation.RANDOM, *every, perturbation.LESION]
    assert results["spot"]["deletion_whole"].value < 0.15
    assert results["spot"]["insertion_whole"].value > 0.97
    # The first 2 % of the pixels are the spot: of 10 %, a tenth to a fifth is lost on the way.
    assert 0.1 < results["spot"]["deletion"].value < 0.3
    assert results["rest"]["deletion"].value > 0.9
    # The mask is the spot as well, smoothed; the image without one is left out.
    assert results[perturbation.LESION]["deletion"].value < 0.3
    assert results[perturbation.LESION]["deletion"].undefined == 0
    assert len(results["spot"]["curves"]["deletion"]) == len(SHARES)
    assert against(results["edges"]) == {"deletion": ["no"], "insertion": ["no"]}
    assert against(results["spot"]) == {"deletion": ["lower"] * 2, "insertion": ["higher"] * 2}
    assert against(results["rest"]) == {"deletion": ["higher"] * 2, "insertion": ["lower"] * 2}
    alone = sample._replace(patient=np.repeat("one", 100))  # one patient: no interval
    results = perturbation.audit_perturbation(Spot(), alone, {"rest": 2 - image}, 16)
    assert against(results["rest"]) == {"deletion": ["-"], "insertion": ["-"]}
