"""Contact sheets: every imported lesion outlined on its radiograph, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datamodules.decode import decode
from datamodules.files import usable_cores
from experiments.drawing import contours, draw_outline, resize

CELL, GAP, CAPTION = 220, 8, 50  # pixels: side of an image, space between, height of its text
COLUMNS, ROWS = 10, 6
FONT_SIZE = 12
BACKGROUND, INK, FAINT = (24, 24, 24), (235, 235, 235), (165, 165, 165)
# Distinct for colour-blind eyes, too: a lesion's outline, and where it is only a box.
OUTLINE, WEAK = (60, 230, 120), (255, 170, 40)


class Cell(NamedTuple):
    """One image of a sheet."""

    image: Path
    mask: Path
    title: str  # the image's path
    text: str
    is_weak: bool  # only boxed


def write_sheets(folder: Path, cells: Sequence[Cell]) -> list[str]:
    """Write ``sheet.png``, or ``sheet-1.png`` and so on, and return their names."""
    starts = range(0, len(cells), COLUMNS * ROWS)
    names = [f"sheet-{n}.png" for n in range(1, len(starts) + 1)]
    names = names if len(names) > 1 else ["sheet.png"]
    for name, start in zip(names, starts, strict=True):
        _draw_sheet(cells[start : start + COLUMNS * ROWS]).save(folder / name)
    return names


def _draw_sheet(cells: Sequence[Cell]) -> Image.Image:
    columns, rows = min(len(cells), COLUMNS), -(-len(cells) // COLUMNS)
    size = GAP + columns * (CELL + GAP), GAP + rows * (CELL + CAPTION + GAP)
    page = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for place, (cell, picture) in enumerate(
            zip(cells, pool.map(_outlined, cells), strict=True)
        ):
            left = GAP + place % COLUMNS * (CELL + GAP)
            top = GAP + place // COLUMNS * (CELL + CAPTION + GAP)
            height, width = picture.shape[:2]
            inset = (left + (CELL - width) // 2, top + (CELL - height) // 2)
            page.paste(Image.fromarray(picture), inset)
            folders, name = wrap(cell.title, lambda text: font.getlength(text) <= CELL)
            faint = WEAK if cell.is_weak else FAINT
            lines = [(folders, INK), (name, INK), (cell.text, faint)]
            for line, (text, colour) in enumerate(line for line in lines if line[0]):
                pen.text((left, top + CELL + 3 + 15 * line), text, colour, font)
    return page


def _outlined(cell: Cell) -> np.ndarray:
    """The image, fitted into a cell, with the outline of its mask; uint8 (h, w, 3), RGB."""
    grey, mask = decode(cell.image), decode(cell.mask)
    picture = cv2.cvtColor(resize(grey, CELL, CELL, cv2.INTER_LINEAR), cv2.COLOR_GRAY2RGB)
    scale = CELL / max(grey.shape)
    # Scaled as points, in 1/16 of a pixel: a small lesion would vanish from a shrunken mask.
    lines = [
        np.rint(((line + 0.5) * scale - 0.5) * 16).astype(np.int32)
        for line in contours(mask, cv2.RETR_CCOMP)
    ]
    draw_outline(picture, lines, [(WEAK if cell.is_weak else OUTLINE, 1)], shift=4)
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
    folders = "/".join(parts[:start]) + "/" if start else ""
    for first in range(start + 1):
        if fits(folders):
            break
        folders = ".../" + "".join(f"{part}/" for part in parts[first + 1 : start])
    return folders, last
