"""What a person reads before and after a training."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time each function imports what it needs, see experiments.command
    from experiments.config import Config


def describe_start(
    config: Config,
    data: Any,
    trainer: Any,
    module: Any,
    folder: Path,
    resume: Path | None,
    checkpoint: dict[str, Any],
) -> str:
    """What a person wants to know before waiting: one block."""
    from experiments.hardware import describe_device
    from experiments.runs import epochs_done
    from experiments.training.wandb import wandb_mode

    device = trainer.strategy.root_device
    # PyTorch's default for convolutions; CAM and the FC layer stay exact.
    rounded = device.type == "cuda" and str(trainer.precision).startswith("32")
    weights = sum(p.numel() for p in module.parameters()) / 1e6
    lines = [
        f"decision-basis  {config.stage} on {config.data.name}, seed {config.seed}",
        f"  device     {describe_device(device)}, precision {trainer.precision}"
        + ", convolutions in TF32" * rounded,
        f"  network    {type(module).__name__}, {weights:.2f} million weights, "
        f"{data.recipe.image_size} px",
        *[f"  {line}" for line in describe_batch(config, trainer, data.batch_size)],
        *[f"  {line}" for line in describe_data(data).splitlines()],
        *([f"  starts     from {config.model.init_from}"] if config.model.init_from else []),
        f"  W&B        {wandb_mode(config.logger.wandb)}",
        f"  run        {folder}",
    ]
    if resume:
        done, planned = epochs_done(checkpoint), checkpoint["max_epochs"]
        lines.append(f"  resumes    {resume} ({done} of {trainer.max_epochs} epochs done)")
        if config.optimizer.schedule == "cosine" and planned < config.trainer["max_epochs"]:
            lines.append(
                f"  EXTENDED   from {planned} epochs: the learning rate, already lowered, rises "
                "again; a fresh run of this length ends otherwise"
            )
    return "\n".join(lines) + "\n"


def describe_batch(config: Config, trainer: Any, batch_size: int) -> list[str]:
    """How many images a step and BatchNorm see, and that the learning rate knows nothing of it."""
    ranks, batches = trainer.world_size, trainer.accumulate_grad_batches
    images = batch_size * ranks * batches
    optimizer = config.optimizer
    lines = [
        f"batch      {batch_size} a rank x {ranks} rank{'s' * (ranks > 1)} "
        + (f"x {batches} batches a step " if batches > 1 else "")
        + f"= {images} images a step",
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


def describe_data(data: Any) -> str:
    """A line a split, and what is unusual."""
    from datamodules.index import summarise

    lines = [summarise(data.table, data.patients_are)]
    unreadable = data.cache_folder / "unreadable.csv"
    if unreadable.is_file():
        count = len(unreadable.read_text().strip().splitlines()) - 1
        lines.append(f"unreadable and not used: about {count}, see {unreadable}")
    if data.split == "image":
        lines.append("SPLIT BY IMAGE: patients leak into test, figures are too good")
    return "\n".join(lines)


def print_results(config: Config, folder: Path, row: dict[str, float]) -> None:
    """The figures of the best epoch, ``row``, where the run lies and the next command."""
    names = ["fcn/pixel_ap", "fcn/hit"]  # masks alone teach no class
    if config.loss.classification:
        names = ["auroc", "accuracy", "balanced_accuracy", "kappa", "study_kappa"]
    shown = "  ".join(f"{name} {row[f'val/{name}']:.3f}" for name in names if row)
    print(f"best epoch {int(row['epoch']) + 1} on val:  {shown}" if row else "no figures on val")
    best = folder / "checkpoints" / "best.ckpt"
    lost = not best.is_file() or not best.stat().st_size
    checkpoint = best.with_name("last.ckpt") if lost else best
    print(f"checkpoint  {checkpoint}{' (best.ckpt is lost)' if lost else ''}")
    print(f"panels      {folder / 'panels'}")
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    print(
        f"next        {shlex.quote(str(python))} -m experiments.evaluate "
        f"{shlex.quote(str(checkpoint if lost else folder))}"
    )
