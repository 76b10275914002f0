"""The one registry of figures and map methods: console, Markdown, HTML, card and plots read it."""

from __future__ import annotations

from typing import NamedTuple


class FigureName(NamedTuple):
    """What people call a figure.

    Attributes:
        heading: of a column.
        phrase: in a sentence.
        meaning: what it measures, for whoever has never met it.
        digits: after the point; three where small differences count.
    """

    heading: str
    phrase: str
    meaning: str = ""
    digits: int = 2


class MethodName(NamedTuple):
    """What people call a map method, and how plots draw it.

    Attributes:
        heading: of a row or a line.
        phrase: in a sentence.
        colour: told apart by colour-blind eyes.
        marker: Matplotlib's.
    """

    heading: str
    phrase: str
    colour: str = "#000000"
    marker: str = "o"


# Of a map; a summary has them as ``method/figure``.
MAP_FIGURES = {
    "hit": FigureName(
        "hit rate", "hit rate", "share of lesions in which the map’s brightest point lies"
    ),
    "hit_near": FigureName("hit rate, near", "hit rate within 2.5 % of the diagonal"),
    "pixel_ap": FigureName(
        "pixel AP",
        "pixel AP",
        "how well the map ranks lesion pixels above all others, 0 to 1",
        digits=3,
    ),
    "iou": FigureName(
        "IoU",
        "mean IoU at val's threshold",
        "overlap of what is claimed at val’s threshold with the lesion, 0 to 1",
    ),
    "dice": FigureName("Dice", "mean Dice coefficient at val's threshold"),
    "iou_otsu": FigureName("IoU, Otsu", "mean IoU at Otsu's threshold"),
    "iou_bound": FigureName("IoU, best", "mean IoU at the best threshold (an upper bound)"),
    "box_bound": FigureName("MaxBoxAccV2", "MaxBoxAccV2 (an upper bound)"),
    "energy": FigureName(
        "energy inside",
        "mean energy in the lesion",
        "share of the map’s sum that lies in the lesion",
    ),
    "shown_normal": FigureName(
        "shown on normal",
        "share of normal images on which a lesion is shown",
        "share of normal images on which a lesion is claimed",
    ),
    "shown_abnormal": FigureName(
        "shown on abnormal", "share of abnormal images on which a lesion is shown"
    ),
}
# Of a classifier.
CLASS_FIGURES = {
    "auroc": FigureName(
        "AUROC",
        "AUROC",
        "chance that an abnormal image scores above a normal one; 0.5 is guessing",
        digits=3,
    ),
    "accuracy": FigureName("accuracy", "accuracy", "share of images that are called rightly"),
    "sensitivity": FigureName(
        "sensitivity", "sensitivity", "share of abnormal images that are called abnormal"
    ),
    "specificity": FigureName(
        "specificity", "specificity", "share of normal images that are called normal"
    ),
    "study_kappa": FigureName(
        "study kappa", "study kappa", "Cohen’s kappa on studies: agreement beyond chance"
    ),
    "masked_accuracy": FigureName(
        "masked accuracy", "masked accuracy", "accuracy when only what the map shows is seen"
    ),
    "ece": FigureName(
        "calibration error",
        "expected calibration error",
        "mean gap between probability and outcome; 0 is best",
    ),
    "ece_scaled": FigureName(
        "calibration error, scaled", "expected calibration error at val's temperature"
    ),
    "auroc/no_hardware": FigureName(
        "AUROC, no hardware",
        "AUROC among images without hardware",
        "the same among images without metal or casts",
        digits=3,
    ),
}
OWN_METHODS = {
    "cam": MethodName("CAM", "CAM", "#009e73", "^"),
    "pcam": MethodName("PCAM", "PCAM", "#d55e00", "s"),
    "fcn": MethodName("FCN", "the FCN", "#0072b2", "o"),
}
TRIVIAL_METHODS = {
    "centre": MethodName("centre prior", "the centre prior"),
    "mean_mask": MethodName("mean mask", "the mean mask"),
    "edges": MethodName("edge map", "the edge map"),
    "noise": MethodName("noise", "noise"),
}

# What a sweep's plots draw: label of the axis -> name in metrics.csv -> line.
PANELS = {
    f"{MAP_FIGURES[figure].heading} on val (0 to 1)": {
        f"val/{method}/{figure}": OWN_METHODS[method] for method in ("fcn", "pcam", "cam")
    }
    for figure in ("pixel_ap", "hit")
} | {
    "accuracy, AUROC on val (1: best)": {
        "val/accuracy": MethodName("accuracy", "accuracy"),
        "val/auroc": MethodName("AUROC", "AUROC", "#aa4499", "s"),
    }
}


def figure_name(key: str) -> FigureName:
    """The name of ``auroc``, ``hit`` or ``pcam/hit``; a figure without an entry keeps its key."""
    known = {**CLASS_FIGURES, **MAP_FIGURES}
    name = known.get(key) or known.get(key.rpartition("/")[2])
    plain = key.replace("_", " ")
    return name or FigureName(plain, plain)


def method_name(method: str) -> MethodName:
    """The name of a map method; a peer keeps its own."""
    return {**OWN_METHODS, **TRIVIAL_METHODS}.get(method) or MethodName(method, method)
