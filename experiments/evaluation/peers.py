"""Other people's map methods on our network: those of ``grad-cam``, and occlusion of ``captum``.

All explain the abnormal class's score before the softmax, of the unmasked pass, at the encoder's
last features, in float32. The libraries' formulas are used, not their scaling and resizing: judged
are the raw values, negative ones cut, one scale a run, enlarged as CAM is. After average pooling
and one FC layer some are known in closed form: Grad-CAM and HiResCAM are CAM / (h w), LayerCAM is
PCAM / (h w) on maps of h x w cells.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.evaluation.methods import Batch, MapMethod
from experiments.runs import RunError
from lightning_modules import Stage1Classifier
from lightning_modules.attention import upsample
from lightning_modules.stage1 import ABNORMAL

# Class names in grad-cam.
CAM_METHODS = {
    "gradcam": "GradCAM",
    "gradcampp": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "scorecam": "ScoreCAM",
}
PEERS = (*CAM_METHODS, "occlusion")
# A pass of the network for each of 128 feature maps, for each of 225 windows.
SLOW = ("scorecam", "occlusion")
# Of the image's side: the window, 1/64 of the image (MURA's median fracture: 1.0 %), and its step.
WINDOW, STEP = 1 / 8, 1 / 16
# Images that the network sees at once in the slow methods.
AT_ONCE = 16


def choose(words: str | None) -> list[MapMethod]:
    """The methods of ``--peers``: quick, all, or names with commas."""
    if words is None:
        return []
    quick = [name for name in PEERS if name not in SLOW]
    return peers({"quick": quick, "all": list(PEERS)}.get(words, words.split(",")))


def peers(names: Sequence[str] = PEERS) -> list[MapMethod]:
    """Map methods by name."""
    if unknown := [name for name in names if name not in PEERS]:
        raise RunError(f"{', '.join(unknown)}: no peer method; there are {', '.join(PEERS)}")
    return [Occlusion() if name == "occlusion" else GradCam(name) for name in names]


class GradCam:
    """A method of ``grad-cam``: Grad-CAM, Grad-CAM++, HiResCAM, LayerCAM or Score-CAM.

    Its Grad-CAM++ has the score itself where the paper has its exponential. Score-CAM's masks are
    enlarged as CAM is, not corner to corner, which would move a fringe by up to 15 pixels.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.method = getattr(library("pytorch_grad_cam", "grad-cam"), CAM_METHODS[name])

    def __call__(self, module: Stage1Classifier | None, image: Tensor, batch: Batch) -> Tensor:
        """Raw maps float32 ``(B, 1, h, w)``, at least 0."""
        with _explaining(module, image) as network:
            if self.name == "scorecam":
                # An image at a time: its 128 masks are as large as 128 images.
                return torch.cat([self._map(network, one) for one in image.split(1)])
            return self._map(network, image)

    def _map(self, module: Stage1Classifier, image: Tensor) -> Tensor:
        network = _FromLastFeatures(module)
        explained = self.method(network, [network.last])
        explained.batch_size = AT_ONCE
        seen = explained.activations_and_grads
        try:
            with torch.set_grad_enabled(self.name != "scorecam"):
                scores = seen(image)
                if self.name == "scorecam":
                    explained.get_cam_weights = _enlarged_first(explained.get_cam_weights)
                else:
                    scores[:, ABNORMAL].sum().backward()
            gradients = seen.gradients[0].numpy() if seen.gradients else None
            targets = [abnormal_score] * len(image)
            # The formula alone; the library's scaling and resizing left out.
            raw = explained.get_cam_image(
                image, network.last, targets, seen.activations[0].numpy(), gradients, False
            )
        finally:
            seen.release()
        return torch.from_numpy(np.asarray(raw, dtype=np.float32)).to(image.device)[:, None].relu()


class Occlusion:
    """By how much the score falls where a window (:data:`WINDOW`) of dark grey hides the image."""

    name = "occlusion"

    def __init__(self) -> None:
        self.method = library("captum.attr", "captum").Occlusion

    def __call__(self, module: Stage1Classifier | None, image: Tensor, batch: Batch) -> Tensor:
        """Raw maps float32 ``(B, 1, S, S)``, at least 0; where windows overlap, their mean."""
        window, step = (
            (1, *(max(1, round(share * side)) for side in image.shape[-2:]))
            for share in (WINDOW, STEP)
        )
        with _explaining(module, image) as network:
            fall: Tensor = self.method(network).attribute(
                image,
                sliding_window_shapes=window,
                strides=step,
                baselines=0.0,
                target=ABNORMAL,
                perturbations_per_eval=max(1, AT_ONCE // len(image)),
            )
            return fall.float().relu()


class _FromLastFeatures(nn.Module):
    """The network with a layer ``last`` that passes on the encoder's last features.

    Gradients stop there: what comes before is not differentiated, and hooks land on this layer,
    never on the network's own.
    """

    def __init__(self, module: Stage1Classifier) -> None:
        super().__init__()
        self.module = module
        self.last = nn.Identity()
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Class scores ``(B, 2)`` of images ``(B, 1, H, W)``."""
        with torch.no_grad():
            features = self.module.encoder(image)[-1]
        return self.module.classify(self.last(features.detach().float().requires_grad_()))


@contextlib.contextmanager
def _explaining(module: Stage1Classifier | None, image: Tensor) -> Iterator[Stage1Classifier]:
    """Leave the weights without gradients, the modes as they are and precision at float32."""
    assert module is not None, "peers explain a network"
    if module.training:
        raise ValueError("the network is in training mode: call eval() before it is explained")
    learns = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learns:
        parameter.requires_grad_(False)
    try:
        # Evaluation runs in inference mode, in which no gradient can be had.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(image.device.type, enabled=False),
        ):
            yield module
    finally:
        for parameter in learns:
            parameter.requires_grad_(True)


def _enlarged_first(weigh: Any) -> Any:
    """``ScoreCAM.get_cam_weights`` on masks of the image's size, so that it resizes nothing."""

    def weights(image: Tensor, layer: Any, targets: Any, activations: Any, _: None) -> Any:
        masks = upsample(torch.from_numpy(activations), image.shape[-2:]).numpy()
        with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar an image
            return weigh(image, layer, targets, masks, None)

    return weights


def abnormal_score(scores: Tensor) -> Tensor:
    """The score that other people's methods explain: of class abnormal, of one image."""
    return scores[ABNORMAL]


def library(module: str, package: str) -> Any:
    """Import a module of the extra ``peers``, or raise a RunError that names it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(
            f"peer methods need {package} ({error}); install the extra: "
            "pip install -c constraints.txt -e '.[peers]'"
        ) from error
