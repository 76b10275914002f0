"""Weights & Biases: one run a run directory, never a prompt, nothing sent unless wanted."""

from __future__ import annotations

import contextlib
import netrc
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from experiments.config import ConfigError, LoggerConfig

# How long W&B's server may take to answer before a run is kept offline.
ANSWER_SECONDS = 30.0
# How long the end of a run waits for what is still to be sent; it stays on the disk (wandb sync).
UPLOAD_SECONDS = 60.0
# What W&B refuses in a project's name, and its length (wandb.Settings).
NOT_IN_PROJECT, PROJECT_LENGTH = "/\\#?%:", 128


def check_project(config: LoggerConfig) -> None:
    """Raise a ConfigError where W&B would refuse the project's name, which it says only later."""
    name = config.wandb_project
    if len(name) > PROJECT_LENGTH or set(name) & set(NOT_IN_PROJECT):
        raise ConfigError(
            f"logger.wandb_project={name}: W&B knows no such names; use at most {PROJECT_LENGTH} "
            f"characters, none of {' '.join(NOT_IN_PROJECT)} (a team: export WANDB_ENTITY=TEAM)"
        )


def has_api_key() -> bool:
    """Whether a W&B key is configured, without asking W&B."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(wanted: str) -> str:
    """``online``, ``offline`` or ``off``: "auto" goes online only where a key is configured."""
    if wanted == "auto" and os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return "off" if os.environ["WANDB_MODE"] == "disabled" else "offline"
    if wanted in ("auto", "online") and not has_api_key():
        if wanted == "online":
            raise ConfigError(
                "logger.wandb=online needs a key: set WANDB_API_KEY or run 'wandb login', or use "
                "logger.wandb=offline"
            )
        return "offline"
    return "online" if wanted == "auto" else wanted


def wandb_logger(config: LoggerConfig, folder: Path, settings: dict[str, Any]) -> Any | None:
    """A WandbLogger of the run directory's own W&B run, or None where W&B is off.

    The run's id is kept in the run directory: however often a job is requeued, it stays one run.
    In a sweep W&B's agent chooses id and project (WANDB_RUN_ID); forcing ours would be refused.

    Raises:
        ConfigError: W&B cannot even keep it offline.
    """
    mode = wandb_mode(config.wandb)
    if mode == "off":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")  # what matters is printed by the run itself
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports
    import wandb
    from pytorch_lightning.utilities import rank_zero_only

    from experiments.training.logger import PatientWandbLogger

    if getattr(rank_zero_only, "rank", 0) != 0:
        return PatientWandbLogger(project=config.wandb_project, save_dir=str(folder))
    options: dict[str, Any] = {
        "name": "-".join(folder.parts[-3:]),
        "resume": "allow",
        "dir": str(folder),
        "config": settings,
        # The configuration and the figures, nothing of the machine, its files or its code.
        "settings": wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            init_timeout=ANSWER_SECONDS,
            finish_timeout=UPLOAD_SECONDS,
        ),
    }
    if not in_sweep():
        options |= {"project": config.wandb_project, "id": run_id(folder)}
    # ValueError: a setting in the environment or in W&B's own files, which pydantic refuses.
    wrong = (wandb.errors.Error, wandb.errors.UsageError, ValueError)
    try:
        run = wandb.init(mode="online" if mode == "online" else "offline", **options)
    except wrong as error:
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
        except wrong as again:
            raise ConfigError(
                f"W&B cannot keep this run offline ({' '.join(str(again).split())}); correct its "
                "settings (WANDB_... in the environment, wandb/settings), or use logger.wandb=off"
            ) from again
        finally:
            os.environ |= {"WANDB_BASE_URL": address} if address else {}
    # A resumed run logs steps that W&B has seen: its own step counter would drop them.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return PatientWandbLogger(experiment=run, save_dir=str(folder))


def run_id(folder: Path) -> str:
    """The id of the run directory's W&B run, made at its first start.

    A disk that was full then may have left the file empty.
    """
    file = folder / "wandb_id"
    if not file.is_file() or not file.read_text().strip():
        partial = folder / "wandb_id.partial"
        partial.write_text(uuid.uuid4().hex[:12])
        partial.replace(file)
    return file.read_text().strip()


def in_sweep() -> bool:
    """Whether W&B's sweep agent started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def summarise(row: dict[str, float]) -> None:
    """Let W&B show and judge this process's run by its best epoch, not by its last."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    # Its service may have died; the training is whole all the same.
    with contextlib.suppress(Exception):
        wandb.run.summary.update({k: v for k, v in row.items() if k.startswith("val/")})


def report_finished(
    config: LoggerConfig, folder: Path, settings: dict[str, Any], row: dict[str, float]
) -> None:
    """Tell a sweep of W&B's the figures of a run that was finished before the agent asked for it.

    The agent has begun a run of its own for it, which otherwise would stay empty.
    """
    if in_sweep() and wandb_logger(config, folder, settings) is not None:
        summarise(row)
        close_wandb(failed=False)


def close_wandb(failed: bool, preempted: bool = False) -> None:
    """Write out and close this process's W&B run; a preempted one is expected back."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    try:
        if preempted:
            wandb.run.mark_preempting()
        wandb.finish(exit_code=int(failed))
    except Exception as error:  # its service died: the training is whole all the same
        print(f"W&B could not be closed ({type(error).__name__}: {error})", file=sys.stderr)
