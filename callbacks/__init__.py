"""What happens around training."""

from callbacks.checkpoints import RunCheckpoints
from callbacks.panels import MapPanels
from callbacks.progress import EpochProgress

__all__ = ["EpochProgress", "MapPanels", "RunCheckpoints"]
