"""What the scenes share: a folder, a tiny stage 3, its jobs, and what they ask of SLURM."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tests.recorded import Go, goes_of, install
from tests.runs import run_folder, tiny_words

SAVE_EVERY = 5  # steps
RUN = "lambda1.0-seed0"
STARTED = time.monotonic()
USR1_BIT = 1 << (signal.SIGUSR1 - 1)


class Failure(Exception):
    """The cluster did not do what it should; the message says what was waited for."""


def call(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Failure(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def show(job: str) -> dict[str, str]:
    words = call("scontrol", "--oneliner", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def state(job: str) -> str:
    return show(job)["JobState"]


def wait_for(what: str, ready: Callable[[], bool]) -> None:
    """Poll until ``ready``, half an hour at most."""
    deadline = time.monotonic() + 1800
    while not ready():
        if time.monotonic() > deadline:
            raise Failure(f"waited 30 minutes for {what}")
        time.sleep(0.1)


def wait_in_job(job: str, what: str, ready: Callable[[], bool]) -> None:
    wait_for(f"{what} of job {job}", lambda: ended(job) or ready())
    if ended(job) and not ready():
        raise Failure(f"job {job} {state(job)} before {what}")


def preempt(job: str) -> None:
    """Ask the job to stop, as SLURM does before a time limit, and see it back in the queue.

    It starts again some seconds later (cred_expire). To hurry it there is no use: a node refuses a
    job that comes back within the second in which it left ("Job credential revoked").
    """
    restarts = int(show(job)["Restarts"])

    def requeued() -> bool:
        return state(job) == "PENDING" and int(show(job)["Restarts"]) > restarts

    call("scancel", "--signal=USR1", job)
    wait_for(f"job {job} to be requeued", lambda: requeued() or ended(job))
    if ended(job):
        raise Failure(f"job {job} was not requeued but {state(job)}")


def ended(job: str) -> bool:
    """Whether the job will not run again by itself."""
    return state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def wait_for_end(job: str, expected: str) -> None:
    """Until the job ended, as ``expected``."""
    wait_for(f"the end of job {job}", lambda: ended(job))
    if state(job) != expected:
        raise Failure(f"job {job} ended {state(job)}, expected {expected}")


def processes(job: str) -> dict[int, dict[str, str]]:
    """The environment of each process of a running job; all virtual nodes are this machine."""
    owned: dict[int, dict[str, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            environment = (folder / "environ").read_bytes().decode(errors="replace")
            variables = dict(v.partition("=")[::2] for v in environment.split("\0"))
            if variables.get("SLURM_JOB_ID") == job:
                owned[int(folder.name)] = variables
    return owned


def ranks(job: str) -> dict[int, int]:
    """The pid of each rank of a running job by its rank."""
    pids: dict[int, int] = {}
    for pid, variables in processes(job).items():
        folder = Path("/proc") / str(pid)
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            parent = re.search(r"PPid:\s+(\d+)", (folder / "status").read_text())
            above = (Path("/proc") / (parent[1] if parent else "0") / "comm").read_text()
            if b"experiments.train" in command and "slurmstepd" in above:
                pids[int(variables["SLURM_PROCID"])] = pid
    return pids


def hears_usr1(pid: int) -> bool:
    """Whether a process has put up a handler for USR1."""
    try:
        caught = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return bool(caught and int(caught[1], 16) & USR1_BIT)


def kill(job: str, rank: int) -> None:
    """SIGKILL one rank, as a machine out of memory does."""
    os.kill(ranks(job)[rank], signal.SIGKILL)


def crash(job: str) -> None:
    """SIGKILL all that a job has started, as if its node had lost power."""
    for pid in processes(job):
        with contextlib.suppress(ProcessLookupError):  # its parent's end was its own
            os.kill(pid, signal.SIGKILL)


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
        environment = self.environment | variables
        return call(sys.executable, "-m", module, *words, environment=environment)

    def sbatch(self, name: str, *words: str, **variables: str) -> str:
        """Submit a job of the folder ``name`` by sbatch; its id."""
        logs = self.folder / name / "slurm"
        logs.mkdir(parents=True, exist_ok=True)
        options = ["--parsable", "--cpus-per-task=1", "--time=60", f"--output={logs}/%x-%A_%a.log"]
        environment = self.environment | self.recording(name) | variables
        self.jobs.append(call("sbatch", *options, *words, environment=environment))
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


def each_step_once(goes: list[Go], cut_off: Collection[float] = ()) -> list[dict[int, dict]]:
    """The steps of each rank by their number.

    After a go of ``cut_off`` (when it began), which was killed, those since the last save may be
    made twice.
    """
    ranks: list[dict[int, dict]] = [{} for _ in goes[0].steps]
    for before, go in zip([None, *goes], goes, strict=False):
        for seen, lines in zip(ranks, go.steps, strict=True):
            numbers = [line["step"] for line in lines]
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), numbers
            again = len(seen) + 1 - numbers[0]
            allowed = SAVE_EVERY if before and before.began in cut_off else 0
            assert 0 <= again <= allowed, f"{again} steps again after step {len(seen)}"
            for line in lines:
                assert seen.setdefault(line["step"], line) == line, line
    return ranks


def say(text: str) -> None:
    """A line with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:5.0f} s  {text}", flush=True)
