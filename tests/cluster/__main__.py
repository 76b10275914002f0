"""Preemption on a real SLURM: ``python -m tests.cluster [--nodes N] [--short]``.

A stage 3 of two ranks is preempted by USR1 five times, once before it trains, and one of its ranks
is killed once. It must end as a run that nobody disturbed: every step once and on the same images
(after the kill those since the last save twice), the same weights and figures, and the whole
history in W&B's files. ``run.sh`` brings the cluster up and down around it. Exit status: 0 all
held, 1 something did not (what).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from tests.cluster import slurm
from tests.cluster.noting import install, notes
from tests.cluster.slurm import Failure
from tests.runs import run_folder, same_results, tiny_words

SAVE_EVERY = 5  # steps
# What happens at which step; 0: while the job starts. An epoch has 9 steps: 17 is one before an
# epoch's last, so that the signal comes in its last step or in validation; 30 is after an epoch
# whose figures W&B holds in the very segment that the kill cuts off.
FULL = [("USR1", 4), ("USR1", 0), ("USR1", 12), ("USR1", 17), ("KILL", 30), ("USR1", 38)]
SHORT = [("USR1", 4)]


class Scene:
    """A folder, the tiny run's words and how its jobs are submitted."""

    def __init__(self, folder: Path, nodes: int, epochs: int) -> None:
        self.folder = folder
        self.jobs: list[str] = []
        self.cluster = ["--gpus=0", "--cpus=1", "--time=60", f"--nodes={nodes}"]
        self.cluster.append(f"--ranks={2 // nodes}")
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
        install(folder / "plugin")
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(folder / "plugin"), str(Path.cwd())]),
            "RECORD_PAUSE": "0.2",
            "MASTER_ADDR": "127.0.0.1",  # virtual nodes have no name that could be looked up
        }

    def run(self, module: str, *words: str, **variables: str) -> str:
        """Run one of the project's commands; its output."""
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Failure(f"{module}: {done.stderr}")
        return done.stdout

    def submit(self, name: str) -> str:
        """Submit the stage 3 run ``name``; the job's id."""
        root = f"run.root={self.folder / name}"
        variables = {"RECORD": str(self.folder / name / "notes")}
        told = self.run(
            "experiments.submit", "stage3", *self.cluster, *self.words, root, **variables
        )
        self.jobs.append(told.split()[1])
        return self.jobs[-1]

    def run_directory(self, name: str) -> Path:
        """Where the run lies."""
        return run_folder(self.folder / name, "stage3", "lambda1.0-seed0")

    def steps(self, name: str) -> list[list[list[dict]]]:
        """The steps of each go and rank."""
        return notes(self.folder / name / "notes")

    def latest(self, name: str) -> int:
        """The last step that the first rank has made; 0 before."""
        goes = [go[0][-1]["step"] for go in self.steps(name) if go and go[0]]
        return goes[-1] if goes else 0


