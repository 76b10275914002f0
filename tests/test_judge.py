"""What is kept of maps and made of it, on maps whose figures are known."""

import re
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.geometry import letterbox, map_from_square, to_square
from experiments.evaluation.figures import all_figures, fit
from experiments.evaluation.judge import Judged, judge
from experiments.evaluation.methods import MapMethod
from experiments.evaluation.run import missing
from lightning_modules.options import Model

SIZE = 32
HEIGHT, WIDTH = 80, 48
GEOMETRY = letterbox(HEIGHT, WIDTH, SIZE)  # a tall original: bars left and right in the square


def lesion(top, left):
    """A mask of the original with one lesion of 20 x 10 pixels."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top : top + 20, left : left + 10] = 255
    return mask


MASKS = [lesion(10, 10), lesion(40, 30), None, None]
SHARE = 200 / (HEIGHT * WIDTH)  # that a lesion covers


class Data:
    """Four images, the first two with a lesion; val is the same ones."""

    table = pd.DataFrame(
        {
            **{name: list("abcd") for name in ("path", "patient", "study")},
            **{"body_part": "hand", "label": [1, 1, 0, 0], "hardware": 0},
            "lesion_type": ["lytic", "lytic", "", ""],
        }
    )

    def __init__(self, masks=MASKS):
        self.original_mask = masks.__getitem__

    def evaluation_dataloader(self, split):
        image = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, SIZE, SIZE)
        return [{"image": image, "label": torch.tensor([1, 1, 0, 0]), "index": torch.arange(4)}]

    def on_after_batch_transfer(self, batch, _):
        return batch

    def to_original(self, square, row):
        return map_from_square(square, GEOMETRY)


# Image 0's lesion as a map of the square.
KNOWN = torch.from_numpy(to_square(MASKS[0], GEOMETRY, SIZE) / 255.0).float()


class Network(torch.nn.Module):
    """Knows the lesion of image 0 and points to that place in all others, but faintly in 3."""

    judged_maps = ("pcam",)
    classifies = True

    def __init__(self, height=1.0, mirror=False, zoom=1.0):
        super().__init__()
        self.model = Model(mirror=mirror, zoom=zoom)
        self.drawn = KNOWN * torch.tensor([1.0, 1.0, 1.0, 0.1]).view(4, 1, 1, 1) * height

    def explain(self, image):
        """Images 0 and 2 are called abnormal."""
        return torch.tensor([0.9, 0.2, 0.8, 0.1]), {"pcam": self.drawn}


# The same map in another unit: images 0 to 2 reach 10, image 3 reaches 1.
TENFOLD = MapMethod("tenfold", lambda module, image, _: module.explain(image)[1]["pcam"] * 10)


def tables(judged, val):
    """The whole table with thresholds of val, and the figures of it."""
    table = judged.whole_table(val.thresholds())
    figures = all_figures(table, judged.maps, fit(table))
    return table, {name: figure(np.ones((1, 4)))[0] for name, figure in figures.items()}


def test_maps_are_judged_at_the_original_size():
    judged = judge(Network(), Data(), "test")
    table, figures = tables(judged, judged)
    assert table["pcam_hit"].tolist()[:2] == [1, 0]
    assert table["pcam_hit"].isna().tolist() == [False, False, True, True]
    assert table["lesion_area"].tolist()[:2] == [SHARE] * 2
    # The peak in the original's pixels: the middle of rows 10 to 29, columns 10 to 19.
    assert table["pcam_peak_y"].tolist() == pytest.approx([19.5] * 4, abs=1.5)
    assert table["pcam_peak_x"].tolist() == pytest.approx([14.5] * 4, abs=1.5)
    assert figures["pcam/hit"] == figures["accuracy"] == 0.5
    # Claimed are two equal areas, one right: precision 1/2 up to recall 1/2, then all the pixels.
    assert figures["pcam/pixel_ap"] == pytest.approx(0.25 + SHARE / 2, abs=0.03)
    # The map is the lesion with a blurred edge, which the best threshold cuts off exactly.
    assert table["pcam_iou"].tolist()[:2] == table["pcam_dice"].tolist()[:2] == [1, 0]
    assert table["pcam_iou_bound"].tolist()[:2] == table["pcam_iou"].tolist()[:2]
    assert table["pcam_energy"].tolist()[:2] == pytest.approx([0.9, 0.0], abs=0.1)
    # From the peak, about (14.5, 19.5), to the corner (30, 40) of the lesion that it misses.
    away = np.hypot(30 - 14.5, 40 - 19.5) / np.hypot(HEIGHT, WIDTH)
    assert table["pcam_distance"].tolist()[:2] == [0, pytest.approx(away, abs=0.03)]
    # Normal images count too: on image 2 as much is claimed as on 0, on 3 nothing.
    assert table["pcam_area"].tolist() == [*[pytest.approx(SHARE, rel=0.2)] * 3, 0]
    assert (figures["pcam/shown_normal"], figures["pcam/shown_abnormal"]) == (0.5, 1)
    assert figures["pcam/shown_lesion"] == 0.5  # on image 1 elsewhere


def test_a_constant_map_misses_though_the_crop_is_smaller_than_the_image():
    data = Data([np.pad(np.full((HEIGHT - 20, WIDTH - 20), 255, np.uint8), 10)] * 4)
    box = letterbox(HEIGHT, WIDTH, SIZE, (10, 10, WIDTH - 20, HEIGHT - 20))
    data.to_original = lambda square, _: map_from_square(square, box)
    flat = MapMethod("flat", lambda *_: torch.full((4, 1, 8, 8), 0.5))
    table = judge(None, data, "test", [flat], {"flat": 1.0}).whole_table({"flat": 0.4})
    assert (table["flat_hit"].tolist(), table["flat_area"].tolist()) == ([0] * 4, [1.0] * 4)
    assert table["flat_peak_x"].isna().all()  # it points nowhere


def test_the_threshold_is_the_one_of_val():
    """On the split itself 0.3 of the map is needed: val's map is three times as high."""
    val, judged = judge(Network(), Data(), "val", tuning=True), judge(Network(0.3), Data(), "test")
    at = judge(Network(), Data(), "val").thresholds()["pcam"]
    assert 0.3 < at < 0.7
    assert val.thresholds()["pcam"] == at
    table, _ = tables(judged, val)
    assert table["pcam_iou"].tolist()[:2] == [0, 0]
    assert table["pcam_area"].tolist() == [0] * 4
    assert table["pcam_iou_bound"][0] == pytest.approx(0.9, abs=0.1)


