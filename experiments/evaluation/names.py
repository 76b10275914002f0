"""The one registry of figures and map methods: console, Markdown, HTML, card and plots read it."""

from typing import NamedTuple


class FigureName(NamedTuple):
    """What people call a figure."""

    heading: str  # of a column
    phrase: str  # in a sentence
    meaning: str = ""  # what it measures, for whoever has never met it
    digits: int = 2  # after the point


class MethodName(NamedTuple):
    """What people call a map method, and how plots draw it."""

    heading: str  # of a row or a line
    phrase: str  # in a sentence
    colour: str = "#000000"  # told apart by colour-blind eyes
    marker: str = "o"  # Matplotlib's


MEANINGS = {
    "hit": "share of lesion images whose map’s brightest point lies in a lesion",
    "pixel_ap": "how well the map ranks lesion pixels above all others, 0 to 1",
    "iou": "overlap of what is claimed at val’s threshold with the lesion, 0 to 1",
    "energy": "share of the map’s sum that lies in the lesion",
    "shown_lesion": "share of lesion images on which what is claimed touches a lesion",
    "shown_normal": "share of normal images on which a lesion is claimed",
    "auroc": "chance that an abnormal image scores above a normal one; 0.5 is guessing",
    "accuracy": "share of images that are called rightly",
    "sensitivity": "share of abnormal images that are called abnormal",
    "specificity": "share of normal images that are called normal",
    "study_kappa": "Cohen’s kappa on studies: agreement beyond chance",
    "masked_accuracy": "accuracy when only what the map shows is seen",
    "ece": "mean gap between probability and outcome; 0 is best",
    "auroc/no_hardware": "the same among images without metal, as the data mark it",
}
# Heading and phrase, "": the same. Of a map; a summary has them as ``method/figure``.
_MAP_WORDS = {
    "hit": ("hit rate", ""),
    "hit_near": ("hit rate, near", "hit rate within 2.5 % of the diagonal"),
    "pixel_ap": ("pixel AP", ""),
    "iou": ("IoU", "mean IoU at val's threshold"),
    "dice": ("Dice", "mean Dice coefficient at val's threshold"),
    "iou_otsu": ("IoU, Otsu", "mean IoU at Otsu's threshold"),
    "iou_bound": ("IoU, best", "mean IoU at the best threshold (an upper bound)"),
    "box_bound": ("MaxBoxAccV2", "MaxBoxAccV2 (an upper bound)"),
    "energy": ("energy inside", "mean energy in the lesion"),
    "shown_lesion": ("shown on lesion", "share of lesion images on which a lesion is touched"),
    "shown_normal": ("shown on normal", "share of normal images on which a lesion is shown"),
    "shown_abnormal": ("shown on abnormal", "share of abnormal images on which a lesion is shown"),
}
# Of a classifier.
_CLASS_WORDS = {
    "auroc": ("AUROC", ""),
    "accuracy": ("accuracy", ""),
    "sensitivity": ("sensitivity", ""),
    "specificity": ("specificity", ""),
    "study_kappa": ("study kappa", ""),
    "masked_accuracy": ("masked accuracy", ""),
    "study_auroc": ("study AUROC", ""),
    "ece": ("calibration error", "expected calibration error"),
    "ece_scaled": ("calibration error, scaled", "expected calibration error at val's temperature"),
    "auroc/no_hardware": ("AUROC, no hardware", ""),
}
# Small differences count: three digits after the point.
PRECISE = ("pixel_ap", "auroc", "study_auroc", "auroc/no_hardware")
MAP_FIGURES, CLASS_FIGURES = (
    {
        key: FigureName(heading, longer or heading, MEANINGS.get(key, ""), 2 + (key in PRECISE))
        for key, (heading, longer) in words.items()
    }
    for words in (_MAP_WORDS, _CLASS_WORDS)
)
OWN_METHODS = {
    "cam": MethodName("CAM", "CAM", "#009e73", "^"),
    "pcam": MethodName("PCAM", "PCAM", "#d55e00", "s"),
    "evidence": MethodName("evidence", "the evidence", "#aa4499", "D"),
    "fcn": MethodName("FCN", "the FCN", "#0072b2", "o"),
}
TRIVIAL_METHODS = {
    "centre": MethodName("centre prior", "the centre prior"),
    "mean_mask": MethodName("mean mask", "the mean mask"),
    "edges": MethodName("edge map", "the edge map"),
    "noise": MethodName("noise", "noise"),
}
_PEERS = {"gradcam": "Grad-CAM", "gradcampp": "Grad-CAM++", "hirescam": "HiResCAM"}
_PEERS |= {"layercam": "LayerCAM", "scorecam": "Score-CAM"}

# What a sweep's plots draw: label of the axis -> name in metrics.csv -> line.
PANELS = {
    f"{MAP_FIGURES[figure].heading} on val (0 to 1)": {
        f"val/{method}/{figure}": OWN_METHODS[method] for method in reversed(OWN_METHODS)
    }
    for figure in ("pixel_ap", "hit")
} | {
    "accuracy, AUROC on val (1: best)": {
        "val/accuracy": MethodName("accuracy", "accuracy"),
        "val/auroc": MethodName("AUROC", "AUROC", "#aa4499", "s"),
    }
}


def split_key(key: str) -> tuple[str, str, str]:
    """Method, figure and group of a figure's name in ``summary.json``; "" where there is none.

    Example:
        >>> split_key("pcam/hit/lesion_type/large"), split_key("tuned/accuracy")
        (('pcam', 'hit', 'lesion_type/large'), ('', 'tuned/accuracy', ''))
    """
    parts = key.split("/")
    of_map = len(parts) > 1 and parts[1] in MAP_FIGURES
    method = parts.pop(0) if of_map else ""
    count = 2 if parts[0] == "tuned" else 1
    return method, "/".join(parts[:count]), "/".join(parts[count:])


def figure_name(key: str) -> FigureName:
    """The name of ``auroc``, ``hit`` or ``pcam/hit/hand``; one without an entry keeps its key."""
    _, figure, group = split_key(key)
    names, plain = {**CLASS_FIGURES, **MAP_FIGURES}, figure.replace("_", " ")
    return names.get(f"{figure}/{group}") or names.get(figure) or FigureName(plain, plain)


def phrase(key: str) -> str:
    """A figure in a sentence.

    Example:
        >>> phrase("pcam/hit/hand"), phrase("study_kappa"), phrase("auroc/hardware")
        ("PCAM's hit rate (hand)", 'study kappa', 'AUROC (hardware)')
    """
    method, figure, group = split_key(key)
    owner = f"{method_name(method).phrase}'s " if method else ""
    place = f" ({group.replace('/', ' ').replace('_', ' ')})" if group else ""
    return owner + figure_name(figure).phrase + place


def method_name(method: str) -> MethodName:
    """The name of a map method; one without an entry keeps its own."""
    shown = _PEERS.get(method, method)
    return {**OWN_METHODS, **TRIVIAL_METHODS}.get(method) or MethodName(shown, shown)


if __name__ == "__main__":
    print("| figure | name | meaning |\n|---|---|---|")
    for key, name in {**CLASS_FIGURES, **MAP_FIGURES}.items():
        print(f"| `{key}` | {name.phrase} | {name.meaning} |")
