"""From annotation files to lesion masks of a data set: matched, checked, drawn; nothing written.

An image is taken whole or not at all: with one of its marks wrong, the others would teach that what
is missing is no lesion.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pycocotools import mask as rle

from datamodules.annotations.marks import Mark, MarkedImage, Marking, draw, encode
from datamodules.decode import IMAGE_SUFFIXES, upright_size
from datamodules.index import DataError
from experiments.lesion_checks import check_mark, check_mask, check_size
from experiments.lesion_matching import ImageFinder, tidy
from experiments.lesion_raters import Agreement, agreement, combine

# Names of images that may be meant, shown in a message.
SHOWN = 3


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


@dataclass
class Found:
    """What an import has found.

    Attributes:
        images: To be written, in the order of the index table.
        faults: All that was left out, with the reason.
        listed: Images that the annotation files list.
        unmarked: Of these, those without any (wanted) mark.
        matched: Images of the data set that marked ones stand for.
        labels: Marks of each class, all classes, wanted or not.
    """

    images: list[Imported] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    listed: int = 0
    unmarked: int = 0
    matched: int = 0
    labels: dict[str, int] = field(default_factory=dict)


def import_marks(
    sources: Mapping[str, Marking],
    table: pd.DataFrame,
    root: Path,
    mapping: dict[str, str] | None = None,
    labels: Sequence[str] = (),
    raters: str = "union",
) -> Found:
    """Match, check and draw what annotation files say; every mistake is found, not only the first.

    Args:
        sources: What was read, by the source's name; several sources are several raters.
        table: Index table with path and label.
        root: Folder that its paths count from.
        mapping: From :func:`lesion_matching.read_mapping`.
        labels: Only marks of these classes count; none: all do.
        raters: How several raters make one mask, see :func:`lesion_raters.combine`.

    Raises:
        DataError: No mark is of a wanted class, or the mapping names unknown images.
    """
    faults = [Fault("wrong entry", *mistake) for read in sources.values() for mistake in read[1]]
    broken = tuple(fault.where for fault in faults)
    every = [(name, marked) for name, read in sources.items() for marked in read.images]
    found = Found(faults=faults, listed=len(every))
    for mark in (mark for _, marked in every for mark in marked.marks):
        found.labels[mark.label] = found.labels.get(mark.label, 0) + 1
    _check_labels(labels, found.labels)
    images, normal_or_not = table["path"].tolist(), table["label"].tolist()
    finder = ImageFinder(images, root, mapping)
    places = {path: row for row, path in enumerate(images)}
    entries: dict[int, list[_Entry]] = {}
    for name, marked in every:
        kept = [mark for mark in marked.marks if not labels or mark.label in labels]
        is_broken = any(where.startswith(marked.where) for where in broken)
        if not kept and not is_broken:
            found.unmarked += 1
            continue
        paths = finder.find(marked.name)
        if len(paths) == 1:
            rater = name if len(sources) > 1 else ""
            entry = _Entry(rater, marked._replace(marks=kept), is_broken)
            entries.setdefault(places[paths[0]], []).append(entry)
        else:
            faults.append(_unmatched(marked, paths, images[0], root))
    found.matched = len(entries)
    for row in sorted(entries):
        made = _check_image(row, images[row], normal_or_not[row], entries[row], root, raters)
        if isinstance(made, Imported):
            found.images.append(made)
        else:
            faults += made
    return found


class _Entry(NamedTuple):
    """What one source says of an image; ``is_broken`` where the reader left some of it out."""

    source: str
    marked: MarkedImage
    is_broken: bool


def _check_image(
    row: int, image: str, label: int, entries: list[_Entry], root: Path, how: str
) -> Imported | list[Fault]:
    """Check and draw all that is marked on an image, or say why it is left out."""
    first = entries[0].marked
    try:
        size = upright_size(root / image)
    except DataError as error:
        return [Fault("unreadable image", first.where, str(error))]
    faults, notes = [], []
    if label == 0:
        what = f"{image} is labelled normal but has a lesion marked; take the entry out, or correct"
        faults.append(Fault("mark on a normal image", first.where, f"{what} the label"))
    by_rater: dict[str, list[Mark]] = {}
    by_entry: dict[str, MarkedImage] = {}
    for source, marked, is_broken in entries:
        if is_broken:
            what = f"{image} is left out: not all that is marked on it can be read"
            faults.append(Fault("image of a wrong entry", marked.where, what))
        fault, note = check_size(marked.size, root / image)
        if fault:
            faults.append(Fault("other size", marked.where, f"{image}: {fault}"))
            continue
        notes += [note] if note else []
        for mark in _in_pixels(marked, size):
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
    if faults:
        return faults
    return _draw_image(row, image, size, by_rater, entries, how, notes)


def _draw_image(
    row: int,
    image: str,
    size: tuple[int, int],
    by_rater: dict[str, list[Mark]],
    entries: list[_Entry],
    how: str,
    notes: list[str],
) -> Imported | list[Fault]:
    """Draw sound marks, a mask a rater, and join these."""
    where = entries[0].marked.where
    masks = {rater: draw(marks, *size) for rater, marks in by_rater.items()}
    for rater, mask in masks.items():
        if fault := check_mask(mask):
            whose = f" ({rater})" if len(masks) > 1 else ""
            return [Fault("empty or full mask", where, f"{image}{whose}: {fault}")]
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
        sorted({mark.label for mark in marks if mark.label}),
        len(marks),
        any(mark.is_box for mark in marks),
        len(masks),
        agreement(masks),
        list(dict.fromkeys(notes)),
    )


def _in_pixels(marked: MarkedImage, size: tuple[int, int]) -> list[Mark]:
    """The marks with outlines in pixels, where they are shares of the image's sides."""
    if not marked.in_shares:
        return marked.marks
    height, width = size
    return [
        mark._replace(outline=tuple((x * width, y * height) for x, y in mark.outline))
        for mark in marked.marks
    ]


def _unmatched(marked: MarkedImage, paths: list[str], example: str, root: Path) -> Fault:
    """Say why a name stands for no image: it may be several, or none."""
    if paths:
        shown = ", ".join(paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")
        what = (
            f"{marked.name} may be any of {len(paths):,} images ({shown}); settle it with a "
            "mapping file (--mapping)"
        )
        return Fault("ambiguous name", marked.where, what)
    if _is_left_out(marked.name, root):
        what = (
            f"{marked.name} lies below {root}, but the index leaves it out (labels that contradict "
            "each other, a row that lacks, or data.limit); take the entry out"
        )
        return Fault("image not in the index", marked.where, what)
    what = (
        f"{marked.name} is no image of {root} (one is called {example}); correct the name, or "
        "settle it with a mapping file (--mapping)"
    )
    return Fault("unknown image", marked.where, what)


def _is_left_out(name: str, root: Path) -> bool:
    name = tidy(name)  # never above root
    if not name.lower().endswith(IMAGE_SUFFIXES):
        return False
    # os.path: Path.is_file raises where a name is too long
    return any(os.path.isfile(root / path) for path in (name, name.removeprefix(f"{root.name}/")))


def _check_labels(wanted: Sequence[str], labels: Iterable[str]) -> None:
    """Raise a DataError where a wanted class does not occur: it may be misspelled."""
    known = sorted(label for label in labels if label)
    for name in wanted:
        if name not in known:
            raise DataError(
                f"--labels {name}: nothing is marked as that; there are {', '.join(known) or 'no'} "
                "labels"
            )
