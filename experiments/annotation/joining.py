"""From annotations to lesion masks: matched with images, checked, drawn, raters joined.

An image is taken whole or not at all: with one of its marks wrong, the others would teach that what
is missing is no lesion.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pycocotools import mask as rle

from datamodules.annotations.marks import Mark, MarkedImage, Marking, draw, encode
from datamodules.decode import IMAGE_SUFFIXES, upright_size
from datamodules.index import DataError
from experiments.annotation.checks import check_mark, check_mask, check_size, is_rectangle
from experiments.annotation.matching import ImageFinder, tidy

# Names of images that may be meant, shown in a message.
SHOWN = 3
WRONG_ENTRY = "wrong entry"
EMPTY = "empty, full or inverted mask"
# Classes that tools keep for what is no object, letters alone: CVAT cuts holes by background,
# LabelMe leaves out what is to be ignored, Pascal VOC the void around objects.
RESERVED = ("background", "bg", "void", "hole", "ignore", "ignored", "unlabeled", "dontcare")
UNCLEAR = "nobody can tell whether it is a lesion; give it one class"


class Fault(NamedTuple):
    """Why something was left out: its kind (for counting), where it stands, what and the fix."""

    kind: str
    where: str
    what: str


class Agreement(NamedTuple):
    """How far two raters, in alphabetical order, agree on one image: IoU and Dice, 0 to 1."""

    raters: tuple[str, str]
    iou: float
    dice: float


class Imported(NamedTuple):
    """An image with its mask, ready to be written."""

    row: int  # of the index table
    image: str  # path below data.root
    names: list[str]  # what the annotation files call it
    sources: list[str]  # where they list it
    runs: dict[str, Any]  # its mask in the upright original frame, as pycocotools encodes it
    share: float  # of the image that is marked, 0 to 1
    labels: list[str]  # names of the classes, sorted
    marks: int
    is_weak: bool  # a box is among the marks
    raters: int
    agreement: list[Agreement]  # of each two raters
    notes: list[str]  # what a person should know of it

    def mask(self) -> np.ndarray:
        """The mask, uint8 (H, W), 0 or 255."""
        return rle.decode(self.runs) * np.uint8(255)


class Entry(NamedTuple):
    """A source's lesions on an image, and its marks of classes that tools reserve."""

    source: str
    marked: MarkedImage
    reserved: list[Mark]


@dataclass
class Import:
    """What an import comes to."""

    images: list[Imported] = field(default_factory=list)  # in the order of the index table
    faults: list[Fault] = field(default_factory=list)  # all that was left out
    listed: int = 0  # images that the annotation files list
    unmarked: int = 0  # of these, those without any (wanted) mark
    undrawn: list[str] = field(default_factory=list)  # of those, the abnormal ones
    matched: int = 0  # images of the data set that are marked
    labels: Counter[str] = field(default_factory=Counter)  # marks of each class, wanted or not
    aside: Counter[str] = field(default_factory=Counter)  # of these, those that are no lesions


def import_marks(
    sources: Mapping[str, Marking],
    table: pd.DataFrame,
    root: Path,
    mapping: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    raters: str = "union",
    drawn: Collection[str] = (),
) -> Import:
    """Match, check and draw what annotation files mark; every mistake is listed.

    Args:
        sources: What was read, by the source's name; several sources are several raters.
        table: Index table with path and label.
        root: Folder that its paths count from.
        mapping: From :func:`matching.read_mapping`.
        labels: Only marks of these classes count, and only mistakes in these; none: all do. A text
            that is no class itself is several, with commas between.
        raters: How several raters make one mask, see :func:`combine`.
        drawn: Sources whose images all should have a mark: a folder of masks, where one without is
            an empty mask. In others it is an image that nobody has annotated.
    """
    wanted = _wanted(labels, sources.values())
    rows = {path: row for row, path in enumerate(table["path"])}
    abnormal = set(table["path"][table["label"] == 1])
    finder = ImageFinder(rows, root, mapping)
    result = Import()
    broken = _add_mistakes(sources, wanted, finder, result)
    entries: dict[str, list[Entry]] = {}
    for source, marked in ((name, one) for name, read in sources.items() for one in read.images):
        result.listed += 1
        marks = _by_standing(marked.marks, wanted, result)
        paths = finder.find_marked(marked)
        for mark in marks["unclear"]:
            what = f"has the class {'+'.join(mark.labels) or 'none'!r}: {UNCLEAR}"
            result.faults.append(Fault("unclear class", f"{marked.where}, {mark.entry}", what))
            broken.update(paths)
        if not marks["lesion"] and broken.isdisjoint(paths):
            result.unmarked += 1
            if len(paths) == 1 and paths[0] in abnormal:
                result.undrawn.append(paths[0])
                if source in drawn:
                    what = f"{paths[0]}: its mask is empty; mark the lesion, or take the mask out"
                    result.faults.append(Fault(EMPTY, marked.where, what))
        elif len(paths) == 1:
            rater = source if len(sources) > 1 else ""
            entry = Entry(rater, marked._replace(marks=marks["lesion"]), marks["reserved"])
            entries.setdefault(paths[0], []).append(entry)
        else:
            paths.sort(key=lambda path: path not in abnormal)  # these are meant, if any
            result.faults.append(_unmatched(marked, paths, next(iter(rows)), root))
    result.matched = len(entries)
    for path in sorted(entries, key=rows.__getitem__):
        made = _join(rows[path], path, path in abnormal, entries[path], root, raters)
        if not isinstance(made, Imported):
            result.faults += made
        elif path not in broken:
            result.images.append(made)
    # An image that another source draws is not undrawn.
    result.undrawn = [path for path in result.undrawn if path not in entries]
    return result


