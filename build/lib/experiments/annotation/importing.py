"""From annotation files to lesion masks of a data set: matched, checked, drawn; nothing written."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from datamodules.annotations.marks import Mark, MarkedImage, Marking
from datamodules.decode import IMAGE_SUFFIXES
from datamodules.index import DataError
from experiments.annotation.image import EMPTY, Entry, Fault, Imported, check_image
from experiments.annotation.matching import ImageFinder, tidy

# Names of images that may be meant, shown in a message.
SHOWN = 3
WRONG_ENTRY = "wrong entry"
# Classes that tools keep for what is no object, letters alone: CVAT cuts holes by background,
# LabelMe leaves out what is to be ignored, Pascal VOC the void around objects.
RESERVED = ("background", "bg", "void", "hole", "ignore", "ignored", "unlabeled", "dontcare")
UNCLEAR = "nobody can tell whether it is a lesion; give it one class"


@dataclass
class Found:
    """What an import has found.

    Attributes:
        images: To be written, in the order of the index table.
        faults: All that was left out, with the reason.
        listed: Images that the annotation files list.
        unmarked: Of these, those without any (wanted) mark.
        undrawn: Images of those that are labelled abnormal.
        matched: Images of the data set that marked ones stand for.
        labels: Marks of each class, all classes, wanted or not.
        aside: Of these, marks that are no lesions: classes not wanted, or reserved.
    """

    images: list[Imported] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    listed: int = 0
    unmarked: int = 0
    undrawn: list[str] = field(default_factory=list)
    matched: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    aside: Counter[str] = field(default_factory=Counter)


def import_marks(
    sources: Mapping[str, Marking],
    table: pd.DataFrame,
    root: Path,
    mapping: dict[str, str] | None = None,
    labels: Sequence[str] = (),
    raters: str = "union",
    drawn: Collection[str] = (),
) -> Found:
    """Match, check and draw what annotation files say; every mistake is found, not only the first.

    Args:
        sources: What was read, by the source's name; several sources are several raters.
        table: Index table with path and label.
        root: Folder that its paths count from.
        mapping: From :func:`lesion_matching.read_mapping`.
        labels: Only marks of these classes count, and only what is wrong with these; none: all
            do. A text that is no class itself is several, with commas between.
        raters: How several raters make one mask, see :func:`lesion_raters.combine`.
        drawn: Sources whose images all should have a mark: a folder of masks, where one without is
            an empty mask. In others it is an image that nobody has annotated.

    Raises:
        DataError: No mark is of a wanted class, or the mapping names unknown images.
    """
    wanted = _wanted(labels, sources.values())
    mistakes = [
        mistake
        for read in sources.values()
        for mistake in read.mistakes
        # What bears no name may be of any class.
        if not wanted or not mistake.labels or wanted.intersection(mistake.labels)
    ]
    faults = [Fault(WRONG_ENTRY, mistake.where, mistake.what) for mistake in mistakes]
    every = [(name, marked) for name, read in sources.items() for marked in read.images]
    found = Found(faults=faults, listed=len(every))
    images, abnormal = table["path"].tolist(), (table["label"] == 1).tolist()
    finder = ImageFinder(images, root, mapping)
    places = {path: row for row, path in enumerate(images)}
    broken: set[int] = set()
    for mistake in mistakes:
        concerned = [path for name in mistake.images for path in finder.find(name)]
        if mistake.is_file and not concerned:
            raise DataError(
                f"{mistake.where}: {mistake.what}, or take it out: nothing else tells which images "
                "it marks, so none is imported"
            )
        broken.update(places[path] for path in concerned)
    entries: dict[int, list[Entry]] = {}
    for name, marked in every:
        parts: dict[str, list[Mark]] = {}
        for mark in marked.marks:
            standing = _standing(mark, wanted)
            parts.setdefault(standing, []).append(mark)
            found.labels.update(mark.labels or ("",))
            if standing != "lesion":
                found.aside.update(mark.labels or ("",))
        paths = _find(finder, marked)
        for mark in parts.get("unclear", []):
            what = f"has the class {'+'.join(mark.labels) or 'none'!r}"
            faults.append(
                Fault("unclear class", f"{marked.where}, {mark.entry}", f"{what}: {UNCLEAR}")
            )
            broken.update(places[path] for path in paths)
        kept = parts.get("lesion", [])
        if not kept and not any(places[path] in broken for path in paths):
            found.unmarked += 1
            if len(paths) == 1 and abnormal[places[paths[0]]]:
                found.undrawn.append(paths[0])
                if name in drawn:
                    what = f"{paths[0]}: its mask is empty; mark the lesion, or take the mask out"
                    faults.append(Fault(EMPTY, marked.where, what))
        elif len(paths) == 1:
            rater = name if len(sources) > 1 else ""
            entry = Entry(rater, marked._replace(marks=kept), parts.get("reserved", []))
            entries.setdefault(places[paths[0]], []).append(entry)
        else:
            paths.sort(key=lambda path: not abnormal[places[path]])  # these are meant, if any
            faults.append(_unmatched(marked, paths, images[0], root))
    found.matched = len(entries)
    for row in sorted(entries):
        made = check_image(row, images[row], abnormal[row], entries[row], root, raters)
        if not isinstance(made, Imported):
            faults += made
        elif row not in broken:
            found.images.append(made)
    # An image that another source draws is not undrawn.
    found.undrawn = [path for path in found.undrawn if places[path] not in entries]
    return found


def _standing(mark: Mark, wanted: set[str]) -> str:
    """What a mark is: ``lesion``, ``reserved``, ``other`` (not wanted), or ``unclear``."""
    reserved = [label for label in mark.labels if _is_reserved(label)]
    if reserved:
        return "reserved" if len(reserved) == len(mark.labels) else "unclear"
    if not wanted or wanted.intersection(mark.labels):
        return "lesion"
    return "other" if mark.labels else "unclear"


def _is_reserved(label: str) -> bool:
    return re.sub("[^a-z]", "", label.casefold()) in RESERVED


def _find(finder: ImageFinder, marked: MarkedImage) -> list[str]:
    """The images that the name may mean, and all that its other names certainly mean.

    Of several the one that its other names mean, where these agree.
    """
    paths = finder.find(marked.name)
    others = {found[0] for name in marked.also if len(found := finder.find(name)) == 1}
    if len(paths) > 1 and len(others) == 1 and others.intersection(paths):
        return [*others]
    return sorted({*paths, *others}) if paths else []


def _unmatched(marked: MarkedImage, paths: list[str], example: str, root: Path) -> Fault:
    """Say why a name stands for no image: it may be several, or none."""
    if paths:
        shown = ", ".join(paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")
        shown += f"; it is also called {', '.join(marked.also)}" if marked.also else ""
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


def _wanted(labels: Sequence[str], sources: Iterable[Marking]) -> set[str]:
    """Return the classes that ``labels`` name, or raise a DataError: one may be misspelled."""
    known = {
        label
        for read in sources
        for entries in ([m for image in read.images for m in image.marks], read.mistakes)
        for entry in entries
        for label in entry.labels
    }
    wanted: set[str] = set()
    for given in map(str.strip, labels):
        parts = [given] if given in known else [part.strip() for part in given.split(",")]
        for name in filter(None, parts):
            if name not in known:
                there = ", ".join(map(repr, sorted(known))) or "no"
                raise DataError(
                    f"--labels {name!r}: nothing is marked as that; there are {there} labels"
                )
            if _is_reserved(name):
                raise DataError(
                    f"--labels {name!r}: tools keep it for what is no lesion; rename it"
                )
            wanted.add(name)
    return wanted
