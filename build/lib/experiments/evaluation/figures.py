"""How well a run classifies, from its table of images: pure functions, nothing is trained or seen.

The table is that of ``evaluation/<split>/images.csv``, a row an image. Used here: ``path``,
``patient``, ``study``, ``body_part``, ``label`` (1 = abnormal), ``probability`` and ``hardware``
(1 = seen, 0 = none, -1 = unknown). What is fitted comes from val (:func:`fit`), figures come
from the split that is judged (:func:`classification`).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, logit

from experiments.evaluation.statistics import Figure
from experiments.evaluation.weighted import (
    Column,
    among,
    auroc,
    calibration_error,
    kappa,
    mean,
    mean_of_known,
)

COLUMNS = ("path", "patient", "study", "body_part", "label", "probability", "hardware")
# Temperatures that are tried: a factor of 20 both ways.
HOTTEST = 20.0
# float32 knows no probability nearer to 1, its logit would be infinite.
CERTAIN = 2.0**-24

# Cohen's kappa on studies of MURA's public valid split, by its authors (no intervals given):
# github.com/ilias-ant/x-ray-abnormality-detection. Stanford's 0.705 is on a hidden test set.
PUBLISHED_KAPPA = {
    "DenseNet-169, ImageNet": {
        "overall": 0.629,
        "shoulder": 0.54,
        "elbow": 0.72,
        "humerus": 0.72,
        "hand": 0.43,
        "wrist": 0.71,
        "forearm": 0.65,
        "finger": 0.59,
    },
    "DenseNet-201, ImageNet": {"overall": 0.645},
    "ResNet-50, ImageNet": {"overall": 0.618},
    "CNN from scratch": {"overall": 0.386},
}


class Fitted(NamedTuple):
    """What val decides: thresholds for images and for studies, and the temperature."""

    threshold: float
    study_threshold: float
    temperature: float


def read_images(path: Path) -> pd.DataFrame:
    """Read an ``images.csv``; names stay text, also ``007``.

    Raises:
        ValueError: If it is no table of images, or holds an image twice.
    """
    names = ("path", "patient", "study", "body_part", "lesion_type")
    # Only an empty field is missing: a patient may be called NA.
    table = pd.read_csv(
        path, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values=[""]
    )
    lacking = [name for name in names if name not in table.columns]
    if lacking:
        raise ValueError(f"{path} lacks the column {lacking[0]!r}: it is no table of images")
    if table["path"].duplicated().any():
        twice = table.loc[table["path"].duplicated(), "path"].iloc[0]
        raise ValueError(f"{path} holds {twice} twice")
    return table.fillna({"lesion_type": ""})


def fit(val: pd.DataFrame) -> Fitted:
    """Fit thresholds and temperature on the table of val.

    A threshold is :func:`youden`'s, of images and of studies each: the mean of several views is
    less extreme than one of them. Where val has one class only, they are 0.5 and the temperature 1.

    Raises:
        ValueError: If a column or probability is missing, or a study spans patients.
    """
    views, joined = _checked(val), studies(val)
    thresholds = [youden(rows["probability"], rows["label"]) for rows in (views, joined)]
    temperature = fit_temperature(views["probability"], views["label"])
    image, study = (0.5 if value != value else value for value in thresholds)
    return Fitted(image, study, 1.0 if temperature != temperature else temperature)


def youden(score: Column, label: Column) -> float:
    """Operating point: the threshold with the largest sensitivity + specificity - 1.

    Youden 1950. Rather than the largest kappa, because it does not depend on how many images are
    abnormal, which differs between splits and clinics. Abnormal is a score above the threshold;
    thresholds lie midway between neighbouring scores; of equally good ones the nearest to 0.5 is
    taken.

    Returns:
        The threshold; 0.5 if all scores are equal, NaN if there is one class only.

    Example:
        >>> round(youden([0.1, 0.6, 0.7, 0.9], [0, 0, 1, 1]), 3)
        0.65
    """
    scores, positive = np.asarray(score, dtype=np.float64), np.asarray(label) == 1
    if not positive.any() or positive.all():
        return float("nan")
    values, place = np.unique(scores, return_inverse=True)
    if len(values) == 1:
        return 0.5
    below = [
        np.bincount(place[kind], minlength=len(values)).cumsum() for kind in (positive, ~positive)
    ]
    # Above the i-th cut lie all scores but the i + 1 lowest.
    gain = (below[1] / below[1][-1] - below[0] / below[0][-1])[:-1]
    cuts = (values[:-1] + values[1:]) / 2
    best = cuts[gain >= gain.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def fit_temperature(probability: Column, label: Column) -> float:
    """The temperature T that makes ``sigmoid(logit / T)`` most likely (Guo et al. 2017).

    One number, by the negative log-likelihood. The logit is that of the probability, which for two
    classes is the difference of the network's logits; probabilities that float32 rounds to 0 or 1
    are taken 6e-8 away from it.

    Returns:
        T in [0.05, 20]: above 1 the network was too sure. An end of the range means that the data
        set no limit (all images right, or probabilities that tell nothing). NaN if there is one
        class only.

    Example:
        >>> sure = [0.99] * 4 + [0.01] * 4  # and wrong once in four
        >>> round(fit_temperature(sure, [1, 1, 1, 0, 0, 0, 0, 1]), 2)
        4.18
    """
    positive = np.asarray(label) == 1
    if not positive.any() or positive.all():
        return float("nan")
    signed = np.where(positive, 1.0, -1.0) * _logit(probability)
    limit = np.log(HOTTEST)
    found = minimize_scalar(
        lambda log: -log_expit(signed * np.exp(-log)).mean(),
        bounds=(-limit, limit),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def scaled(probability: Column, temperature: float) -> np.ndarray:
    """Probabilities at another temperature: ``sigmoid(logit(p) / T)``.

    Example:
        >>> scaled([0.5, 0.9, 0.99], 2.0).round(3)
        array([0.5  , 0.75 , 0.909])
    """
    return np.asarray(expit(_logit(probability) / temperature))


def reliability(probability: Column, label: Column, bins: int = 15) -> pd.DataFrame:
    """The reliability curve: what is claimed and what is so, by bins of equal width.

    Returns:
        A row a bin: ``low``, ``high``, ``images``, mean ``probability`` and share of ``abnormal``
        (NaN where no image lies). The last bin is closed.

    Example:
        >>> reliability([0.1, 0.2, 0.9, 0.7], [0, 1, 1, 1], bins=2)
           low  high  images  probability  abnormal
        0  0.0   0.5       2         0.15       0.5
        1  0.5   1.0       2         0.80       1.0
    """
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
    """Join the views of each study: abnormal if one view is, by the mean probability of the views.

    As ``Agreement`` does, after the MURA paper (Rajpurkar et al. 2018).

    Returns:
        A row a study, in order of the first view: ``study``, ``patient``, ``body_part``, ``label``,
        ``probability``, ``hardware`` (1 if a view shows some, -1 if no view is known) and
        ``first``, the position of the study's first view.

    Raises:
        ValueError: If a column or probability is missing, or a study spans patients.
    """
    rows = _checked(table)
    views = rows.assign(first=np.arange(len(rows))).groupby("study", sort=False)
    torn = views["patient"].nunique()
    if (torn > 1).any():
        raise ValueError(
            f"study {torn.idxmax()} is of several patients: studies must be named apart"
        )
    wanted = {
        "patient": "first",
        "body_part": "first",
        "label": "max",
        "probability": "mean",
        "hardware": "max",
        "first": "first",
    }
    return views.agg(wanted).reset_index()


def classification(table: pd.DataFrame, fitted: Fitted) -> dict[str, Figure]:
    """All figures of classification, as functions of the images' weights.

    Of images ``auroc``, ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that
    occur), ``sensitivity``, ``specificity`` and ``kappa`` (Cohen's) at val's threshold,
    ``kappa/<body part>``, ``ece`` and ``ece_scaled`` (expected calibration error, as it is and at
    val's temperature); of studies the same with ``study_`` before, but for the calibration. Where
    hardware is known of some images, auroc to kappa also for those without
    (``auroc/no_hardware``) and those with it (``auroc/hardware``): marks of treatment tell a label
    without any lesion.

    Args:
        table: Images of the split that is judged.
        fitted: Of :func:`fit`, from val.

    Raises:
        ValueError: If a column or probability is missing, or a study spans patients.
    """
    views = _checked(table)
    figures = _by_units(views, fitted.threshold, np.arange(len(views)), "")
    figures["ece"] = calibration_error(views["probability"], views["label"])
    figures["ece_scaled"] = calibration_error(
        scaled(views["probability"], fitted.temperature), views["label"]
    )
    joined = studies(table)
    return figures | _by_units(joined, fitted.study_threshold, joined["first"].to_numpy(), "study_")


def _by_units(
    units: pd.DataFrame, threshold: float, rows: np.ndarray, prefix: str
) -> dict[str, Figure]:
    """Figures of images or studies; ``rows`` are the images that stand for them."""
    label = units["label"].to_numpy()
    probability = units["probability"].to_numpy()
    called = (probability > threshold).astype(np.int64)

    def of(chosen: np.ndarray) -> dict[str, Figure]:
        truth, decision = label[chosen], called[chosen]
        right = (truth == decision).astype(np.float64)
        recalls = [mean(np.where(truth == value, right, np.nan)) for value in (1, 0)]
        found = {
            "auroc": auroc(probability[chosen], truth),
            "accuracy": mean(right),
            "balanced_accuracy": mean_of_known(recalls),
            "sensitivity": recalls[0],
            "specificity": recalls[1],
            "kappa": kappa(decision, truth),
        }
        return {name: among(rows[chosen], figure) for name, figure in found.items()}

    figures = {prefix + name: figure for name, figure in of(np.arange(len(units))).items()}
    for part in sorted(units["body_part"].unique()):
        chosen = np.flatnonzero(units["body_part"] == part)
        figures[f"{prefix}kappa/{part}"] = of(chosen)["kappa"]
    hardware = units["hardware"].to_numpy()
    if (hardware >= 0).any():
        for group, value in (("no_hardware", 0), ("hardware", 1)):
            for name, figure in of(np.flatnonzero(hardware == value)).items():
                figures[f"{prefix}{name}/{group}"] = figure
    return figures


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    lacking = [name for name in COLUMNS if name not in table.columns]
    if lacking:
        raise ValueError(
            f"the table lacks the column {lacking[0]!r}"
            + (": this run has no classifier" if lacking == ["probability"] else "")
        )
    known = table["probability"].between(0, 1)
    if not known.all():
        raise ValueError(f"{table['path'][~known].iloc[0]} has no probability in [0, 1]")
    return table


def _logit(probability: Column) -> np.ndarray:
    values = np.asarray(probability, dtype=np.float64)
    return np.asarray(logit(np.clip(values, CERTAIN, 1 - CERTAIN)))
