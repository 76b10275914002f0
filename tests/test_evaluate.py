"""What is said of maps, on maps whose figures are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.geometry import from_square, letterbox, to_square
from experiments.judge import judge

SIZE = 32
GEOMETRY = letterbox(80, 48, SIZE)  # a tall original: bars left and right in the square


def lesion(top, left):
    """A mask of the original with one lesion of 20 x 10 pixels."""
    mask = np.zeros((80, 48), dtype=np.uint8)
    mask[top : top + 20, left : left + 10] = 255
    return mask


MASKS = {0: lesion(10, 10), 1: lesion(40, 30), 2: None, 3: None}


class Data:
    """Four images, the first two with a lesion."""

    body_parts = ("hand",)
    table = pd.DataFrame(
        {
            "path": [f"{row}.png" for row in range(4)],
            "patient": list("abcd"),
            "study": list("abcd"),
            "body_part": "hand",
            "label": [1, 1, 0, 0],
            "lesion_type": ["lytic", "lytic", "", ""],
            "hardware": 0,
        }
    )

    def evaluation_dataloader(self, split):
        """One batch."""
        rows = torch.arange(4)
        return [
            {
                "image": rows.float().view(4, 1, 1, 1).expand(4, 1, SIZE, SIZE),
                "label": torch.tensor([1, 1, 0, 0]),
                "index": rows,
                "study": rows,
                "body_part": torch.zeros(4, dtype=torch.int64),
                "has_lesion": rows < 2,
            }
        ]

    def on_after_batch_transfer(self, batch, _):
        """Leave it as it is."""
        return batch

    def original_mask(self, row):
        """The mask of an image."""
        return MASKS[row]

    def to_original(self, square, row):
        """Undo the letterbox."""
        return from_square(square, GEOMETRY)


class Network(torch.nn.Module):
    """Knows the lesion of image 0 and points to that place in all others, too."""

    map_methods = ("pcam",)
    hparams = SimpleNamespace(get=lambda name, default: default)

    def explain(self, image):
        """Images 0 and 2 are called abnormal."""
        square = torch.from_numpy(to_square(MASKS[0], GEOMETRY, SIZE) / 255.0).float()
        probability = torch.tensor([0.9, 0.2, 0.8, 0.1])
        return probability, {"pcam": square.expand(len(image), 1, SIZE, SIZE)}


def test_maps_are_judged_at_the_original_size():
    table, figures = judge(Network(), Data(), "test")
    assert table["pcam_hit"].tolist()[:2] == [1, 0]
    assert table["pcam_hit"].isna().tolist() == [False, False, True, True]
    assert figures["pcam/hit"] == 0.5
    assert figures["lesions"] == 2
    # The peak in the original's pixels: the middle of rows 10 to 29, columns 10 to 19.
    assert table["pcam_peak_y"].tolist() == pytest.approx([19.5] * 4, abs=1.5)
    assert table["pcam_peak_x"].tolist() == pytest.approx([14.5] * 4, abs=1.5)
    # Claimed are two equal areas, one right: precision 1/2 up to recall 1/2, then all the pixels.
    share = 400 / (2 * 80 * 48)
    assert figures["pcam/pixel_ap"] == pytest.approx(0.25 + share / 2, abs=0.03)
    assert figures["accuracy"] == 0.5
    assert "masked_accuracy" not in figures
