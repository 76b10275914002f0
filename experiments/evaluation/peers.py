"""Other people's map methods on our network, by their closed form on it; occlusion by ``captum``.

All explain the abnormal class's score before the softmax, of the unmasked pass, at the encoder's
last features, in float32. After average pooling and one FC layer the gradient of that score is
``w_i / (h w)`` at each of the h x w cells: neither hooks nor a backward pass are needed, Grad-CAM
and HiResCAM are CAM / (h w), and LayerCAM is PCAM / (h w). Tests hold them to the package grad-cam.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from experiments.evaluation.methods import Batch, MapMethod
from experiments.runs import RunError
from lightning_modules import Stage1Classifier
from lightning_modules.attention import normalise, upsample
from lightning_modules.stage1 import ABNORMAL

Draw = Callable[[Stage1Classifier, Tensor], Tensor]
# Of the image's side: the window, 1/64 of the image (MURA's median fracture: 1.0 %), and its step.
WINDOW, STEP = 1 / 8, 1 / 16
# Images that the network sees at once in the slow methods.
AT_ONCE = 16


def choose(words: str | None) -> list[MapMethod]:
    """The methods of ``--peers``: quick, all, or names with commas."""
    if not words:
        return []
    groups = {"quick": list(QUICK), "all": list(PEERS)}
    names = groups.get(words, words.split(","))
    if unknown := [name for name in names if name not in PEERS]:
        raise RunError(f"no peer method {', '.join(unknown)}: expected {', '.join(PEERS)}")
    if "occlusion" in names:
        try:
            importlib.import_module("captum.attr")
        except ImportError as error:
            raise RunError(
                f"occlusion needs captum ({error}). Fix: install the extra: "
                "pip install -c constraints.txt -e '.[peers]'"
            ) from error
    return [MapMethod(name, partial(_explain, PEERS[name])) for name in names]


def _explain(draw: Draw, module: Stage1Classifier | None, image: Tensor, batch: Batch) -> Tensor:
    assert module is not None, "a peer explains a network"
    with torch.autocast(image.device.type, enabled=False):
        return draw(module, image).float().relu()


def gradient_cam(name: str, module: Stage1Classifier, image: Tensor) -> Tensor:
    """Grad-CAM, HiResCAM, LayerCAM, and Grad-CAM++ with the score where the paper has its exp."""
    features = module.encoder(image)[-1].float()
    cells = features.shape[-2] * features.shape[-1]
    weight = module.fc.weight[ABNORMAL, :, None, None] / cells  # the gradient
    if name == "layercam":
        weight = weight.relu()
    elif name == "gradcampp":
        total = features.sum((2, 3), keepdim=True)
        # Of grad-cam, equation (19) of Chattopadhay et al. 2018 with 1e-6 in its divisor.
        share = weight**2 / (2 * weight**2 + total * weight**3 + 1e-6)
        weight = torch.where(weight > 0, cells * weight * share, 0.0)
    return (weight * features).sum(1, keepdim=True)


def score_cam(module: Stage1Classifier, image: Tensor) -> Tensor:
    """Feature maps weighed by the score of the image that each of them masks (Wang et al. 2020).

    Masks are enlarged as CAM is; what they hide fades to 0 of the network's input, a dark grey.
    """
    maps = []
    for one in image.split(1):  # its 128 masks are as large as 128 images
        features = module.encoder(one)[-1].float()
        masks = normalise(upsample(features, image.shape[-2:])).transpose(0, 1)
        scores = [module(one * part)[:, ABNORMAL] for part in masks.split(AT_ONCE)]
        weight = torch.cat(scores).softmax(0)[:, None, None]
        maps.append((weight * features).sum(1, keepdim=True))
    return torch.cat(maps)


def fall_of_score(module: Stage1Classifier, image: Tensor) -> Tensor:
    """By how much the score falls where a window of dark grey hides the image (overlaps: mean)."""
    window, step = (
        (1, *(max(1, round(share * side)) for side in image.shape[-2:])) for share in (WINDOW, STEP)
    )
    fall: Tensor = (
        importlib.import_module("captum.attr")
        .Occlusion(module)
        .attribute(
            image,
            sliding_window_shapes=window,
            strides=step,
            baselines=0.0,
            target=ABNORMAL,
            perturbations_per_eval=max(1, AT_ONCE // len(image)),
        )
    )
    return fall


QUICK: dict[str, Draw] = {
    name: partial(gradient_cam, name) for name in ("gradcam", "gradcampp", "hirescam", "layercam")
}
# The last two need a pass of the network for each of 128 feature maps, for each of 225 windows.
PEERS: dict[str, Draw] = {**QUICK, "scorecam": score_cam, "occlusion": fall_of_score}
