"""Row of the evaluation: figures of 3,197 images with intervals, beside loops over each."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from experiments.bench_table import Line, Request, median, ratios, take_turns
from experiments.evaluation.figures import classification, fit
from experiments.evaluation.map_figures import MapRows, localisation
from experiments.evaluation.map_rows import LEVELS, MapRecorder, one_thread
from experiments.evaluation.statistics import RESAMPLES, Figure, estimates, patient_weights
from experiments.runs import RunError

# MURA's test split.
IMAGES, STUDIES, PATIENTS = 3197, 1199, 783
SIZE, LESION = 512, 60  # sides of a map and of its lesion, pixels
# What is timed of it; all are linear in images and in resamples.
MAPS, QUICK_MAPS = 8, 2
DRAWS, QUICK_DRAWS = 10, 2
# The loops rank the pixels of maps this small, kindly: at 512 px each resample would sort 64 times
# as many. Ours ranks the histograms of whole maps.
SMALL, QUICK_SMALL = 64, 8


class Scene(NamedTuple):
    """Images as a network judged them, and maps of some."""

    table: pd.DataFrame
    rows: MapRows  # histograms of all maps
    shown: np.ndarray  # (maps, SIZE, SIZE) float32 in [0, 1]
    lesion: np.ndarray  # the same shape, bool; of every second image empty


def evaluation(request: Request) -> list[Line]:
    """Maps of one method, image by image, then nine figures with intervals over patients.

    Raises:
        RunError: scikit-learn is not installed.
    """
    metrics = _library()
    maps, draws, small = (
        (QUICK_MAPS, QUICK_DRAWS, QUICK_SMALL) if request.quick else (MAPS, DRAWS, SMALL)
    )
    scene = drawn(maps)
    rounds = max(2, request.rounds // 3)
    steps = {
        "maps": functools.partial(our_maps, scene),
        "loops": functools.partial(loops_over_thresholds, scene),
        "intervals": functools.partial(our_intervals, scene),
        "resamples": functools.partial(resample, scene, draws, metrics),
        "ranking": functools.partial(resample_pixels, scene, small, metrics),
    }
    seconds = take_turns(steps, rounds, request.clock)
    to_all = IMAGES / maps
    ours = [to_all * a + b for a, b in zip(seconds["maps"], seconds["intervals"], strict=True)]
    resamples = [
        RESAMPLES * (one / draws + other)
        for one, other in zip(seconds["resamples"], seconds["ranking"], strict=True)
    ]
    loops = [to_all * a + b for a, b in zip(seconds["loops"], resamples, strict=True)]
    return [
        Line(
            f"evaluation of {IMAGES:,} images with intervals",
            f"{median(ours):,.0f} s",
            f"scikit-learn, NumPy loops: {median(loops):,.0f} s",
            ratios(loops, ours),
            ">= 10",
        ),
        Line(
            f"  maps of {SIZE} px, {LEVELS - 1} thresholds",
            f"{1000 * median(seconds['maps']) / maps:,.1f} ms an image",
            f"loops: {1000 * median(seconds['loops']) / maps:,.0f} ms an image",
            ratios(seconds["loops"], seconds["maps"]),
        ),
        Line(
            f"  nine figures, {RESAMPLES:,} resamples of patients",
            f"{median(seconds['intervals']):.1f} s",
            f"scikit-learn: {median(resamples):,.0f} s",
            ratios(resamples, seconds["intervals"]),
        ),
    ]


def drawn(maps: int) -> Scene:
    """As many images, studies and patients as MURA's test split; blurred noise with a lesion."""
    rng = np.random.default_rng(0)
    study = np.sort(rng.integers(0, STUDIES, IMAGES))
    label = rng.integers(0, 2, STUDIES)[study]
    table = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(IMAGES)],
            "patient": [f"p{number * PATIENTS // STUDIES}" for number in study],
            "study": [f"s{number}" for number in study],
            "body_part": "hand",
            "label": label,
            "hardware": -1,
            "probability": expit(2 * (label - 0.5) + 1.5 * rng.normal(size=IMAGES)),
            "map_hit": np.where(label == 1, rng.integers(0, 2, IMAGES), np.nan),
            "map_iou": np.where(label == 1, rng.random(IMAGES), np.nan),
        }
    )
    # As CAM is: a few cells, enlarged.
    cells = rng.random((maps, SIZE // 25, SIZE // 25), dtype=np.float32) ** 3
    shown = np.stack(
        [cv2.resize(one, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for one in cells]
    )
    lesion = np.zeros(shown.shape, dtype=bool)
    lesion[::2, 200 : 200 + LESION, 250 : 250 + LESION] = True
    pixels = rng.integers(0, 2000, (IMAGES, LEVELS), dtype=np.int32) * (label == 1)[:, None]
    boxes = np.zeros((IMAGES, LEVELS - 1), dtype=np.float32)
    return Scene(table, MapRows(pixels // 50, pixels, boxes), shown, lesion)


def our_maps(scene: Scene) -> None:
    """Everything that is kept of a map: more than what the loops find."""
    recorder = MapRecorder("map")
    with one_thread():
        for shown, lesion in zip(scene.shown, scene.lesion, strict=True):
            mask = torch.from_numpy(lesion)[None, None] if lesion.any() else None
            recorder.add(torch.from_numpy(shown)[None, None], mask)
        recorder.finish().table(0.5)


def loops_over_thresholds(scene: Scene) -> None:
    """Peak, Otsu, energy, and IoU of region and of box at each threshold, as one writes them."""
    for shown, lesion in zip(scene.shown, scene.lesion, strict=True):
        row, column = np.unravel_index(shown.argmax(), shown.shape)
        if not lesion.any():
            np.histogram(shown, LEVELS, (0, 1))
            continue
        bool(lesion[row, column])
        cv2.threshold((255 * shown).astype(np.uint8), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        float(shown[lesion].sum() / shown.sum())
        target = cv2.boundingRect(lesion.astype(np.uint8))
        for level in range(1, LEVELS):
            claimed = shown >= level / (LEVELS - 1)
            _ = (claimed & lesion).sum() / (claimed | lesion).sum()
            outlines, _ = cv2.findContours(
                claimed.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            if outlines:
                box_iou(cv2.boundingRect(max(outlines, key=cv2.contourArea)), target)


def box_iou(one: Any, other: Any) -> float:
    """IoU of two boxes (left, top, width, height).

    Example:
        >>> box_iou((0, 0, 2, 2), (1, 0, 2, 2))
        0.3333333333333333
    """
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(0, width) * max(0, height)
    return float(both / (one[2] * one[3] + other[2] * other[3] - both))


def our_intervals(scene: Scene) -> None:
    """The figures that the loops resample, with intervals."""
    found = classification(scene.table, fit(scene.table))
    found |= localisation(scene.table, "map", scene.rows)
    wanted = ("auroc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "kappa")
    maps = ("map/hit", "map/iou", "map/pixel_ap")
    chosen: dict[str, Figure] = {name: found[name] for name in (*wanted, *maps)}
    estimates(chosen, patient_weights(scene.table["patient"].to_numpy()))


def resample(scene: Scene, draws: int, metrics: Any) -> None:
    """A bootstrap over patients as one writes it: draw, gather, call scikit-learn."""
    rng = np.random.default_rng(0)
    table = scene.table
    rows_of = [np.flatnonzero(table["patient"] == name) for name in table["patient"].unique()]
    label, probability = table["label"].to_numpy(), table["probability"].to_numpy()
    hit, iou = table["map_hit"].to_numpy(), table["map_iou"].to_numpy()
    for _ in range(draws):
        drawn = rng.integers(0, len(rows_of), len(rows_of))
        rows = np.concatenate([rows_of[patient] for patient in drawn])
        truth, called = label[rows], probability[rows] > 0.5
        metrics.roc_auc_score(truth, probability[rows])
        metrics.accuracy_score(truth, called)
        metrics.balanced_accuracy_score(truth, called)
        metrics.recall_score(truth, called)
        metrics.recall_score(truth, called, pos_label=0)
        metrics.cohen_kappa_score(truth, called)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a resample without any lesion
            np.nanmean(hit[rows])
            np.nanmean(iou[rows])


def resample_pixels(scene: Scene, side: int, metrics: Any) -> None:
    """Pixel AP of a resample of the images with a lesion, the pixels of their maps pooled."""
    rng = np.random.default_rng(0)
    images = int((scene.table["label"] == 1).sum())
    score = rng.random((images, side**2), dtype=np.float32)
    lesion = rng.random((images, side**2), dtype=np.float32) < 0.02
    drawn = rng.integers(0, images, images)
    metrics.average_precision_score(lesion[drawn].ravel(), score[drawn].ravel())


def _library() -> Any:
    try:
        return importlib.import_module("sklearn.metrics")
    except ImportError as error:
        raise RunError(
            f"needs scikit-learn ({error}): pip install -c constraints.txt -e '.[dev]'"
        ) from error
