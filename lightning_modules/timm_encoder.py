"""Any convolutional backbone of timm as an encoder: ``model.encoder=timm:<name>``."""

import logging
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import Tensor, nn

from lightning_modules.encoder import OUT_CHANNELS, Encoder, EncoderError, enlarge

# Strides of the pyramid; what timm has beyond the last is joined into it.
STRIDES = Encoder.strides
SUITABLE = "timm:resnet50, timm:densenet121, timm:efficientnet_b0 or timm:convnext_tiny"
# The images that all stages get: grey values of 0 to 1 with this mean and standard deviation.
GREY_MEAN, GREY_STD = 0.2, 0.2
# Where cells look is measured with so many pixels a side and random initialisations.
_SIDE, _DRAWS = 320, 3


class TimmEncoder(Encoder):
    """A backbone's features at strides 4, 8 and 16; the last are 128 maps >= 0, as CAM wants them.

    Deeper features are projected, enlarged and added to those at stride 16, so that nothing that
    was pretrained is lost. Grey images are turned into what timm's weights were trained with: its
    mean and standard deviation; timm itself sums the first convolution over colours.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.net = create(name)
        for part in self.net.modules():
            if isinstance(part, nn.Conv2d) and 1 < part.groups == part.in_channels:
                part.__class__ = type("Depthwise", (_Depthwise, type(part)), {})
        reductions, channels = self.net.feature_info.reduction(), self.net.feature_info.channels()
        self.levels = [reductions.index(stride) for stride in STRIDES]
        self.offsets = tuple(cells(name)[level] for level in self.levels)
        # What is joined into the last level: how many of its positions it is off, and its weights.
        coarse = range(self.levels[-1], len(reductions))
        self.shifts = [(cells(name)[at] - self.offsets[-1]) / STRIDES[-1] for at in coarse]
        self.joins = nn.ModuleList(
            nn.Conv2d(channels[at], OUT_CHANNELS, kernel_size=1, bias=False) for at in coarse
        )
        self.normalise = nn.BatchNorm2d(OUT_CHANNELS)
        self.channels = (*(channels[at] for at in self.levels[:-1]), OUT_CHANNELS)
        mean, std = (torch.tensor(self.net.pretrained_cfg[key]).mean() for key in ("mean", "std"))
        self.scale, self.shift = float(GREY_STD / std), float((GREY_MEAN - mean) / std)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The pyramid of images ``(B, 1, H, W)``, H and W divisible by the deepest stride."""
        features = self.net(image * self.scale + self.shift)
        deepest = features[self.levels[-1] :]
        size = deepest[0].shape[-2:]
        joined: Tensor | int = 0
        for join, shift, deep in zip(self.joins, self.shifts, deepest, strict=True):
            joined = joined + enlarge(join(deep), size, shift)
        last = torch.relu(self.normalise(joined))
        return [*(features[level] for level in self.levels[:-1]), last]

    def backbone(self) -> nn.Module:
        """The network of timm."""
        return self.net

    def blocks(self) -> list[str]:
        """The join, then timm's parts from the last to the first."""
        names: list[str] = []
        for name, part in self.net.named_children():
            inner = part.named_children() if isinstance(part, nn.Sequential | nn.ModuleList) else ()
            inner_names = [f"net.{name}.{number}" for number, _ in inner]
            names += inner_names or [f"net.{name}"]
        learned = [name for name in names if list(self.get_submodule(name).parameters())]
        return ["normalise", "joins", *reversed(learned)]


class _Depthwise(nn.Conv2d):
    """A convolution of each channel by itself: on a processor float32 is faster than bfloat16.

    Measured on EfficientNet-lite0: a third of a training step, backwards above all.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As of the class that it is mixed into."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))


class TimmSyncBatchNorm(TorchSyncBatchNorm):
    """BatchNorm over all ranks; PyTorch's would drop the activation that timm joins to it."""

    def apply(self, model: nn.Module) -> nn.Module:
        """The network, changed for ``trainer.sync_batchnorm``."""
        from timm.layers import convert_sync_batchnorm

        return cast(nn.Module, convert_sync_batchnorm(model))


def published(encoder: str) -> Any:
    """What timm says of the weights of ``timm:<name>``: its ``PretrainedCfg``."""
    name = encoder.removeprefix("timm:")
    try:
        import timm
    except ImportError:
        raise EncoderError(
            f"timm:{name} needs timm. Fix: pip install -c constraints.txt -e '.[encoders]'"
        ) from None
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models())
        suitable = ", ".join(f"timm:{model}" for model in near) or SUITABLE
        raise EncoderError(f"timm {timm.__version__} has no model {name}. Fix: such as {suitable}.")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag, after the dot, that the model does not have
        tags = ", ".join(f"timm:{one}" for one in timm.list_pretrained(f"{name.split('.')[0]}.*"))
        raise EncoderError(f"timm:{name}: {error} Fix: one of {tags}.") from error


