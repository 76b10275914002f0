"""Intervals, differences and corrections: known answers, plain loops, simulated p-values."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.evaluation import statistics
from experiments.evaluation.statistics import difference, estimate, holm, mean, patient_weights

NAN = math.nan


def test_all_images_of_a_patient_are_drawn_together_and_patients_evenly():
    weights = patient_weights(["b", "a", "b", "c", "a", "b"], resamples=4000)
    assert (weights[:, [0, 0, 1]] == weights[:, [2, 5, 4]]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(6), abs=0.05)
    # multinomial: 3 draws of 3, variance 3 * 1/3 * 2/3
    assert weights[:, 0].var() == pytest.approx(2 / 3, abs=0.05)


def test_a_weight_stands_for_so_many_copies_of_an_image(monkeypatch):
    """Figures on weights, and their intervals, are those of a loop over the drawn images."""
    rng, images = np.random.default_rng(0), 120
    label, decision = rng.integers(0, 2, (2, images))
    probability = (0.35 + 0.3 * label + 0.3 * rng.normal(size=images)).clip(0, 1).round(2)  # ties
    hit = np.where(label == 1, decision, NAN)
    pixels = rng.integers(1, 10, (images, 8))
    pixels[7] = 0  # without a mask: it does not count in pixel AP
    lesion = np.minimum(pixels, rng.integers(0, 4, pixels.shape))
    recalls = np.where(label == [[0], [1]], decision == label, NAN)
    figures = {
        "mean": lambda rows: mean(hit[rows]),
        "auroc": lambda rows: statistics.auroc(probability[rows], label[rows]),
        "kappa": lambda rows: statistics.kappa(decision[rows], label[rows]),
        "ece": lambda rows: statistics.calibration_error(probability[rows], label[rows]),
        "ap": lambda rows: statistics.pixel_average_precision(lesion[rows], pixels[rows]),
        "recalls": lambda rows: statistics.mean_of([mean(one[rows]) for one in recalls]),
        "seeds": lambda rows: statistics.mean_of([mean(hit[rows]), mean(label[rows])]),
    }
    weights = patient_weights(rng.integers(0, 40, images), resamples=25)
    monkeypatch.setattr("experiments.evaluation.statistics.BLOCK", 7 * images)  # in blocks
    for name, build in figures.items():
        figure, drawn = build(np.arange(images)), [np.repeat(np.arange(images), w) for w in weights]
        expected = [build(rows)(np.ones((1, len(rows))))[0] for rows in drawn]
        assert figure(weights.astype(float)) == pytest.approx(expected, abs=1e-9), name
        low, high = np.percentile(expected, [2.5, 97.5])
        assert estimate(figure, weights)[1:] == pytest.approx((low, high, 0), abs=1e-9), name
    size = rng.integers(1, 9, (images, 1))  # each image weighs the same in pixel AP
    ap, enlarged = figures["ap"](slice(None)), (lesion * size, pixels * size)
    assert statistics.pixel_average_precision(*enlarged)(weights) == pytest.approx(ap(weights))
    curves = rng.random((images, 6))
    curves[5] = NAN
    best = np.nanmean(curves, axis=0).argmax()  # of the data, in every resample
    expected = [np.nanmean(curves[rows, best]) for rows in drawn]
    assert statistics.best_mean(curves)(weights.astype(float)) == pytest.approx(expected)


def test_without_a_difference_small_p_values_are_as_rare_as_they_should_be():
    rng = np.random.default_rng(4)
    p = []
    for trial in range(200):
        first, second = rng.normal(size=(2, 60))
        weights = patient_weights(range(60), 300, seed=trial)
        p.append(difference(mean(first), mean(second), weights).p)
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.10
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_differences_are_paired():
    hard = np.random.default_rng(6).normal(size=200)  # what makes an image hard is so for both
    first, second = mean(hard + 0.1), mean(hard)
    weights = patient_weights(range(200), 500)
    result, reverse = difference(first, second, weights), difference(second, first, weights)
    assert [result.value, result.low, result.high] == pytest.approx([0.1] * 3)
    assert result.p == reverse.p == pytest.approx(2 / 501)
    assert difference(first, mean(hard + 0.1), weights) == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_undefined_resamples_are_left_out_and_counted():
    # Two patients of four are abnormal: a resample without both, or of them alone, has no AUROC.
    weights = patient_weights(["a", "b", "c", "d"], resamples=5000, seed=1)
    result = estimate(statistics.auroc([0.9, 0.8, 0.2, 0.3], [1, 1, 0, 0]), weights)
    assert result == (1.0, 1.0, 1.0, pytest.approx(2 * (1 / 2) ** 4, abs=0.02))


@pytest.mark.parametrize("patients", [1, 2, 40])
def test_what_rests_on_one_patient_has_a_value_and_no_interval(patients):
    """All images with a lesion, or all normal ones, are hers."""
    names = np.repeat(np.arange(patients), 3)
    weights = patient_weights(names)
    lesion = np.where(names == 0, [1.0, 0.0, 1.0] * patients, NAN)
    figures = [mean(lesion), statistics.auroc(np.linspace(0, 1, len(names)), names > 0)]
    for result in (estimate(figure, weights) for figure in figures[: min(patients, 2)]):
        assert [math.isnan(value) for value in result[:3]] == [False, True, True]
    assert math.isnan(difference(figures[0], mean(lesion - 0.5), weights).p)


@pytest.mark.parametrize(("carry", "patients"), [(2, 5), (5, 5), (3, 40)])
def test_few_patients_cannot_make_a_p_value_small(carry, patients):
    values = np.where(np.arange(patients) < carry, 1.0, NAN)
    result = difference(mean(values), mean(values - 1), patient_weights(range(patients)))
    assert not math.isnan(result.low)
    assert result.p == pytest.approx(0.5 ** (carry - 1), rel=0.35)


def test_undefined_figures_have_no_interval():
    weights = patient_weights(["a", "b", "c"], 50)
    for figure in (
        mean([NAN] * 3),
        statistics.auroc([0.1, 0.2, 0.3], [1, 1, 1]),
        statistics.kappa([0, 1, 1], [0, 0, 0]),
        statistics.pixel_average_precision(np.zeros((3, 4)), np.ones((3, 4))),
        statistics.best_mean(np.full((3, 4), NAN)),
        statistics.among(np.array([], dtype=int), statistics.auroc([], [])),
        statistics.mean_of([mean([1.0] * 3), mean([NAN] * 3)]),
    ):
        assert estimate(figure, weights) == pytest.approx((NAN, NAN, NAN, 1), nan_ok=True)
        assert math.isnan(difference(figure, figure, weights).p)


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, never less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, NAN, 0.6]) == pytest.approx([1.0, NAN, 1.0], nan_ok=True)
