"""Which images make which batch: a pure function of (seed, epoch), resumable at any batch.

The samplers yield whole batches, ``(epoch, rows)``, where ``rows`` are rows of the index table. A
global step takes ``batch_size * world_size`` images of one order that all ranks share; each rank
takes its slice. So two ranks with batch N see what one rank with batch 2 N sees.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from datamodules.index import DataError

Batch = tuple[int, np.ndarray]


class TrainBatches(Sampler[Batch]):
    """Shuffled training batches, optionally with some images of known lesions in each.

    Every image of ``rows`` (N,) is drawn once an epoch, the last incomplete batch is left out. With
    ``lesions_per_batch`` = k, each batch holds k images from ``lesion_rows`` (an endless shuffle of
    their own) besides ``batch_size - k`` from the epoch's order.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int = 0,
        ranks: tuple[int, int] = (0, 1),  # this process, and the number of processes
        lesion_rows: np.ndarray | None = None,
        lesions_per_batch: int = 0,
    ) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size = ranks
        self.lesion_rows = rows[:0] if lesion_rows is None else lesion_rows
        self.lesions_per_batch = lesions_per_batch
        self.epoch = self.start = 0
        if lesions_per_batch and len(self.lesion_rows) == 0:
            raise DataError(
                f"lesions.per_batch={lesions_per_batch}, but no training image has a lesion mask. "
                "Fix: lesions.path (and lesions.count above 0), or lesions.per_batch=0."
            )
        if lesions_per_batch >= batch_size:
            raise DataError(
                f"lesions.per_batch={lesions_per_batch}: expected less than data.batch_size="
                f"{batch_size}. Fix: lower the one or raise the other."
            )
        if len(self) == 0:
            raise DataError(
                f"the train split holds {len(rows)} images, fewer than one step needs ({batch_size}"
                f" a rank x {self.world_size} ranks). Fix: a smaller data.batch_size."
            )

    def __len__(self) -> int:
        """Batches an epoch, whatever the position."""
        return len(self.rows) // ((self.batch_size - self.lesions_per_batch) * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration (Lightning calls this)."""
        self.epoch = epoch

    def resume_at(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin with batch number ``batch`` of ``epoch``."""
        self.epoch, self.start = epoch, batch

    def __iter__(self) -> Iterator[Batch]:
        """Yield (epoch, rows of this rank) for the batches that are left of the epoch."""
        epoch, start = self.epoch, self.start
        self.start = 0
        order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        plain = self.batch_size - self.lesions_per_batch
        for step in range(start, len(self)):
            place = step * self.world_size + self.rank
            chosen = order[place * plain : (place + 1) * plain]
            if self.lesions_per_batch:
                lesions = self._lesion_rows(epoch * len(self) * self.world_size + place)
                chosen = np.concatenate([lesions, chosen])
            yield epoch, chosen

    def _lesion_rows(self, place: int) -> np.ndarray:
        """Rows of the endless lesion shuffle at slots place * k .. (place + 1) * k - 1."""
        slots = np.arange(place * self.lesions_per_batch, (place + 1) * self.lesions_per_batch)
        turns, within = np.divmod(slots, len(self.lesion_rows))
        orders = {
            turn: np.random.default_rng((self.seed, 1, turn)).permutation(self.lesion_rows)
            for turn in np.unique(turns)
        }
        return np.array([orders[turn][slot] for turn, slot in zip(turns, within, strict=True)])


class EvaluationBatches(Sampler[Batch]):
    """Every row once, in order, shared over ranks.

    All ranks yield the same number of batches (a collective call would hang otherwise); where the
    rows do not come out even, a rank's last batch is smaller, or empty. None is repeated.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, ranks: tuple[int, int] = (0, 1)) -> None:
        self.rows = rows[ranks[0] :: ranks[1]]
        self.largest_share = -(-len(rows) // ranks[1])
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches on this rank, and on every other."""
        return -(-self.largest_share // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield (0, rows): evaluation knows no epoch."""
        for start in range(0, self.largest_share, self.batch_size):
            yield 0, self.rows[start : start + self.batch_size]
