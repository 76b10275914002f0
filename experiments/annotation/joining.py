"""From annotations to lesion masks: checked, drawn, raters joined.

An image is taken whole or not at all: with one of its marks wrong, the others would teach that what
is missing is no lesion.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle

from datamodules.annotations.fields import EntryError, check
from datamodules.annotations.marks import Mark, MarkedImage, draw, encode
from datamodules.decode import upright_size
from datamodules.index import DataError
from experiments.annotation.checks import check_mark, check_mask, check_size, is_rectangle

EMPTY, UNCLEAR = "empty, full or inverted mask", "unclear class"


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


class Entry(NamedTuple):
    """A source's lesions on an image, and its marks of classes that tools reserve."""

    source: str
    marked: MarkedImage
    reserved: list[Mark]


class JoinedImage:
    """One image: what is marked on it, checked, drawn into a mask a rater, and joined.

    Attributes:
        row: Of the index table.
        image: Path below ``data.root``.
        faults: Why there is no mask; all else is of an image without faults.
        notes: What a person should know of it.
        marks: Lesions of all raters, outlines in pixels.
        runs: The mask in the upright original frame, as pycocotools encodes it.
        share: Of the image that is marked, 0 to 1.
        raters: How many there are.
        agreement: Of each two of them.
    """

    def __init__(
        self, row: int, image: str, root: Path, entries: Sequence[Entry], how: str
    ) -> None:
        self.row, self.image, self.path, self.entries = row, image, root / image, entries
        self.where = entries[0].marked.where
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self.marks: list[Mark] = []
        with self._catch("unreadable image", self.where):
            self.size = upright_size(self.path)
            by_rater, reserved = self._checked_marks()
            self.marks = [mark for own in by_rater.values() for mark in own]
            if self.marks and not self.faults:
                self._join(by_rater, reserved, how)

    @property
    def mask(self) -> np.ndarray:
        """The mask, uint8 (H, W), 0 or 255."""
        return rle.decode(self.runs) * np.uint8(255)

    @property
    def labels(self) -> str:
        """Names of the classes, sorted and joined."""
        return "+".join(sorted({label for mark in self.marks for label in mark.labels}))

    @property
    def is_weak(self) -> bool:
        """Whether a box is among the marks."""
        return any(mark.is_box for mark in self.marks)

    @contextmanager
    def _catch(self, kind: str, where: str, whose: str = "") -> Iterator[None]:
        """Turn what is wrong in the block into a fault of ``kind``."""
        try:
            yield
        except DataError as error:
            self.faults.append(Fault(kind, where, str(error)))
        except EntryError as error:
            self.faults.append(Fault(kind, where, f"{self.image}{whose}: {error}"))

    def _checked_marks(self) -> tuple[dict[str, list[Mark]], list[Mark]]:
        """The sound marks of each rater, and those of reserved classes."""
        by_rater: dict[str, list[Mark]] = defaultdict(list)
        listed: dict[str, MarkedImage] = {}
        reserved: list[Mark] = []
        for source, marked, others in self.entries:
            with self._catch("other size", marked.where):
                note = check_size(marked, self.size, self.path)
                self.notes += filter(None, (note, marked.note))
                reserved += [self._in_pixels(mark, marked) for mark in others]
                for mark in (self._in_pixels(mark, marked) for mark in marked.marks):
                    rater = " ".join(filter(None, (source, mark.rater)))
                    first = listed.setdefault(rater, marked)
                    if first is not marked:
                        what = f"{self.image} is listed twice, also in {first.where} as "
                        what += f"{first.name}; keep one (two raters: give each one's file as a "
                        what += "source of its own)"
                        self.faults.append(Fault("listed twice", marked.where, what))
                        break
                    with self._catch("wrong mark", f"{marked.where}, {mark.entry}"):
                        note = check_mark(mark, self.size)
                        self.notes += [f"{mark.entry} {note}"] if note else []
                        by_rater[rater].append(mark)
        return by_rater, reserved

    def _in_pixels(self, mark: Mark, marked: MarkedImage) -> Mark:
        """The mark with its outline in pixels, and weak where that is a box, turned or not."""
        outline, (height, width) = mark.outline, self.size
        if marked.in_shares:  # of six digits, which hold no more than hundredths of a pixel
            outline = tuple((round(x * width, 2), round(y * height, 2)) for x, y in outline)
        return mark._replace(outline=outline, is_box=mark.is_box or is_rectangle(outline))

    def _join(self, by_rater: dict[str, list[Mark]], reserved: list[Mark], how: str) -> None:
        lesions = draw(self.marks, *self.size)
        for mark in reserved:
            with self._catch(UNCLEAR, f"{self.where}, {mark.entry}"):
                check_mark(mark, self.size)
                what = (
                    f"{'+'.join(mark.labels)!r} is no lesion, but covers part of one: nobody can "
                )
                what += "tell whether it cuts a hole; redraw the lesion without that part"
                check(not (draw([mark], *self.size) & lesions).any(), what)
        masks = {rater: draw(own, *self.size) for rater, own in by_rater.items()}
        for rater, mask in masks.items():
            whose = f" ({rater})" if len(masks) > 1 else ""
            with self._catch(EMPTY, self.where, whose):
                note = check_mask(mask)
                self.notes += [note + whose] if note else []
        mask = combine([*masks.values()], how)
        with self._catch("raters at odds", self.where):
            what = f"no pixel is left by the {how} of {len(masks)} raters; settle it, or use"
            check(self.faults or mask.any(), f"{what} --raters union")
        self.runs, self.share = encode(mask), float((mask > 0).mean())
        self.raters, self.agreement = len(masks), agreement(masks)


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
