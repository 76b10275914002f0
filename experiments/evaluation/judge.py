"""What a network shows of a split: a row an image, and what is kept of each map."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.radiographs import RadiographDataModule
from experiments.evaluation.figures import LEVELS, MapRows, iou_curves
from experiments.evaluation.methods import Batch, MapMethod, fit_scale, raw_map, shown_map
from experiments.hardware import choose_device
from lightning_modules import Stage1Classifier
from lightning_modules.attention import peak
from lightning_modules.metrics import overlap
from lightning_modules.metrics.localisation import hit, peak_distance
from lightning_modules.stage2 import Stage2GuidedAttention

IDS = ["path", "patient", "study", "body_part", "label", "lesion_type", "hardware"]
NAN = float("nan")
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

    Args:
        module: None judges ``methods`` that need no network.
        data: set up.
        split: which of its images.
        methods: map methods beside the network's own.
        scales: of ``methods``, as val fitted them; None fits them on this very split, val.
        tuning: as of :class:`MapRecorder`.
    """
    device = choose_device()
    if module is not None:
        module = module.to(device).eval()
    names = [*(module.judged_maps if module else ()), *(method.name for method in methods)]
    if len(set(names)) < len(names):
        raise ValueError(f"two map methods have one name: {', '.join(sorted(names))}")
    judged = Judged(data, names, tuning)
    # Raw maps of val, until their scale is known.
    waiting: list[tuple[int, dict[str, Tensor]]] = []
    for batch in _batches(data, split, device):
        columns, own = _outputs(module, batch) if module else ({}, {})
        raw = {m.name: raw_map(m, module, batch["image"], batch).cpu() for m in methods}
        size = batch["image"].shape[-2:]
        with one_thread():
            for place, row in enumerate(batch["index"].tolist()):
                judged.add_image(row, {name: float(v[place]) for name, v in columns.items()})
                judged.add_squares(row, {name: maps[place] for name, maps in own.items()})
                of_row = {name: maps[place : place + 1] for name, maps in raw.items()}
                if scales is None:
                    waiting.append((row, of_row))
                else:
                    judged.add_squares(row, _shown(of_row, scales, size))
    if scales is None:
        peaks = {m.name: [float(maps[m.name].max()) for _, maps in waiting] for m in methods}
        scales = {name: fit_scale(values) for name, values in peaks.items()}
        with one_thread():
            for row, of_row in waiting if methods else ():
                judged.add_squares(row, _shown(of_row, scales, size))
    judged.scales = dict(scales)
    return judged


