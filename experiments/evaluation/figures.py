"""Every figure of a run (docs/evaluation.md), as a function of the images' weights.

The table is that of ``evaluation/<split>/images.csv``, a row an image.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, logit

from experiments.evaluation import statistics
from experiments.evaluation.statistics import Column, Figure, among, mean

# What a probability means without any val: abnormal is what is likelier than not.
EVEN = 0.5
# float32 knows no probability nearer to 1, its logit would be infinite.
CERTAIN = 2.0**-24
# Of the diagonal, a peak that is near: half the diagonal of a cell of a 20 x 20 map.
TOLERANCE = 0.025
# Means of these columns are figures as they are.
MEANS = ("hit", "iou", "iou_otsu", "dice", "energy")
# Share of the image: below the first small, from the second on large. MURA's median fracture covers
# 1.0 % (its box), median metal 3.7 %.
SIZES = (0.01, 0.04)
SIZE_NAMES = ("small", "medium", "large")
# Of images and studies, the same at every operating point.
UNTUNED = ("auroc", "study_auroc", "ece", "ece_scaled")


class Fitted(NamedTuple):
    """What val decides: thresholds for images and for studies, and the temperature."""

    threshold: float
    study_threshold: float
    temperature: float


class MapRows(NamedTuple):
    """What is kept of a method's maps, a row an image; zeros and NaN without a lesion mask."""

    lesion_pixels: np.ndarray  # at each of 256 levels, (N, 256), of overlap.level_counts
    pixels: np.ndarray  # all at each level, (N, 256)
    box_iou: np.ndarray  # of overlap.box_iou_curve, (N, 255)


def all_figures(
    table: pd.DataFrame, maps: Mapping[str, MapRows], fitted: Fitted | None
) -> dict[str, Figure]:
    """All figures of a run, by their names in ``summary.json``; table and maps in one order."""
    figures: dict[str, Figure] = {}
    if fitted is not None:
        figures |= classification(table, Fitted(EVEN, EVEN, fitted.temperature))
        for name, figure in classification(table, fitted).items():
            if name.split("/")[0] not in UNTUNED:
                figures[f"tuned/{name}"] = figure
    for name in ("masked", "swapped_masked"):
        if f"{name}_probability" in table:
            called = (table[f"{name}_probability"] > EVEN).to_numpy()
            figures[f"{name}_accuracy"] = mean(called == (table["label"] == 1).to_numpy())
            if name == "swapped_masked":
                figures["swapped_masked_abnormal"] = mean(called)
    for method, rows in maps.items():
        figures |= localisation(table, method, rows)
    return figures


def fit(val: pd.DataFrame) -> Fitted:
    """Thresholds and temperature from the table of val, which holds both classes."""
    joined = studies(val)  # whose mean of several views is less extreme than one
    return Fitted(
        youden(val["probability"], val["label"]),
        youden(joined["probability"], joined["label"]),
        fit_temperature(val["probability"], val["label"]),
    )


def youden(score: Column, label: Column) -> float:
    """The threshold with the largest sensitivity + specificity (Youden 1950), else 0.5."""
    # Not the largest kappa: it depends on the share of abnormal images, which differs by clinic.
    scores, positive = np.asarray(score, dtype=np.float64), np.asarray(label) == 1
    values, place = np.unique(scores, return_inverse=True)
    if len(values) < 2 or positive.all():
        return EVEN
    missed = np.bincount(place[positive], minlength=len(values)).cumsum()
    spared = np.bincount(place[~positive], minlength=len(values)).cumsum()
    # Above the i-th cut lie all scores but the i + 1 lowest.
    gain = (spared / spared[-1] - missed / missed[-1])[:-1]
    cuts = (values[:-1] + values[1:]) / 2
    best = cuts[gain >= gain.max() - 1e-12]  # of equally good ones the nearest to 0.5
    return float(best[np.abs(best - 0.5).argmin()])


