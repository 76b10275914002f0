"""What is said of maps, on maps whose figures are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from datamodules.geometry import from_square, letterbox, to_square
from experiments.evaluation.figures import Fitted, fit
from experiments.evaluation.figures import all_figures as figures
from experiments.evaluation.judge import judge
from experiments.evaluation.run import missing as notes

SIZE = 32
HEIGHT, WIDTH = 80, 48
GEOMETRY = letterbox(HEIGHT, WIDTH, SIZE)  # a tall original: bars left and right in the square


def lesion(top, left):
    """A mask of the original with one lesion of 20 x 10 pixels."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top : top + 20, left : left + 10] = 255
    return mask


MASKS = {0: lesion(10, 10), 1: lesion(40, 30), 2: None, 3: None}


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

    def __init__(self, masked=2):
        self.masked = masked

    def evaluation_dataloader(self, split):
        """One batch."""
        rows = torch.arange(4)
        return [
            {
                "image": rows.float().view(4, 1, 1, 1).expand(4, 1, SIZE, SIZE),
                "label": torch.tensor([1, 1, 0, 0]),
                "index": rows,
                "has_lesion": rows < self.masked,
            }
        ]

    def on_after_batch_transfer(self, batch, _):
        """Leave it as it is."""
        return batch

    def original_mask(self, row):
        """The mask of an image."""
        return MASKS[row] if row < self.masked else None

    def to_original(self, square, row):
        """Undo the letterbox."""
        return from_square(square, GEOMETRY)


def known_square():
    """Image 0's lesion as a map of the square."""
    return torch.from_numpy(to_square(MASKS[0], GEOMETRY, SIZE) / 255.0).float()


class Network(torch.nn.Module):
    """Knows the lesion of image 0 and points to that place in all others, but faintly in 3.

    Or draws maps of noise above that, different ones, if ``drawn``.
    """

    judged_maps = ("pcam",)
    classifies = True

    def __init__(self, height=1.0, drawn=False):
        super().__init__()
        self.height = height
        self.drawn = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
        self.drawn = (self.drawn + 2 * known_square()) / 3 if drawn else None

    def explain(self, image):
        """Images 0 and 2 are called abnormal."""
        probability = torch.tensor([0.9, 0.2, 0.8, 0.1])
        if self.drawn is not None:
            return probability, {"pcam": self.drawn}
        faint = torch.tensor([1.0, 1.0, 1.0, 0.1]).view(4, 1, 1, 1) * self.height
        return probability, {"pcam": known_square() * faint}


class Tenfold:
    """The same map as a method of another unit, ten times the network's."""

    name = "tenfold"

    def __call__(self, module, image, batch):
        """Images 0 to 2 reach 10, image 3 reaches 1."""
        return module.explain(image)[1]["pcam"] * 10


def values_of(table, judged, fitted):
    ones = np.ones((1, len(table)))
    maps = {name: found.rows for name, found in judged.maps.items()}
    return {name: figure(ones)[0] for name, figure in figures(table, maps, fitted).items()}


def columns(judged, val):
    """The whole table, with thresholds of ``val``."""
    found = [maps.table(val.maps[name].best_threshold()) for name, maps in judged.maps.items()]
    return pd.concat([judged.table, *found], axis=1)


