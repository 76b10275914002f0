"""What an import and a choice of images print, in 100 columns, and the command that comes next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.index import SPLITS
from experiments.annotation.joining import WRONG_ENTRY, Fault, Import, Imported
from experiments.config import Config

# With fewer train patients than this many folds, cross-fitting is not proposed.
FOLDS = 5
# Images whose notes are printed; of the others the number.
NOTES = 3
# Faults of a kind that are printed; of the others the number.
FAULTS = 50


def describe_faults(faults: Sequence[Fault]) -> str:
    """Faults, a block each kind in the order in which they were met, the first of each listed."""
    lines = []
    for kind, count in Counter(fault.kind for fault in faults).items():
        aside = ", nothing of their images is taken" if kind == WRONG_ENTRY else ""
        lines.append(f"{kind}: {count:,}{aside}")
        own = [fault for fault in faults if fault.kind == kind]
        lines += [printable(f"  {fault.where}: {fault.what}") for fault in own[:FAULTS]]
        lines += [f"  and {count - FAULTS:,} more"] if count > FAULTS else []
    return "\n".join(lines)


def describe(result: Import, table: pd.DataFrame, config: Config, raters: str) -> str:
    """The table of an import, and what a stage 3 can do with its masks."""
    images, matched = result.images, result.matched
    weak = sum(image.is_weak for image in images)
    lines = [
        f"  images   {result.listed:,} listed, {result.unmarked:,} of them without a mark; "
        f"{matched:,} matched, {matched - len(images):,} of them left out",
        f"  masks    {len(images):,}"
        + (f", {weak:,} of them weak: boxes, where an outline is wanted" if weak else ""),
    ]
    for heading, labels in ("marks", result.labels), ("others", result.aside):
        named = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
        counts = [f"{printable(label) or 'without a label'} {n:,}" for label, n in named[:12]]
        counts += ["..."] if len(named) > 12 else []
        lines += [f"  {heading:<9}{', '.join(counts)}"] if counts else []
    if images:
        shares = np.array([image.share for image in images])
        low, middle, high = map(percent, (shares.min(), np.median(shares), shares.max()))
        lines.append(f"  size     median {middle} % of the image ({low} to {high})")
        lines += ["", *_by_part(images, table), "", *_use(images, table, config)]
    lines += _agreement(images, raters)
    if result.undrawn:
        count = images_of(len(result.undrawn))
        lines.append(f"  NOTE labelled abnormal, but without a mark: {count}, such as")
        lines.append(printable(f"  {result.undrawn[0]}: its lesion is not drawn"))
    noted = [image for image in images if image.notes]
    if noted:
        lines.append(f"  NOTE look at {images_of(len(noted))}, import.csv says why:")
        for image in noted[:NOTES]:
            lines += [printable(f"  {image.image}"), printable(f"    {'; '.join(image.notes)}")]
        lines += [f"  and {len(noted) - NOTES:,} more"] if len(noted) > NOTES else []
    return "\n".join(lines)


def _by_part(images: Sequence[Imported], table: pd.DataFrame) -> list[str]:
    rows = table.iloc[[image.row for image in images]]
    counts = pd.crosstab(rows["body_part"], rows["split"]).reindex(columns=SPLITS, fill_value=0)
    counts.loc["all"] = counts.sum()
    cells = [[str(part), *(f"{count:,}" for count in row)] for part, row in counts.iterrows()]
    return _columns([["body part", *SPLITS], *cells])


def _use(images: Sequence[Imported], table: pd.DataFrame, config: Config) -> list[str]:
    """What a stage 3 does with masks of each split."""
    rows, most = table.iloc[[image.row for image in images]], config.lesions.count
    train, val, test = ((rows["split"] == split).sum() for split in SPLITS)
    lines = [
        f"  stage 3  learns from {min(train, most):,} of the {train:,} masks of train "
        f"(lesions.count={most});",
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


def _agreement(images: Sequence[Imported], how: str) -> list[str]:
    """Agreement of each two raters over the images that both marked."""
    several = [image for image in images if image.agreement]
    if not several:
        return []
    pairs = pd.DataFrame([pair for image in several for pair in image.agreement])
    cells = [["raters", "images", "mean IoU", "mean Dice"]]
    for raters, own in pairs.groupby("raters"):
        means = own[["iou", "dice"]].mean()
        name = printable(" and ".join(raters))
        cells.append([name, f"{len(own):,}", *(f"{mean:.3f}" for mean in means)])
    heading = f"  several raters marked {images_of(len(several))}; joined by {how}"
    return ["", heading, *_columns(cells)]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: a name to the left, numbers to the right."""
    fit = [max(7, *map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"  {name:<{fit[0]}} " + " ".join(map("{:>{}}".format, cells, fit[1:]))
        for name, *cells in rows
    ]


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
    is_plain = not set(quoted) & set('"$`\\!')
    arguments = f'"{quoted}"' if is_plain else shlex.quote(quoted)
    return f"make stage3 DATA={config.data.name}{root} RUN={shlex.quote(name)} ARGS={arguments}"


def index_words(config: Config) -> list[str]:
    """The settings, beside name and root, that say which images there are and in which split."""
    given, usual = vars(config.data), vars(type(config.data)())
    keys = ("seed", "count", "split", "limit", "unreadable")
    return [f"data.{key}={given[key]}" for key in keys if given[key] != usual[key]]


def images_of(count: int) -> str:
    """Count images: "1 image", "1,000 images"."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """A share of the image in per cent, without the sign."""
    return f"{share * 100:.{2 if share < 0.01 else 1}f}"


def in_cell(text: str) -> str:
    """``text`` for a CSV: printable, and no formula to a spreadsheet (``=HYPERLINK(...)``)."""
    return "'" + printable(text) if text.startswith(("=", "+", "-", "@")) else printable(text)


def printable(text: str) -> str:
    """``text`` without what would move the cursor or cannot be encoded; it comes from files."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
