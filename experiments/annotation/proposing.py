"""Masks that a run proposes for abnormal train images without one: few masks that teach many.

The label says that there is a lesion, the FCN's map where it is most likely: the blob around the
map's peak. Lee 2013 ("Pseudo-Label") for classes; here for pixels, one round.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from datamodules.files import write_text
from datamodules.index import DataError
from datamodules.lesions import JUDGES, Lesion, write_lesions
from experiments.annotation.choosing import maps_of
from experiments.build import Run, open_run
from experiments.runs import RunError

# Of the map's peak: where the blob ends.
HALF = 0.5
# Peaks lower than this name no place that is worth learning: rather no lesion than one.
LOWEST = 0.5


def run(folder: Path, out: Path, settings: list[str]) -> int:
    """Write the proposals of a run, and print what to do with them; return the exit status."""
    opened = open_run(folder, settings)
    data = opened.data
    if "fcn" not in opened.module.judged_maps or not data.judges_as(opened.trained_on):
        raise RunError(
            f"{opened.folder} cannot propose: expected a stage 3 run that was trained on the "
            f"images and splits of {data.root}"
        )
    train = (data.table["split"] == "train") & (data.table["label"] == 1)
    rows = np.setdiff1d(np.flatnonzero(train), data.lesion_rows)
    if not len(rows):
        raise DataError(
            "each abnormal train image has a mask that it learned from: use it as it is"
        )
    count = write_lesions(
        out, _proposals(opened, rows), lambda draft: write_text(draft / JUDGES, data.judges_hash)
    )
    print(f"proposed  {count} of {len(rows)} abnormal train images without a mask")
    print(f"written   {out}, for lesions.proposals={out}")
    return 0


def _proposals(opened: Run, rows: np.ndarray) -> Iterator[Lesion]:
    maps = maps_of(opened.module, opened.data, "fcn", rows)
    for path, shown in zip(opened.data.table["path"].iloc[rows], maps, strict=True):
        if shown.max() >= LOWEST and not (mask := best_blob(shown)).all():
            yield Lesion(path, mask)


def best_blob(shown: np.ndarray) -> np.ndarray:
    """The blob around the peak of a map ``(H, W)``, down to half of it: uint8, 0 or 255.

    Example:
        >>> best_blob(np.array([[0.1, 0.9, 0.6, 0.1, 0.8]])).tolist()
        [[0, 255, 255, 0, 0]]
    """
    blobs, _ = ndimage.label(shown >= HALF * shown.max(), np.ones((3, 3)))
    at_peak = blobs[np.unravel_index(shown.argmax(), shown.shape)]
    return np.where(blobs == at_peak, 255, 0).astype(np.uint8)
