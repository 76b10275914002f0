"""Weights & Biases: one run a run directory, never a prompt, nothing sent unless wanted."""

from __future__ import annotations

import netrc
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from datamodules.files import write_text
from experiments.config import ConfigError, LoggerConfig

# How long W&B's server may take to answer before a run is kept offline.
ANSWER_SECONDS = 30.0
# How long the end of a run waits for what is still to be sent; it stays on the disk (wandb sync).
UPLOAD_SECONDS = 60.0


def patient(method: Callable[..., None]) -> Callable[..., None]:
    """The method of a logger that gives up on W&B, with one line, when its service dies.

    A tracker is not worth a training. What was logged until then lies in the run directory, and
    ``metrics.csv`` is whole in any case.
    """

    def attempt(self: PatientWandbLogger, *args: Any, **kwargs: Any) -> None:
        if self.gave_up:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.gave_up = True
            print(
                f"W&B failed ({type(error).__name__}: {error}); training goes on without it, "
                "metrics.csv has all figures",
                file=sys.stderr,
            )

    return attempt


class PatientWandbLogger(WandbLogger):
    """Lightning's logger, made so that nothing that befalls W&B stops a training."""

    gave_up = False
    log_metrics = patient(WandbLogger.log_metrics)
    log_image = patient(WandbLogger.log_image)
    finalize = patient(WandbLogger.finalize)

    @patient
    def summarise(self, row: dict[str, float]) -> None:
        """Let W&B show and judge this run by its best epoch, not by its last."""
        self.experiment.summary.update({k: v for k, v in row.items() if k.startswith("val/")})

    def close(self, failed: bool, preempted: bool = False) -> None:
        """Write out and close the run; a preempted one is expected back."""
        try:
            if preempted:
                self.experiment.mark_preempting()
            self.experiment.finish(exit_code=int(failed))
        except Exception as error:
            print(f"W&B could not be closed ({type(error).__name__}: {error})", file=sys.stderr)


def has_api_key() -> bool:
    """Whether a W&B key is configured, without asking W&B."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return bool(os.environ.get("WANDB_API_KEY") or netrc.netrc().authenticators(host))
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(wanted: str) -> str:
    """``online``, ``offline`` or ``off``: "auto" goes online only where a key is configured."""
    if wanted == "auto" and os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return "off" if os.environ["WANDB_MODE"] == "disabled" else "offline"
    if wanted == "online" and not has_api_key():
        raise ConfigError(
            "logger.wandb=online needs a key. Set WANDB_API_KEY, run 'wandb login', or use "
            "logger.wandb=offline."
        )
    return {"auto": "online" if has_api_key() else "offline"}.get(wanted, wanted)


def in_sweep() -> bool:
    """Whether W&B's sweep agent started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def start_wandb(
    config: LoggerConfig, folder: Path, settings: dict[str, Any]
) -> PatientWandbLogger | None:
    """The logger of the run directory's own W&B run; None where W&B is off."""
    mode = wandb_mode(config.wandb)
    if mode == "off":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")  # what matters is printed by the run itself
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports
    import wandb  # reads the environment when it is imported

    # ValueError: a setting in the environment or in W&B's own files, which pydantic refuses.
    refusals = (wandb.errors.Error, wandb.errors.UsageError, ValueError)
    options = options_of(config, folder, settings)
    try:
        run = wandb.init(mode="online" if mode == "online" else "offline", **options)
    except refusals as error:
        # No network on a compute node, a key that expired or is mistyped, an address without https.
        reason = " ".join(str(error).split())
        print(f"W&B cannot be reached ({reason}); this run is kept offline", file=sys.stderr)
        # The service takes the run for one that is under way, so the next try needs another one;
        # a service that a parent started, a sweep's agent say, is only left.
        wandb.teardown()
        os.environ.pop("WANDB_SERVICE", None)
        address = os.environ.pop("WANDB_BASE_URL", "")  # read offline too, may be what was refused
        try:
            run = wandb.init(mode="offline", **options)
        except refusals as again:
            raise ConfigError(
                f"W&B cannot keep this run offline ({' '.join(str(again).split())}). Correct its "
                "settings (WANDB_... in the environment, wandb/settings), or use logger.wandb=off."
            ) from again
        finally:
            os.environ |= {"WANDB_BASE_URL": address} if address else {}
    # A resumed run logs steps that W&B has seen: its own step counter would drop them.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return PatientWandbLogger(experiment=run, save_dir=str(folder))


def options_of(config: LoggerConfig, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``wandb.init``: the configuration and figures, nothing of the machine.

    The run's id is kept in the run directory: however often a job is requeued, it stays one run.
    In a sweep W&B's agent chooses id and project (WANDB_RUN_ID); forcing ours would be refused.
    """
    import wandb

    quiet = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        init_timeout=ANSWER_SECONDS,
        finish_timeout=UPLOAD_SECONDS,
    )
    own = {} if in_sweep() else {"project": config.wandb_project, "id": run_id(folder)}
    own |= {"name": "-".join(folder.parts[-3:]), "resume": "allow", "dir": str(folder)}
    return {**own, "config": settings, "settings": quiet}


def run_id(folder: Path) -> str:
    """The id of the run directory's W&B run, made at its first start.

    A disk that was full then may have left the file empty.
    """
    file = folder / "wandb_id"
    if not file.is_file() or not file.read_text().strip():
        write_text(file, uuid.uuid4().hex[:12])
    return file.read_text().strip()
