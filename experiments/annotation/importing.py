"""An import from end to end: sources read, their marks joined, a lesion folder written."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask as rle

from datamodules.annotations.marks import encode
from datamodules.annotations.recognition import READERS, recognise
from datamodules.decode import decode
from datamodules.index import DataError
from datamodules.lesions import CSV, LEFT_OUT, Lesion, choose_lesions, write_lesions
from datamodules.tables import read_csv
from experiments.annotation.joining import Import
from experiments.annotation.matching import read_mapping
from experiments.annotation.package import check_new
from experiments.annotation.showing import describe, fill, in_cell, next_command, write_sheets
from experiments.build import build_data
from experiments.config import Config, load_config
from experiments.runs import file_hash

PACKAGE = "{} is a package to draw on; give what was drawn (its README.txt, Bring it back)"


def run(options: argparse.Namespace, places: list[str], settings: list[str]) -> int:
    """Import the files and folders ``places``, or write an example; return the exit status."""
    config = load_config("stage3", settings)
    packages = [place for place in places if (Path(place) / "selected.csv").is_file()]
    for wrong, what in (
        (bool(places) == bool(options.example), "name annotation files, or --example N: not both"),
        (config.lesions.path, "lesions.path is what an import makes: leave it out, --out names it"),
        (
            options.format not in (None, *READERS),
            f"--format {options.format} is none of {', '.join(READERS)}",
        ),
        (packages, PACKAGE.format(*packages or [""])),
    ):
        if wrong:
            raise DataError(what)
    check_new(options.out)
    if not options.example:
        return _import(options, places, config)
    print(_write_example(config, options.example, options.out))
    again = shlex.join([str(options.out), "--out", "my-lesions", *settings])
    print(f"next     python -m experiments.import_lesions {again}")
    return 0


def _import(options: argparse.Namespace, places: list[str], config: Config) -> int:
    mapping = read_mapping(options.mapping) if options.mapping else None
    formats = {place: options.format or recognise(Path(place)) for place in places}
    markings = {place: READERS[name](Path(place)) for place, name in formats.items()}
    with tempfile.TemporaryDirectory() as folder:
        # No lesions: the masks that a source brings are neither drawn nor needed.
        none = Path(folder) / "none"
        write_lesions(none, [])
        data = build_data(replace(config, lesions=replace(config.lesions, path=str(none))))
        data.prepare_source()
        table = data.checked_index()
    moved = _moved(options.mapping.parent / "selected.csv", table, data.root) if mapping else 0
    raters = options.raters or "union"
    result = Import(markings, table, data.root, mapping, options.labels or (), raters)
    count, taken = len(result.faults), table[table["path"].isin(result.rows["image"])]
    if count:
        print(fill("faults.txt", faults=result.faults), file=sys.stderr, flush=True)
    print(", ".join(f"{place} ({name})" for place, name in formats.items()))
    print(describe(result, moved, config))
    mistakes = f"{count} mistake{'s' if count > 1 else ''}, listed above"
    if (count and options.strict) or taken.empty:
        why = f"{mistakes}{' (--strict)' * options.strict}" if count else "no image has a mark"
        raise DataError(f"nothing is written: {why}")
    print(f"  written  {options.out}/: {', '.join(_write(options.out, result, data.root))}")
    print(f"  next     {next_command(config, options.out, taken)}")
    if count:
        print(f"left out: {mistakes}; images written: {len(taken):,}", file=sys.stderr)
    return 1 if count else 0


def _moved(selected: Path, table: pd.DataFrame, root: Path) -> int:
    """How many images changed their split since a package chose them; DataError: one its pixels."""
    if not selected.is_file():
        return 0
    rows = read_csv(selected, ("image", "split", "sha256"))
    for image, was in zip(rows["image"], rows["sha256"], strict=True):
        if (root / image).is_file() and file_hash(root / image) != was:
            raise DataError(
                f"{selected}: {root / image} was replaced since it was chosen. Fix: choose and "
                "draw anew, or take its row out if what was drawn fits"
            )
    now = rows["image"].map(table.set_index("path")["split"].replace(LEFT_OUT, "train"))
    return int((now.notna() & (now != rows["split"])).sum())


def _write(out: Path, result: Import, root: Path) -> list[str]:
    """Write the lesion folder, whole or not at all; return what lies in it."""
    rows, sheets = result.rows, list[str]()
    texts = {name: rows[name].map(in_cell) for name in ("name", "source", "labels", "notes")}
    listed = rows.assign(**texts).round({"share": 6, "rater_iou": 4, "rater_dice": 4})

    def finish(draft: Path) -> None:
        listed.to_csv(draft / "import.csv", index=False)
        sheets.extend(write_sheets(draft, rows, root))

    masks = (rle.decode(result.runs[image]) * np.uint8(255) for image in rows["image"])
    write_lesions(out, map(Lesion, rows["image"], masks, listed["labels"]), finish)
    pages = sheets if len(sheets) == 1 else [f"{sheets[0]} to {sheets[-1]}"]
    return [CSV, "masks/", "import.csv", *pages]


def _write_example(config: Config, count: int, out: Path) -> str:
    """Write ``count`` lesions of all splits as a tool would, in COCO; return a line about it.

    They are drawn by ``data.seed`` as those that are trained on. Folders are flattened as tools do
    it: ``/`` becomes ``_``.
    """
    data = build_data(config)
    data.prepare_source()
    table = data.checked_index()
    chosen = table.iloc[choose_lesions(table.assign(split="train"), count, config.data.seed)]
    if chosen.empty:
        raise DataError(
            f"data.name={config.data.name} has no lesion masks of its own. Fix: data.name=phantom"
        )
    types = sorted(set(chosen["lesion_type"]))
    images, annotations = [], []
    for number, row in enumerate(chosen.itertuples(), 1):
        runs = encode(decode(Path(row.lesion_mask)))
        height, width = runs["size"]
        name, category = row.path.replace("/", "_"), types.index(row.lesion_type) + 1
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        about = {"id": number, "image_id": number, "category_id": category}
        shape = {**runs, "counts": runs["counts"].decode("ascii")}
        annotations.append({**about, "segmentation": shape, "iscrowd": 1})  # it is, of runs
    categories = [{"id": number, "name": name or "lesion"} for number, name in enumerate(types, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with out.open("x", encoding="utf-8") as file:  # command.answered names what forbids it
        json.dump(content, file)
    return f"{len(chosen)} lesions of {chosen['patient'].nunique()} patients in {out}"
