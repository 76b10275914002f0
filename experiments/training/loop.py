"""One training, from top to bottom: data, run directory, trainer, fit, results.

The same command again resumes: ``last.ckpt`` holds all that a run goes on with, to the bit.
"""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from callbacks import (
    AveragedWeights,
    Confidence,
    EpochProgress,
    MapPanels,
    RunCheckpoints,
    StoppedInTraining,
)
from datamodules import RadiographDataModule
from experiments import runs
from experiments.build import build_data, build_module, start_from
from experiments.command import BY_CTRL_C
from experiments.config import Config, ConfigError, run_directory, save_config, to_plain
from experiments.hardware import choose_device, choose_precision, slurm_fault
from experiments.training.describe import describe_data, describe_start, print_results
from experiments.training.preemption import StopRequest, is_first_rank, leave
from experiments.training.wandb import in_sweep, start_wandb

# What an epoch's line shows where no class is learned.
MASKS_ALONE = {"train/loss": "loss", "val/fcn/hit": "fcn hit", "val/fcn/pixel_ap": "fcn ap"}


def train(config: Config, data_only: bool, stop: StopRequest) -> int:
    """Prepare the data, then train or resume the run of ``config``; return the exit status."""
    if not data_only and (fault := slurm_fault(config.trainer)):
        raise ConfigError(fault)
    if Path(config.run.root).is_file():
        raise ConfigError(f"run.root={config.run.root} is a file; give a folder")
    data = build_data(config)
    resolve(config, data)
    data.prepare_data()
    data.setup()
    if data_only:
        print(f"{describe_data(data)}\ncache  {data.cache_folder}")
        return 0
    folder = run_directory(config)
    # Lightning's own rank: no trainer is there to be asked yet.
    if getattr(rank_zero_only, "rank", 0) != 0:
        return train_in(folder, config, data, stop)  # the first rank locks and writes the folder
    with runs.lock_run(folder):
        runs.check_config(folder, config)
        return train_in(folder, config, data, stop)


def resolve(config: Config, data: RadiographDataModule) -> None:
    """Put the source's own choices into the configuration: a run must not change with them."""
    config.data.image_size = data.recipe.image_size
    config.data.crop = data.recipe.crop
    config.data.contrast = data.recipe.contrast
    config.data.unreadable = data.on_unreadable


def train_in(folder: Path, config: Config, data: RadiographDataModule, stop: StopRequest) -> int:
    """Train in a run directory that is this process's own."""
    resume, checkpoint = runs.resume_point(folder)
    if resume:
        check_origin(checkpoint, resume, config, data)
    if is_first_rank():
        # Not before: paths may differ from those that the run began with, the data may not.
        save_config(config, folder / "config.yaml")
    if resume and runs.epochs_done(checkpoint) >= config.trainer["max_epochs"]:
        runs.check_network(build_module(config, data), checkpoint, resume)
        stop.defer()  # nothing is left to be stopped
        say_finished(config, folder, runs.epochs_done(checkpoint))
        return 0

    quiet_known_warnings()
    seed_everything(config.seed, verbose=False)
    callbacks = build_callbacks(config, folder, data, stop)
    trainer = build_trainer(config, folder, callbacks)
    module = build_module(config, data).to(memory_format=torch.channels_last)
    if resume:
        runs.check_network(module, checkpoint, resume)
        runs.check_states(checkpoint, resume, states_of(callbacks))
    elif config.model.init_from:
        start_from(module, config, data)
    # Only now, when nothing can be wrong any more.
    last = checkpoint.get("callbacks", {}).get("RunCheckpoints", {}).get("metrics", {})
    trainer.loggers = [runs.MetricsCsv(folder, runs.epochs_done(checkpoint), last)]
    remote = None
    if trainer.is_global_zero:
        if remote := start_wandb(config.logger, folder, to_plain(config)):
            trainer.loggers = [*trainer.loggers, remote]
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
            remote.close(failed, preempted=bool(stopped_by))
    if not trainer.is_global_zero:
        return 0  # the first rank speaks for all
    if stopped_by:
        return leave(stopped_by, f"saved at step {trainer.global_step}")
    print(f"\ntrained in {(time.monotonic() - started) / 60:.1f} minutes")
    print_results(config, runs.best_row(folder, monitor(config)))
    return 0


