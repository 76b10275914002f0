"""From a configuration to Lightning's objects; the one place where all rooms meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule

from datamodules import SOURCES, DataError
from datamodules.radiographs import RadiographDataModule
from experiments.config import Config
from experiments.hardware import usable_cores
from experiments.runs import RunError
from lightning_modules import STAGES


def build_data(config: Config) -> RadiographDataModule:
    """The data module of ``data.*``, ``augmentation.*`` and ``lesions.*``.

    Raises:
        DataError: the source is unknown or lacks its root.
    """
    data = config.data
    if data.name not in SOURCES:
        raise DataError(f"data.name={data.name} is none of {', '.join(SOURCES)}")
    strength = {
        name: value for name, value in vars(config.augmentation).items() if name != "enabled"
    }
    root, only_here = data.root, {}
    if data.name == "phantom":
        # A folder a drawing: asking for another seed or count never meets the one that is there.
        root = root or str(Path("data") / f"phantom-{data.count}-seed{data.seed}")
        only_here = {"count": data.count}
    return SOURCES[data.name](
        root=root,
        cache_dir=data.cache_dir or str(Path(config.run.root) / "cache"),
        seed=data.seed,
        image_size=data.image_size,
        crop=data.crop,
        contrast=data.contrast,
        batch_size=data.batch_size,
        num_workers=default_workers() if data.num_workers is None else data.num_workers,
        limit=data.limit,
        split=data.split,
        unreadable=data.unreadable,
        augmentation=strength if config.augmentation.enabled else None,
        order_seed=config.seed,
        lesions_path=config.lesions.path,
        lesions_count=config.lesions.count,
        lesions_per_batch=config.lesions.per_batch,
        **only_here,
    )


def default_workers() -> int:
    """Loader processes a rank: none on a CPU, where reading takes a few per cent of a step."""
    if not torch.cuda.is_available():
        return 0
    return min(8, usable_cores() // torch.cuda.device_count())


def build_module(config: Config, data: RadiographDataModule) -> LightningModule:
    """The stage's LightningModule with plain values as arguments (``data`` is set up)."""
    optimizer = config.optimizer
    arguments: dict[str, Any] = {
        "body_parts": data.body_parts,
        "class_weights": (
            data.class_weights() if config.loss.class_weights == "balanced" else (1.0, 1.0)
        ),
        "label_smoothing": config.loss.label_smoothing,
        "dropout": config.model.dropout,
        "width": config.model.width,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "warmup_epochs": optimizer.warmup_epochs,
        "schedule": optimizer.schedule,
    }
    return stage_class(config.stage)(**arguments)


def stage_class(stage: str) -> type[LightningModule]:
    """The LightningModule class of a stage."""
    if stage not in STAGES:
        raise RunError(f"{stage} is none of the stages {', '.join(STAGES)}")
    return STAGES[stage]
