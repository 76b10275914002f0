"""What an epoch logs, on drawn masks with known answers, and against scikit-learn and pandas."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from lightning_modules.metrics import Localisation, agreement, hit
from lightning_modules.overlap import peak_distance

PARTS = ["elbow", "hand", "wrist"]
# Two squares that share the pixel in the middle.
MASK = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
MASK[..., 1:3, 1:3] = MASK[..., 2:4, 2:4] = True


def draw(images, size, seed=0, levels=None):
    """Maps and masks, every third empty; the maps know something of the masks."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(images, 1, *size, generator=generator) > 0.8
    mask[..., 1, 1] = True  # no mask is empty
    maps = (torch.rand(images, 1, *size, generator=generator) + 0.3 * mask) / 1.3
    if levels:
        maps = (maps * (levels - 1)).round() / (levels - 1)
    return maps, mask & (torch.arange(images) % 3 != 1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("peaks", "expected", "pixels"),
    [
        ([(1, 1)], True, 0),
        ([(1, 4)], False, math.sqrt(2)),  # inside the lesion's bounding box
        ([(4, 0)], False, math.sqrt(5)),
        ([(y, x) for y in range(5) for x in range(5)], True, 0),  # the middle of a plateau
        ([], False, math.inf),  # a constant map, also of a lesion in its middle
    ],
)
def test_peaks_of_drawn_maps(peaks, expected, pixels):
    maps = torch.full(MASK.shape, 0.1)
    for y, x in peaks:
        maps[..., y, x] = 0.6
    for shown in (maps, maps - 1):
        assert hit(shown, MASK).tolist() == [expected]
        assert peak_distance(shown, MASK).tolist() == [pytest.approx(pixels / math.hypot(5, 6))]
        assert peak_distance(shown, MASK & False).tolist() == [math.inf]


def metric_of(maps, mask, batches):
    """The metric after batches, which are rows of the images."""
    metric = Localisation()
    for rows in ([], *batches):  # the first one without lesions
        metric.update(maps[rows], mask[rows])
    return metric


@pytest.mark.parametrize("levels", [None, 7])
def test_figures_of_an_epoch_equal_the_reference_also_from_two_ranks(levels):
    maps, mask = draw(9, (15, 12), levels=levels)
    maps = (10 * maps - 3).double()  # raw maps of any range and precision are taken
    shown = maps.bfloat16().float()  # the levels on which pixels are counted
    pixel_ap = metrics.average_precision_score(mask.flatten(), shown.flatten())
    expected = {"hit": hit(maps, mask).double().mean().item(), "pixel_ap": pixel_ap}
    for one, other in (([range(6)], [range(6, 9)]), ([range(9)], [])):
        metric = metric_of(maps, mask, one)
        metric.merge_state(metric_of(maps, mask, other))
        values = {name: value.item() for name, value in metric.compute().items()}
        assert values == pytest.approx(expected, abs=1e-6)
    nothing = metric_of(maps, mask, []).compute()  # without any mask, and no warning
    assert all(value.isnan() for value in nothing.values())


def table_of(seed=0, images=60):
    """A table of images: studies of one to four views, one body part a study."""
    rng = np.random.default_rng(seed)
    study = np.sort(rng.integers(0, images // 2, size=images))
    label = rng.integers(0, 2, size=images // 2)[study]
    score = np.clip(0.5 + 0.3 * (label - 0.5) + 0.25 * rng.normal(size=images), 0, 1)
    columns = {"probability": score.astype(np.float32).round(2), "label": label}  # ties
    return pd.DataFrame({**columns, "study": study, "body_part": study % len(PARTS)})


def figures(table, parts=PARTS):
    columns = (torch.tensor(table[name].to_numpy()) for name in table)
    return {name: value.item() for name, value in agreement(*columns, parts).items()}


def study_kappa(rows):
    studies = rows.groupby("study").agg({"probability": "mean", "label": "max"})
    return metrics.cohen_kappa_score(studies.label, studies.probability > 0.5)


def test_agreement_equals_the_reference_in_any_order():
    table = table_of()
    label, decision = table.label, table.probability > 0.5
    expected = {
        "accuracy": metrics.accuracy_score(label, decision),
        "balanced_accuracy": metrics.balanced_accuracy_score(label, decision),
        "auroc": metrics.roc_auc_score(label, table.probability),
        "kappa": metrics.cohen_kappa_score(label, decision),
        "study_kappa": study_kappa(table),
    }
    for code, part in enumerate(PARTS):
        expected[f"study_kappa/{part}"] = study_kappa(table[table.body_part == code])
    for rows in (table, table.sample(frac=1, random_state=0)):  # as ranks deliver them
        assert figures(rows) == pytest.approx(expected, abs=1e-6)


def test_one_class_gives_nan_without_warning_and_the_others_stand():
    table = table_of()
    result = figures(table[table.label == 0])
    accuracy = (table.probability[table.label == 0] <= 0.5).mean()
    assert result.pop("accuracy") == result.pop("balanced_accuracy") == pytest.approx(accuracy)
    assert all(math.isnan(value) for value in result.values())
    # A body part of one class, and one without an image.
    result = figures(table[(table.body_part != 1) | (table.label == 0)], [*PARTS, "shoulder"])
    assert math.isnan(result["study_kappa/hand"])
    assert math.isnan(result["study_kappa/shoulder"])
    expected = study_kappa(table[table.body_part == 0])
    assert result["study_kappa/elbow"] == pytest.approx(expected)
    with pytest.raises(FloatingPointError, match=r"NaN.*optimizer\.learning_rate"):
        figures(table.assign(probability=math.nan))
