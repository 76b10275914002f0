"""What happens around training."""

from callbacks.checkpoints import RunCheckpoints
from callbacks.confidence import Confidence
from callbacks.panels import MapPanels
from callbacks.progress import EpochProgress

__all__ = ["Confidence", "EpochProgress", "MapPanels", "RunCheckpoints"]
