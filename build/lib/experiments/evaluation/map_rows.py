"""What is kept of each map: a row of columns and a histogram, from which all figures follow."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments.evaluation.map_figures import MapRows, iou_curves
from lightning_modules.attention import peak
from lightning_modules.metrics import overlap
from lightning_modules.metrics.boxes import LEVELS as BOX_LEVELS
from lightning_modules.metrics.boxes import box_iou_curve
from lightning_modules.metrics.localisation import hit, peak_distance

# Thresholds between 0 and 1, as many as an 8-bit map has values.
LEVELS = 256
NAN = float("nan")
COLUMNS = ("peak_x", "peak_y", "hit", "distance", "iou_otsu", "energy")
# Written as whole numbers, empty where there is none, not as 1.0.
WHOLE = ("peak_x", "peak_y", "hit")


class MapRecorder:
    """Collects what is said of the maps of one method, an image at a time.

    Args:
        name: Of the method, which begins the names of its columns.
        tuning: Only the histograms are made, from which thresholds follow: what val needs when
            another split is judged. All other columns stay NaN.
    """

    def __init__(self, name: str, tuning: bool = False) -> None:
        self.name = name
        self.tuning = tuning
        self._rows: list[dict[str, float]] = []
        self._lesion_pixels: list[np.ndarray] = []
        self._pixels: list[np.ndarray] = []
        self._box_iou: list[np.ndarray] = []

    def add(self, shown: Tensor, lesion: Tensor | None) -> None:
        """Add the map of the next image.

        Args:
            shown: ``(1, 1, H, W)`` in [0, 1], at the image's original size.
            lesion: bool ``(1, 1, H, W)``, or a mask in [0, 1]; None where the image has none.

        Raises:
            ValueError: If the map is not finite or outside [0, 1], or the mask of another size.
        """
        if lesion is not None and lesion.shape != shown.shape:
            raise ValueError(
                f"a map of {tuple(shown.shape[-2:])} pixels (H x W) cannot be judged by a lesion "
                f"mask of {tuple(lesion.shape[-2:])}"
            )
        marked = torch.zeros_like(shown, dtype=torch.bool) if lesion is None else lesion >= 0.5
        lesion_pixels, pixels = overlap.level_counts(shown, marked, LEVELS)
        row: dict[str, float] = dict.fromkeys(COLUMNS, NAN)
        boxes = np.full(BOX_LEVELS - 1, NAN, dtype=np.float32)
        if not self.tuning:
            row["peak_x"], row["peak_y"] = peak(shown)[0].tolist()
        if bool(marked.any()) and not self.tuning:
            otsu = overlap.claimed(shown, overlap.otsu_threshold(shown))
            row["hit"] = float(hit(shown, marked))
            row["distance"] = float(peak_distance(shown, marked))
            row["iou_otsu"] = float(overlap.iou(otsu, marked))
            row["energy"] = float(overlap.energy_in_mask(shown, marked))
            boxes = box_iou_curve(shown, marked)[0].numpy()
        self._rows.append(row)
        # int32: several methods' rows of a whole data set are kept, and no image has 2^31 pixels.
        self._lesion_pixels.append(lesion_pixels[0].int().numpy())
        self._pixels.append(pixels[0].int().numpy())
        self._box_iou.append(boxes)

    def finish(self) -> RecordedMaps:
        """All that was added, in its order."""
        pixels = np.stack(self._pixels)
        lesion_pixels = np.stack(self._lesion_pixels)
        masked = lesion_pixels.any(axis=1, keepdims=True)
        return RecordedMaps(
            self.name,
            pd.DataFrame(self._rows),
            MapRows(lesion_pixels, pixels * masked, np.stack(self._box_iou)),
            pixels,
        )


class RecordedMaps(NamedTuple):
    """The maps of one method over a split, before any threshold is chosen.

    Attributes:
        name: Of the method.
        columns: A row an image: :data:`COLUMNS`.
        rows: What pixel AP and the upper bounds are made of.
        pixels: All pixels at each level, ``(N, levels)``, of images without a mask, too.
    """

    name: str
    columns: pd.DataFrame
    rows: MapRows
    pixels: np.ndarray

    def best_threshold(self) -> float:
        """The threshold with the largest mean IoU on these masks; NaN where there are none."""
        return overlap.best_threshold(torch.from_numpy(iou_curves(self.rows)))[0]

    def table(self, threshold: float) -> pd.DataFrame:
        """All columns of the method, see :mod:`experiments.evaluation.map_figures`.

        Args:
            threshold: Of val; NaN where it could not be tuned: ``iou``, ``dice`` and ``area`` are
                NaN then.
        """
        curves, best = iou_curves(self.rows), self.best_threshold()
        claimed = self.pixels[:, ::-1].cumsum(axis=1)[:, ::-1] / self.pixels.sum(1, keepdims=True)
        iou = _at(curves, threshold)
        found = self.columns.assign(
            **{name: self.columns[name].astype("Int64") for name in WHOLE},
            iou=iou,
            dice=2 * iou / (1 + iou),
            iou_bound=_at(curves, best),
            area=_at(claimed, threshold),
        )
        return found.add_prefix(f"{self.name}_")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For work map by map, so little that threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _at(curves: np.ndarray, threshold: float) -> np.ndarray:
    """The column of a threshold of ``overlap.threshold_grid``."""
    if math.isnan(threshold):
        return np.full(len(curves), NAN)
    return np.asarray(curves[:, round(threshold * (LEVELS - 1))])