def test_maps_are_judged_at_the_original_size():
    judged = judge(Network(), Data(), "test")
    table = columns(judged, judged)
    assert table["pcam_hit"].tolist()[:2] == [1, 0]
    assert table["pcam_hit"].isna().tolist() == [False, False, True, True]
    assert table["lesion_area"].tolist()[:2] == [200 / (HEIGHT * WIDTH)] * 2
    # The peak in the original's pixels: the middle of rows 10 to 29, columns 10 to 19.
    assert table["pcam_peak_y"].tolist() == pytest.approx([19.5] * 4, abs=1.5)
    assert table["pcam_peak_x"].tolist() == pytest.approx([14.5] * 4, abs=1.5)
    found = values_of(table, judged, fit(table))
    assert found["pcam/hit"] == 0.5
    # Claimed are two equal areas, one right: precision 1/2 up to recall 1/2, then all the pixels.
    share = 400 / (2 * HEIGHT * WIDTH)
    assert found["pcam/pixel_ap"] == pytest.approx(0.25 + share / 2, abs=0.03)
    assert found["accuracy"] == 0.5
    # The map is the lesion with a blurred edge, which the best threshold cuts off exactly.
    assert table["pcam_iou"].tolist()[:2] == table["pcam_dice"].tolist()[:2] == [1, 0]
    assert table["pcam_iou_bound"].tolist()[:2] == table["pcam_iou"].tolist()[:2]
    assert table["pcam_energy"].tolist()[:2] == pytest.approx([0.9, 0.0], abs=0.1)
    assert table["pcam_distance"][0] == 0
    # From the peak, about (14.5, 19.5), to the corner (30, 40) of the lesion that it misses.
    away = np.hypot(30 - 14.5, 40 - 19.5) / np.hypot(HEIGHT, WIDTH)
    assert table["pcam_distance"][1] == pytest.approx(away, abs=0.03)
    # Normal images count too: on image 2 as much is claimed as on 0, on 3 nothing.
    area = table["pcam_area"].tolist()
    assert area[:3] == pytest.approx([200 / (HEIGHT * WIDTH)] * 3, rel=0.2)
    assert area[3] == 0
    assert found["pcam/shown_normal"] == 0.5
    assert found["pcam/shown_abnormal"] == 1


def test_figures_equal_a_slow_reference_on_the_maps_themselves():
    """Pixel by pixel, by scikit-learn, from maps of a drawn network at the original size."""
    module, data = Network(drawn=True), Data()
    judged = judge(module, data, "test")
    table = columns(judged, judged)
    found = values_of(table, judged, fit(table))
    shown = [
        data.to_original(one[0].numpy(), 0).clip(0, 1) for one in module.explain(None)[1]["pcam"]
    ]
    # 256 levels, as a map of 8 bits has.
    level = np.stack([np.floor(one.astype(np.float64) * 255 + 1e-4) for one in shown])
    truth = np.stack(
        [mask > 0 if (mask := MASKS[row]) is not None else level[0] < 0 for row in range(4)]
    )
    assert found["pcam/pixel_ap"] == pytest.approx(
        average_precision_score(truth[:2].ravel(), level[:2].ravel()), abs=1e-4
    )
    means = []
    for cut in range(1, 256):
        both = [(level[i] >= cut)[truth[i]].sum() for i in range(2)]
        either = [((level[i] >= cut) | truth[i]).sum() for i in range(2)]
        means.append(np.mean([b / e for b, e in zip(both, either, strict=True)]))
    assert found["pcam/iou"] == pytest.approx(max(means), abs=1e-4)
    best = 1 + int(np.argmax(means))
    assert judged.maps["pcam"].best_threshold() == pytest.approx(best / 255)
    assert table["pcam_area"].tolist() == pytest.approx((level >= best).mean(axis=(1, 2)).tolist())
    energy = [(shown[i] * truth[i]).sum() / shown[i].sum() for i in range(2)]
    assert found["pcam/energy"] == pytest.approx(np.mean(energy), abs=1e-5)


def test_the_threshold_is_the_one_of_val():
    """On the split itself 0.3 of the map is needed: val's map is three times as high."""
    val, judged = judge(Network(), Data(), "val"), judge(Network(0.3), Data(), "test")
    at = val.maps["pcam"].best_threshold()
    assert 0.3 < at < 0.7
    table = columns(judged, val)
    assert table["pcam_iou"].tolist()[:2] == [0, 0]
    assert table["pcam_area"].tolist() == [0] * 4
    assert table["pcam_iou_bound"][0] == pytest.approx(0.9, abs=0.1)
    tuned = judge(Network(), Data(), "val", tuning=True)
    assert tuned.maps["pcam"].best_threshold() == at
    assert tuned.maps["pcam"].columns.isna().all().all()


