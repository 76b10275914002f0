"""Find images that show the same, so that no split cuts them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.decode import decode
from datamodules.files import usable_cores
from datamodules.index import DataError

# Correlation of one block from which it counts as the same; share of blocks that must be the same.
# On 1,389 images of FracAtlas duplicates have a share of 0.57 to 0.94, other pairs of up to 0.38.
ALIKE, SHARE = 0.98, 0.5
CONTRAST = 8.0  # standard deviation in grey levels from which a block has structure
FEWEST = 8  # blocks with structure, or nothing is the same


def near_duplicates(paths: list[Path]) -> list[tuple[int, int]]:
    """Find images that show the same, though re-encoded, resized, brightened or partly damaged.

    Each image is reduced to 64 x 64 and cut into 8 x 8 blocks of 8 x 8 cells. Two images show the
    same when enough of the blocks in which either has any structure are correlated. A shift by 1 %
    of the side, a turn or a flip goes unnoticed. Returns ascending pairs of positions in ``paths``.
    """
    side, cells = 8, 8
    with ThreadPoolExecutor(usable_cores()) as pool:
        thumbnails = np.stack(list(pool.map(_thumbnail, paths))) if paths else np.zeros((0, 64, 64))
    count = len(thumbnails)
    blocks = thumbnails.reshape(count, side, cells, side, cells).transpose(1, 3, 0, 2, 4)
    blocks = blocks.reshape(side * side, count, cells * cells)
    blocks = blocks - blocks.mean(axis=2, keepdims=True)
    length = np.linalg.norm(blocks, axis=2)
    structured = length >= CONTRAST * cells  # the norm of 64 cells is 8 standard deviations
    blocks = np.where(structured[..., None], blocks / np.maximum(length, 1e-6)[..., None], 0)
    seen = structured.T.astype(np.float32)
    pairs: list[tuple[int, int]] = []
    for start in range(0, count, 1024):  # so that memory does not grow with the square of count
        rows = slice(start, start + 1024)
        same = np.zeros((len(seen[rows]), count), dtype=np.int16)
        for block in blocks:
            same += block[rows] @ block.T > ALIKE
        either = seen[rows].sum(1)[:, None] + seen.sum(1) - seen[rows] @ seen.T
        first, second = np.nonzero((either >= FEWEST) & (same >= SHARE * either))
        pairs += [(int(a) + start, int(b)) for a, b in zip(first, second, strict=True)]
    return sorted((a, b) for a, b in pairs if a < b)


def components(count: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Return int64 ``(count,)``: the lowest member of the group that each item is joined to."""
    first, second = np.array(pairs, dtype=int).reshape(-1, 2).T
    joined = coo_array((np.ones(len(pairs)), (first, second)), shape=(count, count))
    _, group = connected_components(joined, directed=False)
    return np.unique(group, return_index=True)[1][group]


def _thumbnail(path: Path) -> np.ndarray:
    """Return 64 x 64 float32 grey; without any structure where the file is unreadable."""
    try:
        return cv2.resize(decode(path), (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    except DataError:  # the cache reports it, here it only resembles nothing
        return np.zeros((64, 64), np.float32)
