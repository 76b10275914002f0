"""From annotation files to the images of a data set: whose each mark is, and whether it counts."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from datamodules.annotations.marks import Mark, MarkedImage, Marking
from datamodules.decode import IMAGE_SUFFIXES
from datamodules.index import DataError
from experiments.annotation.joining import EMPTY, UNCLEAR, Entry, Fault, JoinedImage
from experiments.annotation.matching import ImageFinder, tidy

# Names of images that may be meant, shown in a message.
SHOWN = 3
WRONG_ENTRY = "wrong entry"
# Classes that tools keep for what is no object, letters alone: CVAT cuts holes by background,
# LabelMe leaves out what is to be ignored, Pascal VOC the void around objects.
RESERVED = ("background", "bg", "void", "hole", "ignore", "ignored", "unlabeled", "dontcare")


@dataclass
class Import:
    """What an import comes to."""

    images: list[JoinedImage] = field(default_factory=list)  # in the order of the index table
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
        drawn: Sources that are folders of masks: there an image without a mark is an empty mask.
    """
    wanted = _wanted(labels, sources.values())
    rows = {path: row for row, path in enumerate(table["path"])}
    abnormal = set(table["path"][table["label"] == 1])
    finder = ImageFinder(rows, root, mapping)
    result = Import()
    broken = _add_mistakes(sources.values(), wanted, finder, result)
    entries: dict[str, list[Entry]] = defaultdict(list)
    for source, marked in ((name, one) for name, read in sources.items() for one in read.images):
        result.listed += 1
        marks = _by_standing(marked, wanted, result)
        paths = finder.find_marked(marked)
        broken.update(paths if marks["unclear"] else ())
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
            entries[paths[0]].append(entry)
        else:
            paths.sort(key=lambda path: path not in abnormal)  # these are meant, if any
            result.faults.append(_unmatched(marked, paths, next(iter(rows)), root))
    result.matched = len(entries)
    for path in sorted(entries, key=rows.__getitem__):
        if path not in abnormal:
            what = f"{path} is labelled normal but has a lesion marked; take the entry out, or "
            where = entries[path][0].marked.where
            result.faults.append(Fault("mark on a normal image", where, f"{what}correct the label"))
        image = JoinedImage(rows[path], path, root, entries[path], raters)
        result.faults += image.faults
        if image.marks and not image.faults and path in abnormal and path not in broken:
            result.images.append(image)
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
            what = f"nothing is marked as that; there are {there} labels"
            raise DataError(f"--labels {name!r}: {what}")
        if _is_reserved(name):
            raise DataError(f"--labels {name!r}: tools keep it for what is no lesion; rename it")
    return wanted


def _add_mistakes(
    sources: Iterable[Marking], wanted: set[str], finder: ImageFinder, result: Import
) -> set[str]:
    """List the readers' mistakes as faults; return the images that they concern."""
    broken: set[str] = set()
    for where, what, names, labels, is_file in (one for read in sources for one in read.mistakes):
        # What bears no name may be of any class.
        if wanted and labels and wanted.isdisjoint(labels):
            continue
        result.faults.append(Fault(WRONG_ENTRY, where, what))
        concerned = {path for name in names for path in finder.find(name)}
        if is_file and not concerned:
            raise DataError(
                f"{where}: {what}, or take it out: nothing else tells which images it marks, so "
                "none is imported"
            )
        broken |= concerned
    return broken


def _by_standing(marked: MarkedImage, wanted: set[str], result: Import) -> dict[str, list[Mark]]:
    """Marks by what they are: lesion, reserved, other (not wanted) or unclear; also counted."""
    parts: dict[str, list[Mark]] = defaultdict(list)
    for mark in marked.marks:
        reserved = sum(map(_is_reserved, mark.labels))
        if reserved:
            standing = "reserved" if reserved == len(mark.labels) else "unclear"
        elif not wanted or wanted.intersection(mark.labels):
            standing = "lesion"
        else:
            standing = "other" if mark.labels else "unclear"
        parts[standing].append(mark)
        result.labels.update(mark.labels or ("",))
        if standing != "lesion":
            result.aside.update(mark.labels or ("",))
        if standing == "unclear":
            what = f"has the class {'+'.join(mark.labels) or 'none'!r}: nobody can tell whether it "
            what += "is a lesion; give it one class"
            result.faults.append(Fault(UNCLEAR, f"{marked.where}, {mark.entry}", what))
    return parts


def _is_reserved(label: str) -> bool:
    return re.sub("[^a-z]", "", label.casefold()) in RESERVED


def _unmatched(marked: MarkedImage, paths: list[str], example: str, root: Path) -> Fault:
    """Why a name stands for no image: it may be several, or none."""
    name = tidy(marked.name)  # never above root
    below = (name, name.removeprefix(f"{root.name}/"))
    if paths:
        shown = ", ".join(paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")
        shown += f"; it is also called {', '.join(marked.also)}" if marked.also else ""
        kind, what = "ambiguous name", f"may be any of {len(paths):,} images ({shown}); "
    # os.path: Path.is_file raises where a name is too long
    elif name.lower().endswith(IMAGE_SUFFIXES) and any(os.path.isfile(root / p) for p in below):
        what = f"{marked.name} lies below {root}, but the index leaves it out (labels that "
        what += "contradict each other, a row that lacks, or data.limit); take the entry out"
        return Fault("image not in the index", marked.where, what)
    else:
        kind = "unknown image"
        what = f"is no image of {root} (one is called {example}); correct the name, or "
    what = f"{marked.name} {what}settle it with a mapping file (--mapping)"
    return Fault(kind, marked.where, what)
