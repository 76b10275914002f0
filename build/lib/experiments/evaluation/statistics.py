"""Intervals and paired differences of figures, by resampling patients; NumPy only, no network.

A *figure* (:mod:`experiments.evaluation.weighted`) is a function of weights, one an image: with all
weights 1 it is the figure of the data, with the weights of a resample that of the resample.

**Interval.** 95 % percentile bootstrap (Efron 1979) over patients: a resample draws as many
patients as there are, with replacement, and takes all images of each (cluster bootstrap): views of
one patient are no independent evidence. Thresholds, temperature and all else that was fitted stay
as they are.

**Difference.** Both figures on the same resamples of the same images (paired). The two-sided
p-value is twice the smaller share of resamples in which the difference is at most, or at least, 0,
counting one resample more on each side (Davison & Hinkley 1997, chapter 4): at least
2 / (resamples + 1), so that m comparisons need more than 40 m resamples (:func:`enough`). Of k
patients all on one side the chance of just that, were there no difference, is 2^(1 - k): no p-value
is smaller. Of several comparisons p-values are corrected by :func:`holm`.

**Few patients.** How many carry a figure is told by how often a resample misses them all: of n, it
misses k with chance (1 - k / n)^n. A figure that rests on one patient (of the one class, of those
with a lesion) has no interval. From two on it has, but a percentile interval is too narrow: with
no difference at all, means of k normal values are called different at 0.05 never with up to 5 (by
2^(1 - k)), in 14 % of draws with 6, in 11 % with 8 and in 8 % with 10 to 30.

**Seeds.** Runs that differ in the seed are joined by the mean of their figures within each resample
(:func:`mean_of`): the interval is that of the mean of these runs over other patients. It does not
hold the spread over seeds, which three runs cannot tell: print the runs beside it.

**NaN.** A figure undefined in a resample (a class or a lesion is missing) leaves that resample out;
``undefined`` is the share left out. A figure undefined on the data itself is NaN, with no interval.
A mean over seeds is undefined where one is.

**At the limit.** Where all images are right, so are all resamples: the interval has no width, which
says nothing of how sure the figure is. Of n patients, all right, up to 3 / n may be wrong (the rule
of three).
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


# Patients, as `carriers` estimates them: between one and two.
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
    """How often each image is drawn in each resample of the patients.

    Args:
        patient: The patient of each image, ``(N,)``.
        resamples: Number of resamples R.
        seed: Draws them; the same patients in the same order give the same resamples.

    Returns:
        uint16 ``(R, N)``: multinomial counts, equal for all images of a patient.

    Raises:
        ValueError: If an image has no patient, or there is no image.

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
    """A figure of the data with its 95 % interval.

    Args:
        figure: Function of weights.
        weights: Of :func:`patient_weights`.

    Example:
        >>> from experiments.evaluation.weighted import mean
        >>> hits = [1.0, 0.0, 1.0, 1.0, float("nan")]
        >>> estimate(mean(hits), patient_weights(["a", "b", "c", "d", "e"]))
        Estimate(value=0.75, low=0.25, high=1.0, undefined=0.0)
    """
    value, drawn = _draw(figure, weights)
    return Estimate(value, *_interval(value, drawn, weights))


def estimates(figures: Mapping[str, Figure], weights: np.ndarray) -> dict[str, Estimate]:
    """:func:`estimate` of several figures on the same resamples."""
    return {name: estimate(figure, weights) for name, figure in figures.items()}


def difference(figure: Figure, other: Figure, weights: np.ndarray) -> Difference:
    """``figure`` less ``other`` on the same images, with interval and p-value.

    Args:
        figure: Function of weights of the images.
        other: Another one of the same images in the same order.
        weights: Of :func:`patient_weights`.

    Example:
        >>> from experiments.evaluation.weighted import mean
        >>> first, second = mean([1.0, 1.0, 1.0, 0.0] * 9), mean([0.0, 0.0, 1.0, 0.0] * 9)
        >>> result = difference(first, second, patient_weights(range(36)))
        >>> [round(number, 3) for number in result]
        [0.5, 0.333, 0.667, 0.0, 0.001]
    """

    def paired(drawn: np.ndarray) -> np.ndarray:
        return figure(drawn) - other(drawn)

    value, drawn = _draw(paired, weights)
    low, high, undefined = _interval(value, drawn, weights)
    known = drawn[~np.isnan(drawn)]
    p = float("nan")
    if low == low:
        tails = [1 + np.count_nonzero(known <= 0), 1 + np.count_nonzero(known >= 0)]
        one_sided = 2.0 ** (1 - carriers(undefined, weights))
        p = min(1.0, max(2.0 * float(min(tails)) / (len(known) + 1), one_sided))
    return Difference(value, low, high, undefined, p)


def carriers(undefined: float, weights: np.ndarray) -> float:
    """How many patients a figure rests on, from the share of resamples in which it is undefined.

    Example:
        >>> weights = patient_weights(range(20))
        >>> two = np.arange(20) < 2
        >>> round(carriers(float((weights[:, two] == 0).all(axis=1).mean()), weights), 1)
        2.0
    """
    if not len(weights):
        return 0.0
    # Images of a patient have the same weights; integers, so that equal ones add up equally.
    drawn = weights[:64].astype(np.int64)
    factors = np.random.default_rng(0).integers(1, 2**32, len(drawn))
    patients = len(np.unique(factors @ drawn))
    return float(patients * (1 - undefined ** (1 / patients)))


def enough(comparisons: int) -> int:
    """Resamples with which the smallest p-value of so many comparisons stays below 0.05 by Holm."""
    return max(RESAMPLES, 100 * comparisons)


def mean_of(figures: Sequence[Figure]) -> Figure:
    """The mean of the same figure of several seeds, within each resample.

    Raises:
        ValueError: If there is none.
    """
    if not figures:
        raise ValueError("there is no figure to take the mean of")

    def joined(weights: np.ndarray) -> np.ndarray:
        return np.mean([figure(weights) for figure in figures], axis=0)

    return joined


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction of m p-values (Holm 1979).

    The i-th smallest becomes the largest of ``(m - j + 1) p_j`` over j up to i, at most 1: a
    difference with a corrected p-value below 0.05 may be claimed, and the chance that any such
    claim is wrong stays below 5 %, whatever depends on what.

    Args:
        p: p-values; NaN stays NaN and does not count.

    Returns:
        Corrected p-values in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03, 0.005]).round(3).tolist()
        [0.03, 0.06, 0.06, 0.02]
    """
    values = np.asarray(p, dtype=np.float64)
    corrected = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return corrected


def _draw(figure: Figure, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The figure of the data and of each resample."""
    images = weights.shape[1]
    value = float(figure(np.ones((1, images)))[0])
    if np.isnan(value):
        return value, np.full(len(weights), np.nan)
    rows = max(1, BLOCK // images)
    blocks = [weights[start : start + rows] for start in range(0, len(weights), rows)]
    drawn = [figure(block.astype(np.float64)) for block in blocks]
    return value, np.concatenate(drawn) if drawn else np.empty(0)


def _interval(value: float, drawn: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    undefined = float(np.isnan(drawn).mean()) if len(drawn) else 1.0
    if np.isnan(value) or undefined == 1 or carriers(undefined, weights) < FEWEST:
        return float("nan"), float("nan"), undefined
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return float(low), float(high), undefined