def create(name: str, **options: Any) -> Any:
    """A backbone of timm, grey images in, features out; refused where no pyramid comes."""
    published(name)
    import timm

    try:
        net: Any = timm.create_model(name, features_only=True, in_chans=1, **options)
        strides = net.feature_info.reduction()
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        if options:
            raise  # of the weights
        raise EncoderError(
            f"timm:{name} gives no pyramid of features ({error}). Fix: one such as {SUITABLE}."
        ) from error
    if not set(STRIDES) <= set(strides):
        raise EncoderError(
            f"timm:{name}: expected features at strides 4, 8 and 16, got {strides}. Fix: a "
            f"convolutional encoder such as {SUITABLE}."
        )
    return net


@lru_cache
def cells(name: str) -> tuple[float, ...]:
    """The pixel that cell 0 of each of timm's features looks at, to a pixel (3 at stride 32).

    With symmetric padding that is pixel 0; with TensorFlow's "SAME" padding s - 1 at stride s; with
    patches as stem (s - 1) / 2. Measured: squared gradients of a cell in the middle, over random
    weights and noise, are as symmetric as the layers are, and their centre is where it looks.
    """
    total: dict[int, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for seed in range(_DRAWS):
            torch.default_generator.manual_seed(seed)  # the GPU's draws the run's dropout
            net = create(name).eval()
            # timm begins residual branches at 0: they would not count.
            gains = [part.weight for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
            gains += [
                p for key, p in net.named_parameters() if key.endswith("gain") and not p.any()
            ]
            for gain in gains:
                nn.init.ones_(gain)
            image = torch.randn(1, 1, _SIDE, _SIDE, requires_grad=True)
            for level, features in enumerate(_pyramid(net, image, name)):
                cell = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
                mixed = (cell * torch.randn_like(cell)).sum()
                (gradient,) = torch.autograd.grad(mixed, image, retain_graph=True)
                energy = gradient[0, 0] ** 2
                energy = energy / energy.sum()
                total[level] = total.get(level, 0) + energy + energy.T
    positions = torch.arange(_SIDE)
    offsets = []
    for level, stride in enumerate(net.feature_info.reduction()):
        # What reaches a cell from everywhere alike, through squeeze and excitation, says nothing.
        energy = (total[level] - total[level].median()).clamp(min=0).sum(0)
        centre = float((energy * positions).sum() / energy.sum())
        offsets.append(round(2 * (centre - _SIDE // stride // 2 * stride)) / 2)
    return tuple(offsets)


def _pyramid(net: Any, image: Tensor, name: str) -> list[Tensor]:
    """A backbone's features; an EncoderError where they are not of the image's side / stride."""
    try:
        pyramid: list[Tensor] = net(image)
        about = net.feature_info.channels(), net.feature_info.reduction()
        for features, channels, stride in zip(pyramid, *about, strict=True):
            if features.shape[1] != channels:
                raise RuntimeError("channels come last")
            if stride > 2 and features.shape[2:] != (_SIDE // stride, _SIDE // stride):
                raise RuntimeError("features are not of the image's side / stride")
    except (AssertionError, RuntimeError) as error:
        raise EncoderError(
            f"timm:{name} gives no pyramid of images of any size ({error}). Fix: a "
            f"convolutional encoder such as {SUITABLE}."
        ) from error
    return pyramid


def load_weights(encoder: TimmEncoder, file: Path) -> None:
    """Give the backbone published weights: of that very model, all of them, or none."""
    import timm
    from timm.models import load_checkpoint

    classifier = published(encoder.name).classifier or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    # timm logs every key that a pyramid does not need.
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]):
            whole = timm.create_model(encoder.name, num_classes=0)
            keys = load_checkpoint(whole, str(file), strict=False)
            overlay = {"file": str(file)}
            net = create(encoder.name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # of timm, safetensors or pickle, whatever the file holds
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"{file}: no weights of timm:{encoder.name} ({reason}). Fix: those of that very model, "
            "of three colours."
        ) from error
    missing = list(keys.missing_keys)
    wrong = missing + [key for key in keys.unexpected_keys if not key.startswith(heads)]
    wrong += [key for key, value in whole.state_dict().items() if not value.isfinite().all()]
    if wrong:
        raise EncoderError(
            f"{file}: no weights of timm:{encoder.name} ({len(missing)} are missing; {wrong[0]} is "
            "missing, not of this model or not finite). Fix: those of that very model."
        )
    encoder.net.load_state_dict(net.state_dict())
