"""An evaluation of a folder of maps as a person reads it, in 100 columns."""

from __future__ import annotations

from experiments.evaluation.compare import say
from experiments.evaluation.describe import show, table
from experiments.evaluation.map_figures import groups
from experiments.evaluation.run import Evaluation

# In the order of the lines.
FIGURES = (
    *("hit", "hit_near", "pixel_ap", "energy", "iou", "dice", "iou_otsu", "iou_bound", "box_bound"),
    *("shown_normal", "shown_abnormal"),
)
# Of each group of lesions, figure and heading.
OF_GROUPS = {"hit": "hit rate", "iou": "IoU, val's cut", "pixel_ap": "pixel AP"}
FINE = ("pixel_ap",)  # small differences count


def describe_maps(found: Evaluation) -> str:
    """All figures of every method, and by body part, lesion type and lesion size."""
    masked = found.table[found.table["lesion_area"].notna()]
    lines = [
        f"{found.about['maps']}: {found.about['split']}, maps of {len(found.table)} images of "
        f"{found.table['patient'].nunique()} patients",
        f"  {len(masked)} lesion masks ({masked['patient'].nunique()} patients); 95 % "
        "intervals over patients",
        *(f"  NOTE {note}" for note in found.notes),
    ]
    for method in found.maps:
        lines.append(f"  {method}, val's threshold {_threshold(found.thresholds[method])}")
        figures = [[say(name), _shown(found, method, name)] for name in FIGURES]
        by_group = [["", "lesions", *OF_GROUPS.values()]]
        for group, rows in groups(found.table).items():
            cells = [_shown(found, method, name, f"/{group}") for name in OF_GROUPS]
            by_group.append([group, str(len(rows)), *cells])
        lines += [*table(figures, 4), *table(by_group, 4)]
    return "\n".join(lines)


def _shown(found: Evaluation, method: str, name: str, group: str = "") -> str:
    result = found.estimates.get(f"{method}/{name}{group}")
    return show(result, 3 if name in FINE else 2)


def _threshold(value: float) -> str:
    return "not known" if value != value else f"{value:.3f}"
