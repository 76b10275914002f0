"""What the scenes on a cluster share: a folder, a tiny stage 3, its jobs and what they noted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

from tests.cluster import slurm
from tests.cluster.slurm import Failure
from tests.recorded import Go, goes_of, install
from tests.runs import run_folder, tiny_words

SAVE_EVERY = 5  # steps
RUN = "lambda1.0-seed0"
STARTED = time.monotonic()


class Scene:
    """A folder, the tiny run's words and the jobs that were submitted."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder = folder
        self.epochs = epochs
        self.jobs: list[str] = []
        self.words = [
            *tiny_words(folder),
            f"trainer.max_epochs={epochs}",
            "data.batch_size=4",
            "lesions.per_batch=1",
            "model.width=0.25",
            "trainer.precision=32-true",
            f"checkpoint.every_steps={SAVE_EVERY}",
            "logger.wandb=offline",
        ]
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": install(folder / "plugin"),
            "RECORD_PAUSE": "0.2",
            "MASTER_ADDR": "127.0.0.1",  # virtual nodes have no name that could be looked up
        }

    def prepare_data(self) -> None:
        """As ``make data`` on a login node."""
        self.run("experiments.train", "--data-only", "stage3", *self.words)

    def run(self, module: str, *words: str, **variables: str) -> str:
        return self._call([sys.executable, "-m", module, *words], variables)

    def sbatch(self, name: str, *words: str, **variables: str) -> str:
        """Submit a job of the folder ``name`` by sbatch; its id."""
        logs = self.folder / name / "slurm"
        logs.mkdir(parents=True, exist_ok=True)
        options = ["--parsable", "--cpus-per-task=1", "--time=60", f"--output={logs}/%x-%A_%a.log"]
        self.jobs.append(self._call(["sbatch", *options, *words], self.recording(name) | variables))
        return self.jobs[-1]

    def recording(self, name: str) -> dict[str, str]:
        """The variable by which trainings of the folder ``name`` leave their notes there."""
        return {"RECORD": str(self.folder / name / "notes")}

    def run_directory(self, name: str, run: str = RUN) -> Path:
        return run_folder(self.folder / name, "stage3", run)

    def goes(self, name: str, run: str = RUN) -> list[Go]:
        return goes_of(self.folder / name / "notes" / run)

    def latest(self, name: str, run: str = RUN) -> int:
        """The last step that the first rank has made; 0 before."""
        goes = [go.steps[0][-1]["step"] for go in self.goes(name, run) if go.steps and go.steps[0]]
        return goes[-1] if goes else 0

    def cancel_all(self) -> None:
        for job in self.jobs:
            subprocess.run(["scancel", job], capture_output=True)

    def _call(self, command: list[str], variables: dict[str, str]) -> str:
        done = subprocess.run(
            command, env={**self.environment, **variables}, capture_output=True, text=True
        )
        if done.returncode:
            raise Failure(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip()


def wait_in_job(job: str, what: str, ready) -> None:
    slurm.wait_for(f"{what} of job {job}", lambda: slurm.ended(job) or ready())
    if slurm.ended(job) and not ready():
        raise Failure(f"job {job} {slurm.state(job)} before {what}")


def each_step_once(
    goes: list[Go], cut_off: Collection[float] = ()
) -> tuple[list[dict[int, dict]], int]:
    """The steps of each rank by their number, and how many were made twice.

    After a go of ``cut_off`` (when it began), which was killed, those since the last save may be.
    """
    ranks: list[dict[int, dict]] = [{} for _ in goes[0].steps]
    repeated = 0
    for before, go in zip([None, *goes], goes, strict=False):
        for seen, lines in zip(ranks, go.steps, strict=True):
            numbers = [line["step"] for line in lines]
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), numbers
            again = len(seen) + 1 - numbers[0]
            allowed = SAVE_EVERY if before and before.began in cut_off else 0
            assert 0 <= again <= allowed, f"{again} steps again after step {len(seen)}"
            for line in lines:
                assert seen.setdefault(line["step"], line) == line, line
        repeated += again
    return ranks, repeated


def say(text: str) -> None:
    """A line with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:5.0f} s  {text}", flush=True)


def ok(text: str) -> None:
    say(f"ok      {text}")
