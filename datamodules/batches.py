"""Whole batches from the cache: which images make which batch, and the processes that read them.

Samplers yield ``(draws, rows of the index table)``, a pure function of (seed, epoch), resumable at
any batch; a draw decides how an image is augmented. Ranks take slices of one order: two with batch
N see what one with batch 2 N sees.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datamodules import cache
from datamodules.files import usable_cores
from datamodules.index import DataError

if TYPE_CHECKING:
    from datamodules.augmentation import Augmenter

Batch = dict[str, Tensor]
Rows = tuple[np.ndarray, np.ndarray]  # of the images: draw (the epoch), row of the index table
# Fixed constants and not the data set's own statistics: a grey value means the same everywhere.
MEAN, STD = 0.2, 0.2
# Draws of images added for their mask begin at ADDED: none is augmented as in its own turn of the
# epoch. From APART on the classification loss leaves them out, too.
ADDED, APART = 1 << 30, 1 << 31


@dataclass(eq=False)
class TrainBatches(Sampler[Rows]):
    """Shuffled batches: each of ``rows`` once an epoch, the last incomplete batch is left out.

    With ``lesions_per_batch`` = k, each batch holds k images from ``lesion_rows`` (an endless
    shuffle of their own) besides ``batch_size - k`` from the epoch's order, with draws of their
    own; ``apart``, with such as do not count in classification.
    """

    rows: np.ndarray
    batch_size: int
    seed: int = 0
    ranks: tuple[int, int] = (0, 1)  # this process, and the number of processes
    lesion_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    lesions_per_batch: int = 0
    apart: bool = False

    def __post_init__(self) -> None:
        self.epoch = self.start = 0
        if self.lesions_per_batch and not len(self.lesion_rows):
            raise DataError(
                f"lesions.per_batch={self.lesions_per_batch}, but no training image has a lesion "
                "mask. Fix: lesions.path, or a table's column mask, and lesions.count above 0."
            )
        if len(self) == 0:
            raise DataError(
                f"the train split holds {len(self.rows)} images, fewer than one step needs "
                f"({self.batch_size} x {self.ranks[1]} ranks). Fix: a smaller data.batch_size."
            )

    def __len__(self) -> int:
        """Batches an epoch, whatever the position."""
        return len(self.rows) // ((self.batch_size - self.lesions_per_batch) * self.ranks[1])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration (Lightning calls this)."""
        self.epoch = epoch

    def resume_at(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin with batch number ``batch`` of ``epoch``."""
        self.epoch, self.start = epoch, batch

    def __iter__(self) -> Iterator[Rows]:
        """Yield (draws, rows of this rank) for the batches that are left of the epoch."""
        epoch, start = self.epoch, self.start
        self.start = 0
        order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        plain = self.batch_size - self.lesions_per_batch
        for step in range(start, len(self)):
            place = step * self.ranks[1] + self.ranks[0]
            chosen = order[place * plain : (place + 1) * plain]
            draws = np.full(self.batch_size, epoch)
            if count := self.lesions_per_batch:
                lesions, turns = self._lesion_rows(epoch * len(self) * self.ranks[1] + place)
                chosen = np.concatenate([lesions, chosen])
                draws[:count] = turns + (APART if self.apart else ADDED)
            yield draws, chosen

    def _lesion_rows(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots place * k .. (place + 1) * k - 1 of the endless lesion shuffle: rows, turns."""
        count, total = self.lesions_per_batch, len(self.lesion_rows)
        first, start = divmod(place * count, total)
        turns = range(first, first + 2 + count // total)
        orders = [np.random.default_rng((self.seed, 1, turn)) for turn in turns]
        shuffle = np.concatenate([order.permutation(self.lesion_rows) for order in orders])
        slots = slice(start, start + count)
        return shuffle[slots], np.repeat(turns, total)[slots]


class EvaluationBatches(Sampler[Rows]):
    """Every row once, in order, shared over ranks.

    Ranks yield equally many batches (else a collective call would hang): the last may be empty.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, ranks: tuple[int, int] = (0, 1)) -> None:
        self.rows = rows[ranks[0] :: ranks[1]]
        self.largest_share = -(-len(rows) // ranks[1])
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches on this rank, and on every other."""
        return -(-self.largest_share // self.batch_size)

    def __iter__(self) -> Iterator[Rows]:
        """Yield (zeros, rows of this rank)."""
        for start in range(0, self.largest_share, self.batch_size):
            rows = self.rows[start : start + self.batch_size]
            yield np.zeros_like(rows), rows


@dataclass(eq=False)
class BatchDataset(Dataset[Batch]):
    """Reads whole batches from the cache; an item is asked for as (draws, rows)."""

    pixels: cache.PixelCache
    codes: dict[str, np.ndarray]
    shows_lesion: np.ndarray
    augmentation: Augmenter | None

    def __getitem__(self, item: Rows) -> Batch:
        draws, rows = item
        size = self.pixels.images.shape[-1]
        images = np.empty((len(rows), 1, size, size), dtype=np.uint8)
        masks = np.zeros((len(rows), 1, size, size), dtype=np.float32)
        for place, row in enumerate(rows):
            image = self.pixels.image(row)
            mask = self.pixels.mask(row) if self.shows_lesion[row] else None
            if self.augmentation:
                image, mask = self.augmentation(image, mask, int(draws[place]), int(row))
            images[place, 0] = image
            if mask is not None:
                # Only what is drawn on is touched: the other masks' zeros cost no time.
                np.divide(mask, 255.0, out=masks[place, 0], dtype=np.float32)
        batch = {
            "image": torch.from_numpy(images),
            "lesion_mask": torch.from_numpy(masks),
            "has_lesion": torch.from_numpy(self.shows_lesion[rows]),
            "index": torch.from_numpy(np.asarray(rows, dtype=np.int64)),
            **{name: torch.from_numpy(values[rows]) for name, values in self.codes.items()},
        }
        if (apart := draws >= APART).any():
            batch["classified"] = torch.from_numpy(~apart)
        return batch


def to_model_input(image: Tensor) -> Tensor:
    """Turn uint8 images (B, 1, H, W) into float32, black at -1 and white at 4."""
    return (image.float() / 255.0 - MEAN) / STD


def default_workers() -> int:
    """Loader processes a rank: none on a CPU, where reading takes a few per cent of a step."""
    if not torch.cuda.is_available():
        return 0
    # A SLURM task has its own cores; else the cards share them.
    own = int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
    return min(8, max(1, own or usable_cores() // torch.cuda.device_count()))


def start_worker(_: int) -> None:
    """Prepare a loader process."""
    cv2.setNumThreads(0)
    # Preemption is the main process's business, which still needs batches to come to a save: a
    # worker outlives a signal to all of the job's processes, and ends with its loader or parent.
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# The last registered is called first: before multiprocessing would wait for what ignores SIGTERM.
@atexit.register
def end_workers() -> None:
    """Kill loader processes that no loader has ended."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
