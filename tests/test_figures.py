"""Figures from tables and histograms: known answers, scikit-learn, and what val may decide."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics
from sklearn.calibration import calibration_curve

from experiments.evaluation import figures as ours
from experiments.evaluation.figures import Fitted, MapRows, classification, localisation
from experiments.evaluation.names import phrase, split_key
from experiments.evaluation.store import load_maps, read_images, save_maps

NAN = math.nan
PARTS = ["elbow", "hand"]
EVEN = Fitted(0.5, 0.5, 1.0)


def draw(images=90, seed=0, hardware=True):
    """Views of studies of patients; hardware among the abnormal images."""
    rng = np.random.default_rng(seed)
    study = np.sort(rng.integers(0, 40, images))
    label = rng.integers(0, 2, 40)[study]
    shown = np.where(label == 1, rng.integers(0, 2, images), 0)
    names = {"path": "{}.png", "patient": "{:03d}", "study": "s{}"}
    numbers = {"path": range(images), "patient": study // 2, "study": study}
    table = {name: [text.format(n) for n in numbers[name]] for name, text in names.items()}
    return (
        pd.DataFrame(table)
        .assign(body_part=np.array(PARTS)[study % 2], label=label)
        .assign(lesion_type=np.where(label == 1, "lytic", ""), hardware=shown if hardware else -1)
        .assign(probability=expit(2 * (label - 0.5) + 1.5 * rng.normal(size=images)).round(3))
        .sample(frac=1, random_state=seed, ignore_index=True)
    )


def values(figures, images):
    return {name: figure(np.ones((1, images)))[0] for name, figure in figures.items()}


def classified(table, fitted):
    return values(classification(table, fitted), len(table))


def reference(rows, threshold):
    called = (rows.probability > threshold).astype(int)
    return {
        "auroc": metrics.roc_auc_score(rows.label, rows.probability),
        "accuracy": (called == rows.label).mean(),
        "balanced_accuracy": metrics.balanced_accuracy_score(rows.label, called),
        "sensitivity": metrics.recall_score(rows.label, called),
        "specificity": metrics.recall_score(1 - rows.label, 1 - called),
        "kappa": metrics.cohen_kappa_score(rows.label, called),
    }


def test_figures_of_images_and_studies_equal_scikit_learns():
    table = draw()
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
    figures = classified(table, Fitted(0.4, 0.55, 2.0))
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    # All images with hardware are abnormal here: one class.
    assert math.isnan(figures["auroc/hardware"])
    with_hardware = table[table.hardware == 1]
    assert figures["sensitivity/hardware"] == (with_hardware.probability > 0.4).mean()
    assert not [name for name in classified(draw(hardware=False), EVEN) if "hard" in name]
    with pytest.raises(ValueError, match="study s.* is of several patients"):
        ours.studies(table.assign(patient=table.path))


def test_the_operating_point_is_youdens():
    # Above 0.35: both abnormal, one normal of three. No other cut is as good.
    assert ours.youden([0.1, 0.3, 0.4, 0.5, 0.6], [0, 0, 1, 0, 1]) == pytest.approx(0.35)
    # as good as 0.3, and nearer to 0.5
    assert ours.youden([0.2, 0.4, 0.4, 0.9], [0, 0, 1, 1]) == pytest.approx(0.65)
    assert ours.youden([0.3, 0.3], [0, 1]) == ours.youden([0.3, 0.6], [1, 1]) == 0.5


def test_the_temperature_of_known_overconfidence_is_recovered():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=20000)
    label = rng.random(20000) < expit(logits)
    for temperature in (0.5, 3.0):
        probability = expit(logits * temperature)
        assert ours.fit_temperature(probability, label) == pytest.approx(temperature, rel=0.05)
    assert np.isfinite(ours.fit_temperature([0.0, 1.0, 1.0, 1.0], [0, 1, 1, 0]))
    # Right throughout, or worse than chance: the likeliest is at no end of the range.
    assert {ours.fit_temperature([0.4, 0.6], [k, 1 - k]) for k in (0, 1)} == {1.0}


def test_calibration_known_answer_and_curve():
    # bins of 1/15: 0.90 and 0.93 in one (2 images, mean .915, 1 abnormal), 0.1 and 1.0 alone
    table = draw(4).assign(probability=[0.9, 0.93, 0.1, 1.0], label=[1, 0, 0, 1])
    assert classified(table, EVEN)["ece"] == pytest.approx((2 * abs(0.915 - 0.5) + 0.1 + 0.0) / 4)
    table = draw()
    table.probability = (table.probability + 0.0004).clip(0, 1)  # none on the edge of a bin
    curve = ours.reliability(table.probability, table.label, bins=10)
    filled = curve[curve.images > 0]
    share, probability = calibration_curve(table.label, table.probability, n_bins=10)
    assert filled.abnormal.tolist() == pytest.approx(share.tolist())
    assert filled.probability.tolist() == pytest.approx(probability.tolist())
    assert curve.images.sum() == len(table)
    certain = 1 / (1 + (1 / table.probability - 1) ** 2)  # all logits times 2
    figures = [classified(table.assign(probability=p), EVEN) for p in (certain, table.probability)]
    scaled = classified(table.assign(probability=certain), Fitted(0.5, 0.5, 2.0))
    assert scaled["ece_scaled"] == pytest.approx(figures[1]["ece"]) != figures[0]["ece"]


def judged(images=24):
    """A table of maps ``m`` of eight pixels, four of them lesion, and what is kept of them."""
    rng = np.random.default_rng(0)
    masked = np.arange(images) % 3 > 0
    level = rng.integers(0, 256, (images, 8))
    pixels = np.stack([np.bincount(one, minlength=256) for one in level])
    lesion = np.stack([np.bincount(one, minlength=256) for one in level[:, :4]])
    keep = masked[:, None]
    rows = MapRows(lesion * keep, pixels * keep, np.where(keep, rng.random((images, 255)), NAN))
    table = draw(images).assign(
        label=masked.astype(int),
        lesion_type=np.where(masked & (np.arange(images) % 4 > 0), "lytic", ""),
        lesion_area=np.where(masked, rng.choice([0.005, 0.02, 0.3], images), NAN),
        m_area=np.where(np.arange(images) == 3, 0.0, 0.1),
    )
    for name in ("hit", "distance", "iou", "iou_otsu", "dice", "energy"):
        table[f"m_{name}"] = np.where(masked, rng.random(images).round(2), NAN)
    return table, rows, level


def test_figures_of_maps_equal_slow_ones():
    table, rows, level = judged()
    masked = table.lesion_area.notna().to_numpy()
    truth = np.tile(np.arange(8) < 4, (24, 1))
    figures = values(localisation(table, "m", rows), 24)
    for name in ("hit", "iou", "iou_otsu", "dice", "energy"):
        assert figures[f"m/{name}"] == pytest.approx(table[f"m_{name}"].mean())
    assert figures["m/hit_near"] == (table.m_distance[masked] <= ours.TOLERANCE).mean()
    assert figures["m/shown_normal"] == 1 - 1 / (~masked).sum()  # one stays dark
    assert figures["m/shown_abnormal"] == 1
    claims = level[masked, None] >= np.arange(256)[:, None]
    both, either = (claims & truth[0]).sum(-1), (claims | truth[0]).sum(-1)
    assert ours.iou_curves(rows)[masked] == pytest.approx(both / either)
    assert np.isnan(ours.iou_curves(rows)[~masked]).all()
    assert figures["m/iou_bound"] == pytest.approx((both / either).mean(axis=0)[1:].max())
    boxes = [(rows.box_iou[masked] >= at).mean(axis=0).max() for at in (0.3, 0.5, 0.7)]
    assert figures["m/box_bound"] == pytest.approx(np.mean(boxes), abs=1e-6)
    places = ours.groups(table)
    assert set(places) == {*PARTS, "lytic", "small", "medium", "large"}
    for group, rows_of in {"": np.flatnonzero(masked), **places}.items():
        slow = metrics.average_precision_score(truth[rows_of].ravel(), level[rows_of].ravel())
        means = {"hit": table.m_hit[rows_of].mean(), "iou": table.m_iou[rows_of].mean()}
        for name, expected in {**means, "pixel_ap": slow}.items():
            key = f"m/{name}/{group}".rstrip("/")
            assert figures[key] == pytest.approx(expected), key
    dark = localisation(table.assign(m_area=NAN), "m", rows)  # no threshold: nobody knows
    assert math.isnan(values(dark, 24)["m/shown_normal"])


def test_groups_called_alike_are_told_apart():
    table = pd.DataFrame(
        {
            "body_part": ["elbow", "elbow", "hand", "small", "hand"],
            "lesion_type": ["large", "lytic", "elbow", "large", ""],
            "lesion_area": [0.0099, 0.01, 0.0399, 0.04, NAN],
        }
    )
    assert {name: rows.tolist() for name, rows in ours.groups(table).items()} == {
        **{"elbow": [0, 1], "hand": [2], "body_part/small": [3]},
        **{"lesion_type/elbow": [2], "lesion_type/large": [0, 3], "lytic": [1]},
        **{"small": [0], "medium": [1, 2], "large": [3]},
    }


def test_every_figure_has_a_name():
    table, rows, _ = judged()
    table = table.assign(masked_probability=0.6, swapped_masked_probability=0.4)
    figures = values(ours.all_figures(table, {"m": rows}, ours.fit(table)), 24)
    assert figures["masked_accuracy"] == pytest.approx(table.label.mean())
    assert figures["swapped_masked_accuracy"] == pytest.approx(1 - table.label.mean())
    assert figures["swapped_masked_abnormal"] == 0
    for key in figures:
        assert "/".join(filter(None, split_key(key))) == key
        assert "_" not in phrase(key)


def test_tables_and_maps_are_read_as_they_were_written(tmp_path):
    table, rows, _ = judged()
    table = table.replace({"patient": {"003": "NA"}})
    table.to_csv(tmp_path / "images.csv", index=False)
    save_maps(tmp_path / "maps.npz", table, {"m": rows})
    read = read_images(tmp_path / "images.csv")
    assert read.patient.tolist() == table.patient.tolist()  # 007 is no number
    assert set(read.lesion_type) == {"", "lytic"}
    for one, other in zip(load_maps(tmp_path / "maps.npz", read)["m"], rows, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="maps.npz is of other images than the table"):
        load_maps(tmp_path / "maps.npz", table[::-1])
