"""An evaluation on the console, in 100 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from datamodules.sources import SOURCES
from experiments.evaluation.figures import groups
from experiments.evaluation.names import figure_name, phrase
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Difference, Estimate

CLASS_COLUMNS = ("auroc", "accuracy", "kappa", "sensitivity", "specificity")
MAP_COLUMNS = ("hit", "pixel_ap", "iou", "energy", "shown_normal")
# Of a folder of maps: lines, and columns of each group of lesions.
MAP_LINES = (
    *("hit", "hit_near", "pixel_ap", "energy", "iou", "dice", "iou_otsu", "iou_bound", "box_bound"),
    *("shown_normal", "shown_abnormal"),
)
GROUP_COLUMNS = ("hit", "iou", "pixel_ap")

Cell = Callable[[str], str]
"""From a figure's name to the figure with its interval."""


def describe(evaluation: Evaluation) -> str:
    """All that matters of an evaluation, a block of lines."""
    about, images = evaluation.about, evaluation.table
    masked = images[images["lesion_area"].notna()]
    masks = f"{len(masked)} lesion masks ({masked['patient'].nunique()} patients)"
    patients = f"{images['patient'].nunique()} patients"
    notes = [f"  NOTE {note}" for note in evaluation.notes]

    def cell(key: str) -> str:
        return show(evaluation.estimates.get(key), figure_name(key).digits)

    if "maps" in about:
        lines = [
            f"{about['maps']}: {about['split']}, maps of {len(images)} images of {patients}",
            f"  {masks}; 95 % intervals over patients",
            *notes,
        ]
        return "\n".join(
            [*lines, *(line for name in evaluation.maps for line in _map(evaluation, name, cell))]
        )
    rows = [
        [name, *(cell(f"{name}/{figure}") for figure in MAP_COLUMNS)] for name in evaluation.maps
    ]
    lines = [
        f"{about['run']}: {about['split']}, epoch {about['epoch']} of {about['epochs']}",
        f"  {len(images)} images of {images['study'].nunique()} studies, {patients}; {masks}; "
        "95 % intervals",
        *notes,
        *_classification(evaluation, cell),
        *table([["map", *_headings(MAP_COLUMNS)], *rows]),
    ]
    if any(" - " in f"{line} " for line in lines):
        lines.append("  -        not defined on these images (docs/evaluation.md)")
    return "\n".join(lines)


def show(result: Estimate | Difference | None, places: int = 2, between: str = "-") -> str:
    """A figure with its interval; one that is not defined is a dash.

    Example:
        >>> show(Estimate(0.4312, 0.36, 0.504, 0.0)), show(Estimate(*[float("nan")] * 3, 1.0))
        ('0.43 (0.36-0.50)', '-')
    """
    if result is None or result.value != result.value:
        return "-"
    value, low, high = (f"{number:.{places}f}" for number in result[:3])
    return value if result.low != result.low else f"{value} ({low}{between}{high})"


def table(rows: Sequence[Sequence[str]], indent: int = 2, right: bool = False) -> list[str]:
    """Lines of a table whose columns fit what they hold; ``right`` puts numbers to the right.

    Example:
        >>> table([["hand+shoulder", "0.55"], ["leg", "0.6"]])
        ['  hand+shoulder 0.55', '  leg           0.6']
    """
    fit = [max(7 * right, *map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<", *(">" if right else "<") * len(fit)]
    return [
        " " * indent + " ".join(map("{:{}{}}".format, row, sides, fit)).rstrip() for row in rows
    ]


def _headings(names: Sequence[str]) -> list[str]:
    # On the page, which has room for a line on each, IoU needs no more words.
    return ["IoU, val's cut" if name == "iou" else figure_name(name).heading for name in names]


def _classification(evaluation: Evaluation, cell: Cell) -> list[str]:
    at, figures = evaluation.fitted, evaluation.estimates
    if at is None:
        return ["  no classifier: trained on the lesion masks alone"]
    rows = [["", *_headings(CLASS_COLUMNS)]]
    for tuned in ("", "tuned/"):
        for head, kind in (("images", ""), ("studies", "study_")):
            cells = [cell(f"{tuned}{kind}{name}") for name in CLASS_COLUMNS]
            rows.append([head, "" if tuned else cells[0], *cells[1:]])
    heads, images, studies, *tuned_lines = table(rows)
    lines = [
        *(heads, images, studies),
        f"  at val's operating points, above {at.threshold:.2f} of images and "
        f"{at.study_threshold:.2f} of studies:",
        *tuned_lines,
        f"  calibration error {cell('ece')}, at val's temperature {at.temperature:.2f}: "
        f"{cell('ece_scaled')}",
    ]
    if "auroc/no_hardware" in figures:
        counts = evaluation.table["hardware"].value_counts()
        lines.append(
            f"  AUROC without hardware {cell('auroc/no_hardware')} on {counts.get(0, 0)} images, "
            f"with it {cell('auroc/hardware')} on {counts.get(1, 0)}"
        )
    lines += _parts(evaluation, cell)
    if "masked_accuracy" in figures:
        lines.append(
            f"  masked accuracy {cell('masked_accuracy')}, under the other class's map "
            f"{cell('swapped_masked_accuracy')} "
            f"({figures['swapped_masked_abnormal'].value:.0%} abnormal)"
        )
    return lines


def _parts(evaluation: Evaluation, cell: Cell) -> list[str]:
    """Study kappa by body part; beside published figures, where the data set has some."""
    source = SOURCES[evaluation.about["data"]]
    rows = [
        [part, cell(f"study_kappa/{part}")] for part in sorted({*evaluation.table["body_part"]})
    ]
    if not source.published:
        return ["  study kappa by body part:", *table(rows, 4)]
    rows = [["", "this run"], ["overall", cell("study_kappa")], *rows]
    for name, kappas in source.published.items():
        rows[0].append(name)
        for row in rows[1:]:
            row.append(f"{kappas[row[0]]:.2f}" if row[0] in kappas else "")
    return [f"  study kappa, beside {source.published_by}:", *table(rows)]


def _map(evaluation: Evaluation, method: str, cell: Cell) -> list[str]:
    """All figures of a method, and by body part, lesion type and lesion size."""
    threshold = evaluation.thresholds[method]
    known = "not known" if threshold != threshold else f"{threshold:.3f}"
    figures = [[phrase(name), cell(f"{method}/{name}")] for name in MAP_LINES]
    by_group = [["", "lesions", *_headings(GROUP_COLUMNS)]]
    for group, rows in groups(evaluation.table).items():
        cells = [cell(f"{method}/{name}/{group}") for name in GROUP_COLUMNS]
        by_group.append([group, str(len(rows)), *cells])
    return [f"  {method}, val's threshold {known}", *table(figures, 4), *table(by_group, 4)]
