"""The FCN's decoder: from the encoder's pyramid of features to a lesion map (paper, stage 3)."""

from torch import Tensor, nn

from lightning_modules.encoder import enlarge

# Channels at strides 16, 8 and 4, coarse to fine. The decoder stops at stride 4: one at stride 2
# would cost more than all others together, and a lesion's outline is not known that finely.
_WIDTHS = (128, 64, 32)
_OUTPUT_STRIDE = 4
# The map starts at sigmoid(-2) = 0.12 everywhere. From 0.5, the first steps would spend the shared
# encoder on turning the whole map dark, which is right for about 98 % of the pixels.
_OUTPUT_BIAS = -2.0


class Decoder(nn.Module):
    """Top-down pathway with lateral connections, from stride 16 to stride 4.

    Each step doubles the resolution of what comes from above, adds a 1x1 projection of the
    encoder's features and joins the two by a 3x3 convolution.
    ``channels`` are those of the encoder's features at strides 4, 8 and 16, ``offsets`` the pixels
    that their cells 0 look at.
    """

    def __init__(self, channels: tuple[int, ...], offsets: tuple[float, ...] = (0, 0, 0)) -> None:
        super().__init__()
        fine, middle, coarse = offsets
        # How far a coarser level's cell 0 looks beyond the finer one's, in cells of the finer one.
        self.shifts = (coarse - middle) / 8, (middle - fine) / 4
        self.offset = fine
        coarse_to_fine = channels[::-1]
        self.top = _block(coarse_to_fine[0], _WIDTHS[0], kernel_size=1)
        self.reduce = nn.ModuleList()
        self.lateral = nn.ModuleList()
        self.join = nn.ModuleList()
        for above, here, lateral in zip(_WIDTHS[:-1], _WIDTHS[1:], coarse_to_fine[1:], strict=True):
            # Projecting before the upsampling costs a quarter of projecting after it.
            self.reduce.append(nn.Conv2d(above, here, kernel_size=1, bias=False))
            self.lateral.append(nn.Conv2d(lateral, here, kernel_size=1, bias=False))
            block = _block(here, here, kernel_size=3)
            self.join.append(nn.Sequential(nn.BatchNorm2d(here), nn.ReLU(inplace=True), block))
        self.output = nn.Conv2d(_WIDTHS[-1], 1, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Weights of both signs that count from the start. Nearly zero, the first steps, which turn
        # the whole map dark, leave all of them negative: on features >= 0 no lesion can then rise
        # above sigmoid(bias), and the bias alone crawls.
        nn.init.normal_(self.output.weight, std=_WIDTHS[-1] ** -0.5)
        nn.init.constant_(self.output.bias, _OUTPUT_BIAS)  # type: ignore[arg-type]  # has a bias

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Scores float32 ``(B, 1, H, W)`` of the pixels; their sigmoid is the lesion map."""
        fine, middle, coarse = pyramid
        x = self.top(coarse)
        levels = (middle, fine)
        steps = zip(self.reduce, self.lateral, self.join, levels, self.shifts, strict=True)
        for reduce, lateral, join, features, shift in steps:
            x = join(enlarge(reduce(x), features.shape[-2:], shift) + lateral(features))
        # Logits are enlarged, not probabilities: the edge of a sure lesion stays sharp. In float32,
        # since bf16 knows only 256 steps between 0.5 and 1 and a ranking of pixels needs more.
        height, width = (_OUTPUT_STRIDE * side for side in x.shape[-2:])
        return enlarge(self.output(x).float(), (height, width), self.offset)


def _block(channels_in: int, channels_out: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
