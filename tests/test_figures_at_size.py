"""All figures of a run on MURA's test split, with intervals: as many images, patients and figures.

How long they take: ``python -m pytest tests/test_figures_at_size.py --durations=1``.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from experiments.evaluation.figures import MapRows, fit
from experiments.evaluation.figures import all_figures as figures
from experiments.evaluation.statistics import RESAMPLES, estimates, patient_weights

IMAGES, STUDIES, PATIENTS = 3197, 1199, 783
PARTS = ["elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist"]
TYPES = ["degenerative", "fracture", "hardware", "other"]
METHODS = ["cam", "pcam", "fcn", "centre", "mean_mask", "edges", "noise"]


def drawn():
    """Every abnormal image has a mask: more than anybody has drawn for MURA."""
    rng = np.random.default_rng(0)
    study = np.sort(rng.integers(0, STUDIES, IMAGES))
    label = rng.integers(0, 2, STUDIES)[study]
    masked = label == 1
    table = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(IMAGES)],
            "patient": [f"p{number * PATIENTS // STUDIES}" for number in study],
            "study": [f"s{number}" for number in study],
            "body_part": np.array(PARTS)[study % 7],
            "label": label,
            "lesion_type": np.where(masked, np.array(TYPES)[rng.integers(0, 4, IMAGES)], ""),
            "hardware": np.where(masked, rng.integers(0, 2, IMAGES), 0),
            "lesion_area": np.where(masked, rng.random(IMAGES) ** 3 / 5, np.nan),
        }
    )
    for name in ("probability", "masked_probability", "swapped_masked_probability"):
        table[name] = expit(2 * (label - 0.5) + 1.5 * rng.normal(size=IMAGES))
    maps, columns = {}, {}
    for method in METHODS:
        for name in ("hit", "distance", "iou", "iou_otsu", "iou_bound", "dice", "energy"):
            columns[f"{method}_{name}"] = np.where(masked, rng.random(IMAGES).round(3), np.nan)
        columns[f"{method}_hit"] = columns[f"{method}_hit"].round()
        columns[f"{method}_area"] = (rng.random(IMAGES) - 0.3).clip(0)
        pixels = rng.integers(0, 400, (IMAGES, 256)) * masked[:, None]
        boxes = np.where(masked[:, None], rng.random((IMAGES, 255), dtype=np.float32), np.nan)
        maps[method] = MapRows((pixels // 20).astype(np.int32), pixels.astype(np.int32), boxes)
    return table.join(pd.DataFrame(columns)), maps


@pytest.mark.slow
def test_all_figures_of_a_run_have_an_interval():
    table, maps = drawn()
    wanted = figures(table, maps, fit(table))
    found = estimates(wanted, patient_weights(table["patient"].to_numpy()))
    assert RESAMPLES == 2000
    # 7 methods of 11 figures and 3 figures in each of 14 groups, and those of classification.
    assert len(found) > 7 * (11 + 3 * 14) + 80
    without = {name for name, result in found.items() if not result.low <= result.high}
    # Hardware is among the abnormal alone: one class.
    assert all("hardware" in name for name in without)
    assert found["cam/hit"].value == pytest.approx(table["cam_hit"].mean())
