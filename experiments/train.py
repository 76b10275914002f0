"""Train a stage: ``python -m experiments.train STAGE [key=value ...]``.

STAGE is stage1, stage2, stage3 or a YAML file. The same command again resumes an unfinished run and
says that a finished one is finished. ``--data-only`` prepares the data and stops. Exit status: 0
done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from experiments.config import Config, ConfigError, load_config, run_directory, to_plain


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train", description="Train one stage, or resume it."
    )
    parser.add_argument("stage", help="stage1, stage2, stage3, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration")
    parser.add_argument("--data-only", action="store_true", help="prepare the data and stop")
    arguments = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        # Before the heavy imports: a typing mistake is answered at once.
        config = load_config(arguments.stage, arguments.overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    from datamodules import DataError
    from experiments.build import build_data
    from experiments.runs import RunError

    try:
        data = build_data(config)
        data.prepare_data()
        data.setup()
        if arguments.data_only:
            print(f"{describe_data(data)}\ncache  {data.cache_folder}")
            return 0
        return train(config, data)
    except (ConfigError, DataError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def train(config: Config, data: Any) -> int:
    """Train or resume the run of ``config`` on data that is set up."""
    from experiments.runs import lock_run, open_run

    folder = run_directory(config)
    open_run(folder, config)
    # The other ranks are this process's children and work in its folder.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    with lock_run(folder) if first else contextlib.nullcontext():
        return train_in(folder, config, data)


def train_in(folder: Path, config: Config, data: Any) -> int:
    """Train in a run directory that is this process's own."""
    import torch
    from pytorch_lightning import Trainer, seed_everything

    from experiments.build import build_module
    from experiments.hardware import choose_precision
    from experiments.runs import RunError, epochs_done, resume_point
    from experiments.wandb_run import close_wandb

    resume, checkpoint = resume_point(folder)
    done, wanted = epochs_done(checkpoint), config.trainer["max_epochs"]
    written_by = checkpoint.get("stage", config.stage)
    if written_by != config.stage:
        raise RunError(
            f"{resume} is a checkpoint of {written_by}, not of {config.stage}; delete {folder} "
            "or choose another run.name"
        )
    if resume and done >= wanted:
        print(f"{folder} is finished ({done} epochs).")
        print_results(config, folder)
        return 0

    quiet_known_warnings()
    seed_everything(config.seed, verbose=False)
    torch.set_float32_matmul_precision("high")
    settings = dict(config.trainer)
    settings["precision"] = settings["precision"] or choose_precision(settings["accelerator"])
    trainer = Trainer(
        **{
            "enable_model_summary": False,
            "use_distributed_sampler": False,  # the data module's samplers know ranks and resume
            "log_every_n_steps": 1,
            "gradient_clip_val": config.optimizer.gradient_clip or None,
            **settings,
        },
        enable_progress_bar=False,  # ours, among the callbacks
        default_root_dir=folder,
        callbacks=build_callbacks(config, folder),
        logger=build_loggers(config, folder, done),
    )
    module = build_module(config, data).to(memory_format=torch.channels_last)
    if trainer.is_global_zero:
        print(describe_start(config, data, trainer, module, folder, resume, done))
    started = time.monotonic()
    try:
        trainer.fit(
            module, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True
        )
    finally:
        close_wandb()
    if trainer.is_global_zero:
        print(f"\ntrained in {(time.monotonic() - started) / 60:.1f} minutes")
        print_results(config, folder)
    return 0


def build_callbacks(config: Config, folder: Path) -> list[Any]:
    """Checkpoints, panels and progress of a run."""
    from callbacks import EpochProgress, MapPanels, RunCheckpoints

    return [
        EpochProgress(),
        MapPanels(folder / "panels"),
        RunCheckpoints(
            folder / "checkpoints",
            every_minutes=config.checkpoint.every_minutes,
            every_steps=config.checkpoint.every_steps,
        ),
    ]


def build_loggers(config: Config, folder: Path, epochs_kept: int) -> list[Any]:
    """``metrics.csv`` always, Weights & Biases when wanted."""
    from experiments.runs import MetricsCsv
    from experiments.wandb_run import wandb_logger

    loggers: list[Any] = [MetricsCsv(folder, epochs_kept)]
    remote = wandb_logger(config.logger, folder, to_plain(config))
    return [*loggers, remote] if remote else loggers


def describe_data(data: Any) -> str:
    """A line a split."""
    from datamodules.index import summarise

    return summarise(data.table)


def describe_start(
    config: Config,
    data: Any,
    trainer: Any,
    module: Any,
    folder: Path,
    resume: Path | None,
    done: int,
) -> str:
    """What a person wants to know before waiting: one block."""
    from experiments.hardware import describe_device

    ranks = trainer.world_size
    weights = sum(p.numel() for p in module.parameters()) / 1e6
    lines = [
        f"decision-basis  {config.stage} on {config.data.name}, seed {config.seed}",
        f"  device     {describe_device(trainer.strategy.root_device)}, "
        f"precision {trainer.precision}",
        f"  network    {type(module).__name__}, {weights:.2f} million weights, "
        f"{data.recipe.image_size} px",
        f"  batch      {data.batch_size} a rank x {ranks} rank{'s' * (ranks > 1)} "
        f"= {data.batch_size * ranks} images a step",
        *[f"  {line}" for line in describe_data(data).splitlines()],
        f"  run        {folder}",
    ]
    if resume:
        lines.append(f"  resumes    {resume} ({done} of {trainer.max_epochs} epochs done)")
    return "\n".join(lines) + "\n"


def print_results(config: Config, folder: Path) -> None:
    """The best figures, where they lie and the next command."""
    from experiments.runs import best_row

    row = best_row(folder)
    names = ["auroc", "accuracy", "balanced_accuracy", "kappa", "study_kappa"]
    shown = "  ".join(f"{name} {row[f'val/{name}']:.3f}" for name in names)
    print(f"best epoch {int(row['epoch']) + 1} on val:  {shown}")
    print(f"checkpoint  {folder / 'checkpoints' / 'best.ckpt'}")
    print(f"panels      {folder / 'panels'}")
    print(f"next        python -m experiments.evaluate {folder}")


def quiet_known_warnings() -> None:
    """Silence advice of Lightning's that does not hold here."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # chosen from the cores, see build.default_workers
        ".*dataloader is not resumable.*",  # the data module restores its position itself
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6.6 against torch >= 2.14
    ):
        warnings.filterwarnings("ignore", message=message)


if __name__ == "__main__":
    sys.exit(main())
