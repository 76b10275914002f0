"""What a network shows of a split: a row an image, and what is kept of each map."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.index import hash_rows
from datamodules.radiographs import RadiographDataModule
from experiments.build import choose_device
from experiments.evaluation.figures import MapRows, iou_curves
from experiments.evaluation.methods import Batch, MapMethod, fit_scale, raw_map, views_of
from lightning_modules import overlap
from lightning_modules.attention import has_peak, peak, scale_map
from lightning_modules.metrics import hit
from lightning_modules.stage1 import Stage1Classifier
from lightning_modules.stage2 import Stage2GuidedAttention

IDS = ["path", "patient", "study", "body_part", "label", "lesion_type", "hardware"]
COLUMNS = ("peak_x", "peak_y", "hit", "distance", "iou_otsu", "energy")
# Written as whole numbers, empty where there is none, not as 1.0.
WHOLE = ("peak_x", "peak_y", "hit")


def judge(
    module: Stage1Classifier | None,
    data: RadiographDataModule,
    split: str,
    methods: Sequence[MapMethod] = (),
    scales: Mapping[str, float] | None = None,
    tuning: bool = False,
) -> Judged:
    """Run the network over a split, each image once; maps are judged at the original size.

    ``methods`` are judged beside the network's own maps, or alone where ``module`` is None; without
    ``scales`` theirs are fitted on this very split, val. ``tuning`` is that of :class:`Judged`.
    """
    device = choose_device()
    if module is not None:
        module = module.to(device).eval()
    names = [*(module.judged_maps if module else ()), *(method.name for method in methods)]
    if len(set(names)) < len(names):
        raise ValueError(f"two map methods have one name: {', '.join(sorted(names))}")
    judged = Judged(data, names, tuning)
    seen = views_of(module)
    # Of each view (B, 1, h, w), coarse: all are kept.
    raw: list[tuple[list[int], dict[str, list[Tensor]]]] = []
    loader = data.evaluation_dataloader(split)
    for batch in tqdm(loader, desc=f"{split} images", unit=" batches", leave=False, disable=None):
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        batch = data.on_after_batch_transfer(batch, 0)
        rows, size = batch["index"].tolist(), batch["image"].shape[-2:]
        columns, squares = _outputs(module, batch) if module else ({}, {})
        for place, row in enumerate(rows):
            judged.add_image(row, {name: float(values[place]) for name, values in columns.items()})
        judged.add_squares(rows, squares)
        shown = [view.of(batch["image"]) for view in seen]
        drawn = {
            m.name: [raw_map(m, module, image, batch).cpu() for image in shown] for m in methods
        }
        raw.append((rows, drawn))
        sides = [image.shape[-2:] for image in shown]
    if scales is None:  # as the network's own: of the images as they are, the first view
        peaks = {m.name: [every[m.name][0].amax((1, 2, 3)) for _, every in raw] for m in methods}
        scales = {name: fit_scale(torch.cat(values)) for name, values in peaks.items()}
    for rows, coarse in raw:
        large = {}
        for method in methods:
            scaled = [scale_map(maps, scales[method.name]) for maps in coarse[method.name]]
            every = [
                view.back(method.enlarge(maps, module, side), size)
                for view, maps, side in zip(seen, scaled, sides, strict=True)
            ]
            large[method.name] = torch.stack(every).mean(0)
        judged.add_squares(rows, large)
    judged.scales = dict(scales)
    return judged


class Judged:
    """The images of a split and what is kept of their maps, whatever the maps come from.

    With ``tuning`` only histograms of the maps are made, from which thresholds follow: what val
    needs when another split is judged. All other columns stay NaN.
    """

    def __init__(self, data: RadiographDataModule, names: Sequence[str], tuning: bool) -> None:
        # What becomes 1 in the maps of each method beside the network's own.
        self.scales: dict[str, float] = {}
        self._data, self._tuning = data, tuning
        self._images: list[dict[str, float]] = []
        # Of each method and image its columns, and its row of the arrays of MapRows.
        self._maps: dict[str, list[tuple[dict[str, float], MapRows]]] = {name: [] for name in names}
        self._lesion: tuple[int, Tensor | None] = (-1, None)  # of the row that came last

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row an image: ids, ``lesion_area`` and what the network says of it."""
        images = pd.DataFrame(self._images or {"row": [], "lesion_area": []}).set_index("row")
        return self._data.table.loc[images.index, IDS].join(images).reset_index(drop=True)

    @cached_property
    def maps(self) -> dict[str, MapRows]:
        """What pixel AP and the upper bounds are made of; zeros and NaN without a mask."""
        maps = {}
        for name, rows in self._maps.items():
            lesion, pixels, box_iou = map(np.stack, zip(*(row for _, row in rows), strict=True))
            maps[name] = MapRows(lesion, pixels * lesion.any(axis=1, keepdims=True), box_iou)
        return maps

    def thresholds(self) -> dict[str, float]:
        """Of each method, by the mean IoU on these masks; NaN without a mask."""
        if not self._images:
            return dict.fromkeys(self._maps, np.nan)
        # Not the best itself: masks lie on abnormal images, so it may claim lesions on normal ones.
        return {k: overlap.best_threshold(iou_curves(rows), 1.0) for k, rows in self.maps.items()}

    def whole_table(self, thresholds: Mapping[str, float]) -> pd.DataFrame:
        """The table with all columns of all methods; NaN where val had no threshold for them."""
        tables = [self.table]
        for name, rows in self._maps.items():
            pixels = np.stack([row.pixels for _, row in rows])
            claimed = pixels[:, ::-1].cumsum(axis=1)[:, ::-1] / pixels.sum(1, keepdims=True)
            curves, threshold = iou_curves(self.maps[name]), thresholds[name]
            iou = _at(curves, threshold)
            columns = pd.DataFrame([columns for columns, _ in rows]).assign(
                iou=iou,
                dice=2 * iou / (1 + iou),
                iou_bound=_at(curves, overlap.best_threshold(curves)),
                area=_at(claimed, threshold),
            )
            tables.append(columns.astype(dict.fromkeys(WHOLE, "Int64")).add_prefix(f"{name}_"))
        return pd.concat(tables, axis=1)

    def beside(self, other: Judged) -> None:
        """Add the maps of other methods of the same images."""
        self._maps |= other._maps
        self.scales |= other.scales

    def add_image(self, row: int, columns: Mapping[str, float]) -> None:
        """Add an image, a row of the index table."""
        lesion = self._lesion_of(row)
        area = np.nan if lesion is None else float(lesion.double().mean())
        self._images.append({"row": row, "lesion_area": area, **columns})

    def add_squares(self, rows: Sequence[int], squares: Mapping[str, Tensor]) -> None:
        """Add maps ``(B, 1, S, S)`` in [0, 1] of images as the network sees them."""
        with one_thread():
            for (place, row), (name, maps) in itertools.product(enumerate(rows), squares.items()):
                square = maps[place, 0].cpu().numpy()
                self.add_map(row, name, self._data.to_original(square, row))

    def add_map(self, row: int, name: str, values: np.ndarray) -> None:
        """Add a map of the image, float32 ``(H, W)`` in [0, 1] at its original size."""
        shown, lesion = torch.from_numpy(values)[None, None], self._lesion_of(row)
        marked = torch.zeros_like(shown, dtype=torch.bool) if lesion is None else lesion
        lesion_pixels, pixels = overlap.level_counts(shown, marked)
        columns: dict[str, float] = dict.fromkeys(COLUMNS, np.nan)
        box_iou = np.full(overlap.LEVELS - 1, np.nan, dtype=np.float32)
        if not self._tuning and bool(has_peak(shown)):
            columns["peak_x"], columns["peak_y"] = peak(shown)[0].tolist()
        if not self._tuning and bool(marked.any()):
            columns |= {
                "hit": float(hit(shown, marked)),
                "distance": float(overlap.peak_distance(shown, marked)),
                "iou_otsu": float(overlap.iou(overlap.otsu_region(shown), marked)),
                "energy": float(overlap.energy_in_mask(shown, marked)),
            }
            box_iou = overlap.box_iou_curve(shown, marked)[0].numpy()
        # int32: several methods' rows of a whole data set are kept, and no image has 2^31 pixels.
        kept = MapRows(lesion_pixels[0].int().numpy(), pixels[0].int().numpy(), box_iou)
        self._maps[name].append((columns, kept))

    def _lesion_of(self, row: int) -> Tensor | None:
        """The lesion mask at the original size, bool ``(1, 1, H, W)``."""
        if self._lesion[0] != row:
            mask = self._data.original_mask(row)
            self._lesion = row, None if mask is None else torch.from_numpy(mask > 127)[None, None]
        return self._lesion[1]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For work map by map, so little that threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def judged_on(data: RadiographDataModule, split: str) -> dict[str, str]:
    """Hashes of all that a split's figures rest on but the network."""
    return {**data.hashes, "rows": hash_rows(data.table.iloc[data.rows_of(split)][IDS])}


def _outputs(module: Stage1Classifier, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Columns of the table, each ``(B,)``, and the network's own maps, ``(B, 1, S, S)``."""
    columns: dict[str, Tensor] = {}
    image, label = batch["image"], batch["label"]
    with torch.inference_mode():
        probability, maps = module.explain(image)
        if module.classifies:
            columns["probability"] = probability
            if isinstance(module, Stage2GuidedAttention) and module.loss.alpha != 0:
                masked = module.masked_logits(image, label)
                swapped = module.swapped_masked_logits(image, label)
                columns["masked_probability"] = masked.softmax(1)[:, 1]
                columns["swapped_masked_probability"] = swapped.softmax(1)[:, 1]
    return columns, {name: maps[name] for name in module.judged_maps}


def _at(curves: np.ndarray, threshold: float) -> np.ndarray:
    """The column of a threshold of ``overlap.level_counts``."""
    if math.isnan(threshold):
        return np.full(len(curves), np.nan)
    return np.asarray(curves[:, round(threshold * (overlap.LEVELS - 1))])
