"""What the cluster's test asks of SLURM."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

USR1_BIT = 1 << (signal.SIGUSR1 - 1)


class Failure(Exception):
    """The cluster did not do what it should; the message says what was waited for."""


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
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
