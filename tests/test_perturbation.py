"""Deletion and insertion on a classifier made by hand, whose answers are known."""

import pytest
import torch

from experiments.audit.perturbation import (
    BLUR,
    SHARES,
    area_under,
    curve,
    perturbed,
    pixel_order,
    random_map,
)
from experiments.evaluation.methods import smooth

SIDE = 40
LESION = (slice(None), slice(None), slice(10, 14), slice(20, 24))  # 16 of 1600 pixels: 1 %


def brightness(image):
    """The class score: how bright the lesion's place is; 1 on the whole image."""
    return image[LESION].mean((1, 2, 3))


@pytest.fixture
def image():
    image = torch.zeros(1, 1, SIDE, SIDE)
    image[LESION] = 1.0
    return image


@pytest.fixture
def perfect(image):
    return image.clone()


def test_a_perfect_map_deletes_the_score_at_once(image, perfect):
    scores = perturbed(brightness, image, perfect)["deletion"]
    gone = brightness(smooth(image, BLUR)).item()
    assert gone < 0.5
    assert scores[0].tolist() == pytest.approx([1.0] + [gone] * (len(SHARES) - 1))
    assert area_under(scores).item() == pytest.approx(gone + 0.01 * (1 - gone) / 2)
    assert area_under(scores, until=0.1).item() == pytest.approx(gone + 0.1 * (1 - gone) / 2)


def test_a_perfect_map_inserts_the_score_at_once(image, perfect):
    scores = perturbed(brightness, image, perfect)["insertion"]
    before = brightness(smooth(image, BLUR)).item()
    assert scores[0].tolist() == pytest.approx([before] + [1.0] * (len(SHARES) - 1))
    assert area_under(scores).item() == pytest.approx(1 - 0.01 * (1 - before) / 2)


def test_a_map_of_all_but_the_lesion_does_the_reverse(image, perfect):
    scores = perturbed(brightness, image, 1 - perfect)["deletion"]
    gone = brightness(smooth(image, BLUR)).item()
    assert scores[0].tolist() == pytest.approx([1.0] * (len(SHARES) - 1) + [gone])
    assert area_under(scores).item() == pytest.approx(1 - 0.2 * (1 - gone) / 2)
    assert area_under(scores, until=0.1).item() == pytest.approx(1)


def test_random_orders_lie_between(image, perfect):
    areas = [
        area_under(perturbed(brightness, image, random_map(image, number, 16))["deletion"]).item()
        for number in range(20)
    ]
    gone = brightness(smooth(image, BLUR)).item()
    assert sum(areas) / len(areas) == pytest.approx((1 + gone) / 2, abs=0.15)


def test_images_of_a_batch_do_not_mix(image, perfect):
    both = torch.cat([image, image])
    scores = perturbed(brightness, both, torch.cat([perfect, 1 - perfect]))["deletion"]
    torch.testing.assert_close(scores[:1], perturbed(brightness, image, perfect)["deletion"])
    torch.testing.assert_close(scores[1:], perturbed(brightness, image, 1 - perfect)["deletion"])


def test_the_curve_begins_and_ends_with_the_two_images():
    start, end = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    seen = []

    def keep(image):
        seen.append(image)
        return image.mean((1, 2, 3))

    curve(keep, start, end, pixel_order(torch.rand(2, 1, 8, 8)), (0.0, 0.25, 1.0))
    assert torch.equal(seen[0], start)
    assert torch.equal(seen[2], end)
    assert (seen[1] == end).flatten(1).sum(1).tolist() == [16, 16]


def test_pixels_are_ordered_by_value_and_ties_by_chance():
    map = torch.zeros(1, 1, 4, 5)
    map[0, 0, 2, 3], map[0, 0, 1, 1] = 5.0, 2.0
    order = pixel_order(map)[0].tolist()
    assert order[:2] == [13, 6]
    assert sorted(order) == list(range(20))
    assert order[2:] != sorted(order[2:])
    assert order == pixel_order(map)[0].tolist()
    assert order != pixel_order(map, seed=1)[0].tolist()


def test_a_random_map_is_of_its_number(image):
    assert torch.equal(
        random_map(image[..., :32, :32], 3, 16), random_map(image[..., :32, :32], 3, 16)
    )
    assert not torch.equal(random_map(image, 3, 16), random_map(image, 4, 16))
    assert random_map(image, 3, 16).shape == image.shape


def test_blurring_keeps_the_mean_grey():
    image = torch.full((1, 1, 32, 32), 0.7)
    torch.testing.assert_close(smooth(image, BLUR), image)
