"""Whole batches read from the cache, and what happens in a process that does so."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules import cache
from datamodules.files import usable_cores

if TYPE_CHECKING:
    from datamodules.augmentation import Augmenter

Batch = dict[str, Tensor]
# Fixed constants and not the data set's own statistics: a grey value means the same everywhere.
MEAN, STD = 0.2, 0.2


class BatchDataset(Dataset[Batch]):
    """Reads whole batches from the cache; an item is asked for as (epoch, rows)."""

    def __init__(
        self,
        pixels: cache.PixelCache,
        codes: dict[str, np.ndarray],
        shows_lesion: np.ndarray,
        augmentation: Augmenter | None,
    ) -> None:
        self.pixels, self.codes, self.shows_lesion = pixels, codes, shows_lesion
        self.augmentation = augmentation

    def __getitem__(self, item: tuple[int, np.ndarray]) -> Batch:
        """Return the batch of ``rows`` as augmented in ``epoch``."""
        epoch, rows = item
        size = self.pixels.images.shape[-1]
        images = np.empty((len(rows), 1, size, size), dtype=np.uint8)
        masks = np.zeros((len(rows), 1, size, size), dtype=np.float32)
        for place, row in enumerate(rows):
            image = self.pixels.image(row)
            mask = self.pixels.mask(row) if self.shows_lesion[row] else None
            if self.augmentation:
                image, mask = self.augmentation(image, mask, epoch, int(row))
            images[place, 0] = image
            if mask is not None:
                # Only what is drawn on is touched: the other masks' zeros cost no time.
                np.divide(mask, 255.0, out=masks[place, 0], dtype=np.float32)
        return {
            "image": torch.from_numpy(images),
            "lesion_mask": torch.from_numpy(masks),
            "has_lesion": torch.from_numpy(self.shows_lesion[rows]),
            "index": torch.from_numpy(np.asarray(rows, dtype=np.int64)),
            **{name: torch.from_numpy(values[rows]) for name, values in self.codes.items()},
        }


def to_model_input(image: Tensor) -> Tensor:
    """Turn uint8 images (B, 1, H, W) into float32, black at -1 and white at 4."""
    return (image.float() / 255.0 - MEAN) / STD


def load_batches(
    dataset: BatchDataset, sampler: Sampler[tuple[int, np.ndarray]], workers: int
) -> DataLoader[Batch]:
    """A loader of whole batches, by ``workers`` processes or, with 0, by this one."""
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,  # an item of the sampler is a whole batch
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: starting a loader would otherwise move the one dropout draws from.
        generator=torch.Generator(),
    )


def default_workers() -> int:
    """Loader processes a rank: none on a CPU, where reading takes a few per cent of a step."""
    if not torch.cuda.is_available():
        return 0
    return min(8, max(1, usable_cores() // torch.cuda.device_count()))


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
