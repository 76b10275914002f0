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
from experiments.config import PATHS, Config, ConfigError, to_plain

# Seconds that the server may take to answer, and the end of a run to send what is left; then it
# stays on the disk (wandb sync).
ANSWER_SECONDS, UPLOAD_SECONDS = 30.0, 60.0
SWEEP = "WANDB_SWEEP_ID"  # W&B's sweep agent sets it for the process that it starts


def forgiving(method: Callable[..., None]) -> Callable[..., None]:
    """The method of a logger that gives up on W&B, with one line, when its service dies."""

    def attempt(self: ForgivingWandbLogger, *args: Any, **kwargs: Any) -> None:
        try:
            if not self.gave_up:
                method(self, *args, **kwargs)
        except Exception as error:
            self.gave_up = True
            problem = f"W&B failed ({type(error).__name__}: {error})"
            print(f"{problem}; training goes on without it", file=sys.stderr)

    return attempt


class ForgivingWandbLogger(WandbLogger):
    """Lightning's logger, but no failure of W&B ends a training."""

    gave_up = False
    log_metrics = forgiving(WandbLogger.log_metrics)
    log_image = forgiving(WandbLogger.log_image)
    finalize = forgiving(WandbLogger.finalize)

    @forgiving
    def summarise(self, row: dict[str, float]) -> None:
        """Let W&B show and judge this run by its best epoch, not by its last."""
        self.experiment.summary.update({k: v for k, v in row.items() if k.startswith("val/")})

    @forgiving
    def close(self, failed: bool, preempted: bool = False) -> None:
        """Write out and close the run; a preempted one is expected back."""
        if preempted:
            self.experiment.mark_preempting()
        self.experiment.finish(exit_code=int(failed))


def has_api_key() -> bool:
    """Whether a W&B key is configured, without asking W&B."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return bool(os.environ.get("WANDB_API_KEY") or netrc.netrc().authenticators(host))
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(wanted: str) -> str:
    """``online``, ``offline`` or ``off``: "auto" goes online only where a key is configured."""
    if wanted == "online" and not has_api_key():
        raise ConfigError("logger.wandb=online needs a key. Fix: wandb login, or WANDB_API_KEY.")
    if wanted != "auto":
        return wanted
    usual = "online" if has_api_key() else "offline"
    return {"offline": "offline", "disabled": "off"}.get(os.environ.get("WANDB_MODE", ""), usual)


def start_wandb(config: Config, folder: Path, mode: str = "") -> ForgivingWandbLogger | None:
    """The logger of the run directory's own W&B run; None where W&B is off.

    W&B gets the configuration and figures, of paths the last name, nothing of the machine. In a
    sweep its agent chooses id and project; forcing ours would be refused.
    """
    mode = mode or wandb_mode(config.logger.wandb)
    if mode == "off":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")  # what matters is printed by the run itself
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports
    import wandb  # reads the environment when it is imported

    settings = wandb.Settings(
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
    plain = to_plain(config)
    for section, key in (path.split(".") for path in PATHS):
        if plain[section][key]:
            plain[section][key] = Path(plain[section][key]).name
    options: dict[str, Any] = {"config": plain, "settings": settings, "mode": mode}
    options |= {"name": "-".join(folder.parts[-3:]), "dir": str(folder), "resume": "allow"}
    if not os.environ.get(SWEEP):
        identity = folder / "wandb_id"  # however often a job is requeued, it stays one run
        if not identity.is_file():
            write_text(identity, uuid.uuid4().hex[:12])
        options |= {"project": config.logger.wandb_project, "id": identity.read_text()}
    try:
        run = wandb.init(**options)
    # ValueError: a setting in the environment or in W&B's own files, which pydantic refuses.
    except (wandb.errors.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        if mode == "offline":
            raise ConfigError(
                f"W&B cannot keep this run offline ({reason}). Fix: correct its settings (WANDB_..."
                " in the environment, wandb/settings), or use logger.wandb=off."
            ) from error
        # No network on a compute node, or a key that expired or is mistyped.
        print(f"W&B cannot be reached ({reason}); this run is kept offline", file=sys.stderr)
        # The service takes the run for one that is under way, so the next try needs another
        # one; a service that a parent started, a sweep's agent say, is only left.
        wandb.teardown()
        os.environ.pop("WANDB_SERVICE", None)
        return start_wandb(config, folder, "offline")
    # A resumed run logs steps that W&B has seen: its own step counter would drop them.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return ForgivingWandbLogger(experiment=run, save_dir=str(folder))
