"""The pictures of a report: which images are shown, by a rule, and how they are drawn."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch

from callbacks.panels import overlay
from datamodules import DataError
from datamodules.decode import decode
from experiments.build import Run, build_data, open_run
from experiments.config import to_plain
from experiments.evaluation.compare import METHODS
from experiments.evaluation.run import Evaluation
from experiments.runs import RunError

SIDE = 480  # of a picture, pixels: twice what is shown on a page, for dense displays
AROUND = 4  # of the outline, pixels from the lesion
QUALITY = 85  # JPEG's
OF_A_KIND = 2
# BGR. Neither on the way from black to yellow nor grey; light enough for eyes that miss green.
OUTLINE, TICK, EDGE = (255, 230, 90), (255, 255, 255), (40, 20, 0)


class Pick(NamedTuple):
    """An image that is shown: its place in the table, and why it is."""

    row: int
    kind: str
    rank: str


class Column(NamedTuple):
    """A map that is shown of every image: of which run, and its name for people."""

    run: Evaluation
    method: str
    name: str


def pick(table: pd.DataFrame, method: str) -> tuple[str, list[Pick]]:
    """Choose the images that are shown, by a rule that looks at figures and not at pictures.

    Args:
        table: Of an evaluation.
        method: The map that decides, such as ``fcn``; "" where the network has none.

    Returns:
        The rule in words, and the images: best, median, worst, then false positives.
    """
    masked = table[table["lesion_area"].notna()]
    normal = table[table["label"] == 0]
    if method and len(masked):
        tuned = masked[f"{method}_iou"].notna().any()
        score = f"{method}_iou" if tuned else f"{method}_iou_otsu"
        order = masked.assign(far=-masked[f"{method}_distance"]).sort_values(
            [score, "far", "path"], ascending=[False, False, True]
        )
        shown = normal.sort_values([f"{method}_area", "path"], ascending=[False, True])
        shown = shown[shown[f"{method}_area"] > 0]
        rule = (
            f"Images with a lesion mask are ordered by the overlap (IoU) of the mask with what "
            f"{METHODS.get(method, method)} claims at {'val' if tuned else 'Otsu'}’s threshold; "
            "of equal ones the one whose peak lies nearer to the lesion comes first. Shown are "
            "the first, the middle and the last of them, and the normal images on which most is "
            "claimed."
        )
        false = f"of {len(shown)} normal images on which a lesion is shown ({len(normal)} in all)"
    elif "probability" in table:
        order = table[table["label"] == 1].sort_values(
            ["probability", "path"], ascending=[False, True]
        )
        shown = normal.sort_values(["probability", "path"], ascending=[False, True])
        shown = shown[shown["probability"] > 0.5]
        rule = (
            "No lesion mask tells where a map should be, so that abnormal images are ordered by "
            "the probability that the network gives: shown are the first, the middle and the last "
            "of them, and the normal images that it is surest to be abnormal."
        )
        false = f"of {len(shown)} normal images called abnormal ({len(normal)} in all)"
    else:
        return "", []
    place = {row: number for number, row in enumerate(table.index)}
    by = "overlap" if method and len(masked) else "probability"
    return rule, [
        *(
            Pick(place[row], kind, f"number {number} of {len(order)} by {by}")
            for kind, number, row in _spread(order)
        ),
        *(
            Pick(place[row], "False positive", f"number {number} {false}")
            for number, row in enumerate(shown.index[:OF_A_KIND], 1)
        ),
    ]


def _spread(order: pd.DataFrame) -> list[tuple[str, int, Any]]:
    """Kind, number and index of the first, the middle and the last rows, none of them twice."""
    count, middle = len(order), (len(order) - 1) // 2
    numbers = {
        # The median case stands for all: of a handful of images it is kept first.
        "Median": range(middle, middle + OF_A_KIND),
        "Best": range(OF_A_KIND),
        "Worst": range(count - 1, count - 1 - OF_A_KIND, -1),
    }
    found: dict[int, str] = {}
    for kind, wanted in numbers.items():
        for number in wanted:
            if 0 <= number < count:
                found.setdefault(number, kind)
    return [(found[number], number + 1, order.index[number]) for number in sorted(found)]


class Networks:
    """Networks and data modules of runs, each opened once."""

    def __init__(self) -> None:
        self._data: dict[str, Any] = {}
        self._runs: dict[Path, Run] = {}

    def __call__(self, run: Evaluation) -> tuple[Any, Any]:
        """The network of a run in evaluation mode, and its data module, set up."""
        plain = to_plain(run.config)
        key = repr([plain["data"], plain["lesions"], plain["run"]["root"]])
        if key not in self._data:
            data = build_data(run.config)
            data.prepare_data()
            data.setup()
            self._data[key] = data
        today = self._data[key].image_hash
        if run.about.get("judged_image_hash", today) != today:
            raise _stale(run, "its images, which were replaced")
        checkpoint = run.folder / "checkpoints" / run.about["checkpoint"]
        if checkpoint not in self._runs:
            self._runs[checkpoint] = open_run(checkpoint)
        return self._runs[checkpoint].module, self._data[key]


def draw_cases(
    picks: list[Pick], columns: list[Column], reference: Column, networks: Networks
) -> list[dict[str, Any]]:
    """Draw the picked images: radiograph, every map over it, lesion mask.

    Args:
        picks: Places in the table of the reference's run.
        columns: Maps to be shown.
        reference: The map that they were picked by.
        networks: Where networks and data come from.

    Returns:
        For each image ``kind``, ``rank``, ``about``, ``path`` and ``cells``; a cell has ``name``,
        ``said``, ``alt`` and ``src``, a data URI.

    Raises:
        RunError: A run was judged by other labels or masks than the data has today.
    """
    drawn: list[dict[str, Any]] = []
    for one in picks:
        line = reference.run.table.iloc[one.row]
        path = str(line["path"])
        _, data = networks(reference.run)
        row = _row_of(data, path, reference.run)
        image = decode(data.root / path)
        grey = _grey(image)
        lesion = data.original_mask(row)
        area = float("nan") if lesion is None else float((lesion > 127).mean())
        if not np.isclose(area, line["lesion_area"], rtol=1e-6, equal_nan=True):
            raise _stale(reference.run, path)
        lines = [] if lesion is None else _outline(lesion, grey.shape[:2])
        cells = [_cell("Radiograph", "", f"Radiograph, {line['body_part']}", grey)]
        for column in columns:
            cells.append(_map_cell(column, path, grey, lines, networks))
        if lines:
            outlined = _draw(grey, lines)
            cells.append(_cell("Lesion mask", "as drawn", "The lesion, outlined", outlined))
        if lesion is not None and (near := _close_up(image, lesion)) is not None:
            cells.append(_cell("Close-up", "of the lesion", "The lesion, near", near))
        drawn.append(
            {
                "kind": one.kind,
                "rank": one.rank,
                "about": _about(line, reference.method),
                "path": path,
                "cells": cells,
            }
        )
    return drawn


def _map_cell(
    column: Column, path: str, grey: np.ndarray, lines: list[np.ndarray], networks: Networks
) -> dict[str, str]:
    table = column.run.table
    line = table[table["path"] == path].iloc[0]
    module, data = networks(column.run)
    row = _row_of(data, path, column.run)
    square = torch.from_numpy(np.array(data.pixels.image(row)))[None, None]
    batch = data.on_after_batch_transfer({"image": square.to(module.device)}, 0)
    with torch.inference_mode():
        shown = module.maps(batch["image"])[column.method][0, 0].cpu().numpy()
    heat = data.to_original(shown, row).clip(0, 1)
    height, width = heat.shape
    small = cv2.resize(heat, grey.shape[1::-1], interpolation=cv2.INTER_AREA)
    picture = _draw(overlay(grey, small), lines)
    hit, area = line[f"{column.method}_hit"], line[f"{column.method}_area"]
    said = ""
    if not pd.isna(hit):
        said = "peak in the lesion" if hit else "peak outside"
    elif not pd.isna(area):
        said = f"claims {share(area)} of the image" if area else "claims nothing"
    if said != "claims nothing":  # the peak of a map of nearly 0 lies anywhere
        scale = (grey.shape[1] / width, grey.shape[0] / height)
        x, y = line[f"{column.method}_peak_x"], line[f"{column.method}_peak_y"]
        _mark(picture, int((x + 0.5) * scale[0]), int((y + 0.5) * scale[1]))
    alt = f"{column.name} over the radiograph" + (f": {said}" if said else "")
    return _cell(column.name, said, alt, picture)


def _row_of(data: Any, path: str, run: Evaluation) -> int:
    """The index row of an image, which must be known as the run was judged."""
    rows = np.flatnonzero((data.table["path"] == path).to_numpy())
    ours = run.table.loc[run.table["path"] == path, "label"].iloc[0]
    if len(rows) != 1 or data.table["label"].iloc[rows[0]] != ours:
        raise _stale(run, path)
    return int(rows[0])


def _stale(run: Evaluation, path: str) -> RunError:
    return RunError(
        f"{run.target} was judged on other data than {run.config.data.name} is today (see {path}); "
        f"judge anew: python -m experiments.evaluate {run.folder}"
    )


def _about(line: pd.Series, method: str) -> str:
    """What a reader wants to know of an image, in a line."""
    known = [str(line["body_part"])]
    if line["lesion_type"]:
        known.append(str(line["lesion_type"]))
    if not pd.isna(line["lesion_area"]):
        known.append(f"lesion {share(line['lesion_area'])} of the image")
    if not pd.isna(line.get(f"{method}_iou")):
        known.append(f"overlap (IoU) {line[f'{method}_iou']:.2f}")
    if "probability" in line:
        known.append(f"probability of abnormal {line['probability']:.2f}")
    return ", ".join(known)


def share(value: float) -> str:
    r"""A share of an image for people.

    Example:
        >>> share(0.0041), share(0.00002)
        ('0.4\xa0%', 'less than 0.1\xa0%')
    """
    return f"{100 * value:.1f}\u00a0%" if value >= 0.0005 else "less than 0.1\u00a0%"


def _grey(image: np.ndarray) -> np.ndarray:
    """An image (H, W) at the size of a page, from its darkest to its lightest grey, (h, w, 3)."""
    height, width = image.shape
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    low, high = int(small.min()), int(small.max())
    stretched = (small.astype(np.float32) - low) / max(high - low, 1) * 255
    return cv2.cvtColor(stretched.astype(np.uint8), cv2.COLOR_GRAY2BGR)


def _close_up(image: np.ndarray, lesion: np.ndarray) -> np.ndarray | None:
    """The surroundings of the lesion's largest part; None where that is most of the image."""
    count, _, stats, _ = cv2.connectedComponentsWithStats((lesion > 127).astype(np.uint8))
    if count < 2:
        return None
    left, top, width, height, _ = max(stats[1:].tolist(), key=lambda part: part[cv2.CC_STAT_AREA])
    side = max(3 * max(width, height), max(image.shape) // 6)
    if side > max(image.shape) // 2:
        return None
    y, x = (
        min(max(middle - side // 2, 0), max(size - side, 0))
        for middle, size in zip((top + height // 2, left + width // 2), image.shape, strict=True)
    )
    return _grey(image[y : y + side, x : x + side])


def _outline(lesion: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """Lines around a lesion mask at the size of a picture, drawn outside: the lesion stays seen."""
    # Any share of a pixel counts: a small lesion would vanish.
    share = cv2.resize(lesion, size[::-1], interpolation=cv2.INTER_AREA)
    wider = cv2.dilate((share > 0).astype(np.uint8), np.ones((2 * AROUND + 1,) * 2, np.uint8))
    found, _ = cv2.findContours(wider, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return list(found)


def _draw(picture: np.ndarray, lines: list[np.ndarray]) -> np.ndarray:
    drawn = picture.copy()
    for colour, width in ((EDGE, 5), (OUTLINE, 2)):
        cv2.polylines(drawn, lines, True, colour, width, cv2.LINE_AA)
    return drawn


def _mark(picture: np.ndarray, x: int, y: int) -> None:
    """Four ticks around a map's peak, in place: what lies there stays to be seen."""
    for colour, width in ((EDGE, 6), (TICK, 3)):
        for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            near, far = ((x + across * r, y + down * r) for r in (11, 27))
            cv2.line(picture, near, far, colour, width, cv2.LINE_AA)


def _cell(name: str, said: str, alt: str, picture: np.ndarray) -> dict[str, str]:
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise DataError(f"{alt}: the picture cannot be encoded as JPEG")
    text = base64.b64encode(data.tobytes()).decode("ascii")
    return {"name": name, "said": said, "alt": alt, "src": f"data:image/jpeg;base64,{text}"}