class Judged:
    """The images of a split and what is kept of their maps, whatever the maps come from."""

    def __init__(self, data: RadiographDataModule, names: Sequence[str], tuning: bool) -> None:
        self.maps = {name: MapRecorder(name, tuning) for name in names}
        # What becomes 1 in the maps of each method beside the network's own.
        self.scales: dict[str, float] = {}
        self._data = data
        self._images: list[dict[str, float]] = []
        self._lesion: tuple[int, Tensor | None] = (-1, None)  # of the row that came last

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row an image: ids, ``lesion_area`` and what the network says of it."""
        images = pd.DataFrame(self._images).set_index("row")
        return self._data.table.loc[images.index, IDS].join(images).reset_index(drop=True)

    def add_image(self, row: int, columns: Mapping[str, float]) -> None:
        """Add an image, a row of the index table."""
        lesion = self._lesion_of(row)
        area = NAN if lesion is None else float(lesion.double().mean())
        self._images.append({"row": row, "lesion_area": area, **columns})

    def add_squares(self, row: int, squares: Mapping[str, Tensor]) -> None:
        """Add maps ``(1, S, S)`` in [0, 1] of the image as the network sees it."""
        for name, square in squares.items():
            # Interpolation may round a 1 up.
            full = self._data.to_original(square[0].cpu().numpy(), row).clip(0, 1)
            self.add_map(row, name, full)

    def add_map(self, row: int, name: str, values: np.ndarray) -> None:
        """Add a map of the image, float32 ``(H, W)`` in [0, 1] at its original size."""
        self.maps[name].add(torch.from_numpy(values)[None, None], self._lesion_of(row))

    def _lesion_of(self, row: int) -> Tensor | None:
        """The lesion mask at the original size, bool ``(1, 1, H, W)``."""
        if self._lesion[0] != row:
            mask = self._data.original_mask(row)
            self._lesion = row, None if mask is None else torch.from_numpy(mask > 127)[None, None]
        return self._lesion[1]


class MapRecorder:
    """The maps of one method over a split, before any threshold is chosen.

    Args:
        name: of the method, which begins the names of its columns.
        tuning: only the histograms are made, from which thresholds follow: what val needs when
            another split is judged. All other columns stay NaN.
    """

    def __init__(self, name: str, tuning: bool = False) -> None:
        self.name = name
        self.tuning = tuning
        self._columns: list[dict[str, float]] = []
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, shown: Tensor, lesion: Tensor | None) -> None:
        """Add the map of the next image, ``(1, 1, H, W)`` in [0, 1]; the lesion is bool."""
        marked = torch.zeros_like(shown, dtype=torch.bool) if lesion is None else lesion
        lesion_pixels, pixels = overlap.level_counts(shown, marked, LEVELS)
        columns: dict[str, float] = dict.fromkeys(COLUMNS, NAN)
        box_iou = np.full(overlap.LEVELS - 1, NAN, dtype=np.float32)
        if not self.tuning:
            columns["peak_x"], columns["peak_y"] = peak(shown)[0].tolist()
        if bool(marked.any()) and not self.tuning:
            otsu = overlap.claimed(shown, overlap.otsu_threshold(shown))
            columns["hit"] = float(hit(shown, marked))
            columns["distance"] = float(peak_distance(shown, marked))
            columns["iou_otsu"] = float(overlap.iou(otsu, marked))
            columns["energy"] = float(overlap.energy_in_mask(shown, marked))
            box_iou = overlap.box_iou_curve(shown, marked)[0].numpy()
        self._columns.append(columns)
        # int32: several methods' rows of a whole data set are kept, and no image has 2^31 pixels.
        self._rows.append((lesion_pixels[0].int().numpy(), pixels[0].int().numpy(), box_iou))

    @cached_property
    def rows(self) -> MapRows:
        """What pixel AP and the upper bounds are made of; zeros and NaN without a mask."""
        lesion_pixels, pixels, box_iou = map(np.stack, zip(*self._rows, strict=True))
        return MapRows(lesion_pixels, pixels * lesion_pixels.any(axis=1, keepdims=True), box_iou)

    def best_threshold(self) -> float:
        """The threshold with the largest mean IoU on these masks; NaN where there are none."""
        if not self._rows:
            return NAN
        return overlap.best_threshold(torch.from_numpy(iou_curves(self.rows)))[0]

    def table(self, threshold: float) -> pd.DataFrame:
        """All columns of the method; NaN where a threshold is needed and val had none."""
        pixels = np.stack([pixels for _, pixels, _ in self._rows])
        claimed = pixels[:, ::-1].cumsum(axis=1)[:, ::-1] / pixels.sum(1, keepdims=True)
        curves = iou_curves(self.rows)
        iou = _at(curves, threshold)
        columns = pd.DataFrame(self._columns)
        table = columns.assign(
            **{name: columns[name].astype("Int64") for name in WHOLE},
            iou=iou,
            dice=2 * iou / (1 + iou),
            iou_bound=_at(curves, self.best_threshold()),
            area=_at(claimed, threshold),
        )
        return table.add_prefix(f"{self.name}_")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For work map by map, so little that threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _outputs(module: Stage1Classifier, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Columns of the table, each ``(B,)``, and the network's own maps, ``(B, 1, S, S)``."""
    columns: dict[str, Tensor] = {}
    image, label = batch["image"], batch["label"]
    with torch.inference_mode():
        probability, maps = module.explain(image)
        if module.classifies:
            columns["probability"] = probability
            if isinstance(module, Stage2GuidedAttention):
                masked = module.masked_logits(image, label)
                swapped = module.swapped_masked_logits(image, label)
                columns["masked_probability"] = masked.softmax(1)[:, 1]
                columns["swapped_masked_probability"] = swapped.softmax(1)[:, 1]
    return columns, {name: maps[name] for name in module.judged_maps}


def _shown(
    raw: Mapping[str, Tensor], scales: Mapping[str, float], size: torch.Size
) -> dict[str, Tensor]:
    return {name: shown_map(one, scales[name], size)[0] for name, one in raw.items()}


def _batches(data: RadiographDataModule, split: str, device: torch.device) -> Iterator[Batch]:
    loader = data.evaluation_dataloader(split)
    for batch in tqdm(loader, desc=f"{split} images", unit=" batches", leave=False, disable=None):
        on_device = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        yield data.on_after_batch_transfer(on_device, 0)


def _at(curves: np.ndarray, threshold: float) -> np.ndarray:
    """The column of a threshold of ``overlap.threshold_grid``."""
    if math.isnan(threshold):
        return np.full(len(curves), NAN)
    return np.asarray(curves[:, round(threshold * (LEVELS - 1))])
