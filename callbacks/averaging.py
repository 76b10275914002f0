"""Validate and keep an average of the weights instead of the latest ones."""

import math
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights(WeightAveraging):
    """Exponential moving average of all weights and BatchNorm statistics over so many ``epochs``.

    On a few hundred images, the figures of the latest weights jump from epoch to epoch, and the
    best checkpoint and the paper's alpha with them. Training goes on with the latest weights;
    validation, maps, panels and the weights in a checkpoint are of the average.
    Must stand behind all callbacks that look at the network when validation ends.
    """

    def __init__(self, epochs: float = 1.0) -> None:
        super().__init__()
        self.epochs = epochs
        self._horizon = 1.0
        self._buffers: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn how long an epoch is; move to the network's device."""
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        self._horizon = max(1.0, self.epochs * steps)
        assert self._average_model is not None, "setup() made it"
        self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the step's weights in, the first ones as they are."""
        step, first = trainer.global_step, not self._latest_update_step
        if step == self._latest_update_step:
            return
        # At first over a ninth of the steps so far: the initial weights fade fast.
        decay = 0.0 if first else min(1 - 1 / self._horizon, (1 + step) / (10 + step))
        assert self._average_model is not None, "setup() made it"
        # Not by update_parameters, which asks the device at each step how many it has seen.
        averaged, latest = (
            [*module.parameters(), *module.buffers()]
            for module in (self._average_model.module, pl_module)
        )
        for kind in {tensor.dtype for tensor in averaged}:
            ours, theirs = ([t for t in one if t.dtype == kind] for one in (averaged, latest))
            get_ema_multi_avg_fn(decay)(ours, theirs, None)
        self._average_model.n_averaged += 1
        self._latest_update_step = step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in place."""
        self._swap_models(pl_module)
        self._buffers = {name: b.clone() for name, b in pl_module.named_buffers()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the latest weights back."""
        # Buffers that validation changed, such as the scale of the maps, are copied, not averaged.
        changed = {
            name: buffer.clone()
            for name, buffer in pl_module.named_buffers()
            # DDP sends the first rank's BatchNorm statistics around in validation, too.
            if "running_" not in name and not torch.equal(buffer, self._buffers[name])
        }
        self._swap_models(pl_module)
        for name, value in changed.items():
            pl_module.get_buffer(name).copy_(value)

    # Lightning swaps at the ends of the epoch's loop: there the module has yet to set its map scale
    # and the panels have yet to be drawn. Nothing is done there.
    on_validation_epoch_start = Callback.on_validation_epoch_start
    on_validation_epoch_end = Callback.on_validation_epoch_end
