"""What an audit looks at: abnormal images of a split, and every method's maps of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.radiographs import RadiographDataModule
from experiments.evaluation.methods import Batch, MapMethod, raw_map
from experiments.evaluation.statistics import patient_weights
from experiments.hardware import choose_device
from lightning_modules import Stage1Classifier
from lightning_modules.attention import non_negative, upsample
from lightning_modules.stage1 import ABNORMAL

IMAGES = 64
AT_ONCE = 32
Maps = dict[str, Tensor]


class Sample(NamedTuple):
    """The images of an audit.

    Attributes:
        batch: as the network gets it, all of the images.
        patient: of each image, ``(N,)``.
        other: for each image the place of one of another patient, ``(N,)``; -1: none.
    """

    batch: Batch
    patient: np.ndarray
    other: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Resamples of the patients, see :func:`statistics.patient_weights`."""
        return patient_weights(self.patient)


def draw_sample(
    data: RadiographDataModule, split: str, images: int = IMAGES, seed: int = 0
) -> Sample:
    """At most ``images`` abnormal images of a split, in random order, whatever run is audited."""
    rows = np.asarray(data.rows_of(split))
    rows = rows[(data.table["label"].to_numpy()[rows] == ABNORMAL)]
    if len(rows) < 2:
        raise ValueError(f"{split} has {len(rows)} abnormal images: an audit needs two or more")
    chosen = np.random.default_rng(seed).permutation(rows)[:images]
    device = choose_device()
    parts = []
    for batch in data.evaluation_dataloader(split):
        wanted = torch.from_numpy(np.isin(batch["index"].numpy(), chosen))
        parts.append({name: values[wanted].to(device) for name, values in batch.items()})
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    place = {row: place for place, row in enumerate(whole["index"].tolist())}
    order = torch.tensor([place[row] for row in chosen.tolist()], device=device)
    batch = data.on_after_batch_transfer({name: v[order] for name, v in whole.items()}, 0)
    patient = data.table["patient"].to_numpy()[chosen].astype(str)
    return Sample(batch, patient, _others(patient))


def make_maps(module: Stage1Classifier, methods: Sequence[MapMethod], batch: Batch) -> Maps:
    """Maps of all images, the network's own and those of ``methods``.

    Returns:
        Each float32 ``(N, 1, S, S)``, raw, negative values cut, enlarged to the image: no scale is
        needed where only the shape counts.
    """
    own = module.judged_maps
    every: dict[str, list[Tensor]] = {name: [] for name in (*own, *(m.name for m in methods))}
    for start in range(0, len(batch["image"]), AT_ONCE):
        part = {name: values[start : start + AT_ONCE] for name, values in batch.items()}
        image = part["image"]
        with torch.inference_mode():
            raw = module.raw_maps(module.encoder(image))
        raw = {name: raw[name] for name in own}
        raw |= {method.name: raw_map(method, module, image, part) for method in methods}
        for name, maps in raw.items():
            size, maps = image.shape[-2:], non_negative(maps)
            every[name].append(maps if maps.shape[-2:] == size else upsample(maps, size))
    return {name: torch.cat(parts) for name, parts in every.items()}


def _others(patient: np.ndarray) -> np.ndarray:
    """For each place the next one, going round, of another patient; -1 where all are of one."""
    place, count = np.arange(len(patient)), len(patient)
    steps = (place - place[:, None]) % count
    steps[patient == patient[:, None]] = count
    return np.where(steps.min(axis=1) < count, steps.argmin(axis=1), -1)
