"""What an import and a choice of images print (``texts/``), and the command that comes next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from datamodules.index import SPLITS
from experiments.annotation.gathering import WRONG_ENTRY, Import
from experiments.annotation.joining import Agreement, Fault, JoinedImage
from experiments.config import Config

# With fewer train patients than this many folds, cross-fitting is not proposed.
FOLDS = 5
# Images whose notes are printed; of the others the number.
NOTES = 3
# Faults of a kind, and classes, that are printed; of the others the number.
FAULTS, CLASSES = 50, 12


def printable(text: str) -> str:
    """``text`` without what would move the cursor or cannot be encoded; it comes from files."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def in_cell(text: str) -> str:
    """``text`` for a CSV: printable, and no formula to a spreadsheet (``=HYPERLINK(...)``)."""
    return "'" + printable(text) if text.startswith(("=", "+", "-", "@")) else printable(text)


def images_of(count: int) -> str:
    """Count images: "1 image", "1,000 images"."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """A share of the image in per cent, without the sign."""
    return f"{share * 100:.{2 if share < 0.01 else 1}f}"


def _counts(names: pd.Series) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in names.value_counts().items())


TEXTS = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "texts"),
    autoescape=jinja2.select_autoescape(["xml.j2"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEXTS.filters |= {"printable": printable, "counts": _counts}
TEXTS.globals["images_of"] = images_of


def fill(name: str, **values: Any) -> str:
    """The text of the template ``name``, without a line break at its end."""
    return TEXTS.get_template(f"{name}.j2").render(values).rstrip("\n")


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
    images = result.images
    rows = table.iloc[[one.row for one in images]]
    parts = pd.crosstab(rows["body_part"], rows["split"]).reindex(columns=SPLITS, fill_value=0)
    train, val, test = parts.sum()
    parts.loc["all"] = [train, val, test]
    cells = [[str(part), *(f"{count:,}" for count in row)] for part, row in parts.iterrows()]
    shares = np.array([one.share for one in images] or [0.0])
    agreement = [["raters", "images", "mean IoU", "mean Dice"]]
    pairs = pd.DataFrame(
        [pair for one in images for pair in one.agreement], columns=Agreement._fields
    )
    for both, own in pairs.groupby("raters"):
        means = [f"{own[name].mean():.3f}" for name in ("iou", "dice")]
        agreement.append([printable(" and ".join(both)), f"{len(own):,}", *means])
    return fill(
        "import.txt",
        result=result,
        weak=sum(one.is_weak for one in images),
        classes=[("marks", _classes(result.labels)), ("others", _classes(result.aside))],
        sizes=[percent(share) for share in (shares.min(), np.median(shares), shares.max())],
        parts=_columns([["body part", *SPLITS], *cells]),
        splits=(train, val, test),
        most=config.lesions.count,
        folds=FOLDS,
        raters=raters,
        several=sum(bool(one.agreement) for one in images),
        agreement=_columns(agreement),
        noted=[one for one in images if one.notes],
        notes=NOTES,
    )


def _classes(counts: Counter[str]) -> list[str]:
    """Classes with their marks, the commonest first."""
    named = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    first = [f"{printable(name) or 'without a label'} {count:,}" for name, count in named[:CLASSES]]
    return first + ["..."] * (len(named) > CLASSES)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: a name to the left, numbers to the right."""
    fit = [max(7, *map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"  {name:<{fit[0]}} " + " ".join(map("{:>{}}".format, cells, fit[1:]))
        for name, *cells in rows
    ]


def next_command(
    config: Config, out: Path, images: Sequence[JoinedImage], table: pd.DataFrame
) -> str:
    """The command that trains on the masks, as it is to be typed."""
    words = [f"lesions.path={out}", *index_words(config)]
    rows = table.iloc[[one.row for one in images]]
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
