"""The window of 16-bit images: quantiles, and markers that stand alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from datamodules.pixels import window_16bit

RANDOM = np.random.default_rng(0)
# A limb of 12 bits, dark soft tissue and bright bone, and where on its film things may lie.
LIMB = (200 + 3800 * np.linspace(0, 1, 120_000).reshape(300, 400) ** 2).astype(int)
CORNER, BONE = np.s_[:60, :80], np.s_[200:260, 200:280]  # 4 % of the film each


def test_window_ignores_a_few_outliers_and_agrees_with_quantiles():
    pixels = RANDOM.integers(1000, 3000, (100, 100)).astype(np.uint16)
    pixels[0, :5] = 65535
    low, high = np.quantile(pixels, [0.001, 0.999])
    reference = np.clip((pixels - low) / (high - low), 0, 1) * 255
    assert np.abs(window_16bit(pixels)[0] - reference).max() < 1.5


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_a_constant_image_is_black_but_for_a_tiny_mark(value):
    pixels = np.full((100, 100), value, np.uint16)
    assert not window_16bit(pixels)[0].any()
    pixels[3, 3] = 900
    assert window_16bit(pixels)[0][3, 3] == (255 if value < 900 else 0)


def film(place=CORNER, values=0, limb=LIMB, smooth=0.0):
    """``limb`` with ``values`` at a place, with smooth edges where a width of them is given."""
    layer, there = np.zeros((2, *limb.shape))
    layer[place], there[place] = values, 1
    if smooth:
        there = cv2.GaussianBlur(there, (0, 0), smooth)
        layer[layer == 0] = np.max(values)
    return np.clip(limb * (1 - there) + layer * there, 0, 65535).astype(np.uint16), there == 0


def collimated(limb):
    """Six parts in ten of the film lie outside the beam."""
    return np.where(np.arange(400) < 240, 0, limb)


@pytest.mark.parametrize(
    ("image", "free"),
    [
        film(np.s_[:12, :20], 65535),  # 0.2 %
        film(np.s_[:75, :80], 65535),  # 5 %
        film(values=65535, smooth=1.5),
        film(values=np.repeat([30000, 45000, 65535, 50000], 20)),
        film(values=65535, limb=LIMB * 4),  # 14 bits
        film(np.s_[:60, 300:380], 65535, limb=collimated(LIMB)),
        film(np.s_[:120], 65535),  # a frame: 40 %
        film(np.s_[:120], 0, limb=61000 + LIMB),
        film(values=0, limb=61000 + LIMB),
        film(values=np.repeat([0, 65535], 40), limb=30000 + LIMB),  # a label: white on black
    ],
)
def test_a_marker_at_full_scale_does_not_darken_the_limb(image, free):
    pixels, note = window_16bit(image)
    alone, nothing = window_16bit(np.where(free, image, np.median(image)).astype(np.uint16))
    assert nothing == ""
    assert "stand far from all others, as a marker's do" in note
    off = np.abs(pixels[free].astype(int) - alone[free])
    assert off.max() <= 12  # 2.5 % of the range at its ends


@pytest.mark.parametrize(
    "image",
    [
        film(BONE, np.linspace(4000, 20000, 4800).reshape(60, 80))[0],  # values lead up to it
        film(BONE, RANDOM.uniform(15000, 30000, (60, 80)))[0],  # it has many itself
        film(BONE, RANDOM.normal(7000, 200, (60, 80)))[0],  # the gap is no larger than the rest
        film(np.s_[:60, :200], RANDOM.uniform(60000, 65000, (60, 200)))[0],  # 10 %, no one value
        collimated(LIMB),
        LIMB // 512 * 8192,  # eight levels
        film(values=65535, limb=LIMB * 0)[0],  # masks
        film(values=np.repeat([1000, 65535], 40), limb=LIMB * 0)[0],
    ],
)
def test_what_is_no_marker_keeps_the_plain_window(image):
    pixels, note = window_16bit(image.astype(np.uint16))
    low, high = np.quantile(image, [0.001, 0.999], method="inverted_cdf")
    assert note == ""
    assert np.abs(pixels - np.clip((image - low) / (high - low), 0, 1) * 255).max() < 1.5
