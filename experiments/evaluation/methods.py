"""What a map method is; the trivial ones, which others must beat; and other people's.

Peers explain the abnormal class's score before the softmax, of the unmasked pass, at the encoder's
last features, in float32. After average pooling and one FC layer the gradient of that score is
``w_i / (h w)`` at each of the h x w cells: neither hooks nor a backward pass are needed, Grad-CAM
and HiResCAM are CAM / (h w), and LayerCAM is PCAM / (h w). Tests hold them to the package grad-cam.
Where the FCN weighs the cells, these weights, held, take the place of 1 / (h w).
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datamodules.cache import PixelCache
from datamodules.radiographs import RadiographDataModule
from experiments.runs import RunError
from lightning_modules.attention import View, normalise, upsample, views
from lightning_modules.stage1 import ABNORMAL, SCALE_QUANTILE, Batch, Stage1Classifier

Draw = Callable[[Stage1Classifier, Tensor], Tensor]
# Pixels from one value of a trivial map to the next. Cell i looks at pixel STEP * i, as the
# encoder's do.
STEP = 4
# Standard deviations, as a share of the square's side: of a cell of a 20 x 20 map.
FINE = 0.05
# Of the bump of the centre prior, as a share of the content's width and height.
BUMP = 0.25
# Of the image's side: the window that occlusion hides, 1/64 of the image (MURA's median fracture:
# 1.0 %), and its step.
WINDOW, WINDOW_STEP = 1 / 8, 1 / 16
# Images that the network sees at once in the slow methods.
AT_ONCE = 16


class MapMethod(NamedTuple):
    """Draws a map of an image, given a network or not.

    ``draw(module, image, batch)`` gets a network in evaluation mode (None where none takes part)
    and leaves it as it was, images ``(B, 1, S, S)`` as the network gets them, and the whole batch,
    whose ``index`` are rows of the index table; gradients are off. It returns raw maps
    ``(B, 1, h, w)``, the higher, the more lesion, in one unit for all images; cell i looks at pixel
    i * S / h. Keep them coarse: those of val wait in memory until their scale is fitted.
    """

    name: str  # of columns and figures, such as "gradcam": letters, digits and "_"
    draw: Callable[[Stage1Classifier | None, Tensor, Batch], Tensor]
    of_features: bool = False  # cell i looks where that of the network's last features does

    def enlarge(self, maps: Tensor, module: Stage1Classifier | None, size: torch.Size) -> Tensor:
        """Maps ``(B, 1, h, w)`` at the image's ``(H, W)``."""
        offset = module.encoder.offsets[-1] if module is not None and self.of_features else 0.0
        return upsample(maps, size, offset)


def views_of(module: Stage1Classifier | None) -> list[View]:
    """The views of whose answers the network gives the mean."""
    return [View()] if module is None else views(module.model.mirror, module.model.zoom)


def raw_map(
    method: MapMethod, module: Stage1Classifier | None, image: Tensor, batch: Batch
) -> Tensor:
    """The map of a method, float32 ``(B, 1, h, w)``; ValueError: of another shape or not finite."""
    with torch.no_grad():
        raw = method.draw(module, image, batch).detach().float()
    finite = bool(raw.isfinite().all())
    if raw.ndim != 4 or raw.shape[:2] != (len(image), 1) or not finite:
        raise ValueError(
            f"map method {method.name}: expected finite maps ({len(image)}, 1, h, w), got "
            f"{tuple(raw.shape)}, finite: {finite}"
        )
    return raw


def fit_scale(peaks: Tensor) -> float:
    """The value that becomes 1, a high quantile of val's peaks: the rule of the network's own."""
    return round(float(peaks.double().clamp(min=0).quantile(SCALE_QUANTILE)), 12)


def baselines(data: RadiographDataModule) -> list[MapMethod]:
    """The trivial methods; the mean mask only where there are lesion masks in training."""
    pixels, rows = data.pixels, data.lesion_rows
    masks = [mask for row in rows if (mask := pixels.mask(row)) is not None]
    mean = [mean_mask(masks)] if masks else []
    return [centre(pixels), *mean, EDGE_MAP, NOISE_MAP]


def centre(pixels: PixelCache) -> MapMethod:
    """A Gaussian bump in the middle of the image, which may lie anywhere in the square."""

    def draw(module: object, image: Tensor, batch: Batch) -> Tensor:
        cell, bumps = torch.arange(0, image.shape[-1], STEP, device=image.device), []
        for place in map(pixels.geometry_of, batch["index"].tolist()):
            across = (cell - place.left - (place.inner_width - 1) / 2) / (BUMP * place.inner_width)
            down = (cell - place.top - (place.inner_height - 1) / 2) / (BUMP * place.inner_height)
            bumps.append(torch.exp(-(across.square() + down.square()[:, None]) / 2))
        return torch.stack(bumps).unsqueeze(1)

    return MapMethod("centre", draw)


def mean_mask(masks: Sequence[np.ndarray]) -> MapMethod:
    """Mean of the lesion masks in training, smoothed: where lesions lie, whoever the patient is."""
    mean = torch.from_numpy(np.mean(masks, axis=0, dtype=np.float64)).float() / 255.0
    smoothed = smooth(mean[None, None], FINE)[..., ::STEP, ::STEP]
    return MapMethod(
        "mean_mask", lambda _, image, __: smoothed.to(image).repeat(len(image), 1, 1, 1)
    )


