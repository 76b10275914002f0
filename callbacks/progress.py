"""What a person wants to see while it trains: one line an epoch."""

import math
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm


class EpochProgress(Callback):
    """A bar on terminals for the epoch under way, and a line that stays for each that is done.

    Logs ``images_per_second`` over all ranks, training steps only. ``show`` maps the names of
    logged values to their short names in the line.
    """

    def __init__(self, show: dict[str, str] | None = None) -> None:
        self.show = show or {
            "train/loss": "loss",
            "val/accuracy": "val acc",
            "val/auroc": "auroc",
            "val/pcam/hit": "pcam hit",
            "val/fcn/hit": "fcn hit",
        }
        self._bar: tqdm | None = None
        self._images = self._finished = 0
        self._seconds = self._started = self._began = self._first_epoch = self._speed = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the time that is left."""
        self._began = time.monotonic()
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        share = done / trainer.num_training_batches
        self._first_epoch = trainer.current_epoch + (share if share < 1 else 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave the line of the last epoch, whose figures are complete only now; open a bar."""
        if self._bar is not None:
            return
        self._leave_line(trainer)
        self._images, self._seconds, self._started = 0, 0.0, 0.0
        self._bar = tqdm(
            total=trainer.num_training_batches,
            initial=batch_idx,  # of an epoch that a restart goes on with
            desc=f"epoch {trainer.current_epoch + 1:>3}/{trainer.max_epochs}",
            unit="step",
            leave=False,
            dynamic_ncols=True,
            mininterval=1.0,
            disable=not (trainer.is_global_zero and sys.stderr.isatty()),
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        now = time.monotonic()
        if self._started:
            self._images += len(batch["label"]) * trainer.world_size
            self._seconds += now - self._started
        self._started = now
        # Once a second, as the bar is drawn: the loss makes a GPU wait.
        if self._bar is not None and self._bar.update():
            speed = self._images / max(self._seconds, 1e-9)
            epochs = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
            shown = self._figures(trainer, ("val/accuracy", "val/auroc"))
            self._bar.set_postfix_str(
                f"loss {float(outputs['loss']):.3f}  {shown}{speed:,.0f} images/s  "
                f"{self._left(trainer, epochs)} left"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the steps that a GPU still had to do; say that it validates now."""
        if self._started and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
            self._seconds += time.monotonic() - self._started
        self._started = 0.0
        if self._bar is not None:
            self._bar.set_postfix_str("validating")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the speed."""
        self._speed = self._images / max(self._seconds, 1e-9)
        pl_module.log("images_per_second", self._speed, rank_zero_only=True)
        self._finished = trainer.current_epoch + 1
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last epoch's line."""
        self._leave_line(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Clear the bar: the message stands alone."""
        if self._bar is not None:
            self._bar.close()
        self._leave_line(trainer)  # of an epoch at whose end a signal stopped the run
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            print("stopped; the same command goes on from the last save", flush=True)

    def _leave_line(self, trainer: Trainer) -> None:
        if not self._finished or not trainer.is_global_zero:
            return
        print(
            f"epoch {self._finished:>3}/{trainer.max_epochs}  {self._figures(trainer, self.show)}"
            f"{self._speed:,.0f} images/s  {self._left(trainer, self._finished)} left",
            flush=True,
        )
        self._finished = 0

    def _figures(self, trainer: Trainer, names: Iterable[str]) -> str:
        """The latest of the named figures that there are, with two blanks behind each."""
        values = trainer.callback_metrics
        return "".join(
            f"{self.show.get(name, name)} {float(values[name]):.3f}  "
            for name in names
            if name in values and not math.isnan(float(values[name]))  # no masks to judge by
        )

    def _left(self, trainer: Trainer, epochs: float) -> str:
        """Time that the rest of the run takes at this pace, after ``epochs`` in all."""
        pace = (time.monotonic() - self._began) / max(epochs - self._first_epoch, 1e-9)
        seconds = max(0, round(pace * ((trainer.max_epochs or 0) - epochs)))
        return str(tqdm.format_interval(seconds)).removeprefix("0")
