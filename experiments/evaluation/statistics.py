"""Intervals and paired differences of figures, by resampling patients; NumPy only, no network.

A figure (:mod:`experiments.evaluation.weighted`) is a function of the images' weights: all 1 give
that of the data, the counts of a resample that of the resample. Intervals are 95 % percentile
bootstraps over patients, who are drawn with all their images: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# From weights (R, N), a row a resample and a column an image, to (R,) values; NaN: undefined.
Figure = Callable[[np.ndarray], np.ndarray]

RESAMPLES = 2000
CONFIDENCE = 0.95
# Weights at once, 8 bytes each: larger blocks leave the processor's cache and gain nothing.
BLOCK = 500_000
# Patients that a figure must rest on to have an interval, as `carriers` estimates them: two.
FEWEST = 1.5


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


def patient_weights(
    patient: Sequence[Any] | np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """How often each image is drawn in each resample of the patients, uint16 ``(R, N)``.

    The same patients in the same order give the same resamples.

    Example:
        >>> patient_weights(["a", "b", "b", "c"], resamples=3)
        array([[1, 1, 1, 1],
               [0, 0, 0, 3],
               [2, 1, 1, 0]], dtype=uint16)
    """
    values = np.asarray(patient, dtype=object)
    if not len(values):
        raise ValueError("there is no image to draw")
    if any(value is None or value != value or value == "" for value in values):
        raise ValueError("an image has no patient: images of one patient must stay together")
    names, code = np.unique(values.astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts.astype(np.uint16)[:, code]


def estimate(figure: Figure, weights: np.ndarray) -> Estimate:
    """A figure of the data with its 95 % interval, on the resamples of :func:`patient_weights`.

    Example:
        >>> from experiments.evaluation.weighted import mean
        >>> hits = [1.0, 0.0, 1.0, 1.0, float("nan")]
        >>> estimate(mean(hits), patient_weights(["a", "b", "c", "d", "e"]))
        Estimate(value=0.75, low=0.25, high=1.0, undefined=0.0)
    """
    value, resampled = _resample(figure, weights)
    return Estimate(value, *_interval(value, resampled, weights))


def estimates(figures: Mapping[str, Figure], weights: np.ndarray) -> dict[str, Estimate]:
    """:func:`estimate` of several figures on the same resamples."""
    return {name: estimate(figure, weights) for name, figure in figures.items()}


def difference(figure: Figure, other: Figure, weights: np.ndarray) -> Difference:
    """``figure`` less ``other`` on the same resamples of the same images, with its p-value.

    p is twice the smaller share of resamples on one side of 0, one counted more on each side
    (Davison & Hinkley 1997, chapter 4).
    """
    value, resampled = _resample(lambda rows: figure(rows) - other(rows), weights)
    low, high, undefined = _interval(value, resampled, weights)
    defined = resampled[~np.isnan(resampled)]
    p = float("nan")
    if low == low:
        tails = [1 + np.count_nonzero(defined <= 0), 1 + np.count_nonzero(defined >= 0)]
        # Of k patients all on one side, were there no difference: no p-value is smaller.
        one_sided = 2.0 ** (1 - carriers(undefined, weights))
        p = min(1.0, max(2.0 * float(min(tails)) / (len(defined) + 1), one_sided))
    return Difference(value, low, high, undefined, p)


def carriers(undefined: float, weights: np.ndarray) -> float:
    """How many patients a figure rests on: of n, a resample misses k with chance (1 - k / n)^n."""
    if not len(weights):
        return 0.0
    # Images of a patient have the same weights; integers, so that equal ones add up equally.
    counts = weights[:64].astype(np.int64)
    factors = np.random.default_rng(0).integers(1, 2**32, len(counts))
    patients = len(np.unique(factors @ counts))
    return float(patients * (1 - undefined ** (1 / patients)))


def enough(comparisons: int) -> int:
    """Resamples with which the smallest p-value of so many comparisons stays below 0.05 by Holm."""
    return max(RESAMPLES, 100 * comparisons)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values (Holm 1979); NaN stays NaN and does not count."""
    values = np.asarray(p, dtype=np.float64)
    corrected = np.full(len(values), np.nan)
    defined = np.flatnonzero(~np.isnan(values))
    order = defined[np.argsort(values[defined], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return corrected


def _resample(figure: Figure, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The figure of the data and of each resample."""
    images = weights.shape[1]
    value = float(figure(np.ones((1, images)))[0])
    if np.isnan(value):
        return value, np.full(len(weights), np.nan)
    rows = max(1, BLOCK // images)
    blocks = [weights[start : start + rows] for start in range(0, len(weights), rows)]
    values = [figure(block.astype(np.float64)) for block in blocks]
    return value, np.concatenate(values) if values else np.empty(0)


def _interval(
    value: float, resampled: np.ndarray, weights: np.ndarray
) -> tuple[float, float, float]:
    undefined = float(np.isnan(resampled).mean()) if len(resampled) else 1.0
    if np.isnan(value) or undefined == 1 or carriers(undefined, weights) < FEWEST:
        return float("nan"), float("nan"), undefined
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return float(low), float(high), undefined
