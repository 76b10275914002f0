"""A Lightning callback that writes down every step of a job, without a change to its command.

Lightning loads it by the entry point that :func:`install` lays on the PYTHONPATH: what runs on the
cluster is ``python -m experiments.train`` itself.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.recorded_train import Recorder, steps

ENTRY_POINT = "[pytorch_lightning.callbacks_factory]\nnoting = tests.cluster.noting:callbacks\n"


class UnhurriedRecorder(Recorder):
    """Writes down each step, and makes it last long enough to be interrupted."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(float(os.environ["RECORD_PAUSE"]))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def callbacks() -> list[Recorder]:
    """For Lightning: a folder of notes a job and go, which sort in their order."""
    job, go = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    folder = Path(os.environ["RECORD"]) / f"{job:06d}-{go:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    return [UnhurriedRecorder(folder)]


def install(folder: Path) -> None:
    """Write a distribution's entry point below ``folder``, which belongs on the PYTHONPATH."""
    info = folder / "noting-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)


def notes(folder: Path) -> list[list[list[dict]]]:
    """The steps of each go in its order, of each rank."""
    return [steps(go) for go in sorted(folder.iterdir())] if folder.is_dir() else []
