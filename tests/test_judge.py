"""What is kept of maps and made of it, on maps whose figures are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from datamodules.geometry import from_square, letterbox, to_square
from experiments.evaluation.figures import Fitted, all_figures, fit
from experiments.evaluation.judge import judge
from experiments.evaluation.run import missing, whole_table

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
            "path": [f"{row}.png" for row in range(4)],
            "patient": list("abcd"),
            "study": list("abcd"),
            "body_part": "hand",
            "label": [1, 1, 0, 0],
            "lesion_type": ["lytic", "lytic", "", ""],
            "hardware": 0,
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
        return from_square(square, GEOMETRY)


UNMASKED = Data([None] * 4)
# Image 0's lesion as a map of the square.
KNOWN = torch.from_numpy(to_square(MASKS[0], GEOMETRY, SIZE) / 255.0).float()


class Network(torch.nn.Module):
    """Knows the lesion of image 0 and points to that place in all others, but faintly in 3.

    Or draws maps of noise above that, different ones, if ``noisy``.
    """

    judged_maps = ("pcam",)
    classifies = True

    def __init__(self, height=1.0, noisy=False):
        super().__init__()
        faint = torch.tensor([1.0, 1.0, 1.0, 0.1]).view(4, 1, 1, 1) * height
        noise = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
        self.drawn = (noise + 2 * KNOWN) / 3 if noisy else KNOWN * faint

    def explain(self, image):
        """Images 0 and 2 are called abnormal."""
        return torch.tensor([0.9, 0.2, 0.8, 0.1]), {"pcam": self.drawn}


class Tenfold:
    """The same map as a method of another unit, ten times the network's."""

    name = "tenfold"

    def __call__(self, module, image, batch):
        """Images 0 to 2 reach 10, image 3 reaches 1."""
        return module.explain(image)[1]["pcam"] * 10


def tables(judged, val):
    """The whole table with thresholds of val, and the figures of some of its images."""
    thresholds = {name: maps.best_threshold() for name, maps in val.maps.items()}
    table = whole_table(judged, thresholds)

    def values(keep=range(4)):
        rows = {name: maps.rows.take(np.array(keep)) for name, maps in judged.maps.items()}
        figures = all_figures(table.iloc[list(keep)], rows, fit(table))
        return {name: figure(np.ones((1, len(keep))))[0] for name, figure in figures.items()}

    return table, values


def test_maps_are_judged_at_the_original_size():
    judged = judge(Network(), Data(), "test")
    table, values = tables(judged, judged)
    assert table["pcam_hit"].tolist()[:2] == [1, 0]
    assert table["pcam_hit"].isna().tolist() == [False, False, True, True]
    assert table["lesion_area"].tolist()[:2] == [SHARE] * 2
    # The peak in the original's pixels: the middle of rows 10 to 29, columns 10 to 19.
    assert table["pcam_peak_y"].tolist() == pytest.approx([19.5] * 4, abs=1.5)
    assert table["pcam_peak_x"].tolist() == pytest.approx([14.5] * 4, abs=1.5)
    found = values()
    assert found["pcam/hit"] == found["accuracy"] == 0.5
    # Claimed are two equal areas, one right: precision 1/2 up to recall 1/2, then all the pixels.
    assert found["pcam/pixel_ap"] == pytest.approx(0.25 + SHARE / 2, abs=0.03)
    # The map is the lesion with a blurred edge, which the best threshold cuts off exactly.
    assert table["pcam_iou"].tolist()[:2] == table["pcam_dice"].tolist()[:2] == [1, 0]
    assert table["pcam_iou_bound"].tolist()[:2] == table["pcam_iou"].tolist()[:2]
    assert table["pcam_energy"].tolist()[:2] == pytest.approx([0.9, 0.0], abs=0.1)
    # From the peak, about (14.5, 19.5), to the corner (30, 40) of the lesion that it misses.
    away = np.hypot(30 - 14.5, 40 - 19.5) / np.hypot(HEIGHT, WIDTH)
    assert table["pcam_distance"].tolist()[:2] == [0, pytest.approx(away, abs=0.03)]
    # Normal images count too: on image 2 as much is claimed as on 0, on 3 nothing.
    assert table["pcam_area"].tolist() == [*[pytest.approx(SHARE, rel=0.2)] * 3, 0]
    assert (found["pcam/shown_normal"], found["pcam/shown_abnormal"]) == (0.5, 1)


def test_figures_equal_a_slow_reference_on_the_maps_themselves():
    """Pixel by pixel, by scikit-learn, from maps of a noisy network at the original size."""
    module = Network(noisy=True)
    judged = judge(module, Data(), "test")
    table, values = tables(judged, judged)
    found = values()
    shown = np.stack([from_square(one[0].numpy(), GEOMETRY).clip(0, 1) for one in module.drawn])
    # 256 levels, as a map of 8 bits has.
    level = np.floor(shown.astype(np.float64) * 255 + 1e-4)
    truth = np.stack([lesion(10, 10), lesion(40, 30)]) > 0
    ap = average_precision_score(truth.ravel(), level[:2].ravel())
    assert found["pcam/pixel_ap"] == pytest.approx(ap, abs=1e-4)
    claims = level[:2] >= np.arange(1, 256)[:, None, None, None]
    means = ((claims & truth).sum((2, 3)) / (claims | truth).sum((2, 3))).mean(axis=1)
    assert found["pcam/iou"] == pytest.approx(means.max(), abs=1e-4)
    best = 1 + int(means.argmax())
    assert judged.maps["pcam"].best_threshold() == pytest.approx(best / 255)
    assert table["pcam_area"].tolist() == pytest.approx((level >= best).mean(axis=(1, 2)).tolist())
    energy = (shown[:2] * truth).sum((1, 2)) / shown[:2].sum((1, 2))
    assert found["pcam/energy"] == pytest.approx(energy.mean(), abs=1e-5)


