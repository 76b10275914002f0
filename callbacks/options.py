"""The options of what happens around training; form as of ``lightning_modules.options``."""

from dataclasses import dataclass
from typing import Annotated

# Scores are compared as they are printed, since a val split of some hundred images knows no fourth
# decimal. Of equal ones the latest is best: it had the most training, at the lowest learning rate.
DECIMALS = 3


@dataclass
class Checkpoint:
    """Which epoch is best; when to save besides an epoch's end: whichever of two comes first."""

    # val figure that picks it (null: auroc; masks alone: fcn/pixel_ap); epoch: the last epoch
    monitor: Annotated[str | None, "auroc | fcn/pixel_ap | epoch"] = None
    every_minutes: Annotated[float, "(0, inf)"] = 10.0
    every_steps: Annotated[int | None, "[1, inf)"] = None  # null: by the clock alone
