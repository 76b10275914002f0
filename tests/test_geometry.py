"""Masks go in and maps come back to the pixel, and augmentation is a pure function."""

import albumentations as A
import cv2
import numpy as np
import pytest

from datamodules.augmentation import Augmenter
from datamodules.geometry import content_box, from_square, letterbox, to_square
from datamodules.options import Augmentation

NOISE = np.random.default_rng(0).integers(0, 255, (200, 300)).astype(np.uint8)
IMAGE, ALL = NOISE[:64, :64], Augmentation(noise=0.05)


def disc(shape, centre, radius):
    return cv2.circle(np.zeros(shape, np.uint8), centre, radius, 255, -1)


def centre_of(image):
    """Centre of mass (x, y) in pixel centres."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((x * (image / image.sum())).sum()), float((y * (image / image.sum())).sum())


@pytest.mark.parametrize("shape", [(454, 373), (373, 454), (512, 512), (89, 512), (31, 20)])
@pytest.mark.parametrize("crop", [False, True])
def test_a_disc_comes_back_where_it_was_as_the_affine_states(shape, crop):
    """A mask through the square and back keeps its centre to half a pixel of the coarser grid."""
    height, width = shape
    box = (width // 8, height // 6, width * 3 // 4, height * 3 // 4) if crop else None
    g = letterbox(height, width, 320, box)
    centre = (width // 8 + width * 3 // 8 + 1, height // 6 + height * 3 // 8 - 1)
    mask = disc(shape, centre, max(3, min(shape) // 12))
    square, (x, y) = to_square(mask, g, 320), centre_of(mask)
    # Pixel centres lie at +0.5: resizing moves x + 0.5 to (x + 0.5) * scale.
    expected = (
        (x + 0.5 - g.crop_left) * g.inner_width / g.crop_width - 0.5 + g.left,
        (y + 0.5 - g.crop_top) * g.inner_height / g.crop_height - 0.5 + g.top,
    )
    assert centre_of(square) == pytest.approx(expected, abs=0.1)
    back = from_square(square, g)
    assert back.shape == shape
    assert centre_of(back) == pytest.approx((x, y), abs=0.25)
    both, either = (back > 127) & (mask > 127), (back > 127) | (mask > 127)
    assert both.sum() / either.sum() > 0.85


def test_letterbox_bars_are_black_and_centred():
    square = to_square(np.full((100, 200), 9, np.uint8), letterbox(100, 200, 160), 160)
    assert [set(np.unique(part)) for part in np.split(square, (40, 120))] == [{0}, {9}, {0}]


def test_content_box_finds_the_limb_on_grey_film():
    """A bright limb on film of grey 35 with a bar below; the marker is left out."""
    image = np.full((454, 373), 35, np.uint8)
    image[100:300, 150:250], image[440:] = 120, 255
    cv2.putText(image, "L", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 2)
    left, top, width, height = content_box(image)
    assert (left, top) == pytest.approx((135, 85), abs=15)
    assert (left + width, top + height) == pytest.approx((265, 315), abs=15)


BODY = cv2.GaussianBlur(np.arange(300, dtype=np.uint8)[None] // 2 + NOISE // 4, (9, 9), 0)


@pytest.mark.parametrize("image", [BODY, *(np.full((60, 80), v, np.uint8) for v in (0, 128, 255))])
def test_content_box_keeps_an_image_without_film_or_content(image):
    assert content_box(image) == (0, 0, *image.shape[::-1])


def test_augmentation_is_a_pure_function_of_seed_epoch_and_image():
    """Other calls before do not matter; each argument does."""
    first = Augmenter(ALL, 3)(IMAGE, None, 5, 7)[0]
    used = Augmenter(ALL, 3)
    for row in range(4):
        used(IMAGE, None, 0, row)
    assert (used(IMAGE, None, 5, 7)[0] == first).all()
    for seed, epoch, row in [(4, 5, 7), (3, 6, 7), (3, 5, 8)]:
        assert (Augmenter(ALL, seed)(IMAGE, None, epoch, row)[0] != first).any()
    still = Augmentation(True, 0, 0, 0, 0, 0, 0, 0)
    assert (Augmenter(still, 0)(IMAGE, None, 0, 0)[0] == IMAGE).all()


def test_the_mask_moves_with_the_image():
    """A bright square is its own mask: they still agree afterwards, whatever the draw."""
    square = np.zeros((64, 64), np.uint8)
    square[20:36, 28:50] = 255
    augment = Augmenter(Augmentation(brightness=0, contrast=0), 0)
    for row in range(20):
        image, mask = augment(square, square.copy(), 0, row)
        assert np.abs(image.astype(int) - mask.astype(int)).max() <= 1
        assert 0.5 * 16 * 22 < (mask > 127).sum() < 1.6 * 16 * 22


@pytest.mark.parametrize(
    "strength",
    [
        ALL,
        Augmentation(rotate=180, scale=0.5, shift=0.5, flip=1.0, contrast=1.0),
        Augmentation(flip=0.0, rotate=0.0, scale=0.0),
    ],
)
def test_the_steps_are_what_compose_makes_of_them(strength):
    """To the bit."""
    augment = Augmenter(strength, 3)
    compose = A.Compose(augment.steps)
    for row in range(25):
        mask = IMAGE.copy() if row % 2 else None
        image, moved = augment(IMAGE[:, :48], mask if mask is None else mask[:, :48], 1, row)
        compose.set_random_seed(int(np.random.SeedSequence((3, 1, row)).generate_state(1)[0]))
        targets = {} if mask is None else {"mask": mask[:, :48]}
        wanted = compose(image=IMAGE[:, :48, None], **targets)
        assert (image == wanted["image"][..., 0]).all()
        assert mask is None or (moved == wanted["mask"]).all()
