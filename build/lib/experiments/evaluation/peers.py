"""Other people's map methods on our network: those of ``grad-cam``, and occlusion of ``captum``.

All explain what CAM explains: the abnormal class's score before the softmax, of the unmasked pass,
read at the encoder's last features. What is taken from the libraries are their formulas. What is
not: ``grad-cam`` stretches each image's map to [0, 1] and resizes it as if a cell looked at the
middle of its square; judged are the raw values with what is negative cut, one scale a run, enlarged
as CAM is. In float32, without autocast, in evaluation mode.

After global average pooling and one FC layer the gradient of the score at the last features is
``w_i / (h w)`` at each of the h x w cells, so three of them are known before they are computed:

    Grad-CAM (Selvaraju et al. 2017) and HiResCAM (Draelos & Carin 2020)  =  CAM / (h w)
    LayerCAM (Jiang et al. 2021)                                          =  PCAM / (h w)

One scale a run then makes the judged maps equal. Grad-CAM++ (Chattopadhay et al. 2018), Score-CAM
(Wang et al. 2020) and occlusion (Zeiler & Fergus 2014) see something of their own.
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
from lightning_modules.attention import upsample
from lightning_modules.stage1 import ABNORMAL

# Class names in grad-cam.
GRADIENT_METHODS = {
    "gradcam": "GradCAM",
    "gradcampp": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
}
PEERS = (*GRADIENT_METHODS, "scorecam", "occlusion")
# A pass of the network for each of 128 feature maps, for each of 225 windows.
SLOW = ("scorecam", "occlusion")
# Of the image's side: the window, 1/64 of the image (MURA's median fracture: 1.0 %), and its step.
WINDOW, STEP = 1 / 8, 1 / 16
# Images that the network sees at once in the slow methods.
AT_ONCE = 16


def peers(names: Sequence[str] = PEERS) -> list[MapMethod]:
    """Map methods by name.

    Args:
        names: Of :data:`PEERS`.

    Raises:
        RunError: A name is unknown, or the extra ``peers`` is not installed.
    """
    if unknown := [name for name in names if name not in PEERS]:
        raise RunError(f"{', '.join(unknown)}: no peer method; there are {', '.join(PEERS)}")
    made: list[MapMethod] = []
    for name in names:
        if name == "occlusion":
            made.append(Occlusion())
        elif name == "scorecam":
            made.append(ScoreCam())
        else:
            made.append(GradientCam(name))
    return made


class GradientCam:
    """Grad-CAM, Grad-CAM++, HiResCAM or LayerCAM.

    Grad-CAM++ as ``grad-cam`` computes it: with the score itself where the paper has its
    exponential, and 1e-6 added to a divisor of the order of the squared gradients, which here are
    not much larger. Channels with small weights therefore count less than in the paper.

    Args:
        name: Of :data:`GRADIENT_METHODS`.

    Raises:
        RunError: The extra ``peers`` is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.method = getattr(library("pytorch_grad_cam", "grad-cam"), GRADIENT_METHODS[name])

    def __call__(self, module: Any, image: Tensor, batch: Batch) -> Tensor:
        """Raw maps float32 ``(B, 1, h, w)``, at least 0.

        Raises:
            ValueError: The network is in training mode.
        """
        with _explaining(module, image), torch.enable_grad():
            network = _FromLastFeatures(module)
            explained = self.method(network, [network.last])
            try:
                scores = explained.activations_and_grads(image)
                scores[:, ABNORMAL].sum().backward()
                return _raw(explained, network, image)
            finally:
                explained.activations_and_grads.release()


class ScoreCam:
    """Score-CAM: feature maps weighed by the score of the image that each of them masks.

    The masks are enlarged as CAM is, not corner to corner as ``grad-cam`` does, which moves a
    fringe by up to 15 pixels. What a mask hides fades to 0 of the network's input, a dark grey.

    Raises:
        RunError: The extra ``peers`` is not installed.
    """

    name = "scorecam"

    def __init__(self) -> None:
        self.method = library("pytorch_grad_cam", "grad-cam").ScoreCAM

    def __call__(self, module: Any, image: Tensor, batch: Batch) -> Tensor:
        """Raw maps float32 ``(B, 1, h, w)``, at least 0.

        Raises:
            ValueError: The network is in training mode.
        """
        with _explaining(module, image):
            # An image at a time: its 128 masks are as large as 128 images.
            return torch.cat([self._one(module, one) for one in image.split(1)])

    def _one(self, module: Any, image: Tensor) -> Tensor:
        network = _FromLastFeatures(module)
        explained = self.method(network, [network.last])
        explained.batch_size = AT_ONCE
        weigh = explained.get_cam_weights

        def placed(image: Tensor, layer: Any, targets: Any, activations: Any, _: None) -> Any:
            # Of the image's size already, so that the library's own resizing does nothing.
            masks = upsample(torch.from_numpy(activations), image.shape[-2:]).numpy()
            # It draws a progress bar an image.
            with contextlib.redirect_stderr(io.StringIO()):
                return weigh(image, layer, targets, masks, None)

        explained.get_cam_weights = placed
        try:
            explained.activations_and_grads(image)
            return _raw(explained, network, image)
        finally:
            explained.activations_and_grads.release()


class Occlusion:
    """Occlusion: by how much the score falls where a window hides the image.

    The window (:data:`WINDOW`) is 0 of the network's input, a dark grey; where windows overlap,
    their mean counts. A rise of the score is cut to 0.

    Raises:
        RunError: The extra ``peers`` is not installed.
    """

    name = "occlusion"

    def __init__(self) -> None:
        self.method = library("captum.attr", "captum").Occlusion

    def __call__(self, module: Any, image: Tensor, batch: Batch) -> Tensor:
        """Raw maps float32 ``(B, 1, S, S)``, at least 0.

        Raises:
            ValueError: The network is in training mode.
        """
        window, step = (
            (1, *(max(1, round(share * side)) for side in image.shape[-2:]))
            for share in (WINDOW, STEP)
        )
        with _explaining(module, image):
            fall = self.method(module).attribute(
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

    A gradient that ``grad-cam`` asks for stops there, so that what comes before is not
    differentiated and hooks land on this layer, never on the network's own.
    """

    def __init__(self, module: Any) -> None:
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
def _explaining(module: Any, image: Tensor) -> Iterator[None]:
    """Leave the weights without gradients, the modes as they are and precision at float32."""
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
            yield
    finally:
        for parameter in learns:
            parameter.requires_grad_(True)


def _raw(explained: Any, network: _FromLastFeatures, image: Tensor) -> Tensor:
    """The library's own formula on what its hooks saw; its scaling and resizing left out."""
    seen = explained.activations_and_grads
    activations = seen.activations[0].numpy()
    gradients = seen.gradients[0].numpy() if seen.gradients else None
    targets = [abnormal_score] * len(image)
    raw = explained.get_cam_image(image, network.last, targets, activations, gradients, False)
    return torch.from_numpy(np.asarray(raw, dtype=np.float32)).to(image.device)[:, None].relu()


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
