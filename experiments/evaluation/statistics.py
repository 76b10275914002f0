"""Figures as functions of the images' weights, and their intervals by resampling patients.

Of N images, weights of 1 give the figure of the data, the counts of a resample that of the
resample. Intervals are 95 % percentile bootstraps over patients: docs/evaluation.md.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike as Column

# From weights (R, N), a row a resample and a column an image, to (R,) values; NaN: undefined.
Figure = Callable[[np.ndarray], np.ndarray]

RESAMPLES = 2000
CONFIDENCE = 0.95
# Weights at once, 8 bytes each: larger blocks leave the processor's cache and gain nothing.
BLOCK = 500_000
# Patients that a figure must rest on to have an interval, as `carriers` estimates them: two.
FEWEST = 1.5
OVERLAPS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2


class Estimate(NamedTuple):
    """A figure, its interval, and the share of resamples in which it was undefined."""

    value: float
    low: float
    high: float
    undefined: float


class Difference(NamedTuple):
    """A paired difference: as :class:`Estimate`, with its two-sided p-value."""

    value: float
    low: float
    high: float
    undefined: float
    p: float


def patient_weights(patient: Column, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each image is drawn in each resample of the patients, uint16 ``(R, N)``."""
    names, code = np.unique(np.asarray(patient, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts.astype(np.uint16)[:, code]


def estimate(figure: Figure, weights: np.ndarray) -> Estimate:
    """A figure of the data with its 95 % interval, on the resamples of :func:`patient_weights`."""
    return _resample(figure, weights)[0]


def difference(figure: Figure, other: Figure, weights: np.ndarray) -> Difference:
    """``figure`` less ``other`` on the same resamples of the same images, with its p-value.

    p is twice the smaller share of resamples on one side of 0, one counted more on each side
    (Davison & Hinkley 1997, chapter 4).
    """
    result, resampled = _resample(lambda rows: figure(rows) - other(rows), weights)
    p = float("nan")
    if result.low == result.low:
        tails = [1 + np.count_nonzero(resampled <= 0), 1 + np.count_nonzero(resampled >= 0)]
        # The chance that k patients all fall on one side by themselves: p is hardly smaller.
        one_sided = 2.0 ** (1 - carriers(result.undefined, weights))
        defined = np.count_nonzero(~np.isnan(resampled))
        p = min(1.0, max(2.0 * float(min(tails)) / (defined + 1), one_sided))
    return Difference(*result, p)


def carriers(undefined: float, weights: np.ndarray) -> float:
    """How many patients a figure rests on: of n, a resample misses k with chance (1 - k / n)^n."""
    # Images of a patient have the same weights, and 64 resamples tell patients apart.
    patients = len({column.tobytes() for column in weights[:64].T})
    return float(patients * (1 - undefined ** (1 / patients)))


def holm(p: Column) -> np.ndarray:
    """Holm's step-down correction of p-values (Holm 1979); NaN stays NaN and does not count."""
    values = np.asarray(p, dtype=np.float64)
    corrected = np.full(len(values), np.nan)
    order = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]  # NaN last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return corrected


def mean(values: Column) -> Figure:
    """Weighted mean; NaN values are left out (images without a lesion mask, say)."""
    column = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(column)
    columns = np.stack([np.where(defined, column, 0.0), defined], axis=1)
    return lambda weights: _ratio(*(weights @ columns).T)


def mean_of(figures: Sequence[Figure]) -> Figure:
    """The mean of several figures within each resample, such as of seeds; NaN where one is."""
    return lambda weights: np.mean([figure(weights) for figure in figures], axis=0)


def among(rows: np.ndarray, figure: Figure) -> Figure:
    """A figure of the images at some positions; a study has the weights of any of its images."""
    return lambda weights: figure(weights[:, rows])


def auroc(score: Column, label: Column) -> Figure:
    """Area under the ROC curve; a tie counts one half (Mann-Whitney), NaN without both classes."""
    scores, positive = np.asarray(score, dtype=np.float64), np.asarray(label) == 1
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan))  # of equal scores
    is_positive = positive[order].astype(np.float64)

    def figure(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, order]
        above = np.add.reduceat(drawn * is_positive, starts, axis=1)
        below = np.add.reduceat(drawn, starts, axis=1) - above
        # Negatives below each score, and half of those that tie with it.
        beaten = below.cumsum(axis=1) - below / 2
        return _ratio((above * beaten).sum(axis=1), above.sum(axis=1) * below.sum(axis=1))

    return figure


