"""One training, from top to bottom: data, run directory, trainer, fit, results.

The same command again resumes: ``last.ckpt`` holds all that a run goes on with, to the bit.
"""

import logging
import os
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from callbacks.averaging import AveragedWeights
from callbacks.checkpoints import RunCheckpoints, StoppedInTraining
from callbacks.confidence import Confidence
from callbacks.panels import MapPanels
from callbacks.progress import EpochProgress
from datamodules.index import DataError, summarise
from datamodules.radiographs import RadiographDataModule
from experiments import build, runs
from experiments.command import BY_CTRL_C
from experiments.config import Config, ConfigError, run_directory, save_config
from experiments.training.preemption import StopRequest, is_first_rank, leave
from experiments.training.pretrained import IMAGENET, fetch, find_origin, give_weights
from experiments.training.wandb import SWEEP, start_wandb, wandb_mode
from lightning_modules.timm_encoder import TimmSyncBatchNorm

# What an epoch's line shows where no class is learned.
MASKS_ALONE = {"train/loss": "loss", "val/fcn/hit": "fcn hit", "val/fcn/pixel_ap": "fcn ap"}


def train(config: Config, data_only: bool, stop: StopRequest) -> int:
    """Prepare the data, then train or resume the run of ``config``; return the exit status."""
    quiet_known_warnings()
    if not data_only and (fault := build.slurm_fault(config.trainer)):
        raise ConfigError(fault)
    data = build.build_data(config)
    build.resolve(config, data)
    data.prepare_data()
    data.setup()
    if config.stage == "stage3" and not len(data.lesion_rows):
        raise DataError(
            "stage 3 learns from lesion masks of train, and there are none. Fix: lesions.path or a "
            "table's column mask, and lesions.count above 0; or stage 2, which needs none."
        )
    if data_only:
        build.build_module(config, data)  # what cannot work is refused here, and not after a queue
        lines = [*describe_data(data), f"cache  {data.cache_folder}"]
        if config.model.weights == IMAGENET:
            lines.append(f"weights  {fetch(config.model.encoder)}")
        print("\n".join(lines))
        return 0
    folder = run_directory(config)
    config.model.weights_origin = find_origin(config.model, folder)
    if not is_first_rank():
        return train_in(folder, config, data, stop)  # the first rank locks and writes the folder
    with runs.lock_run(folder):
        runs.check_config(folder, config)
        return train_in(folder, config, data, stop)


def train_in(folder: Path, config: Config, data: RadiographDataModule, stop: StopRequest) -> int:
    """Train or resume in ``folder``, which the first rank has locked."""
    resume, checkpoint = runs.resume_point(folder)
    callbacks = build_callbacks(config, folder, data, stop)
    if resume:
        check_checkpoint(checkpoint, resume, config, data, callbacks)
    if is_first_rank():
        # Only after the check: a resumed run may have new paths, but not new data.
        save_config(config, folder / "config.yaml")
    if resume and runs.epochs_done(checkpoint) >= config.trainer["max_epochs"]:
        runs.check_network(build.build_module(config, data), checkpoint, resume)
        stop.defer()  # nothing is left to be stopped
        done = runs.epochs_done(checkpoint)
        return report_finished(folder, config, done) if is_first_rank() else 0

    seed_everything(config.seed, verbose=False)
    trainer = build_trainer(config, folder, callbacks, checkpoint.get("precision"))
    build.check_ranks(trainer, is_first_rank())
    module = build.build_module(config, data).to(memory_format=torch.channels_last)
    if resume:
        runs.check_network(module, checkpoint, resume)
    else:
        give_weights(module, config, data)
    # Only now, when nothing can be wrong any more.
    last = checkpoint.get("callbacks", {}).get("RunCheckpoints", {}).get("metrics", {})
    trainer.loggers = [runs.MetricsCsv(folder, runs.epochs_done(checkpoint), last)]
    remote = None
    if trainer.is_global_zero:
        remote = start_wandb(config, folder)
        trainer.loggers += [remote] if remote else []
        print(describe_start(config, data, trainer, module, checkpoint))
    failed, stopped_by, started = True, 0, time.monotonic()
    try:
        # Only plain values are loaded: a checkpoint runs no code.
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        failed = False
        if remote:
            remote.summarise(runs.best_row(folder, monitor(config)))
    except StoppedInTraining as stopped:
        stopped_by = stopped.number
    except SystemExit:
        if not trainer.interrupted:
            raise
        return BY_CTRL_C
    finally:
        if remote:
            remote.close(failed, preempted=failed and bool(stop.number))
    if not trainer.is_global_zero:
        return 0  # the first rank speaks for all
    if stopped_by:
        return leave(stopped_by, f"saved at step {trainer.global_step}")
    print(f"\ntrained in {(time.monotonic() - started) / 60:.1f} minutes")
    print_results(config, folder)
    return 0


