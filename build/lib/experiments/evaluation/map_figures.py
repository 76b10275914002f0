"""How well maps find the lesion, from the table of images and a histogram an image.

Columns of a method such as ``pcam``, each NaN (empty in the CSV) where an image has no lesion
mask: ``pcam_hit``, ``pcam_distance`` (of the peak, ``localisation.peak_distance``), ``pcam_iou``
and ``pcam_dice`` at val's threshold, ``pcam_iou_otsu``, ``pcam_iou_bound`` (at the threshold that
is best for these very masks), ``pcam_energy``; and of every image, normal ones too, ``pcam_area``:
the share that is claimed at val's threshold. ``iou``, ``dice`` and ``area`` are NaN of all images
where val has no masks to tune the threshold by. ``lesion_area`` is the share of the image that the
lesion covers. Figures are made of the columns that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.evaluation.statistics import Figure
from experiments.evaluation.weighted import (
    among,
    best_mean,
    max_box_accuracy,
    mean,
    pixel_average_precision,
)

# Half the diagonal of a cell of a 20 x 20 map, as in localisation.TOLERANCE.
TOLERANCE = 0.025
# Means of these columns are figures as they are.
MEANS = ("hit", "iou", "iou_otsu", "dice", "energy")
# Share of the image: below the first small, from the second on large. MURA's median fracture covers
# 1.0 % (its box), median metal 3.7 %.
SIZES = (0.01, 0.04)
SIZE_NAMES = ("small", "medium", "large")
# Figures that are also told of each body part, lesion type and lesion size.
GROUPED = ("hit", "iou", "pixel_ap")


class MapRows(NamedTuple):
    """What is kept of a method's maps, a row an image of the table; zeros and NaN without mask.

    From it follow pixel average precision and the upper bounds, for any resample.
    """

    lesion_pixels: np.ndarray
    """Pixels of the lesion at each level, ``(N, levels)``, of ``overlap.level_counts``."""
    pixels: np.ndarray
    """All pixels at each level, ``(N, levels)``."""
    box_iou: np.ndarray
    """Of ``boxes.box_iou_curve``, ``(N, 255)``."""

    def take(self, rows: np.ndarray) -> MapRows:
        """Some of the images."""
        return MapRows(*(values[rows] for values in self))


def localisation(
    table: pd.DataFrame, method: str, maps: MapRows | None = None
) -> dict[str, Figure]:
    """All figures of a method's maps, as functions of the images' weights.

    ``<method>/hit``, ``hit_near`` (peak within :data:`TOLERANCE` of the diagonal), ``iou``,
    ``iou_otsu``, ``dice``, ``energy``; with ``maps`` ``pixel_ap`` and the upper bounds
    ``iou_bound`` and ``box_bound`` (MaxBoxAccV2), which choose their thresholds on these very
    masks; ``shown_normal`` and ``shown_abnormal``: the share of the normal and of the abnormal
    images on which anything is claimed at val's threshold. :data:`GROUPED` ones also as
    ``<method>/hit/<group>``: body parts, lesion types, and ``small``, ``medium`` and ``large``
    lesions (:data:`SIZES`).

    Args:
        table: Images of the split that is judged.
        method: Name of the map method.
        maps: Rows of the same images in the same order.

    Raises:
        ValueError: If the method is not in the table, or ``maps`` is of other images.
    """
    if f"{method}_hit" not in table.columns:
        there = [name[:-4] for name in table.columns if name.endswith("_hit")]
        raise ValueError(
            f"the table has no maps of {method!r}, but of {', '.join(there) or 'none'}"
        )
    if maps is not None and any(len(values) != len(table) for values in maps):
        raise ValueError(
            f"the maps' rows are of {len(maps.pixels)} images, the table of {len(table)}"
        )
    figures = _figures(table, method, maps)
    for group, rows in groups(table).items():
        part = _figures(table.iloc[rows], method, None if maps is None else maps.take(rows))
        for name in GROUPED:
            if name in part:
                figures[f"{name}/{group}"] = among(rows, part[name])
    return {f"{method}/{name}": figure for name, figure in figures.items()}


def groups(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Positions of the images with a lesion mask by body part, lesion type and lesion size.

    A lesion type that is called as a body part or as a size is ``lesion_type/<value>``, a body part
    that is called as a size ``body_part/<value>``: people name both as they like.

    Example:
        >>> import pandas as pd
        >>> columns = {"body_part": ["hand", "hand"], "lesion_type": ["lytic", ""]}
        >>> {name: rows.tolist() for name, rows in groups(
        ...     pd.DataFrame(columns | {"lesion_area": [0.02, float("nan")]})
        ... ).items()}
        {'hand': [0], 'lytic': [0], 'small': [], 'medium': [0], 'large': []}
    """
    if "lesion_area" not in table.columns:
        return {}
    area = table["lesion_area"].to_numpy(dtype=np.float64)
    masked = ~np.isnan(area)
    found: dict[str, np.ndarray] = {}
    for column in ("body_part", "lesion_type"):
        for value in sorted(table.loc[masked, column].unique()):
            name = str(value)
            while name in found or name in SIZE_NAMES:
                name = f"{column}/{name}"
            if value:
                found[name] = np.flatnonzero(masked & (table[column] == value).to_numpy())
    size = np.digitize(area, SIZES)
    for place, name in enumerate(SIZE_NAMES):
        found[name] = np.flatnonzero(masked & (size == place))
    return found


