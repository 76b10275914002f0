"""Figures over a whole split: each image counted once on any number of ranks."""

from lightning_modules.metrics.agreement import Agreement
from lightning_modules.metrics.localisation import HitRate, PixelAveragePrecision

__all__ = ["Agreement", "HitRate", "PixelAveragePrecision"]