def kappa(decision: Column, label: Column) -> Figure:
    """Cohen's kappa of decisions and labels (0 or 1); NaN where only one label has weight."""
    called, truth = np.asarray(decision) == 1, np.asarray(label) == 1
    columns = np.stack([called & truth, called, truth], axis=1).astype(np.float64)

    def figure(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)
        both, claimed, positive = (_ratio(sums, total) for sums in (weights @ columns).T)
        agreed = 1 - claimed - positive + 2 * both
        chance = claimed * positive + (1 - claimed) * (1 - positive)
        result = _ratio(agreed - chance, 1 - chance)
        return np.where((positive > 0) & (positive < 1), result, np.nan)

    return figure


def calibration_error(probability: Column, label: Column, bins: int = 15) -> Figure:
    """Expected calibration error (Guo et al. 2017) of the probability of abnormal."""
    values = np.asarray(probability, dtype=np.float64)
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    surplus = np.zeros((len(values), bins))
    surplus[np.arange(len(values)), place] = values - (np.asarray(label) == 1)
    return lambda weights: _ratio(np.abs(weights @ surplus).sum(axis=1), weights.sum(axis=1))


def pixel_average_precision(lesion_pixels: np.ndarray, pixels: np.ndarray) -> Figure:
    """Average precision over the pooled pixels; both ``(N, levels)`` of ``level_counts``."""
    counted = np.flatnonzero(pixels.any(axis=1))  # each image weighs the same, whatever its size
    size = pixels[counted].sum(axis=1, keepdims=True, dtype=np.float64)
    lesion_share = lesion_pixels[counted, ::-1] / size
    pixel_share = pixels[counted, ::-1] / size

    def figure(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, counted]
        gain = drawn @ lesion_share
        precision = _ratio(gain.cumsum(axis=1), (drawn @ pixel_share).cumsum(axis=1))
        return _ratio((np.nan_to_num(precision) * gain).sum(axis=1), gain.sum(axis=1))

    return figure


def best_mean(curves: np.ndarray) -> Figure:
    """Mean at the threshold that is best for all images of ``(N, thresholds)``: an upper bound."""
    # Fixed for all resamples: a maximum taken anew in each would grow with the noise.
    curves = np.asarray(curves, dtype=np.float64)
    defined = ~np.isnan(curves).any(axis=1)
    best = int(curves[defined].sum(axis=0).argmax())
    return mean(np.where(defined, curves[:, best], np.nan))


def max_box_accuracy(curves: np.ndarray) -> Figure:
    """MaxBoxAccV2 of ``box_iou_curve`` ``(N, 255)``: an upper bound, as :func:`best_mean`."""
    curves = np.asarray(curves, dtype=np.float32)
    right = [np.where(np.isnan(curves), np.nan, curves >= np.float32(at)) for at in OVERLAPS]
    return mean_of([best_mean(one) for one in right])


def _resample(figure: Figure, weights: np.ndarray) -> tuple[Estimate, np.ndarray]:
    """A figure with its interval, and its value in each resample."""
    images = weights.shape[1]
    value = float(figure(np.ones((1, images)))[0])
    if np.isnan(value):
        return Estimate(value, value, value, 1.0), np.full(len(weights), np.nan)
    rows = max(1, BLOCK // images)
    blocks = [weights[start : start + rows] for start in range(0, len(weights), rows)]
    resampled = np.concatenate([figure(block.astype(np.float64)) for block in blocks])
    undefined = float(np.isnan(resampled).mean())
    low = high = np.nan
    if carriers(undefined, weights) >= FEWEST:
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), undefined), resampled


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    defined = denominator != 0
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)
