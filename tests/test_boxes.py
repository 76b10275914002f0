"""MaxBoxAccV2 on drawn maps with known answers, and against a plain reference."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_modules.metrics.boxes import areas, box_iou_curve
from tests.test_localisation import draw, drawn

MARKS = {".": 0.0, "-": 0.4, "#": 1.0}


def slow_areas(region):
    """Bounding boxes of 8-connected areas, by SciPy's labels."""
    labels, _ = ndimage.label(region, structure=np.ones((3, 3)))
    return sorted((x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels))


def slow_iou(one, other):
    """Overlap of two boxes, by counting pixels."""
    pixels = [
        {(x, y) for x in range(int(box[0]), int(box[2])) for y in range(int(box[1]), int(box[3]))}
        for box in (one, other)
    ]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def slow_curve(maps, mask):
    level = np.floor((maps - maps.min()) / (maps.max() - maps.min()) * 255)
    curve = []
    for cut in range(255):
        pairs = [(a, b) for a in slow_areas(level > cut) for b in slow_areas(mask >= 0.5)]
        curve.append(max((slow_iou(a, b) for a, b in pairs), default=0.0))
    return curve


def test_areas_touch_at_corners_and_lie_in_holes():
    region = drawn(
        """
        # # # # # . .
        # . . . # . #
        # . # . # . .
        # . . . # . .
        # # # # # . .
        . . . . . # .
        """,
        MARKS,
    )[0, 0].numpy()
    # the ring with the pixel at its corner, the area in its hole (no box of the hole), one more
    assert areas(region > 0).tolist() == [[0, 0, 6, 6], [2, 2, 3, 3], [6, 1, 7, 2]]
    assert areas(np.zeros((3, 4), dtype=bool)).shape == (0, 4)
    rng = np.random.default_rng(3)
    for density in (0.1, 0.4, 0.7):
        region = rng.random((13, 17)) < density
        assert [tuple(box) for box in areas(region).tolist()] == slow_areas(region)


def test_known_answers():
    maps = drawn(
        """
        # # . . . . .
        # # . . . . .
        . . . . . . .
        . . . . - - -
        . . . . - - -
        """,
        MARKS,
    )
    mask = drawn(
        """
        . . . . . . .
        . . . . . . .
        . . . . # # #
        . . . . . . #
        . . . . . . #
        """,
        MARKS,
    )
    curve = box_iou_curve(maps, mask)[0]
    # the weak area's box is 6 pixels of the lesion's 9; 0.4 is level 102, gone above it
    assert curve[:102].tolist() == pytest.approx([6 / 9] * 102)
    assert curve[102:].tolist() == [0] * 153
    two = mask.clone()
    two[..., :2, :2] = 1  # a second lesion, found at every level
    assert box_iou_curve(maps, two)[0].tolist() == [1] * 255


def test_a_map_of_one_value_is_never_right():
    mask = torch.ones(1, 1, 4, 4)
    for value in (0.0, 0.5, 1.0):
        assert not box_iou_curve(torch.full((1, 1, 4, 4), value), mask).any()


def test_curves_equal_the_slow_reference():
    for seed, levels in enumerate((None, 5, 40)):
        maps, mask, *_ = draw(3, (9, 11), seed, levels)
        mask[1, 0, 2:5, 3:9] = 1
        curves = box_iou_curve(maps, mask)
        for place in range(3):
            expected = slow_curve(maps[place, 0].numpy(), mask[place, 0].numpy())
            assert curves[place].tolist() == pytest.approx(expected, abs=1e-6)


def test_stretching_a_map_changes_nothing():
    maps, mask, *_ = draw(3, (9, 11), levels=20)
    stretched = box_iou_curve(4 * maps.double() - 7, mask)
    torch.testing.assert_close(stretched, box_iou_curve(maps, mask))
