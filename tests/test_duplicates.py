"""Near-duplicates: what counts as the same picture and what does not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.duplicates import components, near_duplicates
from tests.real import real_data

HEIGHT, WIDTH = 96, 80


def picture(number, height=HEIGHT, width=WIDTH):
    """Smooth structure that only ``number`` decides: unlike any other number's."""
    noise = np.random.default_rng(number).normal(size=(12, 10)).astype(np.float32)
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(120 + 60 * smooth, 0, 255).astype(np.uint8)


def save(folder, images):
    paths = [folder / f"{place}.jpg" for place in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path, quality=95)
    return paths


def with_marker(pixels):
    pixels = pixels.copy()
    pixels[:15, :20] = 255
    return pixels


ALTERED = {
    "identical": lambda pixels: pixels,
    "re-encoded": lambda pixels: cv2.imdecode(
        cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0
    ),
    "resized": lambda pixels: cv2.resize(pixels, None, fx=2.0, fy=2.0),
    "brighter": lambda pixels: np.clip(pixels * 0.8 + 40, 0, 255).astype(np.uint8),
    "bottom lost": lambda pixels: np.where(np.arange(HEIGHT)[:, None] < 72, pixels, np.uint8(9)),
    "marker": with_marker,
}


@pytest.mark.parametrize("kind", ALTERED)
def test_near_duplicates_are_found_among_others(tmp_path, kind):
    pixels = [picture(number) for number in (1, 500, 2, 3, 4)]
    paths = save(tmp_path, [*pixels[:3], ALTERED[kind](picture(500)), *pixels[3:]])
    assert near_duplicates(paths) == [(1, 3)]


def test_different_empty_and_unreadable_images_are_no_duplicates(tmp_path):
    empty = np.zeros((HEIGHT, WIDTH), np.uint8)
    paths = save(tmp_path, [*(picture(number) for number in range(8)), empty, empty])
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:300])
    assert near_duplicates(paths) == near_duplicates([]) == []


def test_components_against_a_slow_reference():
    rng = np.random.default_rng(0)
    assert components(3, []).tolist() == [0, 1, 2]
    for _ in range(20):
        pairs = [(int(a), int(b)) for a, b in rng.integers(0, 30, (15, 2))]
        reach = np.eye(30, dtype=int)
        for a, b in pairs:
            reach[a, b] = reach[b, a] = 1
        for _ in range(5):
            reach = (reach @ reach).clip(0, 1)
        np.testing.assert_array_equal(components(30, pairs), reach.argmax(axis=1))


def test_real_near_duplicates_that_upstream_numbers_hide():
    paths = {path.stem: path for path in real_data("fracatlas_pool").glob("images/*/*.jpg")}
    numbers = [2646, 4072, 2647, 4071, 2652, 4067, 2735, 2737, 453, 455]  # the last two: alike only
    pairs = near_duplicates([paths[f"IMG{number:07d}"] for number in numbers])
    assert pairs == [(0, 1), (2, 3), (4, 5)]
