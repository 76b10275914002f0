"""The paper's confidence: the better one classifies, the more the second loss is trusted."""

from __future__ import annotations

import math
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer

# Accuracy by chance: what is known before the first validation.
CHANCE = 0.5


class Confidence(Callback):
    """Recompute alpha = e^P / e each epoch (paper, stage 2); it weighs L1 and L2.

    P is the unmasked pass's accuracy on val, gathered over all ranks. P and alpha are this
    callback's state: a resumed run goes on with the same alpha. The sanity check never moves it.

    Args:
        source: "accuracy" or "balanced_accuracy" (``val/<source>`` is P), or alpha itself, fixed.
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
    """Confidence in the attention, ``alpha = e^P / e`` of the accuracy P, cut to [0, 1].

    In [1/e, 1]: 0.61 at chance level (P = 0.5), 1 at P = 1, where L1 vanishes.

    Example:
        >>> confidence(1.0)
        1.0
        >>> round(confidence(0.5), 4)
        0.6065
    """
    if math.isnan(accuracy):
        raise ValueError(
            "the accuracy that sets alpha is NaN: val is empty or the model has diverged. Fix: "
            "check the splits, or fix alpha with loss.alpha=0.6."
        )
    return math.exp(min(max(accuracy, 0.0), 1.0) - 1.0)
