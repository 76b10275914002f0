"""What people see of an import and of a choice: filled texts (``texts/``), and contact sheets."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from datamodules.decode import decode
from datamodules.files import usable_cores
from datamodules.index import SPLITS
from experiments.annotation.joining import Import
from experiments.config import Config
from experiments.drawing import contours, draw_outline, resize

# With fewer train patients than this many folds, cross-fitting is not proposed.
FOLDS = 5
CELL, GAP, CAPTION = 220, 8, 50  # pixels: side of an image, space between, height of its text
COLUMNS, ROWS = 10, 6
FONT_SIZE = 12
BACKGROUND, INK, FAINT = (24, 24, 24), (235, 235, 235), (165, 165, 165)
# Distinct for colour-blind eyes, too: a lesion's outline, and where it is only a box.
OUTLINE, WEAK = (60, 230, 120), (255, 170, 40)


def printable(text: str) -> str:
    """``text`` without what would move the cursor or cannot be encoded; it comes from files."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def in_cell(text: str) -> str:
    """``text`` for a CSV: printable, and no formula to a spreadsheet (``=HYPERLINK(...)``)."""
    return "'" + printable(text) if text.startswith(("=", "+", "-", "@")) else printable(text)


def percent(share: float) -> str:
    """A share of the image in per cent, without the sign."""
    return f"{share * 100:.{2 if share < 0.01 else 1}f}"


TEXTS = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "texts"),
    autoescape=jinja2.select_autoescape(["xml.j2"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEXTS.filters |= {"printable": printable, "percent": percent, "number": "{:,}".format}


def fill(name: str, **values: Any) -> str:
    """The text of the template ``name``, without a line break at its end."""
    return TEXTS.get_template(f"{name}.j2").render(values).rstrip("\n")


def describe(result: Import, moved: int, config: Config) -> str:
    """The table of an import, of which ``moved`` images changed their split since chosen."""
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
    words = [f"lesions.path={out}", *index_words(config)]
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


def write_sheets(folder: Path, rows: pd.DataFrame, root: Path) -> list[str]:
    """Outline every lesion on its radiograph, for a person to look at.

    Writes ``sheet.png``, or ``sheet-1.png`` and so on, and returns their names.
    """
    pages = [rows[start : start + COLUMNS * ROWS] for start in range(0, len(rows), COLUMNS * ROWS)]
    names = [f"sheet-{number}.png" for number, _ in enumerate(pages, 1)]
    names = names if len(names) > 1 else ["sheet.png"]
    for name, page in zip(names, pages, strict=True):
        _draw_sheet(folder, page, root).save(folder / name)
    return names


def _draw_sheet(folder: Path, rows: pd.DataFrame, root: Path) -> Image.Image:
    width, height = min(len(rows), COLUMNS), -(-len(rows) // COLUMNS)
    size = GAP + width * (CELL + GAP), GAP + height * (CELL + CAPTION + GAP)
    page = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    masks = [folder / f"masks/{image}.png" for image in rows["image"]]
    with ThreadPoolExecutor(usable_cores()) as pool:
        pictures = pool.map(_outlined, map(root.joinpath, rows["image"]), masks, rows["weak"])
        for place, (row, picture) in enumerate(zip(rows.to_dict("records"), pictures, strict=True)):
            left = GAP + place % COLUMNS * (CELL + GAP)
            top = GAP + place // COLUMNS * (CELL + CAPTION + GAP)
            height, width = picture.shape[:2]
            inset = (left + (CELL - width) // 2, top + (CELL - height) // 2)
            page.paste(Image.fromarray(picture), inset)
            words = [row["split"], printable(row["labels"]), f"{percent(row['share'])} %"]
            words += ["box"] * row["weak"] + ["see notes"] * bool(row["notes"])
            folders, name = wrap(row["image"], lambda text: font.getlength(text) <= CELL)
            lines = [(folders, INK), (name, INK)]
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


def wrap(path: str, fits: Callable[[str], bool]) -> tuple[str, str]:
    """Two lines for a path, its last folders and its name; cut at the front where it is too long.

    Example:
        >>> wrap("train/XR_HAND/patient00001/study1/image1.png", lambda text: len(text) < 20)
        ('.../patient00001/', 'study1/image1.png')
    """
    parts = path.split("/")
    start = next((n for n in range(len(parts)) if fits("/".join(parts[n:]))), len(parts) - 1)
    last = "/".join(parts[start:])
    while not fits(last):
        last = "..." + last[4:]
    folders = ["".join(f"{part}/" for part in parts[first:start]) for first in range(start + 1)]
    folders = folders[:1] + [f".../{rest}" for rest in folders[1:]]
    return next(filter(fits, folders), folders[-1]), last
