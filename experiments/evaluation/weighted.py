"""Figures as functions of the images' weights, vectorised over resamples.

Each function takes what is known of N images and returns a :data:`statistics.Figure`: from weights
``(R, N)`` to R values, NaN where a resample does not define it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike as Column

from experiments.evaluation.statistics import Figure

OVERLAPS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2


def mean(values: Column) -> Figure:
    """Weighted mean; NaN values are left out (images without a lesion mask, say)."""
    column = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(column)
    columns = np.stack([np.where(defined, column, 0.0), defined], axis=1)

    def figure(weights: np.ndarray) -> np.ndarray:
        total, weight = (weights @ columns).T
        return _ratio(total, weight)

    return figure


def mean_of(figures: Sequence[Figure]) -> Figure:
    """The mean of the same figure of several seeds, within each resample; NaN where one is."""
    if not figures:
        raise ValueError("there is no figure to take the mean of")
    return lambda weights: np.mean([figure(weights) for figure in figures], axis=0)


def mean_of_defined(figures: Sequence[Figure]) -> Figure:
    """The mean of those of several figures that are defined in a resample; NaN if none is."""

    def figure(weights: np.ndarray) -> np.ndarray:
        values = np.stack([one(weights) for one in figures])
        defined = ~np.isnan(values)
        return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))

    return figure


def among(rows: np.ndarray, figure: Figure) -> Figure:
    """A figure of the images at some positions; a study has the weights of any of its images."""
    return lambda weights: figure(weights[:, rows])


def auroc(score: Column, label: Column) -> Figure:
    """Area under the ROC curve; a tie counts one half (Mann-Whitney), NaN without both classes."""
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
    """Expected calibration error of the probability of abnormal, on bins of equal width.

    Guo et al. 2017, with the probability of abnormal in place of the confidence in the decision.
    """
    values = np.asarray(probability, dtype=np.float64)
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    surplus = np.zeros((len(values), bins))
    surplus[np.arange(len(values)), place] = values - (np.asarray(label) == 1)
    return lambda weights: _ratio(np.abs(weights @ surplus).sum(axis=1), weights.sum(axis=1))


def pixel_average_precision(lesion_pixels: np.ndarray, pixels: np.ndarray) -> Figure:
    """Average precision over the pooled pixels; each image weighs the same, whatever its size.

    Both are ``(N, levels)`` of ``overlap.level_counts``; zeros for an image that does not count.
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
    """Mean at the threshold that is best for all images of ``(N, thresholds)``: an upper bound.

    The threshold of the data stays in every resample: the largest of noisy means grows with the
    noise, and the interval would lie above the value.
    """
    curves = np.asarray(curves, dtype=np.float64)
    defined = ~np.isnan(curves).any(axis=1)
    if not defined.any():
        return mean(np.full(len(curves), np.nan))
    best = int(curves[defined].mean(axis=0).argmax())
    return mean(np.where(defined, curves[:, best], np.nan))


def max_box_accuracy(curves: np.ndarray, overlaps: Sequence[float] = OVERLAPS) -> Figure:
    """MaxBoxAccV2 of ``box_iou_curve`` ``(N, 255)``: an upper bound, as :func:`best_mean`."""
    curves = np.asarray(curves, dtype=np.float32)
    missing = np.isnan(curves).any(axis=1, keepdims=True)
    right = [(curves >= np.float32(overlap)).astype(np.float64) for overlap in overlaps]
    return mean_of([best_mean(np.where(missing, np.nan, at)) for at in right])


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is 0."""
    defined = denominator != 0
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)
