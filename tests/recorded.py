"""A Lightning callback that writes down every step of a training, without a change to its command.

Lightning loads it by the entry point that :func:`install` lays on the PYTHONPATH. RECORD names the
folder. FREEZE=1 keeps BatchNorm at its running statistics, so that an image's loss does not depend
on the images that share its rank. RECORD_PAUSE seconds a step leave time to interrupt it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

from pytorch_lightning import Callback
from torch import nn

ENTRY_POINT = "[pytorch_lightning.callbacks_factory]\nrecorded = tests.recorded:callbacks\n"


class Recorder(Callback):
    """Writes down its command and a line a step and rank, in a folder a run, job and go."""

    def on_train_start(self, trainer, pl_module):
        job, go = (os.environ.get(f"SLURM_{name}", 0) for name in ("JOB_ID", "RESTART_COUNT"))
        run = Path(os.environ["RECORD"]) / Path(trainer.default_root_dir).name
        self.folder = run / f"{int(job):06d}-{int(go):03d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.given = {"words": sys.argv[1:], "began": time.time()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for module in pl_module.modules() if os.environ.get("FREEZE") else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(float(os.environ.get("RECORD_PAUSE", 0)))
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        step = {
            "step": trainer.global_step,
            "images": batch["index"].tolist(),
            "sums": batch["image"].double().sum((1, 2, 3)).tolist(),
            "loss": float(loss),
        }
        line = json.dumps({**self.given, "ended": time.time(), "step": step})
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as handle:
            handle.write(line + "\n")


class Go(NamedTuple):
    """What a run's ranks wrote down between a start and its end."""

    job: str
    words: list[list[str]]  # of each rank's command
    steps: list[list[dict]]  # of each rank
    began: float  # by the clock, in seconds
    ended: float  # with the last step


def callbacks() -> list[Recorder]:
    return [Recorder()]


def install(folder: Path) -> str:
    """Write a distribution's entry point below ``folder``; a PYTHONPATH that has it."""
    info = folder / "recorded-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recorded\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    return os.pathsep.join([str(folder), str(Path.cwd())])


def goes_of(run: Path) -> list[Go]:
    """The goes of a run that made a step, in their order; ``run``: its folder below RECORD."""
    # By the clock: a requeued job keeps its number, and another may have had the run meanwhile.
    goes = [go for path in run.glob("*-*") if (go := read(path)).steps]
    return sorted(goes, key=lambda go: go.began)


def read(folder: Path) -> Go:
    texts = [path.read_text() for path in sorted(folder.glob("rank*.jsonl"))]
    ranks = [[json.loads(line) for line in text.splitlines()] for text in texts if text]
    return Go(
        job=str(int(folder.name.split("-")[0])),
        words=[rank[0]["words"] for rank in ranks],
        steps=[[line["step"] for line in rank] for rank in ranks],
        began=min((rank[0]["began"] for rank in ranks), default=0),
        ended=max((rank[-1]["ended"] for rank in ranks), default=0),
    )
