"""An import from end to end: sources read, marks joined, a lesion folder written and shown."""

import argparse
import json
import shlex
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle

from callbacks.panels import contours, draw_outline, resize
from datamodules.annotations.marks import encode
from datamodules.annotations.recognition import READERS, recognise
from datamodules.decode import decode
from datamodules.files import usable_cores
from datamodules.index import SPLITS, DataError, read_csv
from datamodules.lesions import CSV, LEFT_OUT, Lesion, choose_lesions, write_lesions
from experiments.annotation.joining import Import
from experiments.annotation.matching import ImageFinder, read_mapping
from experiments.annotation.package import check_new, fill, percent, printable
from experiments.build import build_data
from experiments.config import Config, flatten, load_config, show, to_plain
from experiments.runs import file_hash

# With fewer train patients than this many folds, cross-fitting is not proposed.
FOLDS = 5
CELL, GAP, CAPTION = 220, 8, 50  # pixels: side of an image, space between, height of its text
COLUMNS, ROWS = 10, 6
BACKGROUND, INK, FAINT = (24, 24, 24), (235, 235, 235), (165, 165, 165)
# Distinct for colour-blind eyes, too: a lesion's outline, and where it is only a box.
OUTLINE, WEAK = (60, 230, 120), (255, 170, 40)


def run(options: argparse.Namespace, places: list[str], settings: list[str]) -> int:
    """Import the files and folders ``places``, or write an example; return the exit status."""
    config = load_config("stage3", settings)
    if bool(places) == bool(options.example):
        raise DataError("expected annotation files or --example N, one of the two")
    if config.lesions.path:
        raise DataError("lesions.path is what an import makes: leave it out, --out names it")
    if options.format not in (None, *READERS):
        raise DataError(f"--format {options.format} is none of {', '.join(READERS)}")
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
    finder = ImageFinder(table["path"], data.root, mapping)
    result = Import(markings, table, finder, options.labels or (), options.raters or "union")
    count, taken = len(result.faults), table[table["path"].isin(result.rows["image"])]
    if count:
        print(fill("faults.txt", faults=result.faults), file=sys.stderr, flush=True)
    print(", ".join(f"{place} ({name})" for place, name in formats.items()))
    print(describe(result, moved, config))
    mistakes = f"{count} mistake{'s' if count > 1 else ''}, listed above"
    if (count and options.strict) or taken.empty:
        why = f"{mistakes}{' (--strict)' * options.strict}" if count else "no image has a mark"
        raise DataError(f"nothing is written: {why}")
    print(f"  written  {options.out}/: {_write(options.out, result.rows, result.runs, data.root)}")
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


def _write(out: Path, rows: pd.DataFrame, runs: dict[str, dict[str, Any]], root: Path) -> str:
    """Write the lesion folder, whole or not at all; return what lies in it."""
    pages = [rows[start : start + COLUMNS * ROWS] for start in range(0, len(rows), COLUMNS * ROWS)]
    names = [f"sheet-{number}.png" for number, _ in enumerate(pages, 1)]
    names = names if len(names) > 1 else ["sheet.png"]

    def finish(draft: Path) -> None:
        listed = rows.round({"share": 6, "rater_iou": 4, "rater_dice": 4})
        listed.to_csv(draft / "import.csv", index=False)
        for name, page in zip(names, pages, strict=True):
            draw_sheet(draft, page, root).save(draft / name)

    masks = (rle.decode(runs[image]) * np.uint8(255) for image in rows["image"])
    write_lesions(out, map(Lesion, rows["image"], masks, rows["labels"]), finish)
    sheets = " to ".join(dict.fromkeys([names[0], names[-1]]))
    return f"{CSV}, masks/, import.csv, {sheets}"


