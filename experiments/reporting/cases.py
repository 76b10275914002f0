"""The pictures of a report: which images are shown, by a rule, and how they are drawn."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch

from datamodules.decode import decode
from experiments.build import Run
from experiments.drawing import contours, draw_outline, draw_peak, encode, overlay, resize
from experiments.evaluation.groups import Group
from experiments.evaluation.names import method_name
from experiments.runs import RunError

SIDE = 480  # of a picture, pixels: twice what is shown on a page, for dense displays
AROUND = 4  # of the outline, pixels from the lesion
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 85)
# Strokes: a colour that is neither on the way from black to yellow nor grey, and light enough for
# eyes that miss green; below it a dark edge.
EDGE = (40, 20, 0)
OUTLINE, TICKS = ((EDGE, 5), ((255, 230, 90), 2)), ((EDGE, 6), ((255, 255, 255), 3))


class Column(NamedTuple):
    """A map that is shown of every image, by the first run of a group."""

    group: Group
    opened: Run
    method: str

    @property
    def name(self) -> str:
        """For people."""
        name = f"{self.group.name}, {method_name(self.method).heading}"
        return name[0].upper() + name[1:]

    def row_of(self, path: str) -> int:
        """The index row of an image, which must be today as it was judged."""
        data, run = self.opened.data, self.group.runs[0]
        rows = np.flatnonzero(data.table["path"] == path)
        labels = run.table.loc[run.table["path"] == path, "label"].tolist()
        replaced = run.about["judged_image_hash"] != data.image_hash
        if replaced or data.table["label"].iloc[rows].tolist() != labels:
            raise self.stale(path)
        return int(rows[0])

    def stale(self, path: str) -> RunError:
        """The error of a run that was judged on other data."""
        run = self.group.runs[0]
        return RunError(
            f"{run.target} was judged on other data than {run.config.data.name} is today (see "
            f"{path}). Fix: judge it again: python -m experiments.evaluate {run.folder}"
        )


class Cell(NamedTuple):
    """A picture: its name, what is to be seen, and a data URI."""

    name: str
    remark: str
    alt: str
    src: str


def pick(table: pd.DataFrame, method: str) -> tuple[str, pd.DataFrame]:
    """Choose images by figures alone: best, median and worst, then false positives.

    Returns:
        What decides, ``val`` or ``Otsu`` (IoU of ``method`` at that threshold) or ``probability``,
        and the rows of the images with ``kind`` and ``rank``; "" and none where nothing can decide.
    """
    masked, normal = table[table["lesion_area"].notna()], table[table["label"] == 0]
    if len(masked):
        rule = "val" if masked[f"{method}_iou"].notna().any() else "Otsu"
        score = masked[f"{method}_iou" if rule == "val" else f"{method}_iou_otsu"]
        order = masked.assign(score=score, near=-masked[f"{method}_distance"])
        false = normal[normal[f"{method}_area"] > 0].assign(score=normal[f"{method}_area"])
        by, what = "overlap", "on which a lesion is shown"
    elif "probability" in table:
        rule = by = "probability"
        order = table[table["label"] == 1].assign(score=table["probability"], near=0)
        false = normal[normal["probability"] > 0.5].assign(score=normal["probability"])
        what = "called abnormal"
    else:
        return "", table[:0]
    order = order.sort_values(["score", "near", "path"], ascending=[False, False, True])
    last, middle = len(order) - 1, (len(order) - 1) // 2
    wanted = {"Median": (middle, middle + 1), "Best": (0, 1), "Worst": (last, last - 1)}
    kinds: dict[int, str] = {}
    for kind, places in wanted.items():  # of a handful of images the median is kept: it is typical
        kinds = {place: kind for place in places if 0 <= place <= last} | kinds
    picked = order.iloc[sorted(kinds)].assign(
        kind=[kinds[place] for place in sorted(kinds)],
        rank=[f"number {place + 1} of {len(order)} by {by}" for place in sorted(kinds)],
    )
    of = f"of {len(false)} normal images {what} ({len(normal)} in all)"
    false = false.sort_values(["score", "path"], ascending=[False, True])[:2]
    ranks = [f"number {number} {of}" for number in range(1, len(false) + 1)]
    return rule, pd.concat([picked, false.assign(kind="False positive", rank=ranks)])


def draw(image: Mapping[Any, Any], columns: Sequence[Column], reference: Column) -> list[Cell]:
    """Draw an image that the reference picked: radiograph, maps over it, lesion mask, close-up.

    RunError: pixels, label or mask are not those that were judged.
    """
    path, data = image["path"], reference.opened.data
    lesion = data.original_mask(reference.row_of(path))
    area = float("nan") if lesion is None else float((lesion > 127).mean())
    if not np.isclose(area, image["lesion_area"], rtol=1e-6, equal_nan=True):
        raise reference.stale(path)
    radiograph = decode(data.root / path)
    grey = _grey(radiograph)
    lines = [] if lesion is None else _outline(lesion, grey.shape[1::-1])
    cells = [_cell("Radiograph", "", f"Radiograph, {image['body_part']}", grey)]
    cells += [_map_cell(column, path, grey, lines) for column in columns]
    if lesion is not None:
        outlined = grey.copy()
        draw_outline(outlined, lines, OUTLINE)
        cells.append(_cell("Lesion mask", "as drawn", "The lesion, outlined", outlined))
        if (near := _close_up(radiograph, lesion)) is not None:
            cells.append(_cell("Close-up", "of the lesion", "The lesion, near", near))
    return cells


def _map_cell(column: Column, path: str, grey: np.ndarray, lines: Sequence[np.ndarray]) -> Cell:
    method, data, module = column.method, column.opened.data, column.opened.module
    row, line = column.row_of(path), column.group.runs[0].table.set_index("path").loc[path]
    assert data.pixels is not None, "setup() opens the cache"
    image = torch.from_numpy(np.array(data.pixels.image(row)))[None, None]
    batch = data.on_after_batch_transfer({"image": image.to(module.device)}, 0)
    with torch.inference_mode():
        square = module.maps(batch["image"])[method][0, 0].cpu().numpy()
    heat, size = data.to_original(square, row).clip(0, 1), grey.shape[1::-1]
    picture = overlay(grey, cv2.resize(heat, size, interpolation=cv2.INTER_AREA))
    draw_outline(picture, lines, OUTLINE)
    hit, area, remark = line[f"{method}_hit"], line[f"{method}_area"], ""
    if not pd.isna(hit):
        remark = "peak in the lesion" if hit else "peak outside"
    elif not pd.isna(area):
        remark = f"claims {share(area)} of the image" if area else "claims nothing"
    if remark != "claims nothing":  # the peak of a map of nearly 0 lies anywhere
        peak = [line[f"{method}_peak_{axis}"] + 0.5 for axis in "xy"]
        scale = [shown / original for shown, original in zip(size, heat.shape[::-1], strict=True)]
        draw_peak(picture, int(peak[0] * scale[0]), int(peak[1] * scale[1]), (11, 27), TICKS)
    alt = f"{column.name} over the radiograph" + (f": {remark}" if remark else "")
    return _cell(column.name, remark, alt, picture)


def share(value: float) -> str:
    """A share of an image for people."""
    return f"{100 * value:.1f}\u00a0%" if value >= 0.0005 else "less than 0.1\u00a0%"


def _grey(image: np.ndarray) -> np.ndarray:
    """An image ``(H, W)`` at the size of a page, from its darkest to its lightest grey, BGR."""
    small = resize(image, SIDE, SIDE)
    low, high = int(small.min()), int(small.max())
    stretched = (small.astype(np.float32) - low) / max(high - low, 1) * 255
    return cv2.cvtColor(stretched.astype(np.uint8), cv2.COLOR_GRAY2BGR)


def _close_up(image: np.ndarray, lesion: np.ndarray) -> np.ndarray | None:
    """The surroundings of the lesion's largest part; None where that is most of the image."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((lesion > 127).astype(np.uint8))
    left, top, width, height, _ = max(stats[1:].tolist(), key=lambda part: part[cv2.CC_STAT_AREA])
    side = max(3 * max(width, height), max(image.shape) // 6)
    if side > max(image.shape) // 2:
        return None
    y, x = (
        min(max(middle - side // 2, 0), max(size - side, 0))
        for middle, size in zip((top + height // 2, left + width // 2), image.shape, strict=True)
    )
    return _grey(image[y : y + side, x : x + side])


def _outline(lesion: np.ndarray, size: tuple[int, ...]) -> Sequence[np.ndarray]:
    """Lines around a lesion at the size of a picture, drawn outside: the lesion stays seen."""
    # Any share of a pixel counts: a small lesion would vanish.
    part = cv2.resize(lesion, size, interpolation=cv2.INTER_AREA) > 0
    wider = cv2.dilate(part.astype(np.uint8), np.ones((2 * AROUND + 1,) * 2, np.uint8))
    return contours(wider, cv2.RETR_EXTERNAL)


def _cell(name: str, remark: str, alt: str, picture: np.ndarray) -> Cell:
    text = base64.b64encode(encode(picture, ".jpg", JPEG)).decode("ascii")
    return Cell(name, remark, alt, f"data:image/jpeg;base64,{text}")
