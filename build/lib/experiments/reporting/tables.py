"""The tables of a report, as plain values for its template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.evaluation.compare import CLAIM, METHODS, say
from experiments.evaluation.figures import PUBLISHED_KAPPA
from experiments.evaluation.map_figures import SIZE_NAMES, groups
from experiments.evaluation.statistics import Estimate
from experiments.reporting.cases import Column
from experiments.reporting.claim import TRIVIAL, Joined, judged_trivial, known

# Of a map: heading, figure, what it is.
MAPS = (
    ("hit rate", "hit", "share of lesions in which the map’s brightest point lies"),
    ("pixel AP", "pixel_ap", "how well the map ranks lesion pixels above all others, 0 to 1"),
    ("IoU", "iou", "overlap of what is claimed at val’s threshold with the lesion, 0 to 1"),
    ("energy inside", "energy", "share of the map’s sum that lies in the lesion"),
    ("shown on normal", "shown_normal", "share of normal images on which a lesion is claimed"),
)
# Of a classifier.
CLASSES = (
    ("AUROC", "auroc", "chance that an abnormal image scores above a normal one; 0.5 is guessing"),
    ("accuracy", "accuracy", "share of images that are called rightly"),
    ("sensitivity", "sensitivity", "share of abnormal images that are called abnormal"),
    ("specificity", "specificity", "share of normal images that are called normal"),
    ("study kappa", "study_kappa", "Cohen’s kappa on studies: agreement beyond chance"),
    ("masked accuracy", "masked_accuracy", "accuracy when only what the map shows is seen"),
    ("calibration error", "ece", "mean gap between probability and outcome; 0 is best"),
    ("AUROC, no hardware", "auroc/no_hardware", "the same among images without metal or casts"),
)
FINE = ("auroc", "pixel_ap")  # small differences count
Table = dict[str, Any]


def table_of_maps(joined: Sequence[Joined]) -> Table:
    """Every map of every stage, then other methods, then the trivial ones."""
    sections: list[dict[str, Any]] = []
    for group in joined:
        peers = [name for name in group.runs[0].maps if name not in (*group.methods, *TRIVIAL)]
        rows = [
            _row(method_name(method), group, [f"{method}/{name}" for _, name, _ in MAPS])
            for method in (*group.methods, *peers)
        ]
        if rows:
            sections.append({"heading": group.name, "rows": rows})
    source = next((group for group in joined if judged_trivial(group)), None)
    if source is not None:
        rows = [
            _row(method_name(method), source, [f"{method}/{name}" for _, name, _ in MAPS])
            for method in judged_trivial(source)
        ]
        sections.append({"heading": "Maps that know nothing of the image’s class", "rows": rows})
    return _without_empty([(head, words) for head, _, words in MAPS], sections)


def table_of_classifiers(joined: Sequence[Joined]) -> Table:
    """Every classifier, at a probability of 0.5 and at val's operating point."""
    sections = []
    for group in joined:
        if not group.classifies:
            continue
        rows = [_row("above 0.5", group, [name for _, name, _ in CLASSES])]
        tuned = [f"tuned/{name}" for _, name, _ in CLASSES]
        rows.append(_row("at val’s operating point", group, tuned))
        sections.append({"heading": group.name, "rows": rows})
    return _without_empty([(head, words) for head, _, words in CLASSES], sections)


def table_of_lesions(joined: Sequence[Joined], columns: Sequence[Column]) -> Table:
    """Hit rates by body part, lesion type and lesion size."""
    table = joined[0].runs[0].table
    owners = {id(run): group for group in joined for run in group.runs}
    parts = table.loc[table["lesion_area"].notna(), "body_part"].nunique()
    sections: dict[str, list[dict[str, Any]]] = {}
    for number, (name, places) in enumerate(groups(table).items()):
        cells = [
            _cell(owners[id(column.run)].estimate(f"{column.method}/hit/{name}"), "hit")
            for column in columns
        ]
        kind = "lesion type"
        if name in SIZE_NAMES:
            kind = "lesion size (small: below 1 % of the image, medium: below 4 %)"
        elif number < parts:  # they come first
            kind = "body part"
        if len(places):
            row = {"name": name, "count": len(places), "cells": cells}
            sections.setdefault(f"By {kind}", []).append(row)
    return {
        "count": "lesions",
        "heads": [(column.name, "") for column in columns],
        "sections": [{"heading": head, "rows": rows} for head, rows in sections.items()],
    }