def main() -> int:
    """Run the scene and its checks; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster")
    parser.add_argument("--nodes", type=int, choices=[1, 2], default=1, help="2 ranks on so many")
    parser.add_argument("--short", action="store_true", help="one preemption only")
    parser.add_argument("--folder", type=Path, help="keep everything there")
    arguments = parser.parse_args()
    plan, epochs = (SHORT, 2) if arguments.short else (FULL, 5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        scene = Scene(folder, arguments.nodes, epochs)
        try:
            play(scene, plan)
            check_steps(scene, plan)
            check_results(scene)
            check_wandb(scene, plan)
        except (Failure, AssertionError) as error:
            print(f"FAILED  {error}", flush=True)
            for log in sorted(folder.glob("*/slurm/*.log")):
                print(f"--- {log}\n{log.read_text()[-4000:]}")
            return 1
        finally:
            for job in scene.jobs:
                subprocess.run(["scancel", job], capture_output=True)
    return 0


def play(scene: Scene, plan: list[tuple[str, int]]) -> None:
    """Train once undisturbed, once disturbed."""
    scene.run("experiments.train", "--data-only", "stage3", *scene.words)
    job = scene.submit("whole")
    slurm.wait_for_end(job, "COMPLETED")
    say(f"undisturbed: {scene.latest('whole')} steps")
    jobs = [scene.submit("cut")]
    for kind, step in plan:
        job = jobs[-1]
        wait_for_step(scene, job, step)
        said = f"{kind} after step {scene.latest('cut')}" + ("" if step else ", while starting")
        if kind == "USR1":
            slurm.preempt(job)
        else:
            slurm.kill(job, rank=1)
            slurm.wait_for_end(job, "FAILED")
            jobs.append(scene.submit("cut"))
        say(f"{said}: went to step {scene.latest('cut')}")
    slurm.wait_for_end(jobs[-1], "COMPLETED")
    restarts = [int(slurm.show(job)["Restarts"]) for job in jobs]
    assert sum(restarts) == sum(kind == "USR1" for kind, _ in plan), restarts
    for job, count in zip(jobs, restarts, strict=True):
        (log,) = (scene.folder / "cut" / "slurm").glob(f"*-{job}.log")
        found = re.findall(r"restart (\d+):", log.read_text())
        assert found == [str(go) for go in range(count + 1)], f"{log}: restarts {found}"
    ok(f"requeued {sum(restarts)} times, each log whole, the job COMPLETED")


def wait_for_step(scene: Scene, job: str, step: int) -> None:
    """Until the run has made ``step``; 0: until both ranks of a new go have their handlers up."""

    def starting() -> bool:
        return sum(map(slurm.hears_usr1, slurm.ranks(job).values())) == 2

    def there() -> bool:
        return slurm.ended(job) or (scene.latest("cut") >= step if step else starting())

    slurm.wait_for(f"step {step} of job {job}", there)
    if slurm.ended(job):
        raise Failure(f"job {job} {slurm.state(job)} before step {step}")


def check_steps(scene: Scene, plan: list[tuple[str, int]]) -> None:
    """Every step once, on the images and with the loss of the undisturbed run."""
    (whole,) = scene.steps("whole")
    goes = scene.steps("cut")
    # A job that was stopped while it started made no step and no notes.
    kinds = [kind for kind, step in plan if step]
    assert len(goes) == len(kinds) + 1, f"{len(goes)} goes made steps"
    repeated = 0
    for rank, expected in enumerate(whole):
        by_step = {line["step"]: line for line in expected}
        done = 0
        for go, before in zip(goes, ["", *kinds], strict=True):
            first = go[rank][0]["step"]
            if before == "KILL":
                repeated = done + 1 - first
                assert 0 <= repeated <= SAVE_EVERY, f"{repeated} steps repeated after SIGKILL"
            else:
                assert first == done + 1, f"rank {rank}: step {first} follows step {done}"
            for line in go[rank]:
                done = done + 1 if line["step"] == done + 1 else line["step"]
                assert line == by_step[line["step"]], f"rank {rank}, step {done} differs"
            numbers = [line["step"] for line in go[rank]]
            assert numbers == list(range(first, first + len(numbers))), numbers
        assert done == len(expected), f"rank {rank} ends at step {done} of {len(expected)}"
    ok(
        f"{len(whole[0])} steps of {len(whole)} ranks, each once, same images, same losses"
        + (f"; {repeated} since the last save repeated after SIGKILL" if "KILL" in kinds else "")
    )


def check_results(scene: Scene) -> None:
    """Weights, optimiser and figures of both runs are equal to the last bit."""
    same_results(scene.run_directory("whole"), scene.run_directory("cut"))
    ok("weights, optimiser and metrics.csv equal to the last bit")


def check_wandb(scene: Scene, plan: list[tuple[str, int]]) -> None:
    """One id, and by W&B's own reader each epoch's figures, but for a go that was killed."""
    run = scene.run_directory("cut")
    identity = (run / "wandb_id").read_text().strip()
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert {file.stem for file in files} == {f"run-{identity}"}, files
    logged: dict[int, dict[str, float]] = {}
    for file in files:
        for line in history(file):
            if "val/loss" in line:
                logged.setdefault(int(line["trainer/global_step"]), {}).update(line)
    table = pd.read_csv(run / "metrics.csv")
    lost = [int(step) for step in table["step"] if int(step) not in logged]
    # W&B's service, killed, takes with it what it had not written; metrics.csv has those epochs.
    kinds = [kind for kind, step in plan if step]
    killed = [go[0] for go, kind in zip(scene.steps("cut"), kinds, strict=False) if kind == "KILL"]
    excused = {line["step"] for go in killed for line in go}
    assert excused.issuperset(lost), f"W&B lacks the figures of steps {lost}"
    for row in table.to_dict("records"):
        if int(row["step"]) not in lost:
            assert logged[int(row["step"])]["val/loss"] == row["val/loss"]
    ok(
        f"W&B: {len(files)} segments of one id hold {len(table) - len(lost)} of {len(table)} epochs"
        + (f"; SIGKILL lost those of steps {lost}" if lost else "")
    )


def history(file: Path) -> list[dict[str, float]]:
    """The lines that a segment logged."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = []
    for text in done.stdout.splitlines():
        record = json.loads(text)
        if record.get("type") == "history":
            lines.append(record["history"]["item"])
    return lines


STARTED = time.monotonic()


def say(text: str) -> None:
    """A line with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:5.0f} s  {text}", flush=True)


def ok(text: str) -> None:
    """A line about what held."""
    say(f"ok      {text}")


if __name__ == "__main__":
    sys.exit(main())
