"""Train a stage: ``python -m experiments.train STAGE [key=value ...]``.

STAGE is stage1, stage2, stage3 or a YAML file. The same command again resumes an unfinished run and
says that a finished one is finished. ``--data-only`` prepares the data and stops. On USR1 and
SIGTERM training saves at the end of the batch and a SLURM job goes back into the queue. Exit
status: 0 done, 2 the request cannot be carried out, 130 stopped by Ctrl-C, 138 and 143 by USR1 and
SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command import BY_CTRL_C, answered, run
from experiments.training.describe import describe_data, describe_start, print_results
from experiments.training.preemption import Stopped, StopRequest, is_first_rank, requeue, this_job

if TYPE_CHECKING:  # at run time each function imports what it needs, see experiments.command
    from experiments.config import Config

# How long another rank, stopped while it starts, leaves the first one to have the job requeued.
FIRST_RANK_SECONDS = 60.0


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train", description="Train one stage, or resume it."
    )
    parser.add_argument("stage", help="stage1, stage2, stage3, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration")
    parser.add_argument("--data-only", action="store_true", help="prepare the data and stop")
    arguments = parser.parse_intermixed_args(words)
    with StopRequest(last=words is None) as stop:
        try:
            return carry_out(arguments, stop)
        except Stopped as stopped:
            return leave(stopped.number, "nothing was under way")


@answered
def carry_out(arguments: argparse.Namespace, stop: StopRequest) -> int:
    """Prepare the data and train; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from experiments.config import ConfigError, load_config

    # Before the heavy imports: a typing mistake is answered at once.
    config = load_config(arguments.stage, arguments.overrides)

    from experiments.build import build_data
    from experiments.hardware import slurm_fault
    from experiments.training.wandb import check_project

    if not arguments.data_only and (fault := slurm_fault(config.trainer)):
        raise ConfigError(fault)
    check_project(config.logger)
    if Path(config.run.root).is_file():
        raise ConfigError(f"run.root={config.run.root} is a file; give a folder")
    data = build_data(config)
    resolve(config, data)
    data.prepare_data()
    data.setup()
    if arguments.data_only:
        print(f"{describe_data(data)}\ncache  {data.cache_folder}")
        return 0
    return train(config, data, stop)


def resolve(config: Config, data: Any) -> None:
    """Put the source's own choices into the configuration: a run must not change with them."""
    config.data.image_size = data.recipe.image_size
    config.data.crop = data.recipe.crop
    config.data.contrast = data.recipe.contrast
    config.data.unreadable = data.on_unreadable


def train(config: Config, data: Any, stop: StopRequest) -> int:
    """Train or resume the run of ``config`` on data that is set up."""
    from pytorch_lightning.utilities import rank_zero_only

    from experiments.config import run_directory
    from experiments.runs import check_config, lock_run

    folder = run_directory(config)
    if (
        getattr(rank_zero_only, "rank", 0) != 0
    ):  # the folder is the first rank's to lock and to write
        return train_in(folder, config, data, stop)
    with lock_run(folder):
        check_config(folder, config)
        return train_in(folder, config, data, stop)