def _edges(module: object, image: Tensor, batch: Batch) -> Tensor:
    """Magnitude of the grey values' gradient, smoothed."""
    down, across = torch.gradient(image, dim=(2, 3))
    return smooth((down.square() + across.square()).sqrt(), FINE / 2)[..., ::STEP, ::STEP]


def _noise(module: object, image: Tensor, batch: Batch) -> Tensor:
    """Smooth noise, a pure function of the image's row in the index."""
    noise = [
        torch.rand(1, *image.shape[2:], generator=torch.Generator().manual_seed(int(row)))
        for row in batch["index"]
    ]
    # What rises above the mean of noise: as much as stays below it.
    raised = smooth(torch.stack(noise).to(image.device), FINE) - 0.5
    return raised.relu()[..., ::STEP, ::STEP]


def smooth(maps: Tensor, deviation: float) -> Tensor:
    """Blur ``(B, 1, S, S)`` with a Gaussian of ``deviation`` S pixels, edges continued."""
    sigma = deviation * maps.shape[-1]
    reach = max(1, min(round(3 * sigma), maps.shape[-1] - 1))
    offset = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-(offset / sigma).square() / 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(maps, (reach,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel.view(1, 1, 1, -1))
    return functional.conv2d(rows, kernel.view(1, 1, -1, 1))


EDGE_MAP, NOISE_MAP = MapMethod("edges", _edges), MapMethod("noise", _noise)


def choose(words: str | None) -> list[MapMethod]:
    """The methods of ``--peers``: quick, all, or names with commas."""
    groups = {"quick": list(QUICK), "all": list(PEERS)}
    names = groups.get(words, [*dict.fromkeys(words.split(","))]) if words else []
    if unknown := [name for name in names if name not in PEERS]:
        raise RunError(f"no peer method {', '.join(unknown)}: expected {', '.join(PEERS)}")
    if "occlusion" in names and importlib.util.find_spec("captum") is None:
        raise RunError("occlusion needs captum. Fix: pip install -c constraints.txt -e '.[peers]'")
    return [MapMethod(name, partial(_explain, PEERS[name]), of_features=True) for name in names]


def _explain(draw: Draw, module: Stage1Classifier | None, image: Tensor, batch: Batch) -> Tensor:
    assert module is not None, "a peer explains a network"
    with torch.autocast(image.device.type, enabled=False):
        return draw(module, image).float().relu()


def gradient_cam(name: str, module: Stage1Classifier, image: Tensor) -> Tensor:
    """Grad-CAM, HiResCAM, LayerCAM, and Grad-CAM++ with the score where the paper has its exp."""
    last, weights = module.features(image)
    features = last.float()
    cells = features.shape[-2] * features.shape[-1]
    weight = module.fc.weight[ABNORMAL, :, None, None] / cells  # the gradient, or its mean
    if weights is not None and name != "gradcam":
        weight = weight * (weights * cells)
    if name == "layercam":
        weight = weight.relu()
    elif name == "gradcampp":
        total = features.sum((2, 3), keepdim=True)
        # Of grad-cam, equation (19) of Chattopadhay et al. 2018 with 1e-6 in its divisor.
        share = weight**2 / (2 * weight**2 + total * weight**3 + 1e-6)
        # Summed over the cells; `weight` holds one gradient for all of them, or one per cell.
        copies = cells / weight[0, 0].numel()
        weight = torch.where(weight > 0, copies * weight * share, 0.0).sum((2, 3), keepdim=True)
    return (weight * features).sum(1, keepdim=True)


def score_cam(module: Stage1Classifier, image: Tensor) -> Tensor:
    """Feature maps weighed by the score of the image that each of them masks (Wang et al. 2020)."""
    maps = []
    for one in image.split(1):  # its 128 masks are as large as 128 images
        features = module.encoder(one)[-1].float()
        masks = normalise(module.upsample(features, image.shape[-2:])).transpose(0, 1)
        scores = [module(one * part)[:, ABNORMAL] for part in masks.split(AT_ONCE)]
        weight = torch.cat(scores).softmax(0)[:, None, None]
        maps.append((weight * features).sum(1, keepdim=True))
    return torch.cat(maps)


def fall_of_score(module: Stage1Classifier, image: Tensor) -> Tensor:
    """By how much the score falls where a window of dark grey hides the image (overlaps: mean)."""
    side = image.shape[-1]
    window, step = (max(1, round(share * side)) for share in (WINDOW, WINDOW_STEP))
    occlusion = importlib.import_module("captum.attr").Occlusion(module)
    fall: Tensor = occlusion.attribute(
        image,
        sliding_window_shapes=(1, window, window),
        strides=(1, step, step),
        baselines=0.0,
        target=ABNORMAL,
        perturbations_per_eval=max(1, AT_ONCE // len(image)),
    )
    return fall


QUICK: dict[str, Draw] = {
    name: partial(gradient_cam, name) for name in ("gradcam", "gradcampp", "hirescam", "layercam")
}
# The last two need a pass of the network for each of 128 feature maps, for each of 225 windows.
PEERS: dict[str, Draw] = {**QUICK, "scorecam": score_cam, "occlusion": fall_of_score}