def save_maps(path: Path, table: pd.DataFrame, methods: Mapping[str, MapRows]) -> None:
    """Write the rows of all methods to one compressed ``.npz``, beside ``images.csv``."""
    arrays = {
        f"{method}/{name}": values
        for method, rows in methods.items()
        for name, values in rows._asdict().items()
    }
    np.savez_compressed(path, path=table["path"].to_numpy(dtype=str), **arrays)


def load_maps(path: Path, table: pd.DataFrame) -> dict[str, MapRows]:
    """Read what :func:`save_maps` wrote.

    Raises:
        ValueError: If it was written for other images, or for these in another order.
    """
    with np.load(path, allow_pickle=False) as saved:
        if saved["path"].tolist() != table["path"].tolist():
            raise ValueError(f"{path} is of other images than the table: evaluate the run again")
        methods = sorted({name.split("/")[0] for name in saved.files if "/" in name})
        return {
            method: MapRows(*(saved[f"{method}/{name}"] for name in MapRows._fields))
            for method in methods
        }


def _figures(table: pd.DataFrame, method: str, maps: MapRows | None) -> dict[str, Figure]:
    def column(name: str) -> np.ndarray | None:
        values = table.get(f"{method}_{name}")
        return None if values is None else values.to_numpy(dtype=np.float64, na_value=np.nan)

    figures = {name: mean(values) for name in MEANS if (values := column(name)) is not None}
    if (distance := column("distance")) is not None:
        near = np.where(np.isnan(distance), np.nan, distance <= TOLERANCE)
        figures["hit_near"] = mean(near)
    if (area := column("area")) is not None:
        # Without a threshold of val nobody knows what is claimed.
        claims = np.where(np.isnan(area), np.nan, area > 0)
        for name, value in (("shown_normal", 0), ("shown_abnormal", 1)):
            figures[name] = mean(np.where(table["label"] == value, claims, np.nan))
    if maps is not None:
        figures["pixel_ap"] = pixel_average_precision(maps.lesion_pixels, maps.pixels)
        figures["iou_bound"] = best_mean(iou_curves(maps)[:, 1:])  # 0 claims every pixel
        figures["box_bound"] = max_box_accuracy(maps.box_iou)
    return figures


def iou_curves(maps: MapRows) -> np.ndarray:
    """IoU at each threshold, ``(N, levels)``, as ``overlap.iou_curve``; NaN without a lesion."""
    both = maps.lesion_pixels[:, ::-1].cumsum(axis=1, dtype=np.float64)[:, ::-1]
    region = maps.pixels[:, ::-1].cumsum(axis=1, dtype=np.float64)[:, ::-1]
    lesion = np.where(both[:, :1] > 0, both[:, :1], np.nan)
    return np.asarray(both / (region + lesion - both))
