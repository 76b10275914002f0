"""From a run to an ONNX file and its card: checked against PyTorch, written whole or not at all."""

import copy
import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.batches import MEAN, STD, to_model_input
from datamodules.cache import Recipe
from datamodules.files import whole_file
from datamodules.index import digest
from datamodules.phantom.drawing import draw
from datamodules.pixels import WINDOW_TAIL
from datamodules.sources import SOURCES
from experiments.evaluation.describe import render
from experiments.evaluation.figures import Fitted
from experiments.evaluation.names import figure_name
from experiments.prediction.network import CLASSES, Trained, load_trained
from experiments.runs import RunError
from experiments.training.pretrained import is_non_commercial
from lightning_modules.stage1 import Stage1Classifier

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
EXTRA = "Fix: pip install -c constraints.txt -e '.[onnx]'"
PAPER = (
    "Lu, J., Tong, K.: Towards to Reasonable Decision Basis in Automatic Bone X-Ray Image "
    "Classification: A Weakly-Supervised Approach. AAAI 2019, doi:10.1609/aaai.v33i01.33019985"
)
INPUT, PROBABILITY = "image", "probability"
OUTPUTS = {
    PROBABILITY: "of abnormal, (B,), 0 to 1",
    "cam": "class activation map, equation (1)",
    "pcam": "positive class activation map, equation (2)",
    "evidence": "PCAM times the weight of each pixel in the classifier's mean",
    "fcn": "lesion map of the FCN, with attention.pooling=lesion times the probability",
}
# The largest difference from PyTorch that counts as the same answer, of probabilities and maps.
TOLERANCE = 1e-4
# Where the check's images come from: other drawings than any training's, whose seeds are small.
CHECK_SEED = 20_261_125
# The figures of a summary that a card shows: of images, and of each map.
TUNED = ("tuned/accuracy", "tuned/sensitivity", "tuned/specificity", "tuned/kappa")
OF_IMAGES = ("auroc", *TUNED, "study_auroc", "tuned/study_kappa", "ece", "ece_scaled")
OF_MAPS = ("hit", "pixel_ap", "iou", "shown_lesion", "shown_normal")


