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
    patient_weights,
)

NAN = math.nan


def table(images=120, patients=40, seed=0):
    """Images with ties in the probability, some with a lesion, of patients with 1 to many."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, images)
    probability = 0.5 + 0.3 * (label - 0.5) + 0.3 * rng.normal(size=images)
    return pd.DataFrame(
        {
            "patient": [f"p{number}" for number in rng.integers(0, patients, images)],
            "label": label,
            "probability": np.clip(probability, 0, 1).round(2),
            "hit": np.where(label == 1, rng.integers(0, 2, images), NAN),
        }
    )


def histograms(images=120, levels=8):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 9, (images, levels)) + 1
    return np.minimum(pixels, rng.integers(0, 4, (images, levels)) + np.arange(levels) // 3), pixels


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


def slow_boxes(curves):
    shares = [[(curves[:, at] >= overlap).mean() for at in range(6)] for overlap in (0.3, 0.5, 0.7)]
    return np.mean([max(share) for share in shares])


def test_all_images_of_a_patient_are_drawn_together_and_patients_evenly():
    patients = ["b", "a", "b", "c", "a", "b"]
    weights = patient_weights(patients, resamples=4000)
    assert weights.shape == (4000, 6)
    assert (weights[:, [0, 0, 1]] == weights[:, [2, 5, 4]]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(6), abs=0.05)
    # multinomial: 3 draws of 3, variance 3 * 1/3 * 2/3
    assert weights[:, 0].var() == pytest.approx(2 / 3, abs=0.05)
    assert (patient_weights(patients, 50, seed=1) == patient_weights(patients, 50, seed=1)).all()
    assert (patient_weights(patients, 50, seed=1) != patient_weights(patients, 50, seed=2)).any()


@pytest.mark.parametrize("patients", [["a", None], ["a", NAN], ["a", ""], []])
def test_images_without_patient_are_refused(patients):
    with pytest.raises(ValueError, match="an image has no patient|there is no image"):
        patient_weights(patients)


def test_figures_of_resamples_equal_those_of_repeated_rows():
    rows, (lesion, pixels) = table(), histograms()
    lesion[7], pixels[7] = 0, 0  # without a mask: it does not count in pixel AP
    weights = patient_weights(rows.patient, resamples=25, seed=3)
    decision = (rows.probability > 0.5).astype(int)
    curves = np.random.default_rng(1).random((len(rows), 6))
    curves[5] = NAN
    best = np.nanmean(curves, axis=0).argmax()
    abnormal = np.flatnonzero(rows.label == 1)
    recalls = [
        weighted.mean(np.where(rows.label == kind, decision == kind, NAN)) for kind in (0, 1)
    ]
    masked = pixels.any(axis=1)
    figures = {
        "hit": (weighted.mean(rows.hit), lambda r: r.hit.mean()),
        "auroc": (
            weighted.auroc(rows.probability, rows.label),
            lambda r: roc_auc_score(r.label, r.probability),
        ),
        "kappa": (
            weighted.kappa(decision, rows.label),
            lambda r: cohen_kappa_score(r.label, decision[r.index]),
        ),
        "ece": (weighted.calibration_error(rows.probability, rows.label), slow_ece),
        "ap": (
            weighted.pixel_average_precision(lesion, pixels),
            lambda r: slow_ap(lesion[r.index][masked[r.index]], pixels[r.index][masked[r.index]]),
        ),
        "bound": (weighted.best_mean(curves), lambda r: np.nanmean(curves[r.index][:, best])),
        "sensitivity": (
            weighted.among(abnormal, weighted.mean(decision[abnormal])),
            lambda r: (r.probability[r.label == 1] > 0.5).mean(),
        ),
        "balanced": (
            weighted.mean_of_defined(recalls),
            lambda r: (decision[r.index] == r.label).groupby(r.label.to_numpy()).mean().mean(),
        ),
        "seeds": (weighted.mean_of([weighted.mean(rows.hit)] * 2), lambda r: r.hit.mean()),
    }
    for name, (figure, slow) in figures.items():
        expected = [slow(rows.loc[rows.index.repeat(count)]) for count in weights]
        assert figure(weights.astype(float)) == pytest.approx(expected, abs=1e-9), name
        assert figure(np.ones((1, len(rows))))[0] == pytest.approx(slow(rows)), name
    boxes = weighted.max_box_accuracy(curves)(np.ones((1, len(rows))))[0]
    assert boxes == pytest.approx(slow_boxes(np.delete(curves, 5, axis=0)))


def test_the_interval_is_that_of_a_loop_over_resamples(monkeypatch):
    rows = table()
    weights = patient_weights(rows.patient, resamples=200, seed=1)
    drawn = [rows.loc[rows.index.repeat(count)] for count in weights]
    values = [roc_auc_score(one.label, one.probability) for one in drawn]
    figure = weighted.auroc(rows.probability, rows.label)
    result = estimate(figure, weights)
    assert result.value == pytest.approx(roc_auc_score(rows.label, rows.probability))
    assert [result.low, result.high] == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert result.undefined == 0
    monkeypatch.setattr("experiments.evaluation.statistics.BLOCK", 7 * len(rows))
    assert estimate(figure, weights) == pytest.approx(result)  # blocks change nothing
    assert estimates({"auroc": figure}, weights) == {"auroc": pytest.approx(result)}


def test_intervals_cover_the_truth_only_if_patients_stay_together():
    rng = np.random.default_rng(2)
    covered = {"patients": 0, "images": 0}
    trials, patients, views = 200, 60, 5
    for trial in range(trials):
        # Views of a patient share most of what decides; the true mean is 0.
        values = np.repeat(rng.normal(size=patients), views)
        values += 0.3 * rng.normal(size=patients * views)
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


def test_differences_are_paired():
    hard = np.random.default_rng(6).normal(size=200)  # what makes an image hard is so for both
    first, second = weighted.mean(hard + 0.1), weighted.mean(hard)
    weights = patient_weights(range(200), 500)
    result = difference(first, second, weights)
    assert [result.value, result.low, result.high] == pytest.approx([0.1] * 3)
    assert result.p == pytest.approx(2 / 501)
    reverse = difference(second, first, weights)
    assert (reverse.value, reverse.p) == (pytest.approx(-0.1), result.p)
    assert difference(first, weighted.mean(hard + 0.1), weights) == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_undefined_resamples_are_left_out_and_their_share_told():
    # Two patients of four are abnormal: a resample without both, or of them alone, has no AUROC.
    weights = patient_weights(["a", "b", "c", "d"], resamples=5000, seed=1)
    figure = weighted.auroc([0.9, 0.8, 0.2, 0.3], [1, 1, 0, 0])
    result = estimate(figure, weights)
    assert result.undefined == pytest.approx(2 * (1 / 2) ** 4, abs=0.02)
    assert result[:3] == (1.0, 1.0, 1.0)
    one_class = (weights[:, :2] == 0).all(axis=1) | (weights[:, 2:] == 0).all(axis=1)
    assert (np.isnan(figure(weights.astype(float))) == one_class).all()


@pytest.mark.parametrize("patients", [1, 2, 3, 40])
def test_what_rests_on_one_patient_has_a_value_and_no_interval(patients):
    """All images with a lesion, or all normal ones, are hers."""
    names = np.repeat(np.arange(patients), 3)
    weights = patient_weights(names)
    lesion = np.where(names == 0, [1.0, 0.0, 1.0] * patients, NAN)
    hit, other = weighted.mean(lesion), weighted.mean(lesion - 0.5)
    figures = [hit, weighted.auroc(np.linspace(0, 1, len(names)), names > 0)][: min(patients, 2)]
    for result in (estimate(figure, weights) for figure in figures):
        assert [math.isnan(value) for value in result[:3]] == [False, True, True]
    assert math.isnan(difference(hit, other, weights).p)


@pytest.mark.parametrize("carry", [2, 3, 5])
@pytest.mark.parametrize("patients", [5, 40])
def test_few_patients_cannot_make_a_p_value_small(carry, patients):
    values = np.where(np.arange(patients) < carry, 1.0, NAN)
    figures = weighted.mean(values), weighted.mean(values - 1)
    result = difference(*figures, patient_weights(range(patients)))
    assert not math.isnan(result.low)
    assert result.p == pytest.approx(0.5 ** (carry - 1), rel=0.35)


@pytest.mark.parametrize(
    "figure",
    [
        weighted.mean([NAN] * 3),
        weighted.auroc([0.1, 0.2, 0.3], [1, 1, 1]),
        weighted.kappa([0, 1, 1], [0, 0, 0]),
        weighted.pixel_average_precision(np.zeros((3, 4)), np.ones((3, 4))),
        weighted.best_mean(np.full((3, 4), NAN)),
        weighted.among(np.array([], dtype=int), weighted.mean([])),
        weighted.among(np.array([], dtype=int), weighted.auroc([], [])),
        weighted.mean_of([weighted.mean([1.0] * 3), weighted.mean([NAN] * 3)]),
    ],
)
def test_undefined_figures_have_no_interval(figure):
    weights = patient_weights(["a", "b", "c"], 50)
    result = estimate(figure, weights)
    assert all(math.isnan(number) for number in result[:3])
    assert result.undefined == 1
    assert math.isnan(difference(figure, figure, weights).p)


def test_an_upper_bound_lies_in_its_interval():
    curves = np.random.default_rng(7).random((300, 256))  # as good each: the best one is chance
    result = estimate(weighted.best_mean(curves), patient_weights(range(300), 300))
    assert result.low < result.value < result.high


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, never less than the one before
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
        ([0.01, NAN, 0.02], [0.02, NAN, 0.02]),
    ],
)
def test_holm_by_hand(p, corrected):
    assert holm(p) == pytest.approx(corrected, nan_ok=True)


def test_many_comparisons_draw_more_resamples():
    assert enough(8) == 2000
    assert holm([2 / (enough(70) + 1)] * 70)[0] < 0.05
