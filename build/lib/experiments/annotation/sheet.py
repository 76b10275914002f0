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

CELL, GAP, CAPTION = 220, 8, 50  # pixels: side of an image, space between, height of its text
COLUMNS, ROWS = 10, 6
FONT_SIZE = 12
BACKGROUND, INK, FAINT = (24, 24, 24), (235, 235, 235), (165, 165, 165)
# Distinct for colour-blind eyes, too: a lesion's outline, and where it is only a box.
OUTLINE, WEAK = (60, 230, 120), (255, 170, 40)


class Cell(NamedTuple):
    """One image of a sheet: its file, its mask's, its path, a line of text, whether only boxed."""

    image: Path
    mask: Path
    title: str
    text: str
    is_weak: bool


def write_sheets(folder: Path, cells: Sequence[Cell]) -> list[str]:
    """Write ``sheet.png``, or ``sheet-1.png`` and so on, and return their names."""
    pages = [
        cells[start : start + COLUMNS * ROWS] for start in range(0, len(cells), COLUMNS * ROWS)
    ]
    names = ["sheet.png"] if len(pages) == 1 else [f"sheet-{n + 1}.png" for n in range(len(pages))]
    for name, page in zip(names, pages, strict=True):
        draw_sheet(page).save(folder / name, optimize=False)
    return names


def draw_sheet(cells: Sequence[Cell]) -> Image.Image:
    """Draw one page; as many columns as are needed, at most :data:`COLUMNS`."""
    columns = min(len(cells), COLUMNS)
    rows = -(-len(cells) // COLUMNS)
    page = Image.new(
        "RGB",
        (GAP + columns * (CELL + GAP), GAP + rows * (CELL + CAPTION + GAP)),
        BACKGROUND,
    )
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    with ThreadPoolExecutor(usable_cores()) as pool:
        drawn = pool.map(draw_outlined, cells)
        for place, (cell, picture) in enumerate(zip(cells, drawn, strict=True)):
            left = GAP + place % COLUMNS * (CELL + GAP)
            top = GAP + place // COLUMNS * (CELL + CAPTION + GAP)
            height, width = picture.shape[:2]
            inset = ((CELL - width) // 2, (CELL - height) // 2)
            page.paste(Image.fromarray(picture), (left + inset[0], top + inset[1]))
            lines = [*wrap(cell.title, lambda text: font.getlength(text) <= CELL), cell.text]
            faint = WEAK if cell.is_weak else FAINT
            for line, text in enumerate(text for text in lines if text):
                colour = faint if text == cell.text else INK
                pen.text((left, top + CELL + 3 + 15 * line), text, colour, font)
    return page


def draw_outlined(cell: Cell) -> np.ndarray:
    """The image, fitted into a cell, with the outline of its mask; uint8 (h, w, 3), RGB."""
    grey, mask = decode(cell.image), decode(cell.mask)
    height, width = grey.shape
    scale = CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = cv2.cvtColor(cv2.resize(grey, size, interpolation=how), cv2.COLOR_GRAY2RGB)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # Scaled as points, in 1/16 of a pixel: a small lesion would vanish from a shrunken mask.
    lines = [np.rint(((line + 0.5) * scale - 0.5) * 16).astype(np.int32) for line in contours]
    colour = WEAK if cell.is_weak else OUTLINE
    return cv2.polylines(picture, lines, True, colour, 1, cv2.LINE_AA, 4)


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
