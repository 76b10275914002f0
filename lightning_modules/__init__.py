"""What learns: one LightningModule a stage, on a common encoder."""

from lightning_modules.stage1 import Stage1Classifier

STAGES = {"stage1": Stage1Classifier}

__all__ = ["STAGES", "Stage1Classifier"]
