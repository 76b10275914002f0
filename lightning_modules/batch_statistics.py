"""BatchNorm's running statistics when a network sees two kinds of images in a step."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call


class SecondPass(nn.Module):
    """Gives the pass of masked images its place in BatchNorm's running statistics.

    In training both passes are normalised by their own batch: the weights do not depend on it. In
    evaluation they need running statistics, and masked images, mostly of one grey, have others than
    whole ones. So the masked pass has its "own" second set, or, with "image", leaves the running
    statistics alone and is evaluated with those of whole images, which suit it the less, the
    smaller the area that the mask keeps. The paper does not say which; all this is ours.
    """

    def __init__(self, network: nn.Module, statistics: str) -> None:
        super().__init__()
        # Of three buffers a BatchNorm: running_mean_0, running_var_0, num_batches_tracked_0, ...
        self.names = {
            f"{name.rpartition('.')[2]}_{place // 3}": name
            for place, (name, _) in enumerate(network.named_buffers())
        }
        self.own = statistics == "own"
        if self.own:
            for ours, theirs in self.names.items():
                self.register_buffer(ours, network.get_buffer(theirs).clone())

    def restart(self, network: nn.Module) -> None:
        """Begin with ``network``'s statistics, after it was given those of an earlier run."""
        if self.own:
            for ours, theirs in self.names.items():
                self.get_buffer(ours).copy_(network.get_buffer(theirs))

    def forward(self, network: nn.Module, image: Tensor) -> list[Tensor]:
        """What ``network`` makes of masked images."""
        statistics = {
            # A copy: the batch's statistics are used but not remembered.
            theirs: self.get_buffer(ours) if self.own else network.get_buffer(theirs).clone()
            for ours, theirs in self.names.items()
        }
        features: list[Tensor] = functional_call(network, statistics, (image,))
        return features
