"""What a person reads before and after a training."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from datamodules.index import summarise
from datamodules.radiographs import RadiographDataModule
from experiments.config import Config, run_directory
from experiments.hardware import describe_device
from experiments.runs import epochs_done
from experiments.training.wandb import wandb_mode


def describe_start(
    config: Config,
    data: RadiographDataModule,
    trainer: Trainer,
    module: LightningModule,
    checkpoint: dict[str, Any],
) -> str:
    """What a person wants to know before waiting; ``checkpoint`` is empty for a fresh start."""
    device, folder = trainer.strategy.root_device, run_directory(config)
    # PyTorch's default for convolutions; CAM and the FC layer stay exact.
    rounded = device.type == "cuda" and str(trainer.precision).startswith("32")
    weights = sum(p.numel() for p in module.parameters()) / 1e6
    lines = [
        f"device     {describe_device(device)}, precision {trainer.precision}"
        + ", convolutions in TF32" * rounded,
        f"network    {type(module).__name__}, {weights:.2f} million weights, "
        f"{data.recipe.image_size} px",
        *describe_batch(config, trainer, data.batch_size),
        *describe_data(data).splitlines(),
        *([f"starts     from {config.model.init_from}"] if config.model.init_from else []),
        f"W&B        {wandb_mode(config.logger.wandb)}",
        f"run        {folder}",
    ]
    if checkpoint:
        done, planned = epochs_done(checkpoint), checkpoint["max_epochs"]
        last = folder / "checkpoints" / "last.ckpt"
        lines.append(f"resumes    {last} ({done} of {trainer.max_epochs} epochs done)")
        if config.optimizer.schedule == "cosine" and planned < config.trainer["max_epochs"]:
            lines.append(
                f"EXTENDED   from {planned} epochs: the learning rate, already lowered, rises "
                "again; a fresh run of this length ends otherwise"
            )
    head = f"decision-basis  {config.stage} on {config.data.name}, seed {config.seed}"
    return "\n  ".join([head, *lines]) + "\n"


def describe_batch(config: Config, trainer: Trainer, batch_size: int) -> list[str]:
    """How many images a step and BatchNorm see, and that the learning rate knows nothing of it."""
    ranks, batches = trainer.world_size, trainer.accumulate_grad_batches
    optimizer = config.optimizer
    lines = [
        f"batch      {batch_size} a rank x {ranks} rank{'s' * (ranks > 1)} "
        + f"x {batches} batches a step " * (batches > 1)
        + f"= {batch_size * ranks * batches} images a step",
        f"optimizer  AdamW, learning rate {optimizer.learning_rate:g} (as given, whatever the "
        f"batch), weight decay {optimizer.weight_decay:g}",
    ]
    if ranks > 1 and config.trainer.get("sync_batchnorm"):
        lines.append(f"BatchNorm  over all {batch_size * ranks} images")
    elif ranks > 1:
        lines.append(
            f"BatchNorm  over each rank's own {batch_size} images; on GPUs "
            "trainer.sync_batchnorm=true takes all"
        )
    return lines


def describe_data(data: RadiographDataModule) -> str:
    """A line a split, and what is unusual."""
    lines = [summarise(data.table, data.patients_are)]
    unreadable = data.cache_folder / "unreadable.csv"
    if unreadable.is_file():
        count = len(unreadable.read_text().strip().splitlines()) - 1
        lines.append(f"unreadable and not used: about {count}, see {unreadable}")
    if data.split == "image":
        lines.append("SPLIT BY IMAGE: patients leak into test, figures are too good")
    return "\n".join(lines)


def print_results(config: Config, row: dict[str, float]) -> None:
    """The figures of the best epoch, ``row``, where the run lies and the next command."""
    names = ["fcn/pixel_ap", "fcn/hit"]  # masks alone teach no class
    if config.loss.classification:
        names = ["auroc", "accuracy", "balanced_accuracy", "kappa", "study_kappa"]
    figures = "  ".join(f"{name} {row[f'val/{name}']:.3f}" for name in names if row)
    print(f"best epoch {int(row['epoch']) + 1} on val:  {figures}" if row else "no figures on val")
    folder = run_directory(config)
    best = folder / "checkpoints" / "best.ckpt"
    lost = not best.is_file() or not best.stat().st_size
    checkpoint = best.with_name("last.ckpt") if lost else best
    print(f"checkpoint  {checkpoint}{' (best.ckpt is lost)' if lost else ''}")
    print(f"panels      {folder / 'panels'}")
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    words = [str(python), "-m", "experiments.evaluate", str(checkpoint if lost else folder)]
    print(f"next        {shlex.join(words)}")
