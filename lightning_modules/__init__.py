"""What learns: a LightningModule a stage, each adding to the one before what the paper adds.

Read ``losses`` and ``attention`` (the paper's equations), ``encoder``, then ``stage1``, ``stage2``
and ``stage3``; ``options`` says what can be set, ``stages`` which stages there are.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_modules.stages import STAGES as STAGES
    from lightning_modules.stages import Stage1Classifier as Stage1Classifier


def __getattr__(name: str) -> object:
    """Import the stages when first asked for: the options are read before PyTorch is there."""
    if name == "STAGES" or name.startswith("Stage"):
        from lightning_modules import stages

        return getattr(stages, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
