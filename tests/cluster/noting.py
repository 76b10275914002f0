"""A Lightning callback that writes down every step of a job, without a change to its command.

Lightning loads it by the entry point that :func:`install` lays on the PYTHONPATH: what runs on the
cluster is ``python -m experiments.train`` itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.recorded_train import Recorder, steps

ENTRY_POINT = "[pytorch_lightning.callbacks_factory]\nnoting = tests.cluster.noting:callbacks\n"


class UnhurriedRecorder(Recorder):
    """Writes down its command and each step, which lasts long enough to be interrupted.

    In a folder a run, job and go.
    """

    def on_train_start(self, trainer, pl_module):
        job, go = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", 0))
        self.folder = self.folder / Path(trainer.default_root_dir).name / f"{job:06d}-{go:03d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        given = {"words": sys.argv[1:], "began": time.time()}
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(given))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(float(os.environ["RECORD_PAUSE"]))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Go(NamedTuple):
    """What a run's ranks noted between a start and its end."""

    job: str
    words: list[list[str]]  # of each rank's command
    steps: list[list[dict]]  # of each rank
    began: float  # by the clock, in seconds
    ended: float  # with the last step


def callbacks() -> list[Recorder]:
    """For Lightning."""
    return [UnhurriedRecorder(Path(os.environ["RECORD"]))]


def install(folder: Path) -> None:
    """Write a distribution's entry point below ``folder``, which belongs on the PYTHONPATH."""
    info = folder / "noting-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)


def notes(run: Path) -> list[Go]:
    """The goes of a run that made a step, in their order; ``run``: its folder of notes."""
    # By the clock: a requeued job keeps its number, and another may have had the run meanwhile.
    goes = [read(go) for go in run.glob("*-*") if any(go.glob("rank*.jsonl"))]
    return sorted(goes, key=lambda go: go.began)


def read(go: Path) -> Go:
    """The notes of a go."""
    given = [json.loads(path.read_text()) for path in sorted(go.glob("rank*.json"))]
    return Go(
        job=str(int(go.name.split("-")[0])),
        words=[rank["words"] for rank in given],
        steps=steps(go),
        began=min(rank["began"] for rank in given),
        ended=max(path.stat().st_mtime for path in go.glob("rank*.jsonl")),
    )
