"""An import from end to end: sources read, their marks joined, a lesion folder written."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.annotations.recognition import READERS, recognise
from datamodules.index import DataError
from datamodules.lesions import CSV, LEFT_OUT, Lesion, write_lesions
from datamodules.radiographs import RadiographDataModule
from datamodules.tables import read_csv
from experiments.annotation.describe import (
    describe,
    describe_faults,
    images_of,
    in_cell,
    next_command,
    percent,
    printable,
)
from experiments.annotation.example import write_example
from experiments.annotation.gathering import Import, import_marks
from experiments.annotation.joining import JoinedImage
from experiments.annotation.matching import read_mapping
from experiments.annotation.sheet import Cell, write_sheets
from experiments.build import build_data
from experiments.config import Config, load_config
from experiments.runs import file_hash

OF_IMPORT = ("format", "mapping", "labels", "raters", "strict")


def run(options: argparse.Namespace, places: list[str], settings: list[str]) -> int:
    """Import, or write an example; return the exit status.

    Args:
        options: Of ``experiments.import_lesions``.
        places: Annotation files and folders.
        settings: ``key=value`` words.
    """
    config = load_config("stage3", settings)
    sources = [Path(place) for place in places]
    _check(options, sources, config)
    for path in _left_by_others(options.out):
        print(
            f"NOTE {path} is left of a command that was killed, or of one that is at work; if "
            "none is, remove it",
            file=sys.stderr,
        )
    if options.example is None:
        return _import(options, sources, config)
    print(write_example(config, options.example, options.out))
    again = shlex.join([str(options.out), "--out", "my-lesions", *settings])
    print(f"next     python -m experiments.import_lesions {again}")
    return 0


def _check(options: argparse.Namespace, sources: list[Path], config: Config) -> None:
    """Raise a DataError where words lack or contradict each other."""
    out, is_example = options.out, options.example is not None
    others = [f"--{name}" for name in OF_IMPORT if is_example and vars(options)[name]]
    is_there = out is not None and (out.exists() or out.is_symlink())
    absent = [source for source in sources if not source.exists()]
    packages = [path for path in sources if (path / "mapping.csv").is_file()]
    packages = [path for path in packages if (path / "selected.csv").is_file()]
    for wrong, what in (
        (others, "{} is of an import, --example is none: leave one of them out"),
        (out is None, "--out DIR is missing: name the lesion folder to be written"),
        (is_there, f"{out} already exists; remove it first, or choose another --out"),
        (is_example and sources, "--example reads no source: leave {} out, or --example"),
        (not is_example and not sources, "name an annotation file to import, or a folder of them"),
        (absent, "{} does not exist: give an annotation file or a folder of them"),
        (
            packages,
            "{0} is a package to draw on; give what was drawn: annotations.xml (CVAT), the "
            "exported JSON (Label Studio) or {0}/images (LabelMe)",
        ),
        (
            len({source.resolve() for source in sources}) < len(sources),
            "a source is given twice; several sources are several raters",
        ),
        (config.lesions.path, "lesions.path is what an import makes: leave it out, --out names it"),
        (
            options.format not in (None, *READERS),
            f"--format {options.format} is none of {', '.join(READERS)}",
        ),
    ):
        if wrong:
            raise DataError(what.format(wrong[0]) if isinstance(wrong, list) else what)


def _left_by_others(out: Path) -> list[Path]:
    """Folders beside ``out`` that were to become it; another node may be filling one just now."""
    draft = re.compile(rf"\.{re.escape(out.name)}\.\w+\.part(ial)?")
    beside = out.parent.iterdir() if out.parent.is_dir() else ()
    return sorted(path for path in beside if draft.fullmatch(path.name))


def _import(options: argparse.Namespace, sources: list[Path], config: Config) -> int:
    mapping = read_mapping(options.mapping) if options.mapping else None
    try:
        formats = {source: options.format or recognise(source) for source in sources}
    except DataError as error:
        hint = " (--format NAME)" if "say which" in str(error) else ""
        raise DataError(f"{error}{hint}") from error
    markings = {str(source): READERS[name](source) for source, name in formats.items()}
    data, table = _read_index(config)
    moved = _moved(options.mapping.parent / "selected.csv", table, data.root) if mapping else ""
    drawn = [str(source) for source, name in formats.items() if name == "masks"]
    raters = options.raters or "union"
    labels = options.labels or ()
    result = import_marks(markings, table, data.root, mapping, labels, raters, drawn)
    count = len(result.faults)
    if count:
        print(describe_faults(result.faults), file=sys.stderr, flush=True)
    if config.data.name == "phantom" and any(f.kind == "unknown image" for f in result.faults):
        words = f"data.seed={data.seed} data.count={config.data.count}"
        print(
            f"NOTE the phantom drawn is that of {words}: is it the one that was annotated?",
            file=sys.stderr,
        )
    print(", ".join(f"{source} ({name})" for source, name in formats.items()))
    print(describe(result, table, config, raters) + moved)
    mistakes = f"{count} mistake{'s' if count > 1 else ''}, listed above"
    if count and options.strict:
        raise DataError(f"nothing is written (--strict): {mistakes}")
    if not result.images:
        raise DataError(f"nothing is written: {mistakes if count else 'no image has a mark'}")
    print(f"  written  {options.out}/: {', '.join(_write(options.out, result, table, data.root))}")
    print(f"  next     {next_command(config, options.out, result.images, table)}")
    if count:
        print(f"left out: {mistakes}; written: {images_of(len(result.images))}", file=sys.stderr)
    return 1 if count else 0


def _moved(selected: Path, table: pd.DataFrame, root: Path) -> str:
    """What to do where images are of another split than when chosen; replaced, a DataError.

    Args:
        selected: ``selected.csv`` of the package; without it there is nothing to compare with.
        table: Index table.
        root: Folder that its paths count from.
    """
    rows = read_csv(selected) if selected.is_file() else pd.DataFrame()
    if not {"image", "split", "sha256"} <= set(rows.columns):
        return ""
    there = [(root / image, was) for image, was in zip(rows["image"], rows["sha256"], strict=True)]
    replaced = [path for path, was in there if path.is_file() and file_hash(path) != was]
    if replaced:
        raise DataError(
            f"{selected}: {images_of(len(replaced))} replaced since chosen, such as "
            f"{replaced[0]}; choose and draw anew, or take their rows out if what was drawn fits"
        )
    splits = dict(zip(table["path"], table["split"].replace(LEFT_OUT, "train"), strict=True))
    now = rows["image"].map(splits)
    moved = int((now.notna() & (now != rows["split"])).sum())
    if not moved:
        return ""
    return (
        f"\n  NOTE of another split than when chosen ({selected.name}): {images_of(moved)}; give\n"
        "  data.seed and the other data.* words of the choice, README.txt beside it has them"
    )


def _read_index(config: Config) -> tuple[RadiographDataModule, pd.DataFrame]:
    """The data module and its index table; no cache is built.

    An empty lesion folder: the masks that a source brings are neither drawn nor needed.
    """
    with tempfile.TemporaryDirectory() as folder:
        none = Path(folder) / "none"
        write_lesions(none, [])
        data = build_data(replace(config, lesions=replace(config.lesions, path=str(none))))
        data.prepare_source()
        return data, data.checked_index()


def _write(out: Path, result: Import, table: pd.DataFrame, root: Path) -> list[str]:
    """Write the lesion folder, whole or not at all; return what lies in it."""
    sheets: list[str] = []

    def finish(draft: Path) -> None:
        _import_table(result.images, table).to_csv(draft / "import.csv", index=False)
        sheets.extend(
            write_sheets(draft, [_cell(one, table, root, draft) for one in result.images])
        )

    lesions = (Lesion(one.image, one.mask, in_cell(one.labels)) for one in result.images)
    write_lesions(out, lesions, finish)
    pages = sheets if len(sheets) == 1 else [f"{sheets[0]} to {sheets[-1]}"]
    return [CSV, "masks/", "import.csv", *pages]


def _import_table(images: list[JoinedImage], table: pd.DataFrame) -> pd.DataFrame:
    """``import.csv``: what each mask came from; IoU and Dice are means over pairs of raters."""
    rows = []
    for one in images:
        pairs = [(pair.iou, pair.dice) for pair in one.agreement]
        iou, dice = np.mean(pairs, axis=0).round(4) if pairs else ("", "")
        marked = [entry.marked for entry in one.entries]
        rows.append(
            {
                "image": one.image,
                "name": in_cell("; ".join(dict.fromkeys(image.name for image in marked))),
                "source": in_cell("; ".join(dict.fromkeys(image.where for image in marked))),
                "split": table["split"].iat[one.row],
                "body_part": table["body_part"].iat[one.row],
                "labels": in_cell(one.labels),
                "marks": len(one.marks),
                "share": round(one.share, 6),
                "weak": int(one.is_weak),
                "raters": one.raters,
                "rater_iou": iou,
                "rater_dice": dice,
                "notes": in_cell("; ".join(dict.fromkeys(one.notes))),
            }
        )
    return pd.DataFrame(rows)


def _cell(one: JoinedImage, table: pd.DataFrame, root: Path, folder: Path) -> Cell:
    words = [
        str(table["split"].iat[one.row]),
        printable(one.labels),
        f"{percent(one.share)} %",
        "box" if one.is_weak else "",
        "see notes" if one.notes else "",
    ]
    mask = folder / "masks" / f"{one.image}.png"
    return Cell(root / one.image, mask, one.image, "  ".join(filter(None, words)), one.is_weak)
