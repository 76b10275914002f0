"""Best and rolling-last checkpoints that a kill at any moment leaves whole."""

import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from callbacks import options


class StopSource(Protocol):
    """Knows whether this process was asked to stop."""

    number: int  # of the signal received; 0: none

    def defer(self) -> None:
        """Called when a signal need no longer end the process at once."""


class StoppedInTraining(BaseException):
    """Asked to stop by a signal; everything is saved. All ranks raise it at the same step."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class RunCheckpoints(Checkpoint):
    """Save ``last.ckpt`` by time or steps and at each epoch's end, ``best.ckpt`` when val improves.

    Lightning's own ModelCheckpoint refreshes its last file only when a top-k file is saved; here
    the last file rolls by itself. A file is written beside its place and renamed when it is on the
    disk, so that it is always whole. (As a ``Checkpoint``, Lightning calls it after all others.)
    Best is the maximum of the logged value ``monitor``; the last where none of that name is logged.

    Asked to ``stop``, it saves and raises :class:`StoppedInTraining` at the end of the batch, or of
    the epoch while that is validated: no signal handler ever saves, and no rank stops alone.
    """

    def __init__(
        self, folder: Path, stop: StopSource, every: options.Checkpoint, monitor: str = "val/auroc"
    ) -> None:
        self.folder, self.monitor = folder, monitor
        self.every, self.stop = every, stop
        self.best = float("-inf")
        self.metrics: dict[str, float] = {}
        self._random_states: dict[str, torch.Tensor] = {}
        self._saved_at = time.monotonic()
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        """What "best" means so far, and the figures of the last whole epoch."""
        return {"best": self.best, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was best so far."""
        self.best, self.metrics = state_dict["best"], state_dict["metrics"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the generators that dropout draws from, and how long the run was meant to be."""
        # All ranks begin with the same seed and draw alike: the first rank's state is everybody's.
        checkpoint["random_state"] = torch.get_rng_state()
        if pl_module.device.type == "cuda":
            checkpoint["random_state_cuda"] = torch.cuda.get_rng_state(pl_module.device)
        checkpoint["max_epochs"] = trainer.max_epochs

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the generators' states until training starts."""
        self._random_states = {k: v for k, v in checkpoint.items() if k.startswith("random_state")}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hear of a stop from now on; Lightning has just put its own handlers up."""
        self.stop.defer()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the minutes; go on with the random numbers."""
        self.stop.defer()
        states, device = self._random_states, pl_module.device
        if "random_state" in states:
            torch.set_rng_state(states["random_state"])
        if "random_state_cuda" in states and device.type == "cuda":
            torch.cuda.set_rng_state(states["random_state_cuda"], device)
        first = trainer.strategy.broadcast(trainer.global_step)
        if first != trainer.global_step:
            raise RuntimeError(
                f"{self.folder} differs between nodes: expected step {first} as on the first rank, "
                f"got {trainer.global_step} on rank {trainer.global_rank}. Fix: start again."
            )
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within the epoch when it is time or asked to stop; its end saves by itself."""
        if batch_idx + 1 >= trainer.num_training_batches:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # a gradient that waits for the next batch is in no checkpoint
        due, stop = self._agree(trainer)
        if due or stop:
            self._save(trainer, "last.ckpt")
        if stop:
            raise StoppedInTraining(stop)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the figures are of this epoch, and not of an earlier one."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last, and the best if this epoch's validation is it; stop if asked to."""
        if self._validated:
            self._keep_if_best(trainer)
        self._validated = False
        self._save(trainer, "last.ckpt")
        if trainer.current_epoch + 1 != trainer.max_epochs and (stop := self._agree(trainer)[1]):
            raise StoppedInTraining(stop)

    def _keep_if_best(self, trainer: Trainer) -> None:
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        score = self.metrics.get(self.monitor, float("nan"))
        if math.isnan(score) and self.best == float("-inf"):
            self._save(trainer, "best.ckpt")  # nothing to judge by: the latest
        elif round(score, options.DECIMALS) >= round(self.best, options.DECIMALS):
            self.best = score
            self._save(trainer, "best.ckpt")

    def _agree(self, trainer: Trainer) -> tuple[bool, int]:
        """Whether a save is due by time or steps, and the signal to stop by, 0 for none.

        Clocks differ, so the first rank's counts; a signal may reach any of them.
        """
        late = time.monotonic() - self._saved_at >= 60 * self.every.every_minutes
        asked = [late and trainer.is_global_zero, self.stop.number]
        if trainer.world_size > 1:
            tensor = torch.tensor(asked, dtype=torch.int32, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
            asked = tensor.tolist()
        steps = self.every.every_steps
        by_steps = steps is not None and trainer.global_step % steps == 0
        return bool(asked[0]) or by_steps, int(asked[1])

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
            earlier = "the one before it is whole" if place.is_file() else "it is the first"
            reason = f"{place} could not be saved ({error.strerror}); {earlier}. Fix: make room"
            fix = "there and in TMPDIR; the same command goes on."
            raise OSError(error.errno, f"{reason} {fix}") from error
        trainer.strategy.barrier("checkpoint saved")
        self._saved_at = time.monotonic()
