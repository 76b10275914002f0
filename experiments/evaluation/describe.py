"""An evaluation on the console, in 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules import SOURCES
from experiments.evaluation.figures import groups
from experiments.evaluation.names import figure_name, phrase
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Difference, Estimate

# Of a method's maps.
MAP_COLUMNS = ("hit", "pixel_ap", "iou", "energy", "shown_normal")
# Of a folder of maps: lines, and columns of each group of lesions.
MAP_LINES = (
    *("hit", "hit_near", "pixel_ap", "energy", "iou", "dice", "iou_otsu", "iou_bound", "box_bound"),
    *("shown_normal", "shown_abnormal"),
)
GROUP_COLUMNS = ("hit", "iou", "pixel_ap")
HEADINGS = {"iou": "IoU, val's cut"}  # longer than in the report, which explains its own


def describe(evaluation: Evaluation) -> str:
    """All that matters of an evaluation, a block of lines."""
    about, images = evaluation.about, evaluation.table
    masked = images[images["lesion_area"].notna()]
    of_masks = f"{len(masked)} lesion masks ({masked['patient'].nunique()} patients)"
    patients = f"{images['patient'].nunique()} patients"
    notes = [f"  NOTE {note}" for note in evaluation.notes]
    if "maps" in about:
        lines = [
            f"{about['maps']}: {about['split']}, maps of {len(images)} images of {patients}",
            f"  {of_masks}; 95 % intervals over patients",
            *notes,
        ]
        return "\n".join(
            lines + [line for name in evaluation.maps for line in _map(evaluation, name)]
        )
    lines = [
        f"{about['run']}: {about['split']}, epoch {about['epoch']} of {about['epochs']}",
        f"  {len(images)} images of {images['study'].nunique()} studies, {patients}; {of_masks}; "
        "95 % intervals",
        *notes,
        *_classification(evaluation),
        *_maps(evaluation),
    ]
    if any(" - " in f"{line} " for line in lines):
        lines.append("  -        not defined on these images (docs/evaluation.md)")
    return "\n".join(lines)


def show(result: Estimate | Difference | None, places: int = 2, between: str = "-") -> str:
    """A figure with its interval; one that is not defined is a dash.

    Example:
        >>> show(Estimate(0.4312, 0.36, 0.504, 0.0)), show(Estimate(*[float("nan")] * 3, 1.0))
        ('0.43 (0.36-0.50)', '-')
        >>> show(Difference(-0.051, -0.1, 0.012, 0.0, 0.1), between=", ")
        '-0.05 (-0.10, 0.01)'
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


def _cell(evaluation: Evaluation, key: str) -> str:
    return show(evaluation.estimates.get(key), figure_name(key).digits)


def _headings(names: Sequence[str]) -> list[str]:
    return [HEADINGS.get(name, figure_name(name).heading) for name in names]


def _classification(evaluation: Evaluation) -> list[str]:
    at, figures = evaluation.fitted, evaluation.estimates
    if at is None:
        return ["  no classifier: trained on the lesion masks alone"]
    names = ("auroc", "accuracy", "kappa", "sensitivity", "specificity")
    rows = [["", *_headings(names)]]
    for tuned in ("", "tuned/"):
        for head, kind in (("images", ""), ("studies", "study_")):
            cells = [_cell(evaluation, f"{tuned}{kind}{name}") for name in names]
            rows.append([head, "" if tuned else cells[0], *cells[1:]])
    told = table(rows)
    lines = [
        *told[:3],
        f"  at val's operating points, above {at.threshold:.2f} of images and "
        f"{at.study_threshold:.2f} of studies:",
        *told[3:],
        f"  calibration error {_cell(evaluation, 'ece')}, at val's temperature "
        f"{at.temperature:.2f}: {_cell(evaluation, 'ece_scaled')}",
    ]
    if "auroc/no_hardware" in figures:
        counts = evaluation.table["hardware"].value_counts()
        without, with_it = (
            _cell(evaluation, f"auroc/{name}") for name in ("no_hardware", "hardware")
        )
        lines.append(
            f"  AUROC without hardware {without} on {counts.get(0, 0)} images, with it {with_it} "
            f"on {counts.get(1, 0)}"
        )
    lines += _parts(evaluation)
    if "masked_accuracy" in figures:
        lines.append(
            f"  masked accuracy {_cell(evaluation, 'masked_accuracy')}, under the other class's "
            f"map {_cell(evaluation, 'swapped_masked_accuracy')} "
            f"({figures['swapped_masked_abnormal'].value:.0%} abnormal)"
        )
    return lines


def _parts(evaluation: Evaluation) -> list[str]:
    """Study kappa by body part; beside published figures, where the data set has some."""
    rows = {part: f"study_kappa/{part}" for part in sorted(evaluation.table["body_part"].unique())}
    source = SOURCES[evaluation.about["data"]]
    if not source.published:
        cells = [[part, _cell(evaluation, key)] for part, key in rows.items()]
        return ["  study kappa by body part:", *table(cells, 4)]
    lines = [["", "this run", *source.published]]
    for part, key in {"overall": "study_kappa", **rows}.items():
        theirs = [f"{one[part]:.2f}" if part in one else "" for one in source.published.values()]
        lines.append([part, _cell(evaluation, key), *theirs])
    return [f"  study kappa, beside {source.published_by}:", *table(lines)]


def _maps(evaluation: Evaluation) -> list[str]:
    if not evaluation.maps:
        return []
    rows = [["map", *_headings(MAP_COLUMNS)]]
    for method in evaluation.maps:
        rows.append([method, *(_cell(evaluation, f"{method}/{name}") for name in MAP_COLUMNS)])
    return table(rows)


def _map(evaluation: Evaluation, method: str) -> list[str]:
    """All figures of a method, and by body part, lesion type and lesion size."""
    threshold = evaluation.thresholds[method]
    known = "not known" if threshold != threshold else f"{threshold:.3f}"
    figures = [[phrase(name), _cell(evaluation, f"{method}/{name}")] for name in MAP_LINES]
    by_group = [["", "lesions", *_headings(GROUP_COLUMNS)]]
    for group, rows in groups(evaluation.table).items():
        cells = [_cell(evaluation, f"{method}/{name}/{group}") for name in GROUP_COLUMNS]
        by_group.append([group, str(len(rows)), *cells])
    return [f"  {method}, val's threshold {known}", *table(figures, 4), *table(by_group, 4)]
