"""What a run makes of images that need no lesion mask: class scores, features, its map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.radiographs import RadiographDataModule
from experiments.annotation.choosing import Look
from experiments.build import open_run
from experiments.config import Config
from experiments.runs import RunError

# Share of the map's scale that is outlined where val tuned no threshold: without lesion masks,
# which whoever chooses what to annotate may not have yet.
HALF = 0.5


class Observer(NamedTuple):
    """A run and its data.

    Attributes:
        config: As it was trained, with today's paths.
        data: Set up.
        module: In evaluation mode, on the device.
        method: The map that is outlined: fcn where there is one that is taught, else pcam.
        threshold: From where on it shows a lesion, 0 to 1.
        tuned: Whether val decided on the threshold.
    """

    config: Config
    data: RadiographDataModule
    module: Any
    method: str
    threshold: float
    tuned: bool


def open_observer(run: Path, overrides: list[str]) -> Observer:
    """Load a run as it was trained; ``overrides`` may change paths, workers and ``lesions.*``.

    Raises:
        RunError: There is no run or checkpoint, it was trained otherwise or on other images, or
            does not classify.
        DataError: The data cannot be used.
    """
    opened = open_run(run, overrides, ("data.batch_size", "lesions."))
    folder, data, module = opened.folder, opened.data, opened.module
    if not module.classifies:
        raise RunError(
            f"{folder} was trained on lesion masks alone and does not classify: its uncertainty "
            "means nothing; name a stage 1 run"
        )
    if not data.judges_as(opened.trained_on):
        raise RunError(
            f"{folder} was trained on other images than {data.root} holds now, or they were split "
            "otherwise; name the data.root that it had, or train a run on these"
        )
    method = "fcn" if "fcn" in module.judged_maps else "pcam"
    threshold = None
    if decisions := opened.decisions():
        threshold = decisions[0]["fitted"].get("maps", {}).get(method, {}).get("threshold")
    return Observer(
        opened.config, data, module, method, threshold or HALF, tuned=threshold is not None
    )


def look_at(observer: Observer, rows: np.ndarray) -> Look:
    """Features and class scores of index rows, in their order, in float32."""
    features, scores = [], []
    for _, image in _batches(observer, rows, "looking at images"):
        with torch.inference_mode():
            last = observer.module.encoder(image)[-1]
            features.append(last.float().mean((2, 3)).cpu())
            scores.append(observer.module.classify(last).cpu())
    found = torch.cat(scores)
    if not found.isfinite().all():
        raise RunError("the run's class scores are NaN or infinite: it diverged; name another run")
    return Look(
        torch.cat(features).numpy(),
        (found[:, 1] - found[:, 0]).abs().numpy(),
        found.softmax(1)[:, 1].numpy(),
    )


def maps_of(observer: Observer, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The run's map of each index row, float32 ``(H, W)`` in [0, 1], at the original size."""
    for places, image in _batches(observer, rows, "outlining maps"):
        with torch.inference_mode():
            shown = observer.module.maps(image)[observer.method].cpu().numpy()
        for row, square in zip(places, shown, strict=True):
            # Interpolation may round a 1 up.
            yield observer.data.to_original(square[0], int(row)).clip(0, 1)


def _batches(
    observer: Observer, rows: np.ndarray, what: str
) -> Iterator[tuple[np.ndarray, Tensor]]:
    data = observer.data
    assert data.pixels is not None, "open_observer sets up"
    device = next(observer.module.parameters()).device
    starts = range(0, len(rows), data.batch_size)
    for start in tqdm(starts, desc=what, unit=" batches", leave=False, disable=None):
        part = rows[start : start + data.batch_size]
        squares = np.stack([data.pixels.image(int(row)) for row in part])
        batch = {"image": torch.from_numpy(squares)[:, None].to(device)}
        yield part, data.on_after_batch_transfer(batch, 0)["image"]