def report_finished(folder: Path, config: Config, epochs: int) -> int:
    """Print the results of a run that has ended before, and give them to a sweep's agent."""
    print(f"{folder} is finished ({epochs} epochs).")
    # W&B's agent, if it asked for the run, has begun a run of its own that would stay empty.
    if os.environ.get(SWEEP) and (remote := start_wandb(config, folder)):
        remote.summarise(runs.best_row(folder, monitor(config)))
        remote.close(failed=False)
    print_results(config, folder)
    return 0


def check_checkpoint(
    checkpoint: dict[str, Any],
    path: Path,
    config: Config,
    data: RadiographDataModule,
    callbacks: list[Callback],
) -> None:
    """Refuse a checkpoint of another stage or of other data, or without what a run goes on with."""
    if checkpoint["stage"] != config.stage:
        raise runs.RunError(
            f"{path} is a checkpoint of {checkpoint['stage']}, not of {config.stage}. Fix: choose "
            "another run.name."
        )
    planned = checkpoint["max_epochs"]
    if os.environ.get(SWEEP) and planned != config.trainer["max_epochs"]:
        raise runs.RunError(
            f"{path} was begun with trainer.max_epochs={planned}: points of a sweep must be "
            "trained alike. Fix: as many, or another run.root or run.name in the sweep's file."
        )
    source = type(data).__qualname__  # under which Lightning keeps the data module's state
    states = [source, *(one.state_key for one in callbacks if one.state_dict())]
    # Lightning keeps the average's weights beside the callbacks.
    states += ["current_model_state", "averaging_state"] * bool(config.optimizer.average_epochs)
    runs.check_states(checkpoint, path, states)
    data.check_same_data(checkpoint[source])


def build_trainer(
    config: Config, folder: Path, callbacks: list[Callback], precision: str | None = None
) -> Trainer:
    """Lightning's Trainer of ``trainer.*``, without loggers; ``precision`` is a resumed run's."""
    given = dict(config.trainer)
    known = given["precision"] or precision
    given["precision"] = known or build.choose_precision(given["accelerator"])
    wanted, device = given["accelerator"], build.choose_device(given["accelerator"]).type
    if device == "cpu" and wanted not in ("auto", "cpu"):  # Apple's MPS sums no float64
        raise ConfigError(f"trainer.accelerator={wanted}: torch sees no CUDA here. Fix: auto")
    if wanted == "auto":
        given["accelerator"] = device
    if given.get("sync_batchnorm") and given["accelerator"] == "cpu":
        raise ConfigError("trainer.sync_batchnorm: only on GPUs. Fix: leave it out on this machine")
    is_timm = config.model.encoder.startswith("timm:")
    settings = {
        "enable_model_summary": False,
        "use_distributed_sampler": False,  # the data module's samplers know ranks and resume
        "log_every_n_steps": 1,
        # cuDNN's search for the fastest kernels, which need not be the same in each run.
        "benchmark": not given.get("deterministic"),
        "gradient_clip_val": config.optimizer.gradient_clip or None,
        "enable_progress_bar": False,  # ours, among the callbacks
        "default_root_dir": folder,
        "callbacks": callbacks,
        "logger": False,
        "plugins": [TimmSyncBatchNorm()] * (is_timm and bool(given.get("sync_batchnorm"))),
        **given,
    }
    try:
        return Trainer(**settings)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer.*: {str(error).strip()}") from error


def build_callbacks(
    config: Config, folder: Path, data: RadiographDataModule, stop: StopRequest
) -> list[Callback]:
    """Confidence (from stage 2 on), progress, panels, average and checkpoints of a run."""
    classifies, to_loggers = config.loss.classification, config.logger.wandb_images
    if to_loggers is None:  # radiographs leave the machine only when asked
        to_loggers = not data.shows_people
    callbacks: list[Callback] = [
        EpochProgress(None if classifies else MASKS_ALONE),
        MapPanels(folder / "panels", to_loggers=to_loggers),
    ]
    if config.stage != "stage1" and classifies:
        callbacks.insert(0, Confidence(config.loss.alpha))
    if config.optimizer.average_epochs:
        callbacks.append(AveragedWeights(config.optimizer.average_epochs))
    checkpoints = RunCheckpoints(folder / "checkpoints", stop, config.checkpoint, monitor(config))
    return [*callbacks, checkpoints]


def monitor(config: Config) -> str:
    """The value that makes a checkpoint best; without classification class scores say nothing."""
    usual = "auroc" if config.loss.classification else "fcn/pixel_ap"
    name = config.checkpoint.monitor or usual
    return name if name == "epoch" else f"val/{name}"


