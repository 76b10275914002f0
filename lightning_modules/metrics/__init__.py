"""Figures over a whole split: each image counted once on any number of ranks."""

from lightning_modules.metrics.agreement import Agreement
from lightning_modules.metrics.boxes import MaxBoxAccuracy
from lightning_modules.metrics.localisation import HitRate, PixelAveragePrecision
from lightning_modules.metrics.regions import EnergyInMask, MeanDice, MeanIoU, UpperBoundIoU

__all__ = [
    "Agreement",
    "EnergyInMask",
    "HitRate",
    "MaxBoxAccuracy",
    "MeanDice",
    "MeanIoU",
    "PixelAveragePrecision",
    "UpperBoundIoU",
]
