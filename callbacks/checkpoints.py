"""Best and rolling-last checkpoints that a kill at any moment leaves whole."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

# Scores are compared as they are printed, since a val split of some hundred images knows no fourth
# decimal. Of equal ones the latest is best: it had the most training, at the lowest learning rate.
DECIMALS = 3


class RunCheckpoints(Checkpoint):
    """Save ``last.ckpt`` by time or steps and at each epoch's end, ``best.ckpt`` when val improves.

    Lightning's own ModelCheckpoint refreshes its last file only when a top-k file is saved; here
    the last file rolls by itself. A file is written beside its place and renamed when it is on the
    disk, so that ``last.ckpt`` is always whole. (As a ``Checkpoint``, Lightning calls it after all
    others.)

    Args:
        folder: where the files go.
        monitor: logged value whose maximum is best.
        every_minutes: time between saves within an epoch; None: none by time.
        every_steps: steps between saves within an epoch; None: none by steps.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str = "val/auroc",
        every_minutes: float | None = 10.0,
        every_steps: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.monitor = monitor
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self.best = float("-inf")
        self.metrics: dict[str, float] = {}
        self._random_state: torch.Tensor | None = None
        self._saved_at = time.monotonic()
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        """What "best" means so far, and the figures of the last whole epoch."""
        return {"best": self.best, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was best so far."""
        self.best = state_dict["best"]
        self.metrics = state_dict["metrics"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the generator that dropout draws from, and how long the run was meant to be."""
        checkpoint["random_state"] = torch.get_rng_state()
        checkpoint["max_epochs"] = trainer.max_epochs

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the generator's state until training starts."""
        self._random_state = checkpoint["random_state"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the minutes; go on with the random numbers."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within the epoch when it is time; its end saves by itself."""
        if batch_idx + 1 < trainer.num_training_batches and self._is_due(trainer):
            self._save(trainer, "last.ckpt")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the figures are of this epoch, and not of an earlier one."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last, and the best if this epoch's validation is it."""
        if not self._validated:
            self._save(trainer, "last.ckpt")
            return
        self._validated = False
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        score = self.metrics.get(self.monitor, float("nan"))
        if round(score, DECIMALS) >= round(self.best, DECIMALS):
            self.best = score
            self._save(trainer, "best.ckpt")
        elif math.isnan(score) and self.best == float("-inf"):
            self._save(trainer, "best.ckpt")  # nothing to judge by: the latest
        self._save(trainer, "last.ckpt")

    def _is_due(self, trainer: Trainer) -> bool:
        due = bool(self.every_steps) and trainer.global_step % (self.every_steps or 1) == 0
        if self.every_minutes:
            late = time.monotonic() - self._saved_at >= 60 * self.every_minutes
            # Clocks differ between ranks, but saving is a collective: the first rank decides.
            due = due or (trainer.strategy.broadcast(late) if trainer.world_size > 1 else late)
        return due

    def _save(self, trainer: Trainer, name: str) -> None:
        place, partial = self.folder / name, self.folder / f"{name}.partial"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                with partial.open("rb") as handle:
                    os.fsync(handle.fileno())
                partial.replace(place)
        except OSError as error:
            partial.unlink(missing_ok=True)
            before = (
                "the one before it is whole: make room, and the same command goes on from there"
                if place.is_file()
                else "it is the first: make room, and the same command starts anew"
            )
            raise OSError(
                error.errno, f"{place} could not be saved ({error.strerror}); {before}"
            ) from error
        trainer.strategy.barrier("checkpoint saved")
        self._saved_at = time.monotonic()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; no code in it is ever run.

    Raises:
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = "the file is empty" if not path.stat().st_size else type(error).__name__
        raise ValueError(f"{path} is no whole checkpoint of this project ({reason})") from error