def fit_temperature(probability: Column, label: Column) -> float:
    """The T that makes ``sigmoid(logit / T)`` likeliest (Guo et al. 2017); 1: none in 0.05..20."""
    signed = np.where(np.asarray(label) == 1, 1.0, -1.0) * _logit(probability)
    limit = np.log(20)
    best = minimize_scalar(
        lambda log: -log_expit(signed * np.exp(-log)).mean(),
        bounds=(-limit, limit),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return 1.0 if abs(best.x) > limit - 1e-3 else float(np.exp(best.x))


def reliability(probability: Column, label: Column, bins: int = 15) -> pd.DataFrame:
    """The reliability curve: mean probability and share of abnormal images in equal bins."""
    values, truth = np.asarray(probability, dtype=np.float64), np.asarray(label) == 1
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    images = np.bincount(place, minlength=bins)
    filled = np.where(images > 0, images, np.nan)
    return pd.DataFrame(
        {
            "low": np.arange(bins) / bins,
            "high": (np.arange(bins) + 1) / bins,
            "images": images,
            "probability": np.bincount(place, values, bins) / filled,
            "abnormal": np.bincount(place, truth, bins) / filled,
        }
    )


def studies(table: pd.DataFrame) -> pd.DataFrame:
    """Join views to studies, as MURA's paper does; ``first`` is the position of the first view."""
    views = table.assign(first=np.arange(len(table))).groupby("study", sort=False)
    torn = views["patient"].nunique()
    if (torn > 1).any():
        raise ValueError(f"study {torn.idxmax()} is of several patients. Fix: name studies apart")
    how = {"body_part": "first", "first": "first", "label": "max", "hardware": "max"}
    return views.agg(how | {"probability": "mean"}).reset_index()


def classification(table: pd.DataFrame, fitted: Fitted) -> dict[str, Figure]:
    """Figures of images and, as ``study_...``, of studies at these thresholds."""
    joined, label, probability = studies(table), table["label"], table["probability"]
    scaled = expit(_logit(probability) / fitted.temperature)
    return {
        **_of_units(table, fitted.threshold, np.arange(len(table)), ""),
        "ece": statistics.calibration_error(probability, label),
        "ece_scaled": statistics.calibration_error(scaled, label),
        **_of_units(joined, fitted.study_threshold, joined["first"].to_numpy(), "study_"),
    }


def _of_units(
    units: pd.DataFrame, threshold: float, rows: np.ndarray, prefix: str
) -> dict[str, Figure]:
    """Figures of images or studies; ``rows`` are the images that stand for them."""
    label, probability = units["label"].to_numpy(), units["probability"].to_numpy()
    called = (probability > threshold).astype(np.int64)

    def of(chosen: np.ndarray) -> dict[str, Figure]:
        truth, decision = label[chosen], called[chosen]
        right = (truth == decision).astype(np.float64)
        recalls = [mean(np.where(truth == value, right, np.nan)) for value in (1, 0)]
        figures = {
            "auroc": statistics.auroc(probability[chosen], truth),
            "accuracy": mean(right),
            "balanced_accuracy": statistics.mean_of(recalls),
            "sensitivity": recalls[0],
            "specificity": recalls[1],
            "kappa": statistics.kappa(decision, truth),
        }
        return {prefix + name: among(rows[chosen], figure) for name, figure in figures.items()}

    figures = of(np.arange(len(units)))
    kappa = f"{prefix}kappa"
    for part in sorted(units["body_part"].unique()):
        figures[f"{kappa}/{part}"] = of(np.flatnonzero(units["body_part"] == part))[kappa]
    if (units["hardware"] >= 0).any():  # treatment tells a label without any lesion
        for group, value in (("no_hardware", 0), ("hardware", 1)):
            of_group = of(np.flatnonzero(units["hardware"] == value))
            figures |= {f"{name}/{group}": figure for name, figure in of_group.items()}
    return figures


def localisation(table: pd.DataFrame, method: str, maps: MapRows) -> dict[str, Figure]:
    """Figures of a method's maps: ``<method>/hit``, and ``<method>/hit/<group>`` of some."""
    columns = {
        name: table[f"{method}_{name}"].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in (*MEANS, "distance", "area")
    }
    distance, iou, area = columns["distance"], columns["iou"], columns["area"]
    # Without a threshold of val nobody knows what is claimed.
    claims, label = np.where(np.isnan(area), np.nan, area > 0), table["label"]
    figures = {
        **{name: mean(columns[name]) for name in MEANS},
        "hit_near": mean(np.where(np.isnan(distance), np.nan, distance <= TOLERANCE)),
        "shown_lesion": mean(np.where(np.isnan(iou), np.nan, iou > 0)),
        "shown_normal": mean(np.where(label == 0, claims, np.nan)),
        "shown_abnormal": mean(np.where(label == 1, claims, np.nan)),
        "pixel_ap": statistics.pixel_average_precision(maps.lesion_pixels, maps.pixels),
        "iou_bound": statistics.best_mean(iou_curves(maps)[:, 1:]),  # 0 claims every pixel
        "box_bound": statistics.max_box_accuracy(maps.box_iou),
    }
    for group, rows in groups(table).items():
        for name in ("hit", "iou"):
            figures[f"{name}/{group}"] = among(rows, mean(columns[name][rows]))
        pixels = maps.lesion_pixels[rows], maps.pixels[rows]
        figures[f"pixel_ap/{group}"] = among(rows, statistics.pixel_average_precision(*pixels))
    return {f"{method}/{name}": figure for name, figure in figures.items()}


def groups(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Positions of the images with a lesion mask by body part, lesion type and lesion size.

    One that is called as an earlier one is ``lesion_type/<value>`` or ``body_part/<value>``.
    """
    area = table["lesion_area"].to_numpy(dtype=np.float64)
    masked = ~np.isnan(area)
    rows: dict[str, np.ndarray] = {}
    for column in ("body_part", "lesion_type"):
        for value in sorted(set(table.loc[masked, column]) - {""}):
            name = f"{column}/{value}" if value in rows or value in SIZE_NAMES else str(value)
            rows[name] = np.flatnonzero(masked & (table[column] == value).to_numpy())
    size = np.digitize(area, SIZES)
    return rows | {
        name: np.flatnonzero(masked & (size == place)) for place, name in enumerate(SIZE_NAMES)
    }


def iou_curves(maps: MapRows) -> np.ndarray:
    """IoU at each threshold, float64 ``(N, 256)``; NaN without a lesion."""
    both = maps.lesion_pixels[:, ::-1].cumsum(axis=1, dtype=np.float64)[:, ::-1]
    region = maps.pixels[:, ::-1].cumsum(axis=1, dtype=np.float64)[:, ::-1]
    lesion = np.where(both[:, :1] > 0, both[:, :1], np.nan)
    return np.asarray(both / (region + lesion - both))


def _logit(probability: Column) -> np.ndarray:
    values = np.asarray(probability, dtype=np.float64)
    return np.asarray(logit(np.clip(values, CERTAIN, 1 - CERTAIN)))
