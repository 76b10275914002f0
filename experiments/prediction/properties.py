"""What a model file says of itself to programs: its ``metadata_props``."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from datamodules import SOURCES
from datamodules.cache import Recipe
from datamodules.decode import WINDOW_TAIL
from datamodules.radiographs import MEAN, STD
from experiments.prediction.network import Trained
from experiments.prediction.onnx import INPUT, PROBABILITY, outputs_of

USE = "research use only; not a medical device"
PAPER = (
    "Lu, J., Tong, K.: Towards to Reasonable Decision Basis in Automatic Bone X-Ray Image "
    "Classification: A Weakly-Supervised Approach. AAAI 2019, doi:10.1609/aaai.v33i01.33019985"
)
CITATION = f"{PAPER}; decision-basis (CITATION.cff)"
OUTPUTS = {
    PROBABILITY: "of abnormal, (B,), 0 to 1",
    "cam": "class activation map, equation (1)",
    "pcam": "positive class activation map, equation (2)",
    "fcn": "lesion map that the FCN draws",
}


def properties(trained: Trained) -> dict[str, str]:
    """The ``metadata_props`` of the file: text, JSON where a value has parts."""
    recipe, fitted = trained.recipe, trained.fitted
    size = recipe.image_size
    found: dict[str, Any] = {
        "title": f"decision-basis {trained.stage} on {trained.data}",
        "use": USE,
        "version": project_version(),
        "stage": trained.stage,
        "run": trained.folder.resolve().name,
        "checkpoint": {"name": trained.checkpoint.name, "sha256": trained.hashes["checkpoint"]},
        "classes": list(trained.classes),
        "input": f"{INPUT}: uint8 (B, 1, {size}, {size}), 0 black to 255 white, the square that "
        "preprocessing makes",
        "outputs": {name: OUTPUTS[name] for name in outputs_of(trained.module)},
        "preprocessing": preprocessing(recipe),
        "best_map": trained.best_map,
        "map_scales": {name: trained.map_scales[name] for name in trained.map_methods},
        "map_thresholds": trained.map_thresholds,
        "decided_by": decided_by(trained),
        "undecided_maps": list(trained.undecided_maps),
        "training_data": training_data(trained),
        "licence": "MIT; mind the licence of training_data",
        "citation": CITATION,
    }
    if fitted is not None:
        found |= fitted._asdict()
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in found.items()
    }


def preprocessing(recipe: Recipe) -> dict[str, Any]:
    """What makes an image the file's input, in order, and what the graph does itself."""
    low, high = 100 * WINDOW_TAIL, 100 * (1 - WINDOW_TAIL)
    return {
        "grey": "8 bit, upright (EXIF applied), bone white on black (MONOCHROME1 inverted); of 16 "
        f"bit, the {low:g} % quantile becomes 0 and the {high:g} % quantile 255",
        "crop": recipe.crop,
        "image_size": recipe.image_size,
        "letterbox": "longer side to image_size, aspect kept, centred on black (0)",
        "resize": "area averaging (OpenCV's INTER_AREA) to shrink, bilinear to enlarge",
        "contrast": recipe.contrast,
        "normalisation": f"(image / 255 - {MEAN:g}) / {STD:g}, in the graph",
    }


def training_data(trained: Trained) -> dict[str, Any]:
    """Which images and masks the network was trained on, as far as their names and hashes say."""
    config = trained.config
    masks = "supplied by lesions.path" if config.lesions.path else "the source's own"
    return {
        "name": trained.data,
        "licence": SOURCES[trained.data].licence,
        "index_hash": trained.hashes["index"],
        **({"mask_hash": trained.hashes["masks"]} if "masks" in trained.hashes else {}),
        "data_seed": config.data.seed,
        "split": config.data.split,
        **(
            {"lesion_masks": f"at most {config.lesions.count}, {masks}"}
            if trained.stage == "stage3"
            else {}
        ),
    }


def decided_by(trained: Trained) -> str:
    """Who decided on the thresholds, without the path where that is written."""
    return trained.decided_by.partition(",")[0]


def project_version() -> str:
    """This project's version, as installed."""
    try:
        return version("decision-basis")
    except PackageNotFoundError:  # run from a folder that nobody installed
        return "not installed"
