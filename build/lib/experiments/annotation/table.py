"""What stands beside imported masks: a row and a cell of the contact sheet an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.annotation.describe_import import in_cell, printable
from experiments.annotation.image import Imported
from experiments.annotation.sheet import Cell


def import_table(images: Sequence[Imported], table: pd.DataFrame) -> pd.DataFrame:
    """``import.csv``: what each mask came from; IoU and Dice are means over pairs of raters."""
    rows = [
        {
            "image": image.image,
            "name": in_cell("; ".join(image.names)),
            "source": in_cell("; ".join(image.sources)),
            "split": table["split"].iat[image.row],
            "body_part": table["body_part"].iat[image.row],
            "labels": in_cell("+".join(image.labels)),
            "marks": image.marks,
            "share": round(image.share, 6),
            "weak": int(image.is_weak),
            "raters": image.raters,
            "rater_iou": _mean([pair.iou for pair in image.agreement]),
            "rater_dice": _mean([pair.dice for pair in image.agreement]),
            "notes": in_cell("; ".join(image.notes)),
        }
        for image in images
    ]
    return pd.DataFrame(rows)


def cells(images: Sequence[Imported], table: pd.DataFrame, root: Path, folder: Path) -> list[Cell]:
    """The cells of the contact sheets of a lesion ``folder``."""
    found = []
    for image in images:
        share = image.share * 100
        said = [
            str(table["split"].iat[image.row]),
            printable("+".join(image.labels)),
            f"{share:.2f} %" if share < 1 else f"{share:.1f} %",
            "box" if image.is_weak else "",
            "see notes" if image.notes else "",
        ]
        mask = folder / "masks" / f"{image.image}.png"
        text = "  ".join(word for word in said if word)
        found.append(Cell(root / image.image, mask, image.image, text, image.is_weak))
    return found


def _mean(values: list[float]) -> float | str:
    return round(float(np.mean(values)), 4) if values else ""
