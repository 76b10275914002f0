"""An evaluation of a folder of maps as a person reads it, in 100 columns."""

from __future__ import annotations

from experiments.compare import say
from experiments.describe import show
from experiments.evaluation import Evaluation
from experiments.map_figures import GROUPED, groups

# In the order of the lines.
FIGURES = (
    *("hit", "hit_near", "pixel_ap", "energy", "iou", "dice", "iou_otsu", "iou_bound", "box_bound"),
    *("shown_normal", "shown_abnormal"),
)
HEAD, CELL = 58, 18


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
        lines.append(f"  {method}, val's threshold {found.thresholds[method]:.3f}")
        lines += [
            f"    {say(name):<{HEAD}}{show(found.estimates.get(f'{method}/{name}'))}"
            for name in FIGURES
        ]
        lines.append(
            f"    {'':<15}{'lesions':<9}" + "".join(f"{name:<{CELL}}" for name in GROUPED).rstrip()
        )
        for group, rows in groups(table).items():
            cells = [show(found.estimates.get(f"{method}/{name}/{group}")) for name in GROUPED]
            text = "".join(f"{cell:<{CELL}}" for cell in cells).rstrip()
            lines.append(f"    {group:<15}{len(rows):<9}{text}")
    return "\n".join([*lines, f"  written  {found.target}"])
