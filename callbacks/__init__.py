"""What happens around training."""

from callbacks.averaging import AveragedWeights
from callbacks.checkpoints import RunCheckpoints, StoppedInTraining
from callbacks.confidence import Confidence
from callbacks.panels import MapPanels
from callbacks.progress import EpochProgress

__all__ = [
    "AveragedWeights",
    "Confidence",
    "EpochProgress",
    "MapPanels",
    "RunCheckpoints",
    "StoppedInTraining",
]