def describe_start(
    config: Config,
    data: RadiographDataModule,
    trainer: Trainer,
    module: LightningModule,
    checkpoint: dict[str, Any],
) -> str:
    """What a person wants to know before waiting; ``checkpoint`` is empty for a fresh start."""
    device, optimizer = trainer.strategy.root_device, config.optimizer
    # PyTorch's default for convolutions; CAM and the FC layer stay exact.
    rounded = device.type == "cuda" and str(trainer.precision).startswith("32")
    weights = sum(p.numel() for p in module.parameters()) / 1e6
    ranks, batches = trainer.world_size, trainer.accumulate_grad_batches
    together = data.batch_size * ranks
    start, notes = config.model.init_from or "", list[str]()
    if start and not checkpoint:
        notes = build.unfinished(runs.find_checkpoint(Path(start))[0])
    normalised = f"each rank's own {data.batch_size}"
    if config.trainer.get("sync_batchnorm"):
        normalised = f"all {together}"
    lines = [
        f"decision-basis  {config.stage} on {config.data.name}, seed {config.seed}",
        f"device     {build.describe_device(device)}, precision {trainer.precision}"
        + ", convolutions in TF32" * rounded,
        f"network    {type(module).__name__}, {weights:.2f} million weights, "
        f"{', '.join(map(str, sorted(build.seen_at(config))))} px",
        f"batch      {data.batch_size} a rank x {ranks} rank{'s' * (ranks > 1)} "
        + f"x {batches} batches a step " * (batches > 1)
        + f"= {together * batches} images a step",
        f"optimizer  AdamW, learning rate {optimizer.learning_rate:g} (as given, whatever the "
        f"batch), weight decay {optimizer.weight_decay:g}",
        *[f"BatchNorm  over {normalised} images"] * (ranks > 1),
        *describe_data(data),
        *[f"learned    {len(data.lesion_rows)} of train's masks"] * (config.stage == "stage3"),
        *[f"starts     from {', '.join([start, *notes])}"] * bool(start),
        *[f"weights    {config.model.weights_origin}"] * bool(config.model.weights_origin),
        f"W&B        {wandb_mode(config.logger.wandb)}",
        f"run        {run_directory(config)}",
    ]
    if checkpoint:
        done, planned = runs.epochs_done(checkpoint), checkpoint["max_epochs"]
        lines.append(f"resumes    at {done} of {trainer.max_epochs} epochs")
        if optimizer.schedule == "cosine" and planned < config.trainer["max_epochs"]:
            lines.append(
                f"EXTENDED   from {planned} epochs: the learning rate, already lowered, rises "
                "again; a fresh run of this length ends otherwise"
            )
    return "\n  ".join(lines) + "\n"


def describe_data(data: RadiographDataModule) -> list[str]:
    """A line a split, and what is unusual."""
    lines = summarise(data.table, data.patients_are).splitlines()
    if data.patients_are != "patients":
        lines.append(f"patients are not known: {data.patients_are} stand in for them")
    unreadable = data.cache_folder / "unreadable.csv"
    if unreadable.is_file():
        lines.append(f"unreadable and not used: see {unreadable}")
    if data.split == "image":
        lines.append("SPLIT BY IMAGE: patients leak into test, figures are too good")
    return lines


def print_results(config: Config, folder: Path) -> None:
    """Print the figures of the best epoch, where the run lies and the next command."""
    row = runs.best_row(folder, monitor(config))
    names = ["fcn/pixel_ap", "fcn/hit"]  # masks alone teach no class
    if config.loss.classification:
        names = ["auroc", "accuracy", "balanced_accuracy", "kappa", "study_kappa"]
    figures = "  ".join(f"{name} {row[f'val/{name}']:.3f}" for name in names if row)
    which = "last" if monitor(config) == "epoch" else "best"
    text = f"{which} epoch {int(row['epoch']) + 1} on val:  {figures}" if row else ""
    print(text or "no figures on val")
    best = folder / "checkpoints" / "best.ckpt"
    lost = not best.is_file()
    checkpoint = best.with_name("last.ckpt") if lost else best
    print(f"checkpoint  {checkpoint}{' (best.ckpt is lost)' * lost}")
    print(f"panels      {folder / 'panels'}")
    words = [sys.executable, "-m", "experiments.evaluate", str(checkpoint if lost else folder)]
    words += ["--split", "left_out"] * bool(config.lesions.folds)
    print(f"next        {shlex.join(words)}")


def quiet_known_warnings() -> None:
    """Silence advice of Lightning's that does not hold here."""
    # signal_connector: its handlers for SLURM are replaced by ours.
    for name in ("utilities.rank_zero", "trainer.connectors.signal_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").setLevel(logging.WARNING)
    for message in (
        ".*srun.* command is available.*",  # slurm_fault has looked at the job, if there is one
        ".*does not have many workers.*",  # chosen from the cores, see batches.default_workers
        ".*dataloader is not resumable.*",  # the data module restores its position itself
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6.6 against torch >= 2.14
        ".*It is recommended to use `self.log.*sync_dist.*",  # figures are of all ranks already
    ):
        warnings.filterwarnings("ignore", message=message)
