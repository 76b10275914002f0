"""Means over an epoch that survive a restart in its middle and add up over ranks."""

from __future__ import annotations

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor


class RunningMeans:
    """Named means, each value weighted by its number of images.

    Unlike ``self.log(on_epoch=True)`` the sums are kept in the checkpoint: an epoch that was cut in
    two logs what an uncut one does. Every rank must add the same names, and call ``state`` and
    ``compute``.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor], images: int) -> None:
        """Add scalars, each a mean over ``images`` images."""
        for name, value in values.items():
            # Stays on the device: no synchronisation a step.
            part = value.detach().double() * images
            part = torch.stack([part, torch.full_like(part, images)])
            earlier = self.sums.get(name)
            self.sums[name] = part if earlier is None else earlier.to(part.device) + part

    def state(self, strategy: Strategy) -> dict[str, list[float]]:
        """Sum and number of images of each name over all ranks."""
        return {
            # A copy: the strategy reduces in place, and these sums go on growing.
            name: strategy.reduce(sums.clone(), reduce_op="sum").tolist()
            for name, sums in self.sums.items()
        }

    def compute(self, strategy: Strategy) -> dict[str, float]:
        """Means over all ranks."""
        return {name: total / images for name, (total, images) in self.state(strategy).items()}

    def load(self, state: dict[str, list[float]], share: float) -> None:
        """Take up this rank's ``share`` of the sums of ``state``."""
        self.sums = {
            name: torch.tensor(sums, dtype=torch.float64) * share for name, sums in state.items()
        }
