"""Weights & Biases: one run a run directory, never a prompt, nothing sent unless wanted."""

from __future__ import annotations

import netrc
import os
import re
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


class PatientWandbLogger(WandbLogger):
    """Gives up on W&B, with one line, when its service dies: a tracker is not worth a training.

    What was logged until then lies in the run directory; ``metrics.csv`` is whole in any case.
    """

    _gave_up = False

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        self._attempt(super().log_metrics, *args, **kwargs)

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        self._attempt(super().log_image, *args, **kwargs)

    def finalize(self, status: str) -> None:
        """As Lightning's."""
        self._attempt(super().finalize, status)

    def summarise(self, row: dict[str, float]) -> None:
        """Let W&B show and judge this run by its best epoch, not by its last."""
        figures = {name: value for name, value in row.items() if name.startswith("val/")}
        self._attempt(lambda: self.experiment.summary.update(figures))

    def close(self, failed: bool, preempted: bool = False) -> None:
        """Write out and close the run; a preempted one is expected back."""
        try:
            if preempted:
                self.experiment.mark_preempting()
            self.experiment.finish(exit_code=int(failed))
        except Exception as error:
            print(f"W&B could not be closed ({type(error).__name__}: {error})", file=sys.stderr)

    def _attempt(self, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._gave_up:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:
            self._gave_up = True
            print(
                f"W&B failed ({type(error).__name__}: {error}); training goes on without it, "
                "metrics.csv has all figures",
                file=sys.stderr,
            )


def check_project(name: str) -> None:
    """Refuse a name that W&B (wandb.Settings) would refuse only when the data is prepared."""
    if not re.fullmatch(r"[^/\\#?%:]{0,128}", name):
        raise ConfigError(
            f"logger.wandb_project={name}: expected at most 128 characters, none of / \\ # ? % :. "
            "To log to a team: export WANDB_ENTITY=TEAM."
        )


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

    own = {} if in_sweep() else {"project": config.wandb_project, "id": run_id(folder)}
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
