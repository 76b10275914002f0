"""Agreement against scikit-learn and pandas."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from lightning_modules.metrics.agreement import agreement

PARTS = ["elbow", "hand", "wrist"]


def draw(seed=0, images=60):
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


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference_in_any_order(seed):
    table = draw(seed)
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
    shuffled = table.sample(frac=1, random_state=seed)  # as ranks deliver them
    assert figures(table) == pytest.approx(expected, abs=1e-6)
    assert figures(shuffled) == pytest.approx(expected, abs=1e-6)


def test_known_answers():
    columns = {"probability": [0.9, 0.2, 0.8, 0.1, 0.5], "label": [1, 1, 0, 0, 0]}
    table = pd.DataFrame({**columns, "study": [0, 0, 1, 1, 2], "body_part": 99})
    # 3 of 5 right, exactly the threshold is normal; recalls 1/2 and 2/3; pairs in order: 4 of 6
    # kappa: p_o = 3/5, p_e = 2/5 * 2/5 + 3/5 * 3/5 = 13/25
    # studies: means 0.55, 0.45, 0.5 for 1, 0, 0
    kappa = (3 / 5 - 13 / 25) / (12 / 25)
    expected = {"accuracy": 3 / 5, "balanced_accuracy": 7 / 12, "auroc": 4 / 6, "kappa": kappa}
    assert figures(table, []) == pytest.approx({**expected, "study_kappa": 1.0})


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_nan_without_warning(label):
    table = draw()[lambda table: table.label == label]
    result = figures(table)
    accuracy = ((table.probability > 0.5) == label).mean()
    assert result.pop("accuracy") == result.pop("balanced_accuracy") == pytest.approx(accuracy)
    assert all(math.isnan(value) for value in result.values())


def test_body_part_with_one_class_or_no_image_is_nan_and_the_others_stand():
    table = draw()[lambda table: (table.body_part != 1) | (table.label == 0)]
    result = figures(table, [*PARTS, "shoulder"])
    assert math.isnan(result["study_kappa/hand"])
    assert math.isnan(result["study_kappa/shoulder"])
    expected = study_kappa(table[table.body_part == 0])
    assert result["study_kappa/elbow"] == pytest.approx(expected)


def test_a_network_that_diverged_has_no_figures():
    with pytest.raises(FloatingPointError, match=r"NaN.*optimizer\.learning_rate"):
        figures(draw().assign(probability=math.nan))