def test_the_threshold_is_the_one_of_val():
    """On the split itself 0.3 of the map is needed: val's map is three times as high."""
    val, judged = judge(Network(), Data(), "val"), judge(Network(0.3), Data(), "test")
    at = val.maps["pcam"].best_threshold()
    assert 0.3 < at < 0.7
    table, _ = tables(judged, val)
    assert table["pcam_iou"].tolist()[:2] == [0, 0]
    assert table["pcam_area"].tolist() == [0] * 4
    assert table["pcam_iou_bound"][0] == pytest.approx(0.9, abs=0.1)
    tuned = judge(Network(), Data(), "val", tuning=True).maps["pcam"]
    assert tuned.best_threshold() == at
    assert tuned.table(at)[["pcam_hit", "pcam_peak_x", "pcam_energy"]].isna().all().all()


def test_another_methods_maps_get_one_scale_from_val():
    val = judge(Network(), Data(), "val", [Tenfold()])
    assert val.scales == {"tenfold": pytest.approx(10)}
    # Of the same scale, never stretched: a map of a tenth stays a tenth.
    judged = judge(Network(0.1), Data(), "test", [Tenfold()], val.scales)
    assert judged.scales == val.scales
    for split in (val, judged):
        own, tenfold = split.maps["pcam"], split.maps["tenfold"]
        assert own.rows.lesion_pixels.tolist() == tenfold.rows.lesion_pixels.tolist()
        assert own.table(0.1).to_numpy().tolist()[:2] == tenfold.table(0.1).to_numpy().tolist()[:2]
    assert judged.maps["tenfold"].rows.lesion_pixels[0].nonzero()[0].max() == 25


@pytest.mark.parametrize(
    ("methods", "raw", "message"),
    [
        (1, torch.zeros(4, 2, 8, 8), r"tenfold gave maps of shape \(4, 2, 8, 8\) for images of"),
        (1, torch.full((4, 1, 8, 8), torch.nan), "tenfold gave NaN or infinite values for image 0"),
        (2, torch.zeros(4, 1, 8, 8), "two map methods have one name: pcam, tenfold, tenfold"),
    ],
)
def test_a_method_that_breaks_its_contract_is_named(monkeypatch, methods, raw, message):
    monkeypatch.setattr(Tenfold, "__call__", lambda *_: raw)
    with pytest.raises(ValueError, match=message):
        judge(Network(), Data(), "val", [Tenfold()] * methods)


@pytest.mark.parametrize(
    ("test", "val", "undefined", "note"),
    [
        (UNMASKED, Data(), "hit iou pixel_ap iou_bound box_bound", "no lesion mask in test: maps"),
        (Data(), UNMASKED, "iou dice shown_normal shown_abnormal", "no threshold of a map can be"),
    ],
)
def test_without_masks_figures_are_null_and_said(test, val, undefined, note):
    judged, tuned = judge(Network(), test, "test"), judge(Network(), val, "val")
    table, values = tables(judged, tuned)
    found = values()
    nulls = {name[5:] for name in found if name[:5] == "pcam/" and np.isnan(found[name])}
    assert set(undefined.split()) <= nulls
    defined = {"hit", "pixel_ap", "iou_bound"} if test is not UNMASKED else {"shown_normal"}
    assert not nulls & defined
    assert note in missing(tuned.table, table, "test", fit(table))[0]


@pytest.mark.parametrize(("kind", "rows"), [("normal", [2, 3]), ("abnormal", [0, 1])])
def test_a_split_of_one_class_gives_named_nan(kind, rows):
    judged = judge(Network(), Data(), "test")
    whole, values = tables(judged, judged)
    table, found = whole.iloc[rows], values(rows)
    lost = "sensitivity" if kind == "normal" else "specificity"
    for name in ("auroc", "kappa", lost, f"tuned/{lost}", "study_auroc"):
        assert np.isnan(found[name]), name
    assert found["accuracy"] == 0.5
    assert fit(table) == Fitted(0.5, 0.5, 1.0)
    assert f"test holds {kind} images only" in " ".join(missing(whole, table, "test", fit(whole)))
    assert f"val holds {kind} images only" in " ".join(missing(table, whole, "test", fit(table)))


def test_what_a_reader_must_know_is_noted():
    table = judge(Network(), Data(), "test").table
    one = table.assign(patient="a")
    assert [note.split(":")[0] for note in missing(one, one, "val", Fitted(0.5, 0.5, 20.0))] == [
        "val is judged by its own decisions",
        "val sets no limit to the temperature",
        "val is of one patient",
    ]
    assert missing(table, table, "test", Fitted(0.5, 0.5, 2.0)) == []