def test_another_methods_maps_get_one_scale_from_val():
    val = judge(Network(), Data(), "val", [Tenfold()])
    assert val.scales == {"tenfold": pytest.approx(10)}
    # Of the same scale, never stretched: a map of a tenth stays a tenth.
    judged = judge(Network(0.1), Data(), "test", [Tenfold()], val.scales)
    assert judged.scales == val.scales
    for split in (val, judged):
        same = split.maps["pcam"], split.maps["tenfold"]
        assert same[0].rows.lesion_pixels.tolist() == same[1].rows.lesion_pixels.tolist()
        assert same[0].columns.equals(same[1].columns)
    assert judged.maps["tenfold"].rows.lesion_pixels[0].nonzero()[0].max() == 25
    with pytest.raises(ValueError, match="two map methods have one name: pcam, tenfold, tenfold"):
        judge(Network(), Data(), "val", [Tenfold(), Tenfold()])


def test_a_method_that_breaks_its_contract_is_named():
    for raw, message in (
        (torch.zeros(4, 2, 8, 8), r"tenfold gave maps of shape \(4, 2, 8, 8\) for images of"),
        (torch.full((4, 1, 8, 8), float("nan")), "tenfold gave NaN or infinite values for image 0"),
    ):
        method = Tenfold()
        method.__class__ = type("Wrong", (Tenfold,), {"__call__": lambda *_, raw=raw: raw})
        with pytest.raises(ValueError, match=message):
            judge(Network(), Data(), "val", [method])


def test_without_masks_maps_are_null_and_said():
    judged = judge(Network(), Data(masked=0), "test")
    val = judge(Network(), Data(), "val")
    table = columns(judged, val)
    found = values_of(table, judged, fit(table))
    defined = {name for name, value in found.items() if name.startswith("pcam") and value == value}
    assert defined == {"pcam/shown_normal", "pcam/shown_abnormal"}
    assert "no lesion mask in test" in notes(val.table, table, "test", fit(table))[0]


def test_val_without_masks_tunes_no_threshold_and_says_so():
    judged, val = judge(Network(), Data(), "test"), judge(Network(), Data(masked=0), "val")
    assert np.isnan(val.maps["pcam"].best_threshold())
    table = columns(judged, val)
    found = values_of(table, judged, fit(table))
    undefined = {name for name, value in found.items() if name[:5] == "pcam/" and value != value}
    assert {name.split("/")[1] for name in undefined if name.count("/") == 1} == {
        *("iou", "dice", "shown_normal", "shown_abnormal")
    }
    assert found["pcam/hit"] == 0.5
    assert found["pcam/pixel_ap"] > 0.2
    assert found["pcam/iou_bound"] > 0.4
    assert "no threshold of a map can be tuned" in notes(val.table, table, "test", fit(table))[0]


@pytest.mark.parametrize("kind", ["normal", "abnormal"])
def test_a_split_of_one_class_gives_named_nan(kind):
    judged = judge(Network(), Data(), "test")
    whole = columns(judged, judged)
    keep = (whole["label"] == (kind == "abnormal")).to_numpy()
    maps = {name: found.rows.take(np.flatnonzero(keep)) for name, found in judged.maps.items()}
    table = whole[keep]
    ones = np.ones((1, len(table)))
    found = {name: f(ones)[0] for name, f in figures(table, maps, fit(whole)).items()}
    missing = "sensitivity" if kind == "normal" else "specificity"
    for name in ("auroc", "kappa", missing, f"tuned/{missing}", "study_auroc"):
        assert np.isnan(found[name]), name
    assert found["accuracy"] == 0.5
    assert f"test holds {kind} images only" in " ".join(notes(whole, table, "test", fit(whole)))
    assert fit(table) == Fitted(0.5, 0.5, 1.0)
    assert f"val holds {kind} images only" in " ".join(notes(table, whole, "test", fit(table)))