def _wanted(labels: Sequence[str], sources: Iterable[Marking]) -> set[str]:
    """The classes that ``labels`` name; DataError: one may be misspelled."""
    known: set[str] = set()
    for read in sources:
        known.update(label for one in read.images for mark in one.marks for label in mark.labels)
        known.update(label for mistake in read.mistakes for label in mistake.labels)
    texts = [text.strip() for text in labels]
    split = [[text] if text in known else text.split(",") for text in texts]
    wanted = {name.strip() for names in split for name in names} - {""}
    for name in sorted(wanted):
        if name not in known:
            there = ", ".join(map(repr, sorted(known))) or "no"
            raise DataError(
                f"--labels {name!r}: nothing is marked as that; there are {there} labels"
            )
        if _is_reserved(name):
            raise DataError(f"--labels {name!r}: tools keep it for what is no lesion; rename it")
    return wanted


def _add_mistakes(
    sources: Mapping[str, Marking], wanted: set[str], finder: ImageFinder, result: Import
) -> set[str]:
    """List the readers' mistakes as faults; return the images that they concern."""
    broken: set[str] = set()
    for mistake in (one for read in sources.values() for one in read.mistakes):
        # What bears no name may be of any class.
        if wanted and mistake.labels and wanted.isdisjoint(mistake.labels):
            continue
        result.faults.append(Fault(WRONG_ENTRY, mistake.where, mistake.what))
        concerned = {path for name in mistake.images for path in finder.find(name)}
        if mistake.is_file and not concerned:
            raise DataError(
                f"{mistake.where}: {mistake.what}, or take it out: nothing else tells which images "
                "it marks, so none is imported"
            )
        broken |= concerned
    return broken


def _by_standing(marks: Iterable[Mark], wanted: set[str], result: Import) -> dict[str, list[Mark]]:
    """Marks by what they are: lesion, reserved, other (not wanted) or unclear; also counted."""
    parts: dict[str, list[Mark]] = {name: [] for name in ("lesion", "reserved", "other", "unclear")}
    for mark in marks:
        reserved = [label for label in mark.labels if _is_reserved(label)]
        if reserved:
            standing = "reserved" if len(reserved) == len(mark.labels) else "unclear"
        elif not wanted or wanted.intersection(mark.labels):
            standing = "lesion"
        else:
            standing = "other" if mark.labels else "unclear"
        parts[standing].append(mark)
        result.labels.update(mark.labels or ("",))
        if standing != "lesion":
            result.aside.update(mark.labels or ("",))
    return parts


def _is_reserved(label: str) -> bool:
    return re.sub("[^a-z]", "", label.casefold()) in RESERVED


