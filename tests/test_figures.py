"""Classification from tables: known answers, scikit-learn, and what val may decide."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from experiments.evaluation.figures import (
    Fitted,
    classification,
    fit,
    fit_temperature,
    read_images,
    reliability,
    scaled,
    studies,
    youden,
)
from experiments.evaluation.statistics import estimates, patient_weights
from lightning_modules.metrics.agreement import agreement

PARTS = ["elbow", "hand"]


def draw(images=90, seed=0, hardware=True):
    """Views of studies of patients; hardware among the abnormal images."""
    rng = np.random.default_rng(seed)
    study = np.sort(rng.integers(0, 40, images))
    label = rng.integers(0, 2, 40)[study]
    shown = np.where(label == 1, rng.integers(0, 2, images), 0)
    return pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(images)],
            "patient": [f"{number // 2:03d}" for number in study],
            "study": [f"s{number}" for number in study],
            "body_part": np.array(PARTS)[study % 2],
            "label": label,
            "lesion_type": np.where(label == 1, "lytic", ""),
            "hardware": shown if hardware else -1,
            "probability": expit(2 * (label - 0.5) + 1.5 * rng.normal(size=images)).round(3),
        }
    ).sample(frac=1, random_state=seed, ignore_index=True)


def values(table, fitted):
    ones = np.ones((1, len(table)))
    return {name: figure(ones)[0] for name, figure in classification(table, fitted).items()}


def reference(rows, threshold):
    called = (rows.probability > threshold).astype(int)
    return {
        "auroc": roc_auc_score(rows.label, rows.probability),
        "accuracy": (called == rows.label).mean(),
        "balanced_accuracy": balanced_accuracy_score(rows.label, called),
        "sensitivity": recall_score(rows.label, called),
        "specificity": recall_score(1 - rows.label, 1 - called),
        "kappa": cohen_kappa_score(rows.label, called),
    }


def test_figures_of_images_and_studies_equal_scikit_learns():
    table = draw()
    fitted = Fitted(0.4, 0.55, 2.0)
    joined = table.groupby("study").agg(
        {"probability": "mean", "label": "max", "body_part": "first", "hardware": "max"}
    )
    expected = {}
    for prefix, rows, threshold in (("", table, 0.4), ("study_", joined, 0.55)):
        expected |= {prefix + name: v for name, v in reference(rows, threshold).items()}
        for part in PARTS:
            of_part = reference(rows[rows.body_part == part], threshold)
            expected[f"{prefix}kappa/{part}"] = of_part["kappa"]
        bare = reference(rows[rows.hardware == 0], threshold)
        expected |= {f"{prefix}{name}/no_hardware": v for name, v in bare.items()}
    found = values(table, fitted)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    # All images with hardware are abnormal here: one class.
    assert math.isnan(found["auroc/hardware"])
    assert math.isnan(found["specificity/hardware"])
    with_hardware = table[table.hardware == 1]
    assert found["sensitivity/hardware"] == (with_hardware.probability > 0.4).mean()
    assert set(found) - set(expected) == {"ece", "ece_scaled"} | {
        f"{prefix}{name}/hardware" for prefix in ("", "study_") for name in bare
    }


def test_figures_agree_with_those_of_training():
    table = draw()
    expected = agreement(
        torch.tensor(table.probability),
        torch.tensor(table.label),
        torch.tensor(table.study.str[1:].astype(int)),
        torch.tensor(table.body_part.map(PARTS.index)),
        PARTS,
    )
    found = values(table, Fitted(0.5, 0.5, 1.0))
    for name, value in expected.items():
        if name != "balanced_accuracy":
            assert found[name] == pytest.approx(value.item(), abs=1e-6), name


def test_unknown_hardware_is_not_split_by():
    assert not [
        name for name in values(draw(hardware=False), Fitted(0.5, 0.5, 1)) if "hard" in name
    ]


def test_every_figure_has_an_interval():
    table = draw()
    result = estimates(classification(table, fit(table)), patient_weights(table.patient, 50))
    for name, (value, low, high, undefined) in result.items():
        if name.startswith("ece"):  # resamples make it larger
            continue
        if name.split("/")[-1] != "hardware":
            assert low <= value <= high, name
            assert undefined < 0.2


def test_studies_join_their_views():
    table = pd.DataFrame(
        {
            "path": list("abcd"),
            "patient": ["1", "2", "1", "2"],
            "study": ["x", "y", "x", "z"],
            "body_part": ["hand", "hand", "hand", "elbow"],
            "label": [0, 0, 1, 1],
            "probability": [0.2, 0.4, 0.9, 0.5],
            "hardware": [-1, -1, 0, 1],
        }
    )
    joined = studies(table)
    assert joined["study"].tolist() == ["x", "y", "z"]
    assert joined["label"].tolist() == [1, 0, 1]
    assert joined["probability"].tolist() == pytest.approx([0.55, 0.4, 0.5])
    assert joined["hardware"].tolist() == [0, -1, 1]
    assert joined["first"].tolist() == [0, 1, 3]
    with pytest.raises(ValueError, match="study x is of several patients"):
        studies(table.assign(patient=["1", "2", "3", "2"]))


def test_the_operating_point_is_youdens():
    # Above 0.35: both abnormal, one normal of three. No other cut is as good.
    assert youden([0.1, 0.3, 0.4, 0.5, 0.6], [0, 0, 1, 0, 1]) == pytest.approx(0.35)
    # 0.3 and 0.65 are equally good: the nearer to 0.5
    assert youden([0.2, 0.4, 0.4, 0.9], [0, 0, 1, 1]) == pytest.approx(0.65)
    assert youden([0.1, 0.9], [0, 1]) == pytest.approx(0.5)
    assert youden([0.3, 0.3], [0, 1]) == 0.5
    assert math.isnan(youden([0.3, 0.6], [1, 1]))
    for seed in range(5):
        table = draw(seed=seed)
        threshold = youden(table.probability, table.label)
        fall, rise, _ = roc_curve(table.label, table.probability)
        reached = reference(table, threshold)
        assert reached["sensitivity"] + reached["specificity"] - 1 == pytest.approx(
            (rise - fall).max()
        )


def test_the_operating_point_does_not_move_with_the_share_of_abnormal_images():
    table = draw()
    normal = table[table.label == 0]
    more = pd.concat([table, normal, normal, normal])
    assert youden(more.probability, more.label) == youden(table.probability, table.label)


def test_the_temperature_of_known_overconfidence_is_found():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=20000)
    label = rng.random(20000) < expit(logits)
    for temperature in (0.5, 1.0, 3.0):
        told = expit(logits * temperature)
        assert fit_temperature(told, label) == pytest.approx(temperature, rel=0.05)
        exact = np.abs(logits * temperature) < 16  # what float32 can tell from 0 and 1
        assert scaled(told, temperature)[exact] == pytest.approx(expit(logits)[exact])


def test_no_temperature_is_likelier():
    table = draw()
    fitted = fit_temperature(table.probability, table.label)

    def loss(temperature):
        p = scaled(table.probability, temperature)
        return -np.log(np.where(table.label == 1, p, 1 - p)).mean()

    grid = np.exp(np.linspace(-2, 2, 401))
    assert loss(fitted) <= min(map(loss, grid)) + 1e-9


def test_certain_probabilities_and_perfect_networks_have_a_temperature():
    assert fit_temperature([0.0, 1.0], [0, 1]) == pytest.approx(0.05, rel=0.01)
    assert fit_temperature([0.0, 1.0], [1, 0]) == pytest.approx(20, rel=0.01)
    assert np.isfinite(fit_temperature([0.0, 1.0, 1.0, 1.0], [0, 1, 1, 0]))
    assert math.isnan(fit_temperature([0.2, 0.3], [0, 0]))
    assert scaled([0.0, 1.0], 1.0) == pytest.approx([0, 1], abs=1e-7)


def test_val_of_one_class_falls_back_to_what_needs_no_val():
    table = draw()
    assert fit(table[table.label == 1]) == (0.5, 0.5, 1.0)


def test_calibration_known_answer_and_curve():
    # bins of 1/15: 0.90 and 0.93 in one (2 images, mean .915, 1 abnormal), 0.1 and 1.0 alone
    table = draw(4).assign(probability=[0.9, 0.93, 0.1, 1.0], label=[1, 0, 0, 1])
    found = values(table, Fitted(0.5, 0.5, 1.0))
    assert found["ece"] == pytest.approx((2 * abs(0.915 - 0.5) + 0.1 + 0.0) / 4)
    assert found["ece_scaled"] == pytest.approx(found["ece"], abs=1e-6)
    table = draw()
    table.probability = (table.probability + 0.0004).clip(0, 1)  # none on the edge of a bin
    curve = reliability(table.probability, table.label, bins=10)
    seen = curve[curve.images > 0]
    share, told = calibration_curve(table.label, table.probability, n_bins=10)
    assert seen.abnormal.tolist() == pytest.approx(share.tolist())
    assert seen.probability.tolist() == pytest.approx(told.tolist())
    assert curve.images.sum() == len(table)


def test_scaling_mends_an_overconfident_network():
    rng = np.random.default_rng(1)
    table = draw(3000)
    logits = 2 * (table.label - 0.5) + rng.normal(size=3000)
    table = table.assign(probability=expit(6 * logits))
    found = values(table, fit(table))
    assert found["ece_scaled"] < 0.5 * found["ece"]


def test_tables_are_read_as_they_were_written(tmp_path):
    table = draw().replace({"patient": {"003": "NA"}})
    table.to_csv(tmp_path / "images.csv", index=False)
    read = read_images(tmp_path / "images.csv")
    assert read.patient.tolist() == table.patient.tolist()  # 007 is no number
    assert set(read.lesion_type) == {"", "lytic"}
    assert values(read, fit(read)) == pytest.approx(values(table, fit(table)), nan_ok=True)


def test_tables_without_what_is_needed_are_refused(tmp_path):
    table = draw()
    with pytest.raises(ValueError, match="lacks the column 'probability': this run has no class"):
        classification(table.drop(columns="probability"), Fitted(0.5, 0.5, 1.0))
    with pytest.raises(ValueError, match=f"{table.path[7]} has no probability in"):
        classification(table.assign(probability=[0.5] * 7 + [math.nan] * 83), Fitted(0.5, 0.5, 1))
    table.drop(columns="study").to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match="a.csv lacks the column 'study'"):
        read_images(tmp_path / "a.csv")
    pd.concat([table, table[:1]]).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(ValueError, match=f"b.csv holds {table.path[0]} twice"):
        read_images(tmp_path / "b.csv")