def check_origin(
    checkpoint: dict[str, Any], path: Path, config: Config, data: RadiographDataModule
) -> None:
    """Refuse a checkpoint of another stage, without the data's state, or of other data."""
    stage = checkpoint.get("stage", config.stage)
    if stage != config.stage:
        raise runs.RunError(
            f"{path} is a checkpoint of {stage}, not of {config.stage}; delete {path.parents[1]} "
            "or choose another run.name"
        )
    source = type(data).__qualname__  # under which Lightning keeps the data module's state
    runs.check_states(checkpoint, path, [source])
    data.check_same_data(checkpoint[source])


def say_finished(config: Config, folder: Path, epochs: int) -> None:
    """Print the results of a run that has nothing left to train.

    W&B's agent, where it asked for the run, has begun a run of its own that would stay empty.
    """
    print(f"{folder} is finished ({epochs} epochs).")
    best = runs.best_row(folder, monitor(config))
    print_results(config, best)
    if in_sweep() and (remote := start_wandb(config.logger, folder, to_plain(config))):
        remote.summarise(best)
        remote.close(failed=False)


def build_trainer(config: Config, folder: Path, callbacks: list[Callback]) -> Trainer:
    """Lightning's Trainer of ``trainer.*``, without loggers."""
    given = dict(config.trainer)
    given["precision"] = given["precision"] or choose_precision(given["accelerator"])
    if given["accelerator"] == "auto":
        given["accelerator"] = choose_device().type
    synced = given.get("sync_batchnorm", False)
    if type(synced) is not bool:
        raise ConfigError(f"trainer.sync_batchnorm = {synced!r}: expected true or false")
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
        **given,
    }
    try:
        trainer = Trainer(**settings)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer.*: {str(error).strip()}") from error
    device = trainer.strategy.root_device.type
    if synced and trainer.world_size > 1 and device != "cuda":
        # PyTorch's own message comes at the first step, from the depths of the network.
        raise ConfigError(
            f"trainer.sync_batchnorm=true: PyTorch can do this on NVIDIA's GPUs only, not on "
            f"{device}; leave it out"
        )
    return trainer


def build_callbacks(
    config: Config, folder: Path, data: RadiographDataModule, stop: StopRequest
) -> list[Callback]:
    """Confidence (from stage 2 on), progress, panels, average and checkpoints of a run."""
    classifies, asked = config.loss.classification, config.logger.wandb_images
    # Radiographs leave the machine only when asked, or where no patient is shown.
    leave_machine = not data.shows_people if asked is None else asked
    callbacks: list[Callback] = [
        EpochProgress(None if classifies else MASKS_ALONE),
        MapPanels(folder / "panels", to_loggers=leave_machine),
    ]
    if config.stage != "stage1" and classifies:
        callbacks.insert(0, Confidence(config.loss.alpha))
    if config.optimizer.average_epochs:
        callbacks.append(AveragedWeights(config.optimizer.average_epochs))
    checkpoints = RunCheckpoints(
        folder / "checkpoints",
        monitor=monitor(config),
        every_minutes=config.checkpoint.every_minutes,
        every_steps=config.checkpoint.every_steps,
        stop=stop,
    )
    return [*callbacks, checkpoints]


def states_of(callbacks: list[Callback]) -> list[str]:
    """Names, in a checkpoint, of what a run goes on with."""
    names = [one.state_key for one in callbacks if one.state_dict()]
    # Lightning keeps the average's weights beside the callbacks.
    averaged = ["current_model_state", "averaging_state"] if "AveragedWeights" in names else []
    return [*names, *averaged]


def monitor(config: Config) -> str:
    """The value that makes a checkpoint best; without classification class scores say nothing."""
    return "val/auroc" if config.loss.classification else "val/fcn/pixel_ap"


def quiet_known_warnings() -> None:
    """Silence advice of Lightning's that does not hold here."""
    # signal_connector: its handlers for SLURM are replaced by ours.
    for name in ("utilities.rank_zero", "trainer.connectors.signal_connector"):
        logging.getLogger(f"pytorch_lightning.{name}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # chosen from the cores, see build.default_workers
        ".*dataloader is not resumable.*",  # the data module restores its position itself
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6.6 against torch >= 2.14
        ".*It is recommended to use `self.log.*sync_dist.*",  # figures are of all ranks already
    ):
        warnings.filterwarnings("ignore", message=message)
