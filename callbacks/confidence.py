"""The paper's confidence: the better one classifies, the more the second loss is trusted."""

import math
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer

CHANCE = 0.5  # the accuracy before the first validation


class Confidence(Callback):
    """Recompute alpha = e^P / e each epoch (paper, stage 2); it weighs L1 and L2.

    P is the unmasked pass's ``val/<source>``, "accuracy" or "balanced_accuracy"; a number as
    ``source`` is alpha itself, fixed. The sanity check never moves it.
    """

    def __init__(self, source: str | float = "accuracy") -> None:
        self.source = source
        self.accuracy = CHANCE
        self.alpha = confidence(CHANCE) if isinstance(source, str) else float(source)

    def state_dict(self) -> dict[str, Any]:
        """P and alpha."""
        return {"accuracy": self.accuracy, "alpha": self.alpha}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up P and alpha; a fixed alpha stays what the configuration says."""
        if isinstance(self.source, str):
            self.accuracy, self.alpha = state_dict["accuracy"], state_dict["alpha"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the alpha to begin with; after a restart the one kept."""
        cast(Any, pl_module).alpha = self.alpha

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Recompute alpha for the next epoch from the validation just done."""
        if trainer.sanity_checking or not isinstance(self.source, str):
            return
        self.accuracy = float(trainer.callback_metrics[f"val/{self.source}"])
        self.alpha = confidence(self.accuracy)
        cast(Any, pl_module).alpha = self.alpha


def confidence(accuracy: float) -> float:
    """Confidence in the attention, ``alpha = e^P / e`` of the accuracy P: in [1/e, 1]."""
    if math.isnan(accuracy):
        raise ValueError(
            "the accuracy that sets alpha is NaN: val is empty or the model has diverged. Fix: "
            "check the splits, or fix alpha with loss.alpha=0.6."
        )
    return math.exp(accuracy - 1.0)