def _write_example(config: Config, count: int, out: Path) -> str:
    """Write ``count`` lesions of all splits in COCO, with flattened names as tools write them."""
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
        annotations.append({**about, "segmentation": shape, "iscrowd": 1})  # 1: run-length
    categories = [{"id": number, "name": name or "lesion"} for number, name in enumerate(types, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with out.open("x", encoding="utf-8") as file:  # an OSError is answered by command.answered
        json.dump(content, file)
    return f"{len(chosen)} lesions of {chosen['patient'].nunique()} patients in {out}"


def describe(result: Import, moved: int, config: Config) -> str:
    """The table of an import; ``moved``: images that changed their split since chosen."""
    rows = result.rows
    parts = pd.crosstab(rows["body_part"], rows["split"]).reindex(columns=SPLITS, fill_value=0)
    splits = parts.loc["all"] = parts.sum()
    pairs = pd.DataFrame(result.agreement, columns=["raters", "mean IoU", "mean Dice"])
    raters = pairs.groupby(pairs.pop("raters").map(printable))
    agreement = raters.mean().map("{:.3f}".format)
    agreement.insert(0, "images", raters.size().map("{:,}".format))
    return fill(
        "import.txt",
        result=result,
        rows=rows,
        parts=_columns(parts.map("{:,}".format), "body part"),
        splits=splits.to_dict(),
        config=config,
        folds=FOLDS,
        agreement=_columns(agreement, "raters"),
        moved=moved,
    )


def _columns(table: pd.DataFrame, name: str) -> str:
    return table.rename_axis(index=None, columns=name).to_string(col_space=7)


def next_command(config: Config, out: Path, rows: pd.DataFrame) -> str:
    """The command that trains on the masks of index ``rows``, as it is to be typed."""
    usual, given = (flatten(to_plain(one)) for one in (load_config("stage3", []), config))
    own = ("data.name", "data.root", "run.name")
    changed = [key for key in given if given[key] != usual[key] and key not in own]
    words = [f"lesions.path={out}", *(f"{key}={show(given[key])}" for key in changed)]
    name = out.name  # another run than that of the masks that the source brings
    if (rows["split"] == "train").all() and rows["patient"].nunique() >= FOLDS:
        words += [f"lesions.folds={FOLDS}", "lesions.fold=0"]
        name += "-fold0"
    root = "" if config.data.root is None else f" ROOT={shlex.quote(config.data.root)}"
    quoted = shlex.join(words).replace("$", "$$")  # for make, and the shell that it calls
    arguments = shlex.quote(quoted) if set(quoted) & set('"$`\\!') else f'"{quoted}"'
    target = "stage3" if config.data.name == "phantom" else "fractures"
    return f"make {target} DATA={config.data.name}{root} RUN={shlex.quote(name)} ARGS={arguments}"


def draw_sheet(folder: Path, rows: pd.DataFrame, root: Path) -> Image.Image:
    """Every lesion of ``rows`` outlined on its radiograph, for a person to look at."""
    width, height = min(len(rows), COLUMNS), -(-len(rows) // COLUMNS)
    size = GAP + width * (CELL + GAP), GAP + height * (CELL + CAPTION + GAP)
    page = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    masks = [folder / f"masks/{image}.png" for image in rows["image"]]
    with ThreadPoolExecutor(usable_cores()) as pool:
        pictures = pool.map(_outlined, map(root.joinpath, rows["image"]), masks, rows["weak"])
        for place, (row, picture) in enumerate(zip(rows.to_dict("records"), pictures, strict=True)):
            left = GAP + place % COLUMNS * (CELL + GAP)
            top = GAP + place // COLUMNS * (CELL + CAPTION + GAP)
            height, width = picture.shape[:2]
            inset = (left + (CELL - width) // 2, top + (CELL - height) // 2)
            page.paste(Image.fromarray(picture), inset)
            words = [row["split"], row["labels"], f"{percent(row['share'])} %"]
            words += ["box"] * row["weak"] + ["see notes"] * bool(row["notes"])
            parts = row["image"].split("/")
            paths = "".join(f"{part}/" for part in parts[:-2]), "/".join(parts[-2:])
            lines = [(_cut(path, font), INK) for path in paths]
            lines.append(("  ".join(filter(None, words)), WEAK if row["weak"] else FAINT))
            for line, (text, colour) in enumerate(line for line in lines if line[0]):
                pen.text((left, top + CELL + 3 + 15 * line), text, colour, font)
    return page


def _outlined(image: Path, mask: Path, is_weak: bool) -> np.ndarray:
    """The image, fitted into a cell, with the outline of its mask; uint8 (h, w, 3), RGB."""
    grey = decode(image)
    picture = cv2.cvtColor(resize(grey, CELL, CELL, cv2.INTER_LINEAR), cv2.COLOR_GRAY2RGB)
    # Scaled as points, in 1/16 of a pixel: a small lesion would vanish from a shrunken mask.
    scale, lines = CELL / max(grey.shape), contours(decode(mask), cv2.RETR_CCOMP)
    lines = [np.rint(((line + 0.5) * scale - 0.5) * 16).astype(np.int32) for line in lines]
    draw_outline(picture, lines, [(WEAK if is_weak else OUTLINE, 1)], shift=4)
    return picture


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A path without its first folders, or signs, where it is longer than a cell."""
    while font.getlength(line) > CELL:
        rest = line.removeprefix(".../").partition("/")[2]
        line = f".../{rest}" if rest else f"...{line[4:]}"
    return line
