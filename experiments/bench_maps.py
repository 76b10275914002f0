"""Rows of maps: probability, CAM and PCAM of both classes beside what explains one class."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.bench_steps import milliseconds, network, prepare
from experiments.bench_table import Line, Request, ratios, take_turns
from experiments.evaluation.peers import abnormal_score, library
from lightning_modules.attention import cam, pcam, scale_map, upsample
from lightning_modules.stage1 import ABNORMAL

BATCHES = (1, 16)


class Explained(NamedTuple):
    """Probabilities ``(B, 2)`` and raw maps ``(B, 2, h, w)`` of both classes."""

    probability: Tensor
    cam: Tensor
    pcam: Tensor


def maps(request: Request) -> list[Line]:
    """One network in float32, evaluation mode; peers get it contiguous, as people have it.

    Raises:
        RunError: The extra ``peers`` is not installed.
    """
    gradcam = library("pytorch_grad_cam", "grad-cam").GradCAM
    captum = library("captum.attr", "captum").LayerGradCam
    bench = prepare(tuple(request.overrides))
    module = network("stage1", request, bench, torch.channels_last).eval()
    plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    size = bench.data.recipe.image_size
    lines = []
    for images in BATCHES:
        image = torch.randn(images, 1, size, size, device=bench.device)
        targets = [abnormal_score] * images
        steps: dict[str, Callable[[], object]] = {
            "ours": functools.partial(explain, module, image),
            "forward": functools.partial(_forward, module, image),
            "whole": functools.partial(explain_whole, module, image),
        }
        with gradcam(_Scores(plain), [plain.encoder.stages[-1]]) as explainer:
            steps["gradcam"] = functools.partial(explainer, image, targets)
            for name, network_of in (("captum", plain), ("captum_last", module)):
                method = captum(_Scores(network_of), network_of.encoder.stages[-1])
                steps[name] = functools.partial(method.attribute, image, target=ABNORMAL)
            timed = {name: functools.partial(_finish, taken) for name, taken in steps.items()}
            seconds = take_turns(timed, (3 if images == 1 else 1) * request.rounds, request.clock)
        for name, peer, wanted in (
            ("forward", "the plain forward pass", "<= 1.05"),
            ("captum", "captum, one class", ">= 1.3"),
            ("captum_last", "captum, channels_last as ours", ""),
            ("gradcam", "grad-cam, one class, enlarged", ">= 3"),
        ):
            # grad-cam's maps are of the image's size and from 0 to 1: so are ours beside them.
            ours = seconds["whole" if name == "gradcam" else "ours"]
            pair = (seconds[name], ours)
            lines.append(
                Line(
                    f"probability, CAM, PCAM, both classes, batch {images}",
                    milliseconds(ours),
                    f"{peer}: {milliseconds(seconds[name])}",
                    ratios(*(pair[::-1] if name == "forward" else pair)),
                    wanted,
                )
            )
    return lines


def explain(module: Any, image: Tensor) -> Explained:
    """From one pass without gradient."""
    with torch.inference_mode():
        features, weight = module.encoder(image)[-1], module.fc.weight
        return Explained(
            module.classify(features).softmax(1), cam(features, weight), pcam(features, weight)
        )


def explain_whole(module: Any, image: Tensor) -> Explained:
    """The same with maps in [0, 1] at the image's size ``(B, 2, H, W)``."""
    found = explain(module, image)
    with torch.inference_mode():
        return Explained(
            found.probability,
            *(
                upsample(scale_map(raw, module.map_scale[0]), image.shape[-2:])
                for raw in (found.cam, found.pcam)
            ),
        )


def _forward(module: Any, image: Tensor) -> None:
    with torch.inference_mode():
        module(image).softmax(1)


def _finish(step: Callable[[], object]) -> None:
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _Scores(nn.Module):
    """The network as a plain module: hooks of a library land on its layers, not on Lightning's."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Any:
        return self.module(image)
