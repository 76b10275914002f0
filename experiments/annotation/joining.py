"""From annotation files to lesion masks: whose each mark is, checked, drawn, raters joined.

An image is taken whole or not at all: with one of its marks wrong, the others would teach that what
is missing is no lesion.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from datamodules.annotations.fields import EntryError
from datamodules.annotations.marks import Mark, MarkedImage, Marking, Mistake, draw, encode
from datamodules.decode import upright_size
from datamodules.index import DataError
from experiments.annotation.checks import check_mark, check_mask, check_size
from experiments.annotation.matching import ImageFinder, other_folder

# Names of images that may be meant, shown in a message.
SHOWN = 3
# Classes that tools keep for what is no object, letters alone: CVAT cuts holes by background,
# LabelMe leaves out what is to be ignored, Pascal VOC the void around objects.
RESERVED = ("background", "bg", "void", "hole", "ignore", "ignored", "unlabeled", "dontcare")
# Of import.csv: weak is 1 where a box is among the marks, share is of the image's pixels.
COLUMNS = ["image", "name", "source", "split", "body_part", "labels", "marks", "share", "weak"]
COLUMNS += ["raters", "rater_iou", "rater_dice", "notes"]


class Fault(NamedTuple):
    """Why something was left out: its kind (for counting), where it stands, what and the fix."""

    kind: str
    where: str
    what: str


class Import:
    """Matches, checks and draws what annotation files mark; every mistake is listed.

    ``sources`` go by their names; several are several raters, joined as :func:`combine` does. With
    ``labels`` only marks of these classes count, and only mistakes in these.
    """

    def __init__(
        self,
        sources: Mapping[str, Marking],
        table: pd.DataFrame,
        finder: ImageFinder,
        labels: Sequence[str],
        raters: str,
    ) -> None:
        self.finder, self.how, self.table = finder, raters, table.set_index("path")
        self.wanted = _wanted(labels, sources.values())
        self.faults: list[Fault] = []  # all that was left out
        self.broken: set[str] = set()  # images of which something may be missing
        self.labels = Counter[str]()  # marks of each class, wanted or not
        self.aside = Counter[str]()  # of these, those that are no lesions
        self.runs: dict[str, dict[str, Any]] = {}  # masks by image, as pycocotools encodes them
        self.agreement: list[tuple[str, float, float]] = []  # "one and other", IoU, Dice
        for mistake in (mistake for read in sources.values() for mistake in read.mistakes):
            self._add_mistake(mistake)
        entries: dict[str, list[MarkedImage]] = defaultdict(list)
        unmarked: list[list[str]] = []  # of each image without any (wanted) mark, what it may be
        for name, marked in ((name, one) for name, read in sources.items() for one in read.images):
            paths = finder.find_marked(marked)
            marks = self._wanted_marks(marked, paths, name if len(sources) > 1 else "")
            if not any(map(_is_lesion, marks)) and self.broken.isdisjoint(paths):
                unmarked.append(paths)
            elif len(paths) == 1:
                entries[paths[0]].append(marked._replace(marks=marks))
            else:
                self._add_unmatched(marked, paths)
        self.listed = sum(len(read.images) for read in sources.values())
        self.unmarked, self.matched = len(unmarked), len(entries)
        alone = {paths[0] for paths in unmarked if len(paths) == 1} - entries.keys()
        self.undrawn = sorted(alone.intersection(table["path"][table["label"] == 1]))
        rows = [self._join(path, entries[path]) for path in table["path"] if path in entries]
        self.rows = pd.DataFrame(filter(None, rows), columns=COLUMNS)

    def _add(self, kind: str, where: str, what: str) -> None:
        self.faults.append(Fault(kind, where, what))

    @contextmanager
    def _catch(self, kind: str, where: str, image: str) -> Iterator[None]:
        try:
            yield
        except (DataError, EntryError) as error:
            self._add(kind, where, f"{image}: {error}")

    def _add_mistake(self, mistake: Mistake) -> None:
        """List a reader's mistake, and the images that it concerns as broken."""
        where, what, names, labels, is_file = mistake
        # What bears no name may be of any class.
        if self.wanted and labels and self.wanted.isdisjoint(labels):
            return
        self._add("wrong entry", where, what)
        concerned = {path for name in names for path in self.finder.find(name)}
        if is_file and not concerned:
            reason = "nothing else tells which images it marks, so none is imported"
            raise DataError(f"{where}: {what}, or take it out: {reason}")
        self.broken |= concerned

    def _add_unmatched(self, marked: MarkedImage, paths: list[str]) -> None:
        """Say why a name stands for no image: it may be several, or none."""
        kind, example = "unknown image", self.table.index[0]
        what = f"is no image of {self.finder.root} that the index lists (one is called {example})"
        if paths:
            shown = ", ".join(paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")
            kind, what = "ambiguous name", f"may be any of {len(paths):,} images ({shown})"
        fix = "settle it with a mapping file (--mapping) that has this very name"
        self._add(kind, marked.where, f"{marked.name} {what}; {fix}")

    def _wanted_marks(self, marked: MarkedImage, paths: list[str], source: str) -> list[Mark]:
        """Lesions, and marks of reserved classes; a mark that may be either breaks its image."""
        marks = []
        for mark in marked.marks:
            reserved = sum(map(_is_reserved, mark.labels))
            is_wanted = not self.wanted or self.wanted.intersection(mark.labels)
            self.labels.update(mark.labels or [""])
            self.aside.update([] if is_wanted and not reserved else mark.labels or [""])
            if 0 < reserved < len(mark.labels) or not (is_wanted or mark.labels):
                what = f"has the class {'+'.join(mark.labels) or 'none'!r}: nobody can tell "
                what += "whether it is a lesion; give it one class"
                self._add("unclear class", f"{marked.where}, {mark.entry}", what)
                self.broken.update(paths)
            elif reserved or is_wanted:
                marks.append(mark._replace(rater=f"{source} {mark.rater}".strip()))
        return marks

    def _join(self, image: str, entries: Sequence[MarkedImage]) -> tuple[object, ...] | None:
        """Check what is marked on one image, draw it and join its raters; None: it is left out."""
        where, before, about = entries[0].where, len(self.faults), self.table.loc[image]
        notes: list[str] = []
        marks: list[Mark] = []
        if about["label"] != 1:
            what = f"{image} is labelled normal but has a lesion marked; take the entry out, or "
            self._add("mark on a normal image", where, f"{what}correct the label")
        with self._catch("unreadable image", where, image):
            size = upright_size(self.finder.root / image)
            marks = self._sound_marks(image, size, entries, notes)
        lesions = [mark for mark in marks if _is_lesion(mark)]
        if len(self.faults) > before or not lesions:
            return None
        masks = {
            rater: draw([mark for mark in lesions if mark.rater == rater], *size)
            for rater in dict.fromkeys(mark.rater for mark in lesions)
        }
        for mark in marks:
            if not _is_lesion(mark) and (draw([mark], *size) & combine([*masks.values()])).any():
                what = f"{image}: {'+'.join(mark.labels)!r} is no lesion, but covers part of one: "
                what += "nobody can tell whether it cuts a hole; redraw the lesion without it"
                self._add("unclear class", f"{where}, {mark.entry}", what)
        for rater, mask in masks.items():
            whose = f" ({rater})" if len(masks) > 1 else ""
            with self._catch("empty, full or inverted mask", where, image + whose):
                notes += [note + whose] if (note := check_mask(mask)) else []
        mask = combine([*masks.values()], self.how)
        if not mask.any() and len(self.faults) == before:
            what = f"{image}: no pixel is left by the {self.how} of {len(masks)} raters; settle it,"
            self._add("raters at odds", where, f"{what} or use --raters union")
        if len(self.faults) > before or image in self.broken:
            return None
        pairs = agreement(masks)
        self.agreement += pairs
        self.runs[image] = encode(mask)
        return (
            image,
            "; ".join(dict.fromkeys(marked.name for marked in entries)),
            "; ".join(dict.fromkeys(marked.where for marked in entries)),
            *about[["split", "body_part"]],
            "+".join(sorted({label for mark in lesions for label in mark.labels})),
            len(lesions),
            float((mask > 0).mean()),
            int(any(mark.is_box for mark in lesions)),
            len(masks),
            *(np.mean([pair[1:] for pair in pairs], axis=0) if pairs else (np.nan, np.nan)),
            "; ".join(dict.fromkeys(notes)),
        )

    def _sound_marks(
        self, image: str, size: tuple[int, int], entries: Sequence[MarkedImage], notes: list[str]
    ) -> list[Mark]:
        """All marks that are right, in pixels; the rest become faults."""
        marks = []
        listed: dict[str, MarkedImage] = {}
        for marked in entries:
            with self._catch("other size", marked.where, image):
                note = check_size(marked, size, self.finder.root / image)
                notes += filter(None, (note, marked.note))
                if folder := other_folder(marked.name, image):
                    notes.append(f"only its name fits: the file says {folder}/")
                for mark in marked.marks:
                    if (first := listed.setdefault(mark.rater, marked)) is not marked:
                        what = f"{image} is listed twice, also in {first.where} as {first.name}; "
                        what += "keep one (two raters: give each one's file as a source of its own)"
                        self._add("listed twice", marked.where, what)
                        break
                    if marked.in_shares:  # six digits hold no more than hundredths of a pixel
                        outline = np.round(np.multiply(mark.outline, size[::-1]), 2).tolist()
                        mark = mark._replace(outline=tuple(map(tuple, outline)))
                    with self._catch("wrong mark", f"{marked.where}, {mark.entry}", image):
                        note = check_mark(mark, size)
                        notes += [f"{mark.entry} {note}"] if note else []
                        marks.append(mark)
        return marks


def _wanted(labels: Sequence[str], sources: Iterable[Marking]) -> set[str]:
    """The classes that ``labels`` name, several in a text with commas; one may be misspelled."""
    present: set[str] = set()
    for read in sources:
        present.update(label for one in read.images for mark in one.marks for label in mark.labels)
        present.update(label for mistake in read.mistakes for label in mistake.labels)
    split = [[text] if text in present else text.split(",") for text in labels]
    wanted = {name.strip() for names in split for name in names} - {""}
    if unknown := sorted(wanted - present):
        listed = ", ".join(map(repr, sorted(present))) or "no"
        what = f"nothing is marked as that; there are {listed} labels"
        raise DataError(f"--labels {unknown[0]!r}: {what}")
    return wanted


def _is_reserved(label: str) -> bool:
    return re.sub("[^a-z]", "", label.casefold()) in RESERVED


def _is_lesion(mark: Mark) -> bool:
    return not any(map(_is_reserved, mark.labels))


def combine(masks: Sequence[np.ndarray], how: str = "union") -> np.ndarray:
    """One mask of several raters', all uint8 (H, W), 0 or 255.

    ``majority`` is what more than half of the raters marked: a tie is background.
    """
    votes = np.sum([mask > 0 for mask in masks], axis=0)
    needed = {"union": 1, "majority": len(masks) // 2 + 1, "intersection": len(masks)}[how]
    return np.where(votes >= needed, 255, 0).astype(np.uint8)


def agreement(masks: Mapping[str, np.ndarray]) -> list[tuple[str, float, float]]:
    """Raters, IoU and Dice of each two; masks (H, W) of which at least one pixel is not 0."""
    pairs = []
    for one, other in combinations(sorted(masks), 2):
        a, b = masks[one] > 0, masks[other] > 0
        shared, total = int((a & b).sum()), int(a.sum() + b.sum())
        pairs.append((f"{one} and {other}", shared / (total - shared), 2 * shared / total))
    return pairs
