"""The encoder that all three stages train: ResNet-23, stride 16, 128 feature maps.

One 7x7 stem, seven bottleneck blocks of three convolutions and the classifier's FC layer make
1 + 7 * 3 + 1 = 23; as in He et al. 2016, projections of shortcuts do not count. The layout 1-2-4
and its widths, multiples of 32, are ours, for capacity per second on a processor: a block at stride
4 costs most, so there is one, and most of the weights sit at stride 16, where CAM reads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class EncoderError(ValueError):
    """An encoder that does not fit or is not there, or weights that do not fit it."""


class Encoder(nn.Module):
    """What the stages need of an encoder of one-channel images; ``ENCODERS`` lists those there are.

    Called with ``(B, 1, H, W)``, it returns a pyramid: features ``(B, C, H / s, W / s)``, from fine
    to coarse. CAM reads the last one, which must be >= 0.
    """

    channels: tuple[int, ...]  # C of each level
    strides: tuple[int, ...] = (4, 8, 16)  # s of each level, pixels of the image per position
    # The pixel that cell 0 of each level looks at; cell i looks s * i further.
    offsets: tuple[float, ...] = (0.0, 0.0, 0.0)
    shifts: Sequence[float] = ()  # the like of what is joined into the last level

    def blocks(self) -> list[str]:
        """Names of the parts that hold all weights, from the last one down to the stem."""
        raise NotImplementedError

    def backbone(self) -> nn.Module:
        """The part that weights are published for; ``optimizer.encoder_scale`` is its."""
        return self


# Filters of the last convolution (paper, section "Experiments").
OUT_CHANNELS = 128
_STEM_WIDTH = 32
# (blocks, inner width, channels out, stride of the first block): strides 4, 8 and 16 of the image.
_STAGES = ((1, 32, 64, 1), (2, 64, 128, 2), (4, 128, OUT_CHANNELS, 2))


class ResNet23(Encoder):
    """ResNet-23 without its FC layer; ``width`` scales all channel counts but the final 128."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        stem_width = _scaled(_STEM_WIDTH, width)
        # The maximum is taken before BatchNorm and ReLU, unlike in the usual ResNet: memory-bound
        # both, they then work on a quarter of the positions.
        self.stem = nn.Sequential(
            nn.Conv2d(1, stem_width, kernel_size=7, stride=2, padding=3, bias=False),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        channels = [stem_width]
        for number, (blocks, inner, out, stride) in enumerate(_STAGES, start=1):
            # CAM's FC weights, the decoder and exported models rely on 128 maps: never scaled.
            out = OUT_CHANNELS if number == len(_STAGES) else _scaled(out, width)
            inner = _scaled(inner, width)
            first = Bottleneck(channels[-1], inner, out, stride)
            rest = [Bottleneck(out, inner, out) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            channels.append(out)
        self.channels = tuple(channels[1:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        """The pyramid of images ``(B, 1, H, W)``, H and W divisible by 16; all features >= 0."""
        features = [self.stem(image)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]

    def blocks(self) -> list[str]:
        """``stages.2.3`` to ``stages.0.0``, then ``stem``."""
        numbers = [(s, b) for s, (blocks, *_) in enumerate(_STAGES) for b in range(blocks)]
        return [*(f"stages.{stage}.{block}" for stage, block in reversed(numbers)), "stem"]


ENCODERS: dict[str, type[Encoder]] = {"resnet23": ResNet23}


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut.

    The 3x3 convolution strides, not the first 1x1: no position of the input is skipped.
    """

    def __init__(self, channels_in: int, inner: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, inner, kernel_size=1, bias=False)
        self.normalise1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, kernel_size=3, stride=stride, padding=1, bias=False)
        self.normalise2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels_out, kernel_size=1, bias=False)
        self.normalise3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels_in, H, W)`` to ``(B, channels_out, H / stride, W / stride)``, >= 0."""
        y = self.relu(self.normalise1(self.conv1(x)))
        y = self.relu(self.normalise2(self.conv2(y)))
        y = self.normalise3(self.conv3(y))
        return torch.relu(y + self.shortcut(x))


def enlarge(features: Tensor, size: tuple[int, int] | torch.Size, offset: float = 0.0) -> Tensor:
    """Resize features ``(B, C, h, w)`` bilinearly to where in the image ``(H, W)`` they look.

    ResNet-23's strided layers have odd kernels and symmetric padding: cell i at stride s looks
    around pixel s * i. Plain resizing assumes the middle of pixels s * i to s * i + s - 1 and would
    move every map right and down by (s - 1) / 2, 7.5 pixels at stride 16. So pixel p holds the
    value at cell (p - offset) * h / H, where other encoders' cells look ``offset`` pixels further;
    beyond the first and the last cell their values.
    """
    height, width = size
    if offset:
        return _weighted(features, *_shares(features.shape[-2:], size, offset, features))
    padded = functional.pad(features, (0, 1, 0, 1), mode="replicate")
    grown = functional.interpolate(
        padded, size=(height + 1, width + 1), mode="bilinear", align_corners=True
    )
    return grown[..., :height, :width]


def gather(weight: Tensor, size: tuple[int, int] | torch.Size, offset: float = 0.0) -> Tensor:
    """What each cell ``(B, 1, h, w)`` gets of its pixels' weights ``(B, 1, H, W)``.

    The transpose of ``enlarge``: the weighted sum of enlarged features is the sum of the features
    by these weights.
    """
    rows, columns = _shares(size, weight.shape[-2:], offset, weight)
    return _weighted(weight, rows.mT, columns.mT)


def _shares(
    cells: tuple[int, ...], pixels: tuple[int, ...], offset: float, like: Tensor
) -> list[Tensor]:
    """How much of each cell is in each pixel, ``(pixels, cells)``, of rows and of columns."""
    shares = []
    for count, side in zip(cells, pixels, strict=True):
        pixel = torch.arange(side, device=like.device, dtype=torch.float32)
        place = ((pixel - offset) * (count / side)).clamp(0, count - 1)
        cell = torch.arange(count, device=like.device)
        shares.append((1 - (place[:, None] - cell).abs()).clamp(min=0).to(like.dtype))
    return shares


def _weighted(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    # Under autocast a matrix product falls back to bf16 whatever its inputs: switched off here.
    with torch.autocast(values.device.type, enabled=False):
        return rows @ values @ columns.mT


def _scaled(channels: int, width: float) -> int:
    return max(8, round(channels * width / 8) * 8)
