"""BatchNorm's running statistics when a network sees two kinds of images in a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class SecondPass(nn.Module):
    """Gives the pass of masked images its place in BatchNorm's running statistics.

    In training both passes are normalised by their own batch whatever is chosen here: the weights
    do not depend on it. In evaluation they need running statistics, and masked images, mostly of
    one grey, have others than whole ones. The paper does not say which; all this is ours.

    Args:
        network: whose BatchNorm layers are meant; a copy of their statistics is the start.
        statistics: "own": a second set for the masked pass. "image": the masked pass leaves the
            running statistics alone and is evaluated with those of whole images, which suit it the
            less, the smaller the area that the mask keeps.
    """

    def __init__(self, network: nn.Module, statistics: str) -> None:
        super().__init__()
        self.statistics = statistics
        if statistics == "own":
            for number, norm in enumerate(_norms(network)):
                for name in _STATISTICS:
                    self.register_buffer(f"{name}_{number}", getattr(norm, name).clone())

    def restart(self, network: nn.Module) -> None:
        """Begin with ``network``'s statistics, after it was given those of an earlier run."""
        if self.statistics == "own":
            for number, norm in enumerate(_norms(network)):
                for name in _STATISTICS:
                    getattr(self, f"{name}_{number}").copy_(getattr(norm, name))

    @contextmanager
    def of(self, network: nn.Module) -> Iterator[None]:
        """Run ``network`` on masked images in this context."""
        norms = _norms(network)
        if self.statistics == "own":
            self._swap(norms)
            try:
                yield
            finally:
                self._swap(norms)
        else:
            # Only training looks at this: the batch's statistics are used but not remembered.
            for norm in norms:
                norm.track_running_stats = False
            try:
                yield
            finally:
                for norm in norms:
                    norm.track_running_stats = True

    def _swap(self, norms: list[_BatchNorm]) -> None:
        # By reference: what training moves in this pass is the other set itself.
        for number, norm in enumerate(norms):
            for name in _STATISTICS:
                other = f"{name}_{number}"
                mine, theirs = getattr(self, other), getattr(norm, name)
                setattr(self, other, theirs)
                setattr(norm, name, mine)


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
