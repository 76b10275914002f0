"""What happens around training.

Read ``confidence`` (the paper's alpha), ``averaging`` and ``checkpoints``; ``panels`` and
``progress`` are for people. ``options`` says what can be set.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from callbacks.averaging import AveragedWeights as AveragedWeights
    from callbacks.checkpoints import RunCheckpoints as RunCheckpoints
    from callbacks.checkpoints import StoppedInTraining as StoppedInTraining
    from callbacks.confidence import Confidence as Confidence
    from callbacks.panels import MapPanels as MapPanels
    from callbacks.progress import EpochProgress as EpochProgress

HOMES = {
    "AveragedWeights": "averaging",
    "RunCheckpoints": "checkpoints",
    "StoppedInTraining": "checkpoints",
    "Confidence": "confidence",
    "MapPanels": "panels",
    "EpochProgress": "progress",
}


def __getattr__(name: str) -> object:
    """Import a callback when first asked for: the options are read before PyTorch is there."""
    from importlib import import_module

    if name in HOMES:
        return getattr(import_module(f"callbacks.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