def _unmatched(marked: MarkedImage, paths: list[str], example: str, root: Path) -> Fault:
    """Why a name stands for no image: it may be several, or none."""
    settle = "settle it with a mapping file (--mapping)"
    if paths:
        shown = ", ".join(paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")
        shown += f"; it is also called {', '.join(marked.also)}" if marked.also else ""
        what = f"{marked.name} may be any of {len(paths):,} images ({shown}); {settle}"
        return Fault("ambiguous name", marked.where, what)
    name = tidy(marked.name)  # never above root
    below = (name, name.removeprefix(f"{root.name}/"))
    # os.path: Path.is_file raises where a name is too long
    is_there = any(os.path.isfile(root / path) for path in below)
    if is_there and name.lower().endswith(IMAGE_SUFFIXES):
        what = (
            f"{marked.name} lies below {root}, but the index leaves it out (labels that contradict "
            "each other, a row that lacks, or data.limit); take the entry out"
        )
        return Fault("image not in the index", marked.where, what)
    what = f"{marked.name} is no image of {root} (one is called {example}); correct the name, or "
    return Fault("unknown image", marked.where, what + settle)


def _join(
    row: int, image: str, is_abnormal: bool, entries: list[Entry], root: Path, how: str
) -> Imported | list[Fault]:
    """Check and draw all that is marked on an image, a mask a rater, and join these."""
    where = entries[0].marked.where
    try:
        size = upright_size(root / image)
    except DataError as error:
        return [Fault("unreadable image", where, str(error))]
    notes: list[str] = []
    by_rater, reserved, faults = _checked_marks(image, root / image, size, entries, notes)
    if not is_abnormal:
        what = f"{image} is labelled normal but has a lesion marked; take the entry out, or correct"
        faults.insert(0, Fault("mark on a normal image", where, f"{what} the label"))
    marks = [mark for own in by_rater.values() for mark in own]
    if faults or not marks:
        return faults
    lesions = draw(marks, *size)
    for mark in reserved:
        if check_mark(mark, size)[0] or (draw([mark], *size) & lesions).any():
            what = (
                f"{image}: {'+'.join(mark.labels)!r} is no lesion, but covers part of one: nobody"
            )
            what += " can tell whether it cuts a hole; redraw the lesion without that part"
            return [Fault("unclear class", f"{where}, {mark.entry}", what)]
    masks = {rater: draw(own, *size) for rater, own in by_rater.items()}
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
    return Imported(
        row,
        image,
        names=list(dict.fromkeys(entry.marked.name for entry in entries)),
        sources=list(dict.fromkeys(entry.marked.where for entry in entries)),
        runs=encode(mask),
        share=float((mask > 0).mean()),
        labels=sorted({label for mark in marks for label in mark.labels}),
        marks=len(marks),
        is_weak=any(mark.is_box for mark in marks),
        raters=len(masks),
        agreement=agreement(masks),
        notes=list(dict.fromkeys(notes)),
    )


def _checked_marks(
    image: str, path: Path, size: tuple[int, int], entries: list[Entry], notes: list[str]
) -> tuple[dict[str, list[Mark]], list[Mark], list[Fault]]:
    """The sound marks of each rater, those of reserved classes, and the faults of the others."""
    faults: list[Fault] = []
    by_rater: dict[str, list[Mark]] = {}
    listed: dict[str, MarkedImage] = {}
    reserved: list[Mark] = []
    for source, marked, others in entries:
        fault, note = check_size(marked.size, size, path)
        if fault:
            remedy = f"; {marked.remedy}" if marked.remedy else ""
            faults.append(Fault("other size", marked.where, f"{image}: {fault}{remedy}"))
            continue
        notes += filter(None, (note, marked.note))
        reserved += [_in_pixels(mark, marked, size) for mark in others]
        for mark in (_in_pixels(mark, marked, size) for mark in marked.marks):
            fault, note = check_mark(mark, size)
            notes += [f"{mark.entry} {note}"] if note else []
            if fault:
                where = f"{marked.where}, {mark.entry}"
                faults.append(Fault("wrong mark", where, f"{image}: {fault}"))
                continue
            rater = " ".join(filter(None, (source, mark.rater)))
            first = listed.setdefault(rater, marked)
            if first is not marked:
                what = f"{image} is listed twice, also in {first.where} as {first.name}; keep one "
                what += "(two raters: give each one's file as a source of its own)"
                faults.append(Fault("listed twice", marked.where, what))
                break
            by_rater.setdefault(rater, []).append(mark)
    return by_rater, reserved, faults


def _in_pixels(mark: Mark, marked: MarkedImage, size: tuple[int, int]) -> Mark:
    """The mark with its outline in pixels, and weak where that is a box, turned or not."""
    outline = mark.outline
    if marked.in_shares:  # of six digits, which hold no more than hundredths of a pixel
        outline = tuple((round(x * size[1], 2), round(y * size[0], 2)) for x, y in outline)
    return mark._replace(outline=outline, is_box=mark.is_box or is_rectangle(outline))


def combine(masks: Sequence[np.ndarray], how: str) -> np.ndarray:
    """One mask of several raters', uint8 (H, W), 0 or 255.

    Args:
        masks: uint8 (H, W) each, 0 or 255, at least one.
        how: ``union``; ``intersection``; or ``majority``: marked by more than half of the raters,
            so that a tie is background and, of two raters, majority is intersection.

    Example:
        >>> combine([np.uint8([[0, 255]]), np.uint8([[255, 255]])], "majority")
        array([[  0, 255]], dtype=uint8)
    """
    votes = np.sum([mask > 0 for mask in masks], axis=0)
    needed = {"union": 1, "majority": len(masks) // 2 + 1, "intersection": len(masks)}[how]
    return np.where(votes >= needed, 255, 0).astype(np.uint8)


def agreement(masks: Mapping[str, np.ndarray]) -> list[Agreement]:
    """How far each two raters agree; masks (H, W) of which at least one pixel is not 0."""
    pairs = []
    for one, other in combinations(sorted(masks), 2):
        a, b = masks[one] > 0, masks[other] > 0
        shared, total = int((a & b).sum()), int(a.sum() + b.sum())
        pairs.append(Agreement((one, other), shared / (total - shared), 2 * shared / total))
    return pairs
