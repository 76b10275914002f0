"""What a run makes of images that need no lesion mask: class scores, features, its map."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.radiographs import RadiographDataModule
from experiments.annotation.choosing import Look
from experiments.build import build_data
from experiments.config import Config, differences, load_config, to_plain
from experiments.runs import RunError, find_checkpoint, load_module

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
    folder, checkpoint = find_checkpoint(run)
    saved = str(folder / "config.yaml")
    config = load_config(saved, overrides)
    changed = [
        line
        for line in differences(to_plain(load_config(saved, [])), to_plain(config))
        if not line.startswith(("data.batch_size", "lesions."))
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise RunError(
            f"{folder} was trained otherwise:\n  {listed}\nIt can only look at the images that it "
            "was trained for, in its own way: leave these words out, or name another run"
        )
    loaded, content = load_module(config.stage, checkpoint)
    module: Any = loaded
    if not module.classifies:
        raise RunError(
            f"{folder} was trained on lesion masks alone and does not classify: its uncertainty "
            "means nothing; name a stage 1 run"
        )
    data = build_data(config)
    data.prepare_data()
    data.setup()
    trained_on = content.get(type(data).__qualname__, {})
    # A checkpoint of before knows the whole index's hash only.
    if not data.judges_as(trained_on) and trained_on.get("index_hash") != data.index_hash:
        raise RunError(
            f"{folder} was trained on other images than {data.root} holds now, or they were split "
            "otherwise; name the data.root that it had, or train a run on these"
        )
    method = "fcn" if "fcn" in module.judged_maps else "pcam"
    found = tuned_threshold(folder, checkpoint.stem, int(content["epoch"]) + 1, method)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threshold = HALF if found is None else found
    return Observer(config, data, module.to(device).eval(), method, threshold, found is not None)


def tuned_threshold(folder: Path, checkpoint: str, epoch: int, method: str) -> float | None:
    """The threshold that val decided on, from an evaluation of this very checkpoint; else None."""
    for split in ("val", "test", "left_out"):
        name = split if checkpoint == "best" else f"{split}-{checkpoint}"
        try:
            summary = json.loads((folder / "evaluation" / name / "summary.json").read_text())
            threshold = summary["fitted"]["maps"][method]["threshold"]
            if summary["epoch"] == epoch and 0 < threshold <= 1:
                return float(threshold)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # never judged, or with nothing to tune on
    return None


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
