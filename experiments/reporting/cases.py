"""The pictures of a report: which images are shown, by a rule, and how they are drawn."""

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch

from callbacks.panels import contours, draw_outline, draw_peak, encode, overlay, resize
from datamodules.decode import decode
from datamodules.radiographs import RadiographDataModule
from experiments.build import Run
from experiments.evaluation.compare import Group

NAN = float("nan")
SIDE = 480  # of a picture, pixels: twice what is shown on a page, for dense displays
AROUND = 4  # of the outline, pixels from the lesion
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 85)
# Strokes: a colour that is neither on the way from black to yellow nor grey, and light enough for
# eyes that miss green; below it a dark edge.
EDGE = (40, 20, 0)
OUTLINE, TICKS = ((EDGE, 5), ((255, 230, 90), 2)), ((EDGE, 6), ((255, 255, 255), 3))


class Column(NamedTuple):
    """A map that is shown of every image, by the first run of a group."""

    name: str
    group: Group
    opened: Run
    method: str


def pick(table: pd.DataFrame, method: str) -> tuple[str, pd.DataFrame]:
    """Choose images by figures alone: best, median and worst, then false positives.

    Returns what orders them (``val`` or ``Otsu``: the IoU of ``method`` at that threshold,
    ``probability``, or "" where nothing can) and their rows with ``kind``, ``number``, ``count``.
    """
    masked, normal = table[table["lesion_area"].notna()], table[table["label"] == 0]
    if len(masked):
        rule = "val" if masked[f"{method}_iou"].notna().any() else "Otsu"
        score = masked[f"{method}_iou" if rule == "val" else f"{method}_iou_otsu"]
        order = masked.assign(missed=-score, far=masked[f"{method}_distance"])
        claimed, least = normal[f"{method}_area"], 0.0
    elif "probability" in table:
        rule = "probability"
        abnormal, claimed, least = table[table["label"] == 1], normal["probability"], 0.5
        order = abnormal.assign(missed=-abnormal["probability"], far=0)
    else:
        return "", table[:0]
    false = normal.assign(missed=-claimed, far=0)[claimed > least]
    order, false = (r.sort_values(["missed", "far", "path"]) for r in (order, false))
    order, false = (r.assign(number=np.arange(len(r)) + 1, count=len(r)) for r in (order, false))
    last, middle = len(order) - 1, (len(order) - 1) // 2
    kinds = {last: "Worst", last - 1: "Worst", 0: "Best", 1: "Best"}
    kinds |= {middle: "Median", middle + 1: "Median"}  # of a handful the typical ones are kept
    places = sorted(place for place in kinds if 0 <= place <= last)
    picked = order.iloc[places].assign(kind=[kinds[place] for place in places])
    return rule, pd.concat([picked, false[:2].assign(kind="False positive")])


def draw(path: str, columns: Sequence[Column], reference: Column) -> list[dict[str, Any]]:
    """Draw an image that the reference picked: radiograph, maps over it, lesion mask, close-up."""
    data = reference.opened.data
    radiograph, lesion = decode(data.root / path), data.original_mask(_row(data, path))
    grey = _grey(radiograph)
    lines: Sequence[np.ndarray] = []
    if lesion is not None:
        # Any share of a pixel counts, or a small lesion would vanish. Outside it: it stays seen.
        part = cv2.resize(lesion, grey.shape[1::-1], interpolation=cv2.INTER_AREA) > 0
        wider = cv2.dilate(part.astype(np.uint8), np.ones((2 * AROUND + 1,) * 2, np.uint8))
        lines = contours(wider, cv2.RETR_EXTERNAL)
    pictures = [_picture("Radiograph", grey)]
    pictures += [_map(column, path, grey, lines) for column in columns]
    if lesion is not None:
        outlined = grey.copy()
        draw_outline(outlined, lines, OUTLINE)
        pictures.append(_picture("Lesion mask", outlined))
        if (near := _close_up(radiograph, lesion)) is not None:
            pictures.append(_picture("Close-up", near))
    return pictures


def _map(
    column: Column, path: str, grey: np.ndarray, lines: Sequence[np.ndarray]
) -> dict[str, Any]:
    method, data, module = column.method, column.opened.data, column.opened.module
    row, line = _row(data, path), column.group.runs[0].table.set_index("path").loc[path]
    image = torch.from_numpy(np.array(data.pixels.image(row)))[None, None]
    batch = data.on_after_batch_transfer({"image": image.to(module.device)}, 0)
    with torch.inference_mode():
        square = module.maps(batch["image"])[method][0, 0].cpu().numpy()
    heat, size = data.to_original(square, row), grey.shape[1::-1]
    picture = overlay(grey, cv2.resize(heat, size, interpolation=cv2.INTER_AREA))
    draw_outline(picture, lines, OUTLINE)
    area, hit = line[f"{method}_area"], line[f"{method}_hit"]
    hit = NAN if pd.isna(hit) else hit  # NA where the run was judged just now
    peak = [line[f"{method}_peak_{axis}"] + 0.5 for axis in "xy"]
    # The peak of a map of nearly 0 lies anywhere, a constant one has none.
    if (hit == hit or area != 0) and not pd.isna(peak[0]):
        scale = [shown / original for shown, original in zip(size, heat.shape[::-1], strict=True)]
        draw_peak(picture, int(peak[0] * scale[0]), int(peak[1] * scale[1]), (11, 27), TICKS)
    return _picture(column.name, picture, hit, area)


def _row(data: RadiographDataModule, path: str) -> int:
    return int(np.flatnonzero(data.table["path"] == path)[0])


def _grey(image: np.ndarray) -> np.ndarray:
    """An image ``(H, W)`` at the size of a page, from its darkest to its lightest grey, BGR."""
    small = resize(image, SIDE, SIDE).astype(np.float32)
    stretched = (small - small.min()) / max(np.ptp(small), 1) * 255
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


def _picture(name: str, picture: np.ndarray, hit: float = NAN, area: float = NAN) -> dict[str, Any]:
    text = base64.b64encode(encode(picture, ".jpg", JPEG)).decode("ascii")
    return {"name": name, "src": f"data:image/jpeg;base64,{text}", "hit": hit, "area": area}
