"""A trained network as an ONNX file: its graph, what the file says of itself, and the check."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from datamodules.batches import MEAN, STD, to_model_input
from datamodules.cache import Recipe
from datamodules.phantom.drawing import draw
from datamodules.pixels import WINDOW_TAIL
from datamodules.sources import SOURCES
from experiments.prediction.network import CLASSES, Trained, project_version
from experiments.runs import RunError
from lightning_modules.attention import scale_map, upsample
from lightning_modules.stage1 import ABNORMAL, Stage1Classifier

PAPER = (
    "Lu, J., Tong, K.: Towards to Reasonable Decision Basis in Automatic Bone X-Ray Image "
    "Classification: A Weakly-Supervised Approach. AAAI 2019, doi:10.1609/aaai.v33i01.33019985"
)
INPUT, PROBABILITY = "image", "probability"
OUTPUTS = {
    PROBABILITY: "of abnormal, (B,), 0 to 1",
    "cam": "class activation map, equation (1)",
    "pcam": "positive class activation map, equation (2)",
    "fcn": "lesion map that the FCN draws",
}
# The largest difference from PyTorch that counts as the same answer, of probabilities and maps.
TOLERANCE = 1e-4
# Where the check's images come from: other drawings than any training's, whose seeds are small.
CHECK_SEED = 20_261_125


def build(trained: Trained) -> bytes:
    """The content of an ONNX file; the network is on the CPU from now on.

    Its outputs are what the network was taught: from the lesion masks alone nobody taught it a
    class, and there is no probability, CAM or PCAM.
    """
    import onnx  # of an extra

    about, size = describe(trained), trained.recipe.image_size
    try:
        graph = _Graph(trained.run.module.cpu()).eval()
    except ValueError as error:
        raise RunError(f"{error}: the network has diverged; export another checkpoint") from error
    try:
        program = torch.onnx.export(
            graph,
            (torch.zeros((2, 1, size, size), dtype=torch.uint8),),  # 2: of 1, B would be fixed
            input_names=[INPUT],
            output_names=list(about["outputs"]),
            dynamic_shapes=({0: torch.export.Dim("B")},),
            dynamo=True,
            verbose=False,
        )
    except OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        fix = "Fix: install the versions of constraints.txt"
        raise RunError(f"torch cannot write this network as ONNX ({reason}). {fix}") from error
    assert program is not None, "dynamo=True gives a program"
    model = program.model_proto
    # The exporter's notes on each node name files and folders of this machine.
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for part in (model.graph, *model.graph.node, *values, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


class _Graph(nn.Module):
    """From the square's grey values to all outputs.

    What ``explain`` says, with two differences: the grey values come in as they are stored, and
    each map's scale is a number, which a graph can hold (a value read from a tensor it cannot).
    """

    def __init__(self, network: Stage1Classifier) -> None:
        super().__init__()
        # A copy in the plain layout: a file's weights have no other.
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
        scales = dict(zip(network.map_methods, network.map_scale.tolist(), strict=True))
        self.scales = {name: scales[name] for name in network.judged_maps}
        for scale in self.scales.values():
            scale_map(torch.zeros(1), scale)  # raises now what tracing would bury in its own error

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network.unmasked_pass(to_model_input(image))
        raw = self.network.raw_maps(outputs.pyramid, outputs.drawn)
        size = image.shape[-2:]
        maps = [upsample(scale_map(raw[name], scale), size) for name, scale in self.scales.items()]
        if not self.network.classifies:
            return tuple(maps)
        return outputs.logits.softmax(1)[:, ABNORMAL], *maps


def check_images(recipe: Recipe) -> np.ndarray:
    """Squares on which file and network are compared, uint8 ``(N, 1, S, S)``: always the same.

    Drawn radiographs, noise, black and white: no data set is needed, no patient's image is touched.
    """
    size, random = recipe.image_size, np.random.default_rng(CHECK_SEED)
    # Every tenth drawing: of different patients.
    drawings = [recipe.apply(draw(CHECK_SEED, number).image)[0] for number in range(0, 60, 10)]
    noise = random.integers(0, 256, (2, size, size), dtype=np.uint8)
    flat = [np.full((size, size), value, dtype=np.uint8) for value in (0, 255)]
    return np.stack([*drawings, *noise, *flat])[:, None]


def differences(content: bytes, network: Stage1Classifier, images: np.ndarray) -> dict[str, float]:
    """The largest absolute difference of each output of a file from the network's ``explain``.

    ONNX Runtime answers for one of the images, uint8 ``(N, 1, S, S)``, and for all at once. A
    difference is infinite where an output is not finite or has another shape.
    """
    import onnxruntime  # of an extra

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest: dict[str, float] = {}
    for part in (images[:1], images):
        with torch.inference_mode():
            probability, maps = network.explain(to_model_input(torch.from_numpy(part)))
        answers = session.run(None, {INPUT: part})
        for output, answer in zip(session.get_outputs(), answers, strict=True):
            expected = {PROBABILITY: probability, **maps}[output.name].numpy()
            difference = float("inf")
            if answer.shape == expected.shape and np.isfinite(answer).all():
                difference = float(np.abs(answer.astype(np.float64) - expected).max())
            largest[output.name] = max(largest.get(output.name, 0.0), difference)
    return largest


def describe(trained: Trained) -> dict[str, Any]:
    """What a model file and its card say of the network, with no path of this machine."""
    run, recipe, fitted = trained.run, trained.recipe, trained.fitted
    size, data = recipe.image_size, run.config.data
    low, high = 100 * WINDOW_TAIL, 100 * (1 - WINDOW_TAIL)
    outputs = [*([PROBABILITY] if fitted else []), *trained.map_thresholds]
    scales = dict(zip(run.module.map_methods, run.module.map_scale.tolist(), strict=True))
    masks = "supplied by lesions.path" if run.config.lesions.path else "the source's own"
    training_data = {
        "name": data.name,
        "licence": SOURCES[data.name].licence,
        "index_hash": run.trained_on["index_hash"],
        "mask_hash": run.trained_on["mask_hash"],
        "data_seed": data.seed,
        "split": data.split,
    }
    if run.config.stage == "stage3":
        training_data["lesion_masks"] = f"at most {run.config.lesions.count}, {masks}"
    return {
        "title": f"decision-basis {trained.title}",
        "use": "research use only; not a medical device",
        "version": project_version(),
        "stage": run.config.stage,
        "run": run.folder.resolve().name,
        "checkpoint": {"name": run.checkpoint.name, "sha256": run.identity["checkpoint_hash"]},
        "classes": list(CLASSES),
        "input": f"{INPUT}: uint8 (B, 1, {size}, {size}), 0 black to 255 white, the square that "
        "preprocessing makes",
        "outputs": {name: OUTPUTS[name] for name in outputs},
        "preprocessing": {
            "grey": "8 bit, upright (EXIF applied), bone white on black (MONOCHROME1 inverted); of "
            f"16 bit, the {low:g} % quantile becomes 0 and the {high:g} % quantile 255",
            "crop": recipe.crop,
            "image_size": recipe.image_size,
            "letterbox": "longer side to image_size, aspect kept, centred on black (0)",
            "resize": "area averaging (OpenCV's INTER_AREA) to shrink, bilinear to enlarge",
            "contrast": recipe.contrast,
            "normalisation": f"(image / 255 - {MEAN:g}) / {STD:g}, in the graph",
        },
        "best_map": run.module.best_map,
        "map_scales": {name: scales[name] for name in trained.map_thresholds},
        "map_thresholds": trained.map_thresholds,
        "decided_by": trained.decided_by.partition(",")[0],
        "undecided_maps": list(trained.undecided_maps),
        "training_data": training_data,
        "licence": "MIT; mind the licence of training_data",
        "citation": f"{PAPER}; decision-basis (CITATION.cff)",
        **(fitted._asdict() if fitted else {}),
    }
