"""An evaluation as a person reads it, in 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.evaluation import Evaluation
from experiments.figures import PUBLISHED_KAPPA
from experiments.statistics import Difference, Estimate

SOURCE = "published, MURA's valid split, github.com/ilias-ant/x-ray-abnormality-detection"
# Of a method's maps, heading and figure.
MAP_COLUMNS = (
    ("hit rate", "hit"),
    ("pixel AP", "pixel_ap"),
    ("IoU, val's cut", "iou"),
    ("energy inside", "energy"),
    ("shown on normal", "shown_normal"),
)
# Small differences count in these.
FINE = ("auroc", "pixel_ap")
HEAD, CELL, FINE_CELL = 9, 17, 20
SHORT_HEAD = 7  # leaves room for a kappa from below 0


def describe(found: Evaluation) -> str:
    """All that matters of an evaluation, a block of lines."""
    about, table = found.about, found.table
    masked = table["lesion_area"].notna()
    lines = [
        f"{about['run']}: {about['split']}, epoch {about['epoch']} of {about['epochs']}",
        f"  {len(table)} images of {table['study'].nunique()} studies, "
        f"{table['patient'].nunique()} patients; {masked.sum()} lesion masks "
        f"({table.loc[masked, 'patient'].nunique()} patients); 95 % intervals",
        *(f"  NOTE {note}" for note in found.notes),
        *_classification(found),
        *_maps(found),
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
    if result.low != result.low:
        return f"{result.value:.{places}f}"
    low, high = f"{result.low:.{places}f}", f"{result.high:.{places}f}"
    return f"{result.value:.{places}f} ({low}{between}{high})"


def _classification(found: Evaluation) -> list[str]:
    at = found.fitted
    if at is None:
        return ["  no classifier: trained on the lesion masks alone"]
    names = ("auroc", "accuracy", "kappa", "sensitivity", "specificity")
    tuned = [f"tuned/{name}" for name in names]
    study_tuned = [f"tuned/study_{name}" for name in names]
    lines = [
        _row("", ["AUROC", *names[1:]], 0, SHORT_HEAD),
        _row("images", [_shown(found, name) for name in names], 0, SHORT_HEAD),
        _row("studies", [_shown(found, f"study_{name}") for name in names], 0, SHORT_HEAD),
        f"  at val's operating points, above {at.threshold:.2f} of images and "
        f"{at.study_threshold:.2f} of studies:",
        _row("images", ["", *(_shown(found, name) for name in tuned[1:])], 0, SHORT_HEAD),
        _row("studies", ["", *(_shown(found, name) for name in study_tuned[1:])], 0, SHORT_HEAD),
        f"  calibration error {_shown(found, 'ece')}, at val's temperature {at.temperature:.2f}: "
        f"{_shown(found, 'ece_scaled')}",
    ]
    if "auroc/no_hardware" in found.estimates:
        counts = found.table["hardware"].value_counts()
        lines.append(
            f"  AUROC without hardware {_shown(found, 'auroc/no_hardware')} on {counts.get(0, 0)} "
            f"images, with it {_shown(found, 'auroc/hardware')} on {counts.get(1, 0)}"
        )
    lines += _parts(found)
    if "masked_accuracy" in found.estimates:
        lines.append(
            f"  masked accuracy {_shown(found, 'masked_accuracy')}, under the other class's map "
            f"{_shown(found, 'swapped_masked_accuracy')} "
            f"({found.estimates['swapped_masked_abnormal'].value:.0%} abnormal)"
        )
    return lines


def _parts(found: Evaluation) -> list[str]:
    """Study kappa by body part; for MURA with the published figures beside it."""
    rows = {part: f"study_kappa/{part}" for part in sorted(found.table["body_part"].unique())}
    if found.about["data"] != "mura":
        cells = [f"{part:<10}{_shown(found, name)}" for part, name in rows.items()]
        return ["  study kappa by body part:", *_wrapped(cells, 4, 32)]
    lines = [f"  study kappa, beside {SOURCE}:", _wide("", ["this run", *PUBLISHED_KAPPA])]
    for part, name in {"overall": "study_kappa", **rows}.items():
        theirs = [
            f"{known[part]:.2f}" if part in known else "" for known in PUBLISHED_KAPPA.values()
        ]
        lines.append(_wide(part, [_shown(found, name), *theirs]))
    return lines


def _maps(found: Evaluation) -> list[str]:
    if not found.maps:
        return []
    lines = [_row("map", [heading for heading, _ in MAP_COLUMNS], 1)]
    for method in found.maps:
        cells = [_shown(found, f"{method}/{name}") for _, name in MAP_COLUMNS]
        lines.append(_row(method, cells, 1))
    return lines


def _shown(found: Evaluation, name: str) -> str:
    fine = name.split("/")[-1].removeprefix("study_") in FINE or "auroc" in name
    return show(found.estimates.get(name), 3 if fine else 2)


def _row(head: str, cells: Sequence[str], fine: int, wide_head: int = HEAD) -> str:
    """A line of a table; the column at ``fine`` holds a digit more."""
    widths = [FINE_CELL if place == fine else CELL for place in range(len(cells))]
    # A blank at least: an interval from below 0 fills its cell.
    body = "".join(f"{text:<{wide - 1}} " for text, wide in zip(cells, widths, strict=True))
    return f"  {head:<{wide_head}} {body}".rstrip()


def _wide(head: str, cells: Sequence[str]) -> str:
    """A line of the table of published figures, whose headings are long."""
    return f"  {head:<{HEAD}} {''.join(f'{text:<24}' for text in cells)}".rstrip()


def _wrapped(cells: Sequence[str], indent: int, wide: int) -> list[str]:
    a_line = (100 - indent) // wide
    rows = [cells[start : start + a_line] for start in range(0, len(cells), a_line)]
    return [" " * indent + "".join(f"{text:<{wide}}" for text in row).rstrip() for row in rows]
