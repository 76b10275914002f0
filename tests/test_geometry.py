"""Masks go in and maps come back through one affine, to the pixel."""

import cv2
import numpy as np
import pytest

from datamodules.geometry import content_box, from_square, letterbox, to_square


def disc(shape, centre, radius):
    return cv2.circle(np.zeros(shape, np.uint8), centre, radius, 255, -1)


def centre_of(image):
    """Centre of mass (x, y) in pixel centres."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((x * (image / image.sum())).sum()), float((y * (image / image.sum())).sum())


@pytest.mark.parametrize("shape", [(454, 373), (373, 454), (512, 512), (89, 512), (31, 20)])
@pytest.mark.parametrize("crop", [False, True])
def test_a_disc_comes_back_where_it_was(shape, crop):
    """A mask through the square and back keeps its centre to half a pixel of the coarser grid."""
    height, width = shape
    box = (width // 8, height // 6, width * 3 // 4, height * 3 // 4) if crop else None
    geometry = letterbox(height, width, 320, box)
    centre = (width // 8 + width * 3 // 8 + 1, height // 6 + height * 3 // 8 - 1)
    mask = disc(shape, centre, max(3, min(shape) // 12))
    back = from_square(to_square(mask, geometry, 320), geometry)
    assert back.shape == shape
    assert centre_of(back) == pytest.approx(centre_of(mask), abs=0.25)
    both, either = (back > 127) & (mask > 127), (back > 127) | (mask > 127)
    assert both.sum() / either.sum() > 0.85


@pytest.mark.parametrize(("height", "width"), [(454, 373), (300, 512), (2304, 2880)])
def test_the_stated_affine_and_the_pixels_agree(height, width):
    g = letterbox(height, width, 320, (10, 20, width - 40, height - 50))
    image = disc((height, width), (width // 2 + 7, height // 2 - 11), max(4, width // 60))
    x, y = centre_of(image)
    # Pixel centres lie at +0.5: resizing moves x + 0.5 to (x + 0.5) * scale.
    expected = (
        (x + 0.5 - g.crop_left) * g.inner_width / g.crop_width - 0.5 + g.left,
        (y + 0.5 - g.crop_top) * g.inner_height / g.crop_height - 0.5 + g.top,
    )
    assert centre_of(to_square(image, g, 320)) == pytest.approx(expected, abs=0.1)


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


NOISE = np.random.default_rng(0).integers(0, 255, (200, 300)).astype(np.uint8)
BODY = cv2.GaussianBlur(np.arange(300, dtype=np.uint8)[None] // 2 + NOISE // 4, (9, 9), 0)


@pytest.mark.parametrize("image", [BODY, *(np.full((60, 80), v, np.uint8) for v in (0, 128, 255))])
def test_content_box_keeps_an_image_without_film_or_content(image):
    assert content_box(image) == (0, 0, *image.shape[::-1])
