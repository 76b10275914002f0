"""What is wrong with an outline or a mask: known answers."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from datamodules.annotations.fields import EntryError
from datamodules.annotations.marks import Mark
from experiments.annotation.checks import MAX_CORNERS, check_mark, check_mask, crossing

SIZE = (100, 200)
SQUARE = [(10, 10), (30, 10), (30, 30), (10, 30)]
TURN = np.linspace(0, 2 * np.pi, 300, endpoint=False)
RING = np.column_stack([500 + 300 * np.cos(TURN), 500 + 200 * np.sin(TURN)])


@pytest.mark.parametrize(
    ("outline", "place"),
    [
        ([*SQUARE, SQUARE[0]], None),  # closed by its first point once more
        # A hole, cut in by a side that is walked twice.
        ([*SQUARE, (10, 10), (15, 15), (15, 25), (25, 25), (25, 15), (15, 15), (10, 10)], None),
        ([(0, 0), (20, 0), (20, 20), (10, 0), (0, 20)], None),  # a corner that touches a side
        # A slip of the hand: a loop of less than a pixel.
        ([(10, 10), (30, 10), (30, 30), (10.2, 30), (10.2, 9), (9, 9.5)], None),
        ([(10, 10), (30, 10), (30, 30), (25, 30), (25, 0), (15, 0), (15, 30)], (25, 10)),
        # One of the last sides crosses one of the first.
        (np.vstack([RING, [850, 480], [850, 520], [400, 520]]), (799, 520)),
    ],
)
def test_an_outline_that_crosses_itself_is_found(outline, place):
    assert crossing(outline) == (place and pytest.approx(place, abs=1))


@pytest.mark.parametrize(
    ("shape", "fault", "note"),
    [
        ([(-1.5, 10), (30, 10), (30, 30)], "", ""),
        ([(-9, 10), (30, 10), (30, 30)], "", "cut off at the image's edge, 9 px beyond it"),
        ([(-90, 10), (30, 10), (30, 30)], "most of it lies outside the 200x100 px image", ""),
        ([(210, 10), (230, 10), (230, 30)], "most of it lies outside the 200x100 px image", ""),
        ([(0, 0), (1, 0), (1, 1)], "in the first hundredth of the image", ""),
        (SQUARE * MAX_CORNERS, "an outline of 20,000 points; simplify it to 5,000", ""),
        # Masks, by the box of 20 x 20 pixels that is marked.
        ((0, 0, 0, 0), "its mask is empty", ""),
        ((0, 0, 20, 20), "100.0 % of the image", ""),
        ((1, 1, 19, 19), "", "81 % of the image is marked"),
        ((0, 0, 20, 18), "90.0 % of the image and most of its border are marked: is the mask", ""),
    ],
)
def test_a_mark_lies_inside_and_a_mask_is_not_inverted(shape, fault, note):
    with pytest.raises(EntryError, match=fault) if fault else nullcontext():
        if isinstance(shape, list):
            assert check_mark(Mark("mark", tuple(shape)), SIZE) == note
        else:
            mask = np.zeros((20, 20), np.uint8)
            mask[shape[1] : shape[3], shape[0] : shape[2]] = 255
            assert check_mask(mask) == note
