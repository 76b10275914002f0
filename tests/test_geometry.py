"""Masks go in and maps come back through one affine, to the pixel."""

import cv2
import numpy as np
import pytest

from datamodules.geometry import content_box, from_square, letterbox, to_square


@pytest.mark.parametrize(
    ("height", "width"), [(454, 373), (373, 454), (512, 512), (89, 512), (31, 20)]
)
@pytest.mark.parametrize("crop", [False, True])
def test_a_disc_comes_back_where_it_was(height: int, width: int, crop: bool) -> None:
    """A mask through the square and back keeps its centre to half a pixel of the coarser grid."""
    box = (width // 8, height // 6, width * 3 // 4, height * 3 // 4) if crop else None
    geometry = letterbox(height, width, 320, box)
    centre = (width // 8 + width * 3 // 8 + 1, height // 6 + height * 3 // 8 - 1)
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, centre, max(3, min(height, width) // 12), 255, -1)
    square = to_square(mask, geometry, 320)
    back = from_square(square, geometry)
    assert back.shape == mask.shape
    assert centre_of(back) == pytest.approx(centre_of(mask), abs=0.25)
    inter = np.logical_and(back > 127, mask > 127).sum()
    union = np.logical_or(back > 127, mask > 127).sum()
    assert inter / union > 0.85


@pytest.mark.parametrize(("height", "width"), [(454, 373), (300, 512), (2304, 2880)])
def test_affine_names_the_pixel_that_the_resize_moved(height: int, width: int) -> None:
    """The stated affine and the pixels agree."""
    geometry = letterbox(height, width, 320, (10, 20, width - 40, height - 50))
    spot = (width // 2 + 7, height // 2 - 11)
    image = np.zeros((height, width), np.uint8)
    cv2.circle(image, spot, max(4, width // 60), 255, -1)
    g, (x, y) = geometry, centre_of(image)
    # Pixel centres lie at +0.5: resizing moves x + 0.5 to (x + 0.5) * scale.
    expected = (
        (x + 0.5 - g.crop_left) * g.inner_width / g.crop_width - 0.5 + g.left,
        (y + 0.5 - g.crop_top) * g.inner_height / g.crop_height - 0.5 + g.top,
    )
    assert centre_of(to_square(image, geometry, 320)) == pytest.approx(expected, abs=0.1)


def test_letterbox_bars_are_black_and_centred() -> None:
    """Nothing is stretched: the bars take what the shorter side lacks."""
    square = to_square(np.full((100, 200), 9, np.uint8), letterbox(100, 200, 160), 160)
    assert (square[:40] == 0).all()
    assert (square[40:120] == 9).all()
    assert (square[120:] == 0).all()


def test_content_box_finds_the_limb_on_grey_film() -> None:
    """A bright limb on film of grey 35 with a bar below; the marker is left out."""
    image = np.full((454, 373), 35, np.uint8)
    image[100:300, 150:250] = 120
    image[440:] = 255
    cv2.putText(image, "L", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 2)
    left, top, width, height = content_box(image)
    assert 120 <= left <= 150
    assert 70 <= top <= 100
    assert 250 <= left + width <= 280
    assert 300 <= top + height <= 330


@pytest.mark.parametrize("value", [0, 128, 255])
def test_content_box_keeps_an_image_without_content(value: int) -> None:
    """A constant image keeps all of itself."""
    assert content_box(np.full((60, 80), value, np.uint8)) == (0, 0, 80, 60)


def test_content_box_keeps_an_image_that_the_body_fills() -> None:
    """Without film there is nothing to cut away."""
    image = np.random.default_rng(0).integers(0, 255, (200, 300)).astype(np.uint8)
    image = cv2.GaussianBlur(
        np.tile(np.arange(300, dtype=np.uint8), (200, 1)) // 2 + image // 4, (9, 9), 0
    )
    assert content_box(image) == (0, 0, 300, 200)


def centre_of(image: np.ndarray) -> tuple[float, float]:
    """Centre of mass (x, y) in pixel centres."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    weight = image.astype(float) / image.sum()
    return float((x * weight).sum()), float((y * weight).sum())