def train_in(folder: Path, config: Config, data: Any, stop: StopRequest) -> int:
    """Train in a run directory that is this process's own."""
    import torch
    from pytorch_lightning import Trainer, seed_everything
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from callbacks import StoppedInTraining
    from experiments.build import build_module, start_from
    from experiments.config import ConfigError, save_config, to_plain
    from experiments.hardware import choose_device, choose_precision
    from experiments.metrics_csv import best_row
    from experiments.runs import (
        RunError,
        check_network,
        check_states,
        epochs_done,
        resume_point,
    )
    from experiments.training.wandb import close_wandb, report_finished, summarise

    resume, checkpoint = resume_point(folder)
    done, wanted = epochs_done(checkpoint), config.trainer["max_epochs"]
    written_by = checkpoint.get("stage", config.stage)
    if written_by != config.stage:
        raise RunError(
            f"{resume} is a checkpoint of {written_by}, not of {config.stage}; delete {folder} "
            "or choose another run.name"
        )
    if resume:
        kind = type(data).__qualname__
        check_states(checkpoint, resume, [kind])
        data.check_same_data(checkpoint[kind])
    if is_first_rank():
        # Not before: paths may differ from those that the run began with, the data may not.
        save_config(config, folder / "config.yaml")
    if resume and done >= wanted:
        check_network(build_module(config, data), checkpoint, resume)
        stop.defer()  # nothing is left to be stopped
        print(f"{folder} is finished ({done} epochs).")
        best = best_row(folder, monitor(config))
        print_results(config, folder, best)
        report_finished(config.logger, folder, to_plain(config), best)
        return 0

    quiet_known_warnings()
    seed_everything(config.seed, verbose=False)
    settings = dict(config.trainer)
    settings["precision"] = settings["precision"] or choose_precision(settings["accelerator"])
    if settings["accelerator"] == "auto":
        settings["accelerator"] = choose_device().type
    settings = {
        "enable_model_summary": False,
        "use_distributed_sampler": False,  # the data module's samplers know ranks and resume
        "log_every_n_steps": 1,
        # cuDNN's search for the fastest kernels, which need not be the same in each run.
        "benchmark": not settings.get("deterministic"),
        "gradient_clip_val": config.optimizer.gradient_clip or None,
        **settings,
    }
    try:
        callbacks = build_callbacks(config, folder, stop)
        trainer = Trainer(
            **settings,
            enable_progress_bar=False,  # ours, among the callbacks
            default_root_dir=folder,
            callbacks=callbacks,
            logger=False,  # below, when nothing can be wrong any more
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer.*: {str(error).strip()}") from error
    check_batchnorm(settings, trainer)
    last = checkpoint.get("callbacks", {}).get("RunCheckpoints", {}).get("metrics", {})
    trainer.loggers = build_loggers(config, folder, done, last)
    module = build_module(config, data).to(memory_format=torch.channels_last)
    if resume:
        check_network(module, checkpoint, resume)
        check_states(checkpoint, resume, states_of(callbacks))
    elif config.model.init_from:
        start_from(module, config, data)
    if trainer.is_global_zero:
        print(describe_start(config, data, trainer, module, folder, resume, checkpoint))
    started, failed = time.monotonic(), True
    try:
        trainer.fit(
            module, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True
        )
        failed = False
        summarise(best_row(folder, monitor(config)))
    except StoppedInTraining as stopped:
        close_wandb(failed, preempted=True)
        if not trainer.is_global_zero:
            return 0  # the first rank speaks for all
        return leave(stopped.number, f"saved at step {trainer.global_step}")
    except SystemExit:
        if not trainer.interrupted:
            raise
        return BY_CTRL_C
    finally:
        close_wandb(failed)
    if trainer.is_global_zero:
        print(f"\ntrained in {(time.monotonic() - started) / 60:.1f} minutes")
        print_results(config, folder, best_row(folder, monitor(config)))
    return 0


def leave(number: int, saved: str) -> int:
    """Tell that signal ``number`` ends this process, requeue its SLURM job; the exit status."""
    if is_first_rank():
        tell(number, saved)
    elif this_job():
        # srun --kill-on-bad-exit would kill the first rank before it has requeued the job; its end
        # is ours. Status 0 would not do: where the signal reached us alone, the others would wait.
        time.sleep(FIRST_RANK_SECONDS)
        # Still here: the first rank had just deferred signals when this came, and waits for us.
        tell(number, saved)
    return 128 + number


def tell(number: int, saved: str) -> None:
    """Requeue this SLURM job, if it is one, and say so."""
    said = requeue(number)
    print(f"{signal.Signals(number).name}: {saved}; {said}", file=sys.stderr, flush=True)


def check_batchnorm(settings: dict[str, Any], trainer: Any) -> None:
    """Raise a ConfigError where BatchNorm cannot see all ranks' images as asked.

    PyTorch's own message comes at the first step, from the depths of the network.
    """
    from experiments.config import ConfigError

    asked = settings.get("sync_batchnorm", False)
    if type(asked) is not bool:
        raise ConfigError(f"trainer.sync_batchnorm = {asked!r}: expected true or false")
    device = trainer.strategy.root_device.type
    if asked and trainer.world_size > 1 and device != "cuda":
        raise ConfigError(
            f"trainer.sync_batchnorm=true: PyTorch can do this on NVIDIA's GPUs only, not on "
            f"{device}; leave it out"
        )


# What an epoch's line shows where no class is learned.
MASKS_ALONE = {"train/loss": "loss", "val/fcn/hit": "fcn hit", "val/fcn/pixel_ap": "fcn ap"}


def build_callbacks(config: Config, folder: Path, stop: StopRequest) -> list[Any]:
    """Confidence (from stage 2 on), progress, panels, average and checkpoints of a run."""
    from callbacks import AveragedWeights, Confidence, EpochProgress, MapPanels, RunCheckpoints

    guided = config.stage != "stage1" and config.loss.classification
    return [
        *([Confidence(config.loss.alpha)] if guided else []),
        EpochProgress(None if config.loss.classification else MASKS_ALONE),
        MapPanels(folder / "panels", to_loggers=images_leave(config)),
        *([AveragedWeights(epochs)] if (epochs := config.optimizer.average_epochs) else []),
        RunCheckpoints(
            folder / "checkpoints",
            monitor=monitor(config),
            every_minutes=config.checkpoint.every_minutes,
            every_steps=config.checkpoint.every_steps,
            stop=stop,
        ),
    ]


def states_of(callbacks: list[Any]) -> list[str]:
    """Names, in a checkpoint, of what a run of these callbacks goes on with."""
    names = [one.state_key for one in callbacks if one.state_dict()]
    # Lightning keeps the average's weights beside the callbacks.
    averaged = ["current_model_state", "averaging_state"] if "AveragedWeights" in names else []
    return [*names, *averaged]


def monitor(config: Config) -> str:
    """The value that makes a checkpoint best; without classification class scores say nothing."""
    return "val/auroc" if config.loss.classification else "val/fcn/pixel_ap"


def images_leave(config: Config) -> bool:
    """Whether panels may go to W&B: only when asked, or where no patient is shown."""
    allowed = config.logger.wandb_images
    return config.data.name == "phantom" if allowed is None else allowed


def build_loggers(
    config: Config, folder: Path, epochs_kept: int, last: dict[str, float]
) -> list[Any]:
    """``metrics.csv`` always, Weights & Biases when wanted."""
    from experiments.config import to_plain
    from experiments.runs import MetricsCsv
    from experiments.training.wandb import wandb_logger

    loggers: list[Any] = [MetricsCsv(folder, epochs_kept, last)]
    remote = wandb_logger(config.logger, folder, to_plain(config))
    return [*loggers, remote] if remote else loggers


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


if __name__ == "__main__":
    sys.exit(run(main))
