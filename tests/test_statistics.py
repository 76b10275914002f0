"""Intervals, differences and corrections: known answers, plain loops, simulated coverage."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score

from experiments.evaluation import weighted
from experiments.evaluation.statistics import (
    difference,
    enough,
    estimate,
    estimates,
    holm,
    mean_of,
    patient_weights,
)


def table(images=120, patients=40, seed=0):
    """Images with ties in the probability, some with a lesion, of patients with 1 to many."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, images)
    return pd.DataFrame(
        {
            "patient": [f"p{number}" for number in rng.integers(0, patients, images)],
            "label": label,
            "probability": np.clip(
                0.5 + 0.3 * (label - 0.5) + 0.3 * rng.normal(size=images), 0, 1
            ).round(2),
            "hit": np.where(label == 1, rng.integers(0, 2, images), np.nan),
        }
    )


def histograms(images=120, levels=8, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 9, (images, levels)) + 1
    lesion = np.minimum(pixels, rng.integers(0, 4, (images, levels)) + np.arange(levels) // 3)
    return lesion, pixels


def slow_ece(rows, bins=15):
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = (rows.probability >= low) & (rows.probability < high)
        inside |= (number == bins - 1) & (rows.probability == 1)
        if inside.any():
            gap = rows.probability[inside].mean() - rows.label[inside].mean()
            total += inside.sum() / len(rows) * abs(gap)
    return total


def slow_ap(lesion, pixels):
    """scikit-learn's, of every pixel of every image by itself."""
    target, score, weight = [], [], []
    for image_lesion, image_pixels in zip(lesion, pixels, strict=True):
        for level, (inside, all_pixels) in enumerate(zip(image_lesion, image_pixels, strict=True)):
            target += [1] * inside + [0] * (all_pixels - inside)
            score += [level] * all_pixels
            weight += [1 / image_pixels.sum()] * all_pixels
    return average_precision_score(target, score, sample_weight=weight)


def repeated(rows, count):
    """Rows as often as they were drawn."""
    return rows.loc[rows.index.repeat(count)]


def test_all_images_of_a_patient_are_drawn_together_and_patients_evenly():
    patients = ["b", "a", "b", "c", "a", "b"]
    weights = patient_weights(patients, resamples=4000)
    assert weights.shape == (4000, 6)
    assert (weights[:, [0, 0, 1]] == weights[:, [2, 5, 4]]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(6), abs=0.05)
    # multinomial: 3 draws of 3, variance 3 * 1/3 * 2/3
    assert weights[:, 0].var() == pytest.approx(2 / 3, abs=0.05)


def test_the_seed_decides_the_resamples():
    patients = [f"p{number}" for number in range(30)]
    assert (patient_weights(patients, 50, seed=1) == patient_weights(patients, 50, seed=1)).all()
    assert (patient_weights(patients, 50, seed=1) != patient_weights(patients, 50, seed=2)).any()


@pytest.mark.parametrize("patients", [["a", None], ["a", float("nan")], ["a", ""]])
def test_images_without_patient_are_refused(patients):
    with pytest.raises(ValueError, match="an image has no patient"):
        patient_weights(patients)
    with pytest.raises(ValueError, match="there is no image"):
        patient_weights([])


def test_figures_of_resamples_equal_those_of_repeated_rows():
    rows, (lesion, pixels) = table(), histograms()
    weights = patient_weights(rows.patient, resamples=25, seed=3)
    decision = (rows.probability > 0.5).astype(int)
    curves = np.random.default_rng(1).random((len(rows), 6))
    curves[5] = np.nan
    box_curves = np.nan_to_num(curves).astype(np.float32)
    best = np.nanmean(curves, axis=0).argmax()
    abnormal = (rows.label == 1).to_numpy()
    figures = {
        "hit": (weighted.mean(rows.hit), lambda r: r.hit.mean()),
        "auroc": (
            weighted.auroc(rows.probability, rows.label),
            lambda r: roc_auc_score(r.label, r.probability),
        ),
        "kappa": (
            weighted.kappa(decision, rows.label),
            lambda r: cohen_kappa_score(r.label, (r.probability > 0.5).astype(int)),
        ),
        "ece": (weighted.calibration_error(rows.probability, rows.label), slow_ece),
        "ap": (
            weighted.pixel_average_precision(lesion, pixels),
            lambda r: slow_ap(lesion[r.index], pixels[r.index]),
        ),
        "bound": (
            weighted.best_mean(curves),
            lambda r: np.nanmean(curves[r.index][:, best]),
        ),
        "sensitivity": (
            weighted.among(abnormal, weighted.mean(decision[abnormal])),
            lambda r: (r.probability[r.label == 1] > 0.5).mean(),
        ),
    }
    for name, (figure, slow) in figures.items():
        expected = [slow(repeated(rows, count)) for count in weights]
        assert figure(weights.astype(float)) == pytest.approx(expected, abs=1e-9), name
        assert figure(np.ones((1, len(rows))))[0] == pytest.approx(slow(rows)), name
    boxes = weighted.max_box_accuracy(box_curves)(np.ones((1, len(rows))))[0]
    assert boxes == pytest.approx(
        np.mean([(box_curves >= overlap).mean(axis=0).max() for overlap in (0.3, 0.5, 0.7)])
    )


def test_the_interval_is_that_of_a_loop_over_resamples():
    rows = table()
    weights = patient_weights(rows.patient, resamples=200, seed=1)
    values = [
        roc_auc_score(drawn.label, drawn.probability)
        for drawn in (repeated(rows, count) for count in weights)
    ]
    result = estimate(weighted.auroc(rows.probability, rows.label), weights)
    assert result.value == pytest.approx(roc_auc_score(rows.label, rows.probability))
    assert [result.low, result.high] == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert result.undefined == 0


def test_blocks_of_resamples_change_nothing(monkeypatch):
    rows = table()
    weights = patient_weights(rows.patient, resamples=101)
    figure = weighted.auroc(rows.probability, rows.label)
    whole = estimate(figure, weights)
    monkeypatch.setattr("experiments.evaluation.statistics.BLOCK", 7 * len(rows))
    assert estimate(figure, weights) == pytest.approx(whole)


def test_the_interval_of_a_mean_is_near_the_normal_one():
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    result = estimate(weighted.mean(values), patient_weights(range(400), 4000))
    error = values.std() / 20
    assert result.value == pytest.approx(values.mean())
    assert result.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert result.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_intervals_cover_the_truth_only_if_patients_stay_together():
    rng = np.random.default_rng(2)
    covered = {"patients": 0, "images": 0}
    trials, patients, views = 200, 60, 5
    for trial in range(trials):
        # Views of a patient share most of what decides; the true mean is 0.
        values = np.repeat(rng.normal(size=patients), views) + 0.3 * rng.normal(
            size=patients * views
        )
        owner = np.repeat(np.arange(patients), views)
        for name, units in (("patients", owner), ("images", np.arange(len(values)))):
            result = estimate(weighted.mean(values), patient_weights(units, 400, seed=trial))
            covered[name] += result.low <= 0 <= result.high
    assert 0.90 <= covered["patients"] / trials <= 0.985
    assert covered["images"] / trials < 0.75


def test_without_a_difference_small_p_values_are_as_rare_as_they_should_be():
    rng = np.random.default_rng(4)
    p = []
    for trial in range(200):
        first, second = rng.normal(size=(2, 80))
        weights = patient_weights(range(80), 400, seed=trial)
        p.append(difference(weighted.mean(first), weighted.mean(second), weights).p)
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.10
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_p_and_interval_say_the_same():
    rng = np.random.default_rng(5)
    for trial in range(60):
        values = rng.normal(loc=0.2, size=(2, 60)) + np.array([[0.15], [-0.15]])
        weights = patient_weights(range(60), 999, seed=trial)
        result = difference(weighted.mean(values[0]), weighted.mean(values[1]), weights)
        if abs(result.p - 0.05) > 0.01:
            assert (result.p < 0.05) == (not result.low <= 0 <= result.high)


def test_differences_are_paired():
    rng = np.random.default_rng(6)
    hard = rng.normal(size=200)  # what makes an image hard is hard for both
    first, second = hard + 0.1, hard
    weights = patient_weights(range(200), 500)
    result = difference(weighted.mean(first), weighted.mean(second), weights)
    assert [result.value, result.low, result.high] == pytest.approx([0.1] * 3)
    assert result.p == pytest.approx(2 / 501)
    reverse = difference(weighted.mean(second), weighted.mean(first), weights)
    assert reverse.value == pytest.approx(-0.1)
    assert reverse.p == result.p


def test_equal_methods_differ_by_nothing():
    rows = table()
    figure = weighted.mean(rows.hit)
    result = difference(figure, weighted.mean(rows.hit), patient_weights(rows.patient, 99))
    assert result == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_seeds_are_joined_within_each_resample():
    rows = table()
    seeds = [weighted.mean(rows.hit), weighted.mean(1 - rows.hit)]
    weights = patient_weights(rows.patient, 99)
    assert list(estimate(mean_of(seeds), weights)) == pytest.approx([0.5, 0.5, 0.5, 0.0])
    alone = estimate(mean_of(seeds[:1]), weights)
    assert alone == estimate(seeds[0], weights)
    with pytest.raises(ValueError, match="no figure to take the mean of"):
        mean_of([])


def test_undefined_resamples_are_left_out_and_their_share_told():
    # Two patients of four are abnormal: a resample without both, or of them alone, has no AUROC.
    weights = patient_weights(["a", "b", "c", "d"], resamples=5000, seed=1)
    figure = weighted.auroc([0.9, 0.8, 0.2, 0.3], [1, 1, 0, 0])
    result = estimate(figure, weights)
    assert result.undefined == pytest.approx(2 * (1 / 2) ** 4, abs=0.02)
    assert result[:3] == (1.0, 1.0, 1.0)
    drawn = figure(weights.astype(float))
    one_class = (weights[:, :2] == 0).all(axis=1) | (weights[:, 2:] == 0).all(axis=1)
    assert (np.isnan(drawn) == one_class).all()


@pytest.mark.parametrize("patients", [2, 3, 40])
def test_what_rests_on_one_patient_has_no_interval(patients):
    """All images with a lesion, or all normal ones, are hers."""
    names = np.repeat(np.arange(patients), 3)
    weights = patient_weights(names)
    lesion = np.where(names == 0, [1.0, 0.0, 1.0] * patients, np.nan)
    hit, other = weighted.mean(lesion), weighted.mean(lesion - 0.5)
    auroc = weighted.auroc(np.linspace(0, 1, len(names)), names > 0)
    for result in (estimate(hit, weights), estimate(auroc, weights)):
        assert not math.isnan(result.value)
        assert math.isnan(result.low)
        assert math.isnan(result.high)
    assert math.isnan(difference(hit, other, weights).p)


@pytest.mark.parametrize("carry", [2, 3, 5])
@pytest.mark.parametrize("patients", [5, 40])
def test_few_patients_cannot_make_a_p_value_small(carry, patients):
    values = np.where(np.arange(patients) < carry, 1.0, np.nan)
    result = difference(
        weighted.mean(values), weighted.mean(values - 1), patient_weights(range(patients))
    )
    assert not math.isnan(result.low)
    assert result.p == pytest.approx(0.5 ** (carry - 1), rel=0.35)


def test_many_comparisons_draw_more_resamples():
    assert enough(8) == 2000
    smallest = 2 / (enough(70) + 1)
    assert holm([smallest] * 70)[0] < 0.05


def test_undefined_figures_have_no_interval():
    weights = patient_weights(["a", "b", "c"], 50)
    for figure in (
        weighted.mean([math.nan] * 3),
        weighted.auroc([0.1, 0.2, 0.3], [1, 1, 1]),
        weighted.kappa([0, 1, 1], [0, 0, 0]),
        weighted.pixel_average_precision(np.zeros((3, 4)), np.ones((3, 4))),
        weighted.best_mean(np.full((3, 4), math.nan)),
        weighted.among([], weighted.mean([])),
        weighted.among([], weighted.auroc([], [])),
    ):
        result = estimate(figure, weights)
        assert all(math.isnan(number) for number in result[:3])
        assert result.undefined == 1
        assert math.isnan(difference(figure, figure, weights).p)


def test_one_patient_has_a_value_and_no_interval():
    result = estimate(weighted.mean([1.0, 0.0]), patient_weights(["a", "a"], 20))
    assert result.value == 0.5
    assert math.isnan(result.low)
    assert math.isnan(result.high)


def test_images_without_pixels_do_not_count_in_pixel_ap():
    lesion, pixels = histograms(5)
    padded = weighted.pixel_average_precision(
        np.vstack([lesion, np.zeros((2, 8), dtype=int)]),
        np.vstack([pixels, np.zeros((2, 8), dtype=int)]),
    )
    assert padded(np.ones((1, 7)))[0] == pytest.approx(slow_ap(lesion, pixels))


def test_an_upper_bound_lies_in_its_interval():
    rng = np.random.default_rng(7)
    curves = rng.random((300, 256))  # every threshold is as good: the best one is chance
    result = estimate(weighted.best_mean(curves), patient_weights(range(300), 300))
    assert result.low < result.value < result.high


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, never less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([]).tolist() == []
    with_nan = holm([0.01, math.nan, 0.02])
    assert with_nan[[0, 2]] == pytest.approx([0.02, 0.02])
    assert math.isnan(with_nan[1])


def test_estimates_share_the_resamples():
    rows = table()
    weights = patient_weights(rows.patient, 50)
    figure = weighted.mean(rows.hit)
    result = estimates({"one": figure, "other": weighted.mean(rows.hit + 1)}, weights)
    assert result["one"] == estimate(figure, weights)
    assert result["other"].low == pytest.approx(result["one"].low + 1)
