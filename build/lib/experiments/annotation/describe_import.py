"""What an import has found, as a person reads it, in 100 columns."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.index import SPLITS, DataError
from datamodules.lesions import LEFT_OUT as OF_FOLD
from datamodules.lesions import read_csv
from experiments.annotation.image import Fault, Imported
from experiments.annotation.importing import WRONG_ENTRY, Found
from experiments.annotation.raters import mean_agreement
from experiments.config import Config
from experiments.evaluation.describe import table as lines_of
from experiments.runs import file_hash

# With fewer train patients than this many folds, cross-fitting is not proposed.
FOLDS = 5
# Images whose notes are printed; of the others the number.
NOTES = 3
# Faults of a kind that are printed; of the others the number.
FAULTS = 50
LEFT_OUT = "nothing of their images is taken"


def describe_faults(faults: Sequence[Fault]) -> str:
    """Faults, a block each kind in the order in which they were met, the first of each listed."""
    kinds = Counter(fault.kind for fault in faults)
    lines = []
    for kind, count in kinds.items():
        lines.append(f"{kind}: {count:,}" + (f", {LEFT_OUT}" if kind == WRONG_ENTRY else ""))
        first = islice((fault for fault in faults if fault.kind == kind), FAULTS)
        lines += [printable(f"  {fault.where}: {fault.what}") for fault in first]
        lines += [f"  and {count - FAULTS:,} more"] if count > FAULTS else []
    return "\n".join(lines)


def describe(found: Found, table: pd.DataFrame, config: Config, raters: str) -> str:
    """The table of an import, and what a stage 3 can do with its masks."""
    images = found.images
    weak = sum(image.is_weak for image in images)
    lines = [
        f"  images   {found.listed:,} listed, {found.unmarked:,} of them without a mark; "
        f"{found.matched:,} matched, {found.matched - len(images):,} of them left out",
        f"  masks    {len(images):,}"
        + (f", {weak:,} of them weak: boxes, where an outline is wanted" if weak else ""),
    ]
    for heading, labels in ("marks", found.labels), ("others", found.aside):
        named = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
        said = ", ".join(
            f"{printable(label) or 'without a label'} {count:,}" for label, count in named[:12]
        )
        lines += [f"  {heading:<9}{said}{', ...' if len(named) > 12 else ''}"] if said else []
    if images:
        shares = np.array([image.share for image in images]) * 100
        lines += [
            f"  size     median {_percent(np.median(shares))} % of the image "
            f"({_percent(shares.min())} to {_percent(shares.max())})",
            "",
            *_by_part(images, table),
            "",
            *_use(images, table, config),
        ]
    lines += _raters(images, raters)
    if found.undrawn:
        lines += [
            f"  NOTE labelled abnormal, but without a mark: {images_said(len(found.undrawn))}, "
            "such as",
            printable(f"  {found.undrawn[0]}: its lesion is not drawn"),
        ]
    noted = [image for image in images if image.notes]
    if noted:
        lines.append(f"  NOTE look at {images_said(len(noted))}, import.csv says why:")
        for image in noted[:NOTES]:
            lines += [printable(f"  {image.image}"), printable(f"    {'; '.join(image.notes)}")]
        lines += [f"  and {len(noted) - NOTES:,} more"] if len(noted) > NOTES else []
    return "\n".join(lines)


def next_command(config: Config, out: Path, images: Sequence[Imported], table: pd.DataFrame) -> str:
    """The command that trains on the masks, as it is to be typed."""
    words = [f"lesions.path={out}", *index_words(config)]
    rows = table.iloc[[image.row for image in images]]
    name = out.name  # another run than that of the masks that the source brings
    if (rows["split"] == "train").all() and rows["patient"].nunique() >= FOLDS:
        words += [f"lesions.folds={FOLDS}", "lesions.fold=0"]
        name += "-fold0"
    root = "" if config.data.root is None else f" ROOT={shlex.quote(config.data.root)}"
    # make looks for variables of its own in ARGS, and the shell it calls for words.
    quoted = shlex.join(words).replace("$", "$$")
    plain = not set(quoted) & set('"$`\\!')
    arguments = f'"{quoted}"' if plain else shlex.quote(quoted)
    run = f"RUN={shlex.quote(name)}"
    return f"make stage3 DATA={config.data.name}{root} {run} ARGS={arguments}"


def describe_moved(folder: Path, table: pd.DataFrame, root: Path) -> str:
    """What to do where images are of another split than when chosen; replaced, a DataError.

    Args:
        folder: Of the package; without ``selected.csv`` there is nothing to compare with.
        table: Index table.
        root: Folder that its paths count from.
    """
    selected = folder / "selected.csv"
    if not selected.is_file():
        return ""
    rows = read_csv(selected)
    if not {"image", "split"} <= set(rows.columns):
        return ""
    known = zip(rows["image"], rows.get("sha256", []), strict=False)  # older ones have no hashes
    there = [(root / image, was) for image, was in known if (root / image).is_file()]
    if replaced := [path for path, was in there if file_hash(path) != was]:
        raise DataError(
            f"{selected}: {images_said(len(replaced))} replaced since chosen, such as "
            f"{replaced[0]}; choose and draw anew, or take their rows out if what was drawn fits"
        )
    splits = dict(zip(table["path"], table["split"].replace(OF_FOLD, "train"), strict=True))
    now = rows["image"].map(splits)
    moved = int((now.notna() & (now != rows["split"])).sum())
    if not moved:
        return ""
    return (
        f"  NOTE of another split than when chosen ({selected.name}): {images_said(moved)}; give\n"
        "  data.seed and the other data.* words of the choice, README.txt beside it has them"
    )


def images_said(count: int) -> str:
    """Count images: "1 image", "1,000 images"."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def index_words(config: Config) -> list[str]:
    """The settings, beside name and root, that say which images there are and in which split."""
    words = []
    for key in ("seed", "count", "split", "limit", "unreadable"):
        value, usual = getattr(config.data, key), getattr(type(config.data)(), key)
        words += [f"data.{key}={value}"] if value != usual else []
    return words


