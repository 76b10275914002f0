"""A trained network as an ONNX file: its graph, what the file says of itself, and the check."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from datamodules.cache import Recipe
from datamodules.phantom.drawing import draw
from datamodules.radiographs import to_model_input
from experiments.runs import RunError
from lightning_modules.attention import scale_map, upsample
from lightning_modules.stage1 import ABNORMAL

INPUT = "image"
PROBABILITY = "probability"
# The largest difference from PyTorch that counts as the same answer, of probabilities and maps.
TOLERANCE = 1e-4
# Where the check's images come from: other drawings than any training's, whose seeds are small.
CHECK_SEED = 20_261_125
DRAWN, APART, NOISE = 6, 10, 2  # drawings so far apart are of different patients


def outputs_of(network: Any) -> tuple[str, ...]:
    """What the file of a network gives: only what the network was taught.

    From the lesion masks alone nobody taught it a class: then there is no probability, no CAM and
    no PCAM.
    """
    return (*([PROBABILITY] if network.classifies else []), *network.judged_maps)


def build(network: Any, size: int, properties: Mapping[str, str]) -> bytes:
    """The content of the ONNX file of a network.

    Args:
        network: A stage's module, on the CPU, in evaluation.
        size: Side of the square images, pixels.
        properties: What the file says of itself (``metadata_props``).

    Raises:
        RunError: The extra ``onnx`` is not installed or does not go with this torch, or the maps
            have no usable scale.
    """
    onnx = library("onnx")
    library("onnxscript")
    try:
        graph = _Graph(network).eval()
    except ValueError as error:
        raise RunError(f"{error}: the network has diverged; export another checkpoint") from error
    try:
        program = torch.onnx.export(
            graph,
            (torch.zeros((2, 1, size, size), dtype=torch.uint8),),  # 2: of 1, B would be fixed
            input_names=[INPUT],
            output_names=list(outputs_of(network)),
            dynamic_shapes=({0: torch.export.Dim("B")},),
            dynamo=True,
            verbose=False,
        )
    except OnnxExporterError as error:
        raise RunError(
            f"torch {torch.__version__} cannot write this network as ONNX "
            f"({str(error).strip().splitlines()[0]}); install the versions of constraints.txt"
        ) from error
    assert program is not None, "dynamo=True gives a program"
    model = program.model_proto
    _drop_notes(model)
    onnx.helper.set_model_props(model, dict(properties))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def check_images(recipe: Recipe) -> np.ndarray:
    """Squares on which file and network are compared, uint8 ``(N, 1, S, S)``: the same ever after.

    Drawn radiographs, brought in as images are in training, noise, black and white. No data set is
    needed, and no patient's image is touched.
    """
    size = recipe.image_size
    numbers = range(0, DRAWN * APART, APART)
    drawn = [recipe.apply(draw(CHECK_SEED, number).image)[0] for number in numbers]
    noise = np.random.default_rng(CHECK_SEED).integers(0, 256, (NOISE, size, size), dtype=np.uint8)
    flat = [np.full((size, size), value, dtype=np.uint8) for value in (0, 255)]
    return np.stack([*drawn, *noise, *flat])[:, None]


def differences(content: bytes, network: Any, images: np.ndarray) -> dict[str, float]:
    """The largest absolute difference of each output between the file and the network.

    The file is asked by ONNX Runtime, for one image and for all at once; the network as
    ``evaluate`` asks it, by ``explain``.

    Args:
        content: Of the ONNX file.
        network: On the CPU, in evaluation.
        images: uint8 ``(N, 1, S, S)``.

    Returns:
        By output; infinite where the file's is not finite or has another shape.

    Raises:
        RunError: The extra ``onnx`` is not installed.
    """
    session = open_session(content)
    found: dict[str, float] = {}
    for part in (images[:1], images):
        with torch.inference_mode():
            probability, maps = network.explain(to_model_input(torch.from_numpy(part)))
        answers = session.run(None, {INPUT: part})
        for output, answer in zip(session.get_outputs(), answers, strict=True):
            wanted = {PROBABILITY: probability, **maps}[output.name].numpy()
            found[output.name] = max(found.get(output.name, 0.0), _apart(answer, wanted))
    return found


def open_session(content: bytes, threads: int = 0) -> Any:
    """ONNX Runtime's session of a file's content, on the CPU; 0 threads: as many as cores.

    Raises:
        RunError: The extra ``onnx`` is not installed.
    """
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def library(name: str) -> Any:
    """A package of the extra ``onnx``.

    Raises:
        RunError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RunError(
            f"an ONNX file needs {name} ({error}); install the extra: "
            "pip install -c constraints.txt -e '.[onnx]'"
        ) from error


class _Graph(nn.Module):
    """From the square's grey values to all answers, in the order of :func:`outputs_of`.

    What ``explain`` says, with two differences: the grey values come in as they are stored, and
    each map's scale is a number, which a graph can hold (a value read from a tensor it cannot).
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        # A copy in the plain layout: a file's weights have no other.
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
        scales = zip(network.map_methods, network.map_scale.tolist(), strict=True)
        self.scales = {name: scale for name, scale in scales if name in network.judged_maps}
        for scale in self.scales.values():
            scale_map(torch.zeros(1), scale)  # raises now what tracing would bury in its own error

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pyramid = self.network.encoder(to_model_input(image))
        raw = self.network.raw_maps(pyramid)
        size = image.shape[-2:]
        maps = [upsample(scale_map(raw[name], scale), size) for name, scale in self.scales.items()]
        if not self.network.classifies:
            return tuple(maps)
        return self.network.classify(pyramid[-1]).softmax(1)[:, ABNORMAL], *maps


def _drop_notes(model: Any) -> None:
    """Take out the exporter's notes on each node: they name files and folders of this machine."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (graph, *graph.node, *values):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _apart(answer: np.ndarray, wanted: np.ndarray) -> float:
    if answer.shape != wanted.shape or not np.isfinite(answer).all():
        return float("inf")
    return float(np.abs(answer.astype(np.float64) - wanted).max())
