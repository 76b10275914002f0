"""One image of an import: all that is marked on it, checked, and drawn into one mask.

An image is taken whole or not at all: with one of its marks wrong, the others would teach that what
is missing is no lesion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from datamodules.annotations.marks import Mark, MarkedImage, draw, encode
from datamodules.decode import upright_size
from datamodules.index import DataError
from experiments.annotation.checks import check_mark, check_mask, check_size, is_rectangle
from experiments.annotation.raters import Agreement, agreement, combine

EMPTY = "empty, full or inverted mask"


class Fault(NamedTuple):
    """Why something was left out: its kind (for counting), where it stands, what and the remedy."""

    kind: str
    where: str
    what: str


class Imported(NamedTuple):
    """An image with its mask, ready to be written.

    Attributes:
        row: Row of the index table.
        image: Path below ``data.root``.
        names: What the annotation files call it.
        sources: Where they say so.
        runs: Its mask as pycocotools encodes it, in the upright original frame.
        share: Marked share of the image, 0 to 1.
        labels: Names of the classes, sorted.
        marks: Number of marks.
        is_weak: Whether a box is among them.
        raters: Number of raters.
        agreement: Of each two raters, where there are several.
        notes: What a person should know of it.
    """

    row: int
    image: str
    names: list[str]
    sources: list[str]
    runs: dict[str, Any]
    share: float
    labels: list[str]
    marks: int
    is_weak: bool
    raters: int
    agreement: list[Agreement]
    notes: list[str]

    def mask(self) -> np.ndarray:
        """The mask, uint8 (H, W), 0 or 255."""
        return rle.decode(self.runs) * np.uint8(255)


class Entry(NamedTuple):
    """What one source says of an image: its lesions, and marks of classes that tools reserve."""

    source: str
    marked: MarkedImage
    reserved: list[Mark]


def check_image(
    row: int, image: str, is_abnormal: bool, entries: list[Entry], root: Path, how: str
) -> Imported | list[Fault]:
    """Check and draw all that is marked on an image, or say why it is left out."""
    first = entries[0].marked
    try:
        size = upright_size(root / image)
    except DataError as error:
        return [Fault("unreadable image", first.where, str(error))]
    faults: list[Fault] = []
    notes: list[str] = []
    if not is_abnormal:
        what = f"{image} is labelled normal but has a lesion marked; take the entry out, or correct"
        faults.append(Fault("mark on a normal image", first.where, f"{what} the label"))
    by_rater: dict[str, list[Mark]] = {}
    by_entry: dict[str, MarkedImage] = {}
    reserved: list[Mark] = []
    for source, marked, others in entries:
        fault, note = check_size(marked.size, size, root / image)
        if fault:
            remedy = f"; {marked.remedy}" if marked.remedy else ""
            faults.append(Fault("other size", marked.where, f"{image}: {fault}{remedy}"))
            continue
        notes += filter(None, (note, marked.note))
        reserved += [_in_pixels(mark, marked, size) for mark in others]
        for mark in (_in_pixels(mark, marked, size) for mark in marked.marks):
            fault, note = check_mark(mark, size)
            where = f"{marked.where}, {mark.entry}"
            notes += [f"{mark.entry} {note}"] if note else []
            if fault:
                faults.append(Fault("wrong mark", where, f"{image}: {fault}"))
                continue
            rater = " ".join(part for part in (source, mark.rater) if part)
            if by_entry.setdefault(rater, marked) is not marked:
                what = (
                    f"{image} is listed twice, also in {by_entry[rater].where} as "
                    f"{by_entry[rater].name}; keep one (two raters: give each one's file as a "
                    "source of its own)"
                )
                faults.append(Fault("listed twice", marked.where, what))
                break
            by_rater.setdefault(rater, []).append(mark)
    if faults or not by_rater:
        return faults
    lesions = draw([mark for marks in by_rater.values() for mark in marks], *size)
    for mark in reserved:
        if check_mark(mark, size)[0] or (draw([mark], *size) & lesions).any():
            what = (
                f"{image}: {'+'.join(mark.labels)!r} is no lesion, but covers part of one: nobody "
                "can tell whether it cuts a hole; redraw the lesion without that part"
            )
            return [Fault("unclear class", f"{first.where}, {mark.entry}", what)]
    return _draw_image(row, image, size, by_rater, entries, how, notes)


def _draw_image(
    row: int,
    image: str,
    size: tuple[int, int],
    by_rater: dict[str, list[Mark]],
    entries: list[Entry],
    how: str,
    notes: list[str],
) -> Imported | list[Fault]:
    """Draw sound marks, a mask a rater, and join these."""
    where = entries[0].marked.where
    masks = {rater: draw(marks, *size) for rater, marks in by_rater.items()}
    for rater, mask in masks.items():
        fault, note = check_mask(mask)
        whose = f" ({rater})" if len(masks) > 1 else ""
        if fault:
            return [Fault(EMPTY, where, f"{image}{whose}: {fault}")]
        notes += [note + whose] if note else []
    mask = combine([*masks.values()], how)
    if not mask.any():
        what = f"{image}: no pixel is left by the {how} of {len(masks)} raters; settle it, or use"
        return [Fault("raters at odds", where, f"{what} --raters union")]
    marks = [mark for own in by_rater.values() for mark in own]
    return Imported(
        row,
        image,
        list(dict.fromkeys(entry.marked.name for entry in entries)),
        list(dict.fromkeys(entry.marked.where for entry in entries)),
        encode(mask),
        float((mask > 0).mean()),
        sorted({label for mark in marks for label in mark.labels}),
        len(marks),
        any(mark.is_box for mark in marks),
        len(masks),
        agreement(masks),
        list(dict.fromkeys(notes)),
    )


def _in_pixels(mark: Mark, marked: MarkedImage, size: tuple[int, int]) -> Mark:
    """The mark with its outline in pixels, and weak where that is a box, turned or not."""
    outline = mark.outline
    if marked.in_shares:  # of six digits, which hold no more than hundredths of a pixel
        outline = tuple((round(x * size[1], 2), round(y * size[0], 2)) for x, y in outline)
    return mark._replace(outline=outline, is_box=mark.is_box or is_rectangle(outline))