def in_cell(text: str) -> str:
    """``text`` for a CSV: printable, and no formula to a spreadsheet (``=HYPERLINK(...)``)."""
    return "'" + printable(text) if text.startswith(("=", "+", "-", "@")) else printable(text)


def printable(text: str) -> str:
    """``text`` without what would move the cursor or cannot be encoded; it comes from files."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _by_part(images: Sequence[Imported], table: pd.DataFrame) -> list[str]:
    rows = table.iloc[[image.row for image in images]]
    counts = pd.crosstab(rows["body_part"], rows["split"]).reindex(columns=SPLITS, fill_value=0)
    counts.loc["all"] = counts.sum()
    told = [[str(part), *(f"{count:,}" for count in row)] for part, row in counts.iterrows()]
    return lines_of([["body part", *SPLITS], *told], right=True)


def _use(images: Sequence[Imported], table: pd.DataFrame, config: Config) -> list[str]:
    """What a stage 3 does with masks of each split."""
    rows = table.iloc[[image.row for image in images]]
    train, val, test = ((rows["split"] == split).sum() for split in SPLITS)
    taught = min(train, config.lesions.count)
    lines = [
        f"  stage 3  learns from {taught:,} of the {train:,} masks of train (lesions.count="
        f"{config.lesions.count});",
        f"           the {val:,} of val tune, the {test:,} of test judge",
    ]
    if not train:
        lines.append("  NOTE no mask is of a train image: stage 3 has nothing to learn from")
    elif not val and not test:
        lines.append(
            f"  NOTE all masks lie in train: no map can be judged. Cross-fit: with lesions.folds="
            f"{FOLDS} a part\n  is left out of each of {FOLDS} trainings (lesions.fold=0 to "
            f"{FOLDS - 1}) and judges it: evaluate --split left_out"
        )
    elif not test:
        lines.append("  NOTE no mask is of a test image: maps can be judged on val only")
    return lines


def _raters(images: Sequence[Imported], how: str) -> list[str]:
    """Agreement of each two raters over the images that both marked."""
    several = [image for image in images if image.agreement]
    if not several:
        return []
    lines = ["", f"  several raters marked {images_said(len(several))}; joined by {how}"]
    pairs = mean_agreement(pair for image in several for pair in image.agreement)
    told = [
        [printable(" and ".join(raters)), f"{count:,}", f"{iou:.3f}", f"{dice:.3f}"]
        for raters, count, iou, dice in pairs
    ]
    heads = ["raters", "images", "mean IoU", "mean Dice"]
    return [*lines, *lines_of([heads, *told], right=True)]


def _percent(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"