def export(run: Path, file: Path, force: bool) -> None:
    """Write the network of a run as ``file``, with its card beside it, and print a summary."""
    card = file.with_suffix(".md")
    if file.suffix != ".onnx":
        raise RunError(f"--out {file}: expected a name that ends in .onnx")
    if not force and (there := [path for path in (file, card) if path.exists()]):
        raise RunError(f"--out {file}: {there[0]} exists. Fix: --force replaces it")
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise RunError(f"an ONNX file needs {', '.join(missing)}. {EXTRA}")
    trained = load_trained(run)
    notes = list(trained.notes)
    if is_non_commercial(origin := trained.run.config.model.weights_origin):
        notes.append(f"NON-COMMERCIAL: the network began as {origin}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    content, images = build(trained), check_images(trained.recipe)
    apart = differences(content, trained.run.module, images)
    output, largest = max(apart.items(), key=lambda pair: pair[1])
    if largest > TOLERANCE:
        raise RunError(
            f"{file} is not written: its {output} differs from PyTorch's by {largest:.1e}, "
            f"{TOLERANCE:g} is allowed. {EXTRA}"
        )
    text = model_card(trained, file.name, digest(content), largest)
    with whole_file(file) as new_file, whole_file(card) as new_card:  # both or none
        new_file.write_bytes(content)
        new_card.write_text(text, encoding="utf-8")
    size, fitted = trained.recipe.image_size, trained.fitted
    outputs = f"{', '.join(trained.map_thresholds)} (B, 1, {size}, {size}), float32 in [0, 1]"
    print(f"decision-basis  {trained.title}, {trained.run.checkpoint}")
    print(f"  input    image, uint8 (B, 1, {size}, {size}); normalisation is in the graph")
    print(f"  outputs  {'probability (B,); ' if fitted else ''}{outputs}")
    if fitted:
        decided = f"abnormal above {fitted.threshold:.4f}, as decided by {trained.decided_by}"
        print(f"  decides  {decided}")
    print(f"  checked  on {len(images)} images, largest difference from PyTorch {largest:.1e}")
    print(f"  written  {file} ({len(content) / 1e6:.1f} MB), {card}")


def build(trained: Trained) -> bytes:
    """The content of an ONNX file; the network is on the CPU from now on."""
    import onnx  # of an extra

    about, size = describe(trained), trained.recipe.image_size
    program = torch.onnx.export(
        _Graph(trained.run.module.cpu()).eval(),
        (torch.zeros((2, 1, size, size), dtype=torch.uint8),),  # 2: a batch of 1 would fix B
        input_names=[INPUT],
        output_names=list(about["outputs"]),
        dynamic_shapes=({0: torch.export.Dim("B")},),
        dynamo=True,
        verbose=False,
    )
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
    return bytes(model.SerializeToString())


class _Graph(nn.Module):
    """From the square's grey values to all outputs, as ``explain`` gives them."""

    def __init__(self, network: Stage1Classifier) -> None:
        super().__init__()
        # A contiguous copy: an ONNX file cannot hold channels_last weights.
        self.network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        # As Python floats: the exporter cannot trace values that are read from a tensor.
        del self.network.map_scale
        object.__setattr__(self.network, "map_scale", network.map_scale.tolist())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        probability, maps = self.network.explain(to_model_input(image))
        judged = [maps[name] for name in self.network.judged_maps]
        # Taught no class: no probability, CAM or PCAM.
        return (probability, *judged) if self.network.classifies else tuple(judged)


def check_images(recipe: Recipe) -> np.ndarray:
    """Drawn radiographs, noise, black and white, uint8 ``(N, 1, S, S)``: always the same."""
    size, random = recipe.image_size, np.random.default_rng(CHECK_SEED)
    # Every tenth drawing: of different patients.
    drawings = [recipe.apply(draw(CHECK_SEED, number).image)[0] for number in range(0, 60, 10)]
    noise = random.integers(0, 256, (2, size, size), dtype=np.uint8)
    flat = [np.full((size, size), value, dtype=np.uint8) for value in (0, 255)]
    return np.stack([*drawings, *noise, *flat])[:, None]


def differences(content: bytes, network: Stage1Classifier, images: np.ndarray) -> dict[str, float]:
    """How far each output is from the network's on images, uint8 ``(N, 1, S, S)``; inf for NaN."""
    import onnxruntime  # of an extra

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest: dict[str, float] = {}
    for part in (images[:1], images):  # whatever B is
        with torch.inference_mode():
            probability, maps = network.explain(to_model_input(torch.from_numpy(part)))
        answers = session.run(None, {INPUT: part})
        for output, answer in zip(session.get_outputs(), answers, strict=True):
            expected = {PROBABILITY: probability, **maps}[output.name].numpy()
            apart = np.nan_to_num(np.abs(answer - expected).max(), nan=np.inf)  # not the smallest
            largest[output.name] = max(largest.get(output.name, 0.0), float(apart))
    return largest


def describe(trained: Trained) -> dict[str, Any]:
    """What a model file and its card say of the network, with no path of this machine."""
    run, recipe, fitted = trained.run, trained.recipe, trained.fitted
    size, data, low = recipe.image_size, run.config.data, 100 * WINDOW_TAIL
    outputs = [*([PROBABILITY] if fitted else []), *trained.map_thresholds]
    scales = dict(zip(run.module.map_methods, run.module.map_scale.tolist(), strict=True))
    training_data: dict[str, Any] = {"name": data.name, "licence": SOURCES[data.name].licence}
    training_data |= {name: run.trained_on[name] for name in ("index_hash", "mask_hash")}
    training_data |= {"data_seed": data.seed, "split": data.split}
    if run.config.stage == "stage3":
        masks = "supplied by lesions.path" if run.config.lesions.path else "the source's own"
        training_data["lesion_masks"] = f"at most {run.config.lesions.count}, {masks}"
    return {
        "title": f"decision-basis {trained.title}",
        "use": "research use only; not a medical device",
        "version": version("decision-basis"),
        "stage": run.config.stage,
        "run": run.folder.resolve().name,
        "checkpoint": {"name": run.checkpoint.name, "sha256": run.identity["checkpoint_hash"]},
        "encoder": run.config.model.encoder,
        "pretrained_weights": run.config.model.weights_origin or "none",
        "classes": list(CLASSES),
        "input": f"{INPUT}: uint8 (B, 1, {size}, {size}), 0 black to 255 white, preprocessed",
        "outputs": {name: OUTPUTS[name] for name in outputs},
        "preprocessing": {
            "grey": "8 bit, upright (EXIF applied), air black (MONOCHROME1 inverted); of "
            f"16 bit, the {low:g} % quantile becomes 0 and the {100 - low:g} % quantile 255",
            "crop": recipe.crop,
            "image_size": size,
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
        "licence": "MIT; mind the licences of training_data and pretrained_weights",
        "citation": f"{PAPER}; decision-basis (CITATION.cff)",
        **(fitted._asdict() if fitted else {}),
    }


def model_card(trained: Trained, name: str, sha256: str, largest: float) -> str:
    """The card of the model file ``name`` in Markdown; ``largest``: difference from PyTorch."""
    summary, data = trained.run.summary("test") or {}, trained.run.config.data
    decided = trained.run.decisions()
    if decided and _own(trained, decided[0]) != _own(trained, summary):
        summary = {}  # of other thresholds than this card's: test must be judged anew
    # Of thresholds the card speaks in its own words.
    notes = [note for note in trained.notes if "THRESHOLD" not in note]
    notes += summary.get("notes", [])
    machine = summary.get("run", str(trained.run.folder))
    names = {key: figure_name(key.removeprefix("tuned/")).phrase for key in OF_IMAGES}
    for method in trained.map_thresholds:
        names |= {f"{method}/{key}": f"`{method}`: {figure_name(key).phrase}" for key in OF_MAPS}
    card = render(
        "model_card.md.j2",
        Path(__file__).parent,
        name=name,
        sha256=sha256,
        largest=largest,
        tolerance=f"{TOLERANCE:g}",
        about=describe(trained),
        summary=summary,
        figures={key: name for key, name in names.items() if summary.get(key) is not None},
        people=SOURCES[data.name].patients_in(data),
        # Without the path that a note may name: it is of the machine that judged.
        notes=[note.replace(machine, "the run") for note in dict.fromkeys(notes)],
    )
    return f"{card}\n"


def _own(trained: Trained, summary: dict[str, Any]) -> list[Any]:
    """What val decided of the network and its own maps, as a summary has it."""
    fitted = summary.get("fitted", {})
    maps = [fitted.get("maps", {}).get(name, {}) for name in trained.map_thresholds]
    return [fitted.get(key) for key in Fitted._fields] + [one.get("threshold") for one in maps]
