"""Figures as functions of the images' weights, vectorised over resamples.

Each function here takes what is known of N images and returns a :data:`statistics.Figure`: from
weights ``(R, N)`` to R values, NaN where a resample does not define it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike as Column

from experiments.evaluation.statistics import Figure

OVERLAPS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2


def mean(values: Column) -> Figure:
    """Weighted mean; NaN values are left out (images without a lesion mask, say).

    Example:
        >>> import numpy as np
        >>> figure = mean([1.0, 0.0, float("nan")])
        >>> figure(np.array([[1.0, 1.0, 1.0], [3.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
        array([0.5 , 0.75,  nan])
    """
    column = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(column)
    columns = np.stack([np.where(known, column, 0.0), known], axis=1)

    def figure(weights: np.ndarray) -> np.ndarray:
        total, weight = (weights @ columns).T
        return _ratio(total, weight)

    return figure


def mean_of_known(figures: Sequence[Figure]) -> Figure:
    """The mean of those of several figures that are defined in a resample; NaN if none is.

    Example:
        >>> import numpy as np
        >>> recalls = mean([1.0, 0.0, float("nan")]), mean([float("nan"), float("nan"), 1.0])
        >>> mean_of_known(recalls)(np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
        array([0.75, 0.5 ,  nan])
    """

    def figure(weights: np.ndarray) -> np.ndarray:
        values = np.stack([one(weights) for one in figures])
        known = ~np.isnan(values)
        return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))

    return figure


def among(rows: Sequence[int] | np.ndarray, figure: Figure) -> Figure:
    """A figure of some of the images, or of units of which each is stood for by one image.

    Args:
        rows: Positions of the images (or bool, ``(N,)``). For studies the first image of each: all
            its views are of one patient and weigh the same.
        figure: Of ``len(rows)`` units.
    """
    chosen = np.asarray(rows)
    chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
    return lambda weights: figure(weights[:, chosen])


def auroc(score: Column, label: Column) -> Figure:
    """Area under the ROC curve: the chance that an abnormal image scores above a normal one.

    A tie counts one half (Mann-Whitney). NaN where a class has no weight.

    Example:
        >>> import numpy as np
        >>> auroc([0.9, 0.4, 0.6, 0.4], [1, 1, 0, 0])(np.ones((1, 4)))
        array([0.625])
    """
    scores, positive = np.asarray(score, dtype=np.float64), np.asarray(label) == 1
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
    is_positive = positive[order].astype(np.float64)

    def figure(weights: np.ndarray) -> np.ndarray:
        if not len(starts):
            return np.full(len(weights), np.nan)
        drawn = weights[:, order]
        above = np.add.reduceat(drawn * is_positive, starts, axis=1)
        below = np.add.reduceat(drawn, starts, axis=1) - above
        positives, negatives = above.sum(axis=1), below.sum(axis=1)
        # Negatives below each score, and half of those that tie with it.
        beaten = below.cumsum(axis=1) - below / 2
        return _ratio((above * beaten).sum(axis=1), positives * negatives)

    return figure


def kappa(decision: Column, label: Column) -> Figure:
    """Cohen's kappa between decisions and labels (0 or 1); NaN where only one label has weight.

    Example:
        >>> import numpy as np
        >>> kappa([1, 1, 0, 0, 0], [1, 0, 0, 0, 0])(np.ones((1, 5))).round(3)
        array([0.545])
    """
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
    """Expected calibration error of the probability of abnormal, on bins of equal width.

    Naeini et al. 2015 and Guo et al. 2017, with the probability of abnormal in place of the
    confidence in the decision: the weighted mean over the bins (0 to 1, the last one closed) of
    ``|mean probability - share of abnormal|``. Few images make it too large, and resamples, which
    repeat images, more so than the data: an interval of it lies too high.

    Example:
        >>> import numpy as np
        >>> calibration_error([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0])(np.ones((1, 4)))
        array([0.25])
    """
    values = np.asarray(probability, dtype=np.float64)
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    surplus = np.zeros((len(values), bins))
    surplus[np.arange(len(values)), place] = values - (np.asarray(label) == 1)

    def figure(weights: np.ndarray) -> np.ndarray:
        return _ratio(np.abs(weights @ surplus).sum(axis=1), weights.sum(axis=1))

    return figure


def pixel_average_precision(lesion_pixels: np.ndarray, pixels: np.ndarray) -> Figure:
    """Average precision over the pooled pixels; each image weighs the same, whatever its size.

    The sum over levels, from the highest, of precision times the gain in recall.

    Args:
        lesion_pixels: Pixels of the lesion at each level of the map, ``(N, levels)``
            (``overlap.level_counts``).
        pixels: All pixels at each level, ``(N, levels)``; zeros for an image that does not count.

    Example:
        >>> import numpy as np
        >>> figure = pixel_average_precision(np.array([[0, 1, 0, 1]]), np.array([[1, 1, 1, 1]]))
        >>> figure(np.ones((1, 1))).round(4)
        array([0.8333])
    """
    counted = np.flatnonzero(pixels.any(axis=1))
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
    """Mean at the threshold that is best for all these images together: an upper bound.

    The threshold is found on the data, all weights 1, and stays in every resample: the largest of
    noisy means grows with the noise, and the interval would lie above the value.

    Args:
        curves: A value at each threshold, ``(N, thresholds)``; images with NaN are left out.

    Example:
        >>> import numpy as np
        >>> best_mean(np.array([[0.1, 0.6, 0.5], [0.2, 0.0, 0.4]]))(np.ones((1, 2)))
        array([0.45])
    """
    curves = np.asarray(curves, dtype=np.float64)
    known = ~np.isnan(curves).any(axis=1)
    if not known.any():
        return mean(np.full(len(curves), np.nan))
    best = int(curves[known].mean(axis=0).argmax())
    return mean(np.where(known, curves[:, best], np.nan))


def max_box_accuracy(curves: np.ndarray, overlaps: Sequence[float] = OVERLAPS) -> Figure:
    """MaxBoxAccV2: mean over the overlaps of the share of right images at the best level.

    Each overlap's best level is found on the data and stays, as in :func:`best_mean`.

    Args:
        curves: Of ``boxes.box_iou_curve``, ``(N, 255)``; images with NaN are left out.
        overlaps: IoU of boxes from which on an image is right.

    Example:
        >>> import numpy as np
        >>> max_box_accuracy(np.array([[0.4, 0.6], [0.4, 0.2]]))(np.ones((1, 2)))
        array([0.5])
    """
    curves = np.asarray(curves, dtype=np.float32)
    missing = np.isnan(curves).any(axis=1, keepdims=True)
    right = [(curves >= np.float32(overlap)).astype(np.float64) for overlap in overlaps]
    shares = [best_mean(np.where(missing, np.nan, at)) for at in right]
    return lambda weights: np.mean([share(weights) for share in shares], axis=0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    defined = denominator != 0
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)
