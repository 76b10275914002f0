"""An evaluation as a person reads it, in 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.evaluation.figures import PUBLISHED_KAPPA
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Difference, Estimate

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


def describe(found: Evaluation) -> str:
    """All that matters of an evaluation, a block of lines."""
    about, images = found.about, found.table
    masked = images[images["lesion_area"].notna()]
    lines = [
        f"{about['run']}: {about['split']}, epoch {about['epoch']} of {about['epochs']}",
        f"  {len(images)} images of {images['study'].nunique()} studies, "
        f"{images['patient'].nunique()} patients; {len(masked)} lesion masks "
        f"({masked['patient'].nunique()} patients); 95 % intervals",
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


def _classification(found: Evaluation) -> list[str]:
    at = found.fitted
    if at is None:
        return ["  no classifier: trained on the lesion masks alone"]
    names = ("auroc", "accuracy", "kappa", "sensitivity", "specificity")
    rows = [["", "AUROC", *names[1:]]]
    for tuned in ("", "tuned/"):
        for head, kind in (("images", ""), ("studies", "study_")):
            cells = [_shown(found, f"{tuned}{kind}{name}") for name in names]
            rows.append([head, "" if tuned else cells[0], *cells[1:]])
    told = table(rows)
    lines = [
        *told[:3],
        f"  at val's operating points, above {at.threshold:.2f} of images and "
        f"{at.study_threshold:.2f} of studies:",
        *told[3:],
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
        cells = [[part, _shown(found, name)] for part, name in rows.items()]
        return ["  study kappa by body part:", *table(cells, 4)]
    told = [["", "this run", *PUBLISHED_KAPPA]]
    for part, name in {"overall": "study_kappa", **rows}.items():
        theirs = [
            f"{known[part]:.2f}" if part in known else "" for known in PUBLISHED_KAPPA.values()
        ]
        told.append([part, _shown(found, name), *theirs])
    return [f"  study kappa, beside {SOURCE}:", *table(told)]


def _maps(found: Evaluation) -> list[str]:
    if not found.maps:
        return []
    rows = [["map", *(heading for heading, _ in MAP_COLUMNS)]]
    for method in found.maps:
        rows.append([method, *(_shown(found, f"{method}/{name}") for _, name in MAP_COLUMNS)])
    return table(rows)


def _shown(found: Evaluation, name: str) -> str:
    fine = name.split("/")[-1].removeprefix("study_") in FINE or "auroc" in name
    return show(found.estimates.get(name), 3 if fine else 2)
