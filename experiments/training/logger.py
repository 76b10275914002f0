"""Lightning's W&B logger, made so that nothing that befalls W&B stops a training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pytorch_lightning.loggers import WandbLogger


class PatientWandbLogger(WandbLogger):
    """Gives up on W&B, with one line, when its service dies or refuses.

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

    def _attempt(self, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._gave_up:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # whatever it is: a tracker is not worth a training
            self._gave_up = True
            print(
                f"W&B failed ({type(error).__name__}: {error}); training goes on without it, "
                "metrics.csv has all figures",
                file=sys.stderr,
            )
