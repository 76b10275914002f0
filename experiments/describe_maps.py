"""An evaluation of a folder of maps as a person reads it, in 100 columns."""

from __future__ import annotations

from experiments.compare import say
from experiments.describe import show
from experiments.evaluation import Evaluation
from experiments.map_figures import groups

# In the order of the lines.
FIGURES = (
    *("hit", "hit_near", "pixel_ap", "energy", "iou", "dice", "iou_otsu", "iou_bound", "box_bound"),
    *("shown_normal", "shown_abnormal"),
)
# Of each group of lesions, figure and heading.
OF_GROUPS = {"hit": "hit rate", "iou": "IoU, val's cut", "pixel_ap": "pixel AP"}
FINE = ("pixel_ap",)  # small differences count
HEAD, CELL = 58, 21


def describe_maps(found: Evaluation) -> str:
    """All figures of every method, and by body part, lesion type and lesion size."""
    table = found.table
    masked = table["lesion_area"].notna()
    lines = [
        f"{found.about['maps']}: {found.about['split']}, maps of {len(table)} images of "
        f"{table['patient'].nunique()} patients",
        f"  {masked.sum()} lesion masks ({table.loc[masked, 'patient'].nunique()} patients); 95 % "
        "intervals over patients",
        *(f"  NOTE {note}" for note in found.notes),
    ]
    for method in found.maps:
        lines.append(f"  {method}, val's threshold {_threshold(found.thresholds[method])}")
        lines += [f"    {say(name):<{HEAD}}{_shown(found, method, name)}" for name in FIGURES]
        lines.append(_row("", "lesions", list(OF_GROUPS.values())))
        for group, rows in groups(table).items():
            cells = [_shown(found, method, name, f"/{group}") for name in OF_GROUPS]
            lines.append(_row(group, str(len(rows)), cells))
    return "\n".join(lines)


def _shown(found: Evaluation, method: str, name: str, group: str = "") -> str:
    result = found.estimates.get(f"{method}/{name}{group}")
    return show(result, 3 if name in FINE else 2)


def _row(group: str, count: str, cells: list[str]) -> str:
    # A blank at least: people name lesion types as they like.
    return f"    {group:<14} {count:<8} " + "".join(f"{cell:<{CELL}}" for cell in cells).rstrip()


def _threshold(value: float) -> str:
    return "not known" if value != value else f"{value:.3f}"