def table_of_parts(joined: Sequence[Joined]) -> Table:
    """Study kappa by body part; for MURA with a published figure beside it."""
    classifiers = [group for group in joined if group.classifies]
    table = joined[0].runs[0].table
    heads = [(group.name, "") for group in classifiers]
    published = next(iter(PUBLISHED_KAPPA)) if joined[0].runs[0].about["data"] == "mura" else ""
    if published:
        heads.append((f"{published} (published, on the valid split)", ""))
    rows = []
    for part in sorted(table["body_part"].unique()) if classifiers else ():
        cells = [_cell(group.estimate(f"study_kappa/{part}"), "kappa") for group in classifiers]
        if published:
            kappa = PUBLISHED_KAPPA[published].get(part)
            cells.append({"value": "" if kappa is None else f"{kappa:.2f}", "interval": ""})
        count = int(table.loc[table["body_part"] == part, "study"].nunique())
        rows.append({"name": part, "count": count, "cells": cells})
    return {"count": "studies", "heads": heads, "sections": [{"heading": "", "rows": rows}]}


def compared(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """What differs, a section a family of comparisons."""
    if table is None:
        return []
    sections = []
    for family, part in table.groupby("family", sort=False):
        rows = []
        for row in part.to_dict("records"):
            p = row["p_holm"]
            rows.append(
                {
                    "figure": say(row["figure"]),
                    "first": f"{row['first']}: {row['first_value']:.3f}",
                    "second": f"{row['second']}: {row['second_value']:.3f}",
                    "difference": f"{row['difference']:+.3f}",
                    "interval": f"{row['low']:+.3f} to {row['high']:+.3f}",
                    "p": "" if p != p else f"{p:.3f}",
                    "shown": bool(p < CLAIM),
                }
            )
        sections.append({"heading": family, "rows": rows})
    return sections


def method_name(method: str) -> str:
    """A map method's name as it begins a line.

    Example:
        >>> method_name("pcam"), method_name("mean_mask"), method_name("gradcam")
        ('PCAM', 'Mean mask', 'gradcam')
    """
    words = METHODS.get(method, method)
    if method not in METHODS:
        return method
    return (
        words[4].upper() + words[5:] if words.startswith("the ") else words[0].upper() + words[1:]
    )


def _row(name: str, group: Joined, figures: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "cells": [_cell(group.estimate(one), one) for one in figures]}


def _cell(result: Estimate | None, figure: str) -> dict[str, Any]:
    """A figure for people; where it is a share with an interval, also its place from 0 to 100."""
    if not known(result):
        return {"value": "", "interval": ""}
    parts = figure.removeprefix("tuned/").split("/")
    places = 3 if set(parts) & set(FINE) else 2
    cell: dict[str, Any] = {"value": f"{result.value:.{places}f}", "interval": ""}
    if result.low == result.low:
        cell["interval"] = f"{result.low:.{places}f} to {result.high:.{places}f}"
        if "hit" in parts or "shown_normal" in parts:
            cell["bar"] = [round(100 * x, 1) for x in (result.low, result.value, result.high)]
    return cell


def _without_empty(heads: list[tuple[str, str]], sections: list[dict[str, Any]]) -> Table:
    """The table without columns in which nothing is known."""
    keep = [
        place
        for place in range(len(heads))
        if any(row["cells"][place]["value"] for part in sections for row in part["rows"])
    ]
    for part in sections:
        for row in part["rows"]:
            row["cells"] = [row["cells"][place] for place in keep]
    return {"count": "", "heads": [heads[place] for place in keep], "sections": sections}