def test_another_methods_maps_get_one_scale_from_val():
    val = judge(Network(), Data(), "val", [TENFOLD])
    assert val.scales == {"tenfold": pytest.approx(10)}
    # Of the same scale, never stretched: a map of a tenth stays a tenth.
    judged = judge(Network(0.1), Data(), "test", [TENFOLD], val.scales)
    assert judged.scales == val.scales
    for split in (val, judged):
        table = split.whole_table({"pcam": 0.1, "tenfold": 0.1})
        own, tenfold = (table.filter(regex=f"^{name}_") for name in ("pcam", "tenfold"))
        assert own.to_numpy()[:2].tolist() == tenfold.to_numpy()[:2].tolist()
    assert judged.maps["tenfold"].lesion_pixels[0].nonzero()[0].max() == 25


def test_another_methods_map_is_the_mean_of_the_views_that_the_networks_own_is_of():
    def ramp(module, image, batch):  # what it draws, whatever it sees, at that size
        return torch.linspace(0, 1, image.shape[-1]).expand_as(image)

    def shown(**views):
        squares = {}
        with patch.object(Judged, "add_squares", lambda _, rows, maps, to=squares: to.update(maps)):
            judge(Network(**views), Data(), "val", [MapMethod("ramp", ramp)])
        return squares["ramp"][0, 0, 0, [0, -1]].tolist()

    assert shown() == [0, 1]
    assert shown(mirror=True) == [0.5, 0.5]
    assert shown(zoom=1.5) == pytest.approx([0, 1], abs=0.01)
    assert shown(mirror=True, zoom=1.5) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("methods", "raw", "message"),
    [
        (1, torch.zeros(4, 2, 8, 8), r"mine: expected finite maps \(4, 1, h, w\), got \(4, 2"),
        (1, torch.full((4, 1, 8, 8), torch.nan), "mine: expected .* finite: False"),
        (2, torch.zeros(4, 1, 8, 8), "two map methods have one name: mine, mine, pcam"),
    ],
)
def test_a_method_that_breaks_its_contract_is_named(methods, raw, message):
    with pytest.raises(ValueError, match=message):
        judge(Network(), Data(), "val", [MapMethod("mine", lambda *_: raw)] * methods)


def test_without_masks_figures_are_null_and_noted():
    val = judge(Network(), Data(), "val")
    table, figures = tables(judge(Network(), Data([None] * 4), "test"), val)
    nulls = {name for name in figures if np.isnan(figures[name])}
    assert {
        f"pcam/{name}" for name in ("hit", "iou", "pixel_ap", "iou_bound", "box_bound")
    } <= nulls
    assert "pcam/shown_normal" not in nulls
    assert "no lesion mask in test: maps are not judged" in missing(val.table, table, "test")[0]


def test_a_split_of_one_class_gives_named_nan():
    table = judge(Network(), Data(), "test").table
    normal = table[2:]
    figures = all_figures(normal, {}, fit(table))
    values = {name: figure(np.ones((1, 2)))[0] for name, figure in figures.items()}
    undefined = ("auroc", "kappa", "sensitivity", "tuned/sensitivity", "study_auroc")
    assert np.isnan([values[name] for name in undefined]).all()
    assert values["accuracy"] == 0.5
    notes = " ".join(missing(table, normal.assign(patient="a"), "left_out"))
    assert re.search("^no lesion mask.*left_out holds images of one class only.*one patient", notes)
    (note,) = missing(table, table, "test")
    assert note.startswith("val has 2 lesion masks: thresholds of maps")
