"""Asked to stop by USR1 (a time limit or a preemption is near) or SIGTERM, and requeued.

Only the standard library is imported: the handlers must be in place before any slow import, since
an unhandled USR1 kills the task, and stay until the process ends, since one at shutdown would fail
a finished job.
Lightning's own handler saves inside the signal handler and may lose the save (issue 21406).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
# How long another rank, stopped while it starts, leaves the first one to have the job requeued.
FIRST_RANK_SECONDS = 60.0


class Stopped(BaseException):
    """Asked to stop where nothing is to be saved. Like Ctrl-C, no ``except Exception`` meets it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopRequest:
    """Hears USR1 and SIGTERM while it is entered; ``number`` is the first one's, 0 before.

    At first a signal raises :class:`Stopped`; one that follows is only remembered, for whoever
    stops is requeueing the job. From ``defer()`` on so is the first one, and training stops at a
    batch's end, when all ranks know of it. With ``last`` the process ends with this: what comes
    while Python shuts down is ignored, and its exit status stands.
    """

    def __init__(self, last: bool = False) -> None:
        self.number = 0
        self._last, self._deferred, self._owner = last, False, os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._last else handler)

    def defer(self) -> None:
        """From now on remember a signal and go on."""
        self._deferred = True
        # Lightning's own SIGTERM handler talks to the other ranks, which may be anywhere.
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked process inherits the handler but must not act
            return
        first = not self.number
        self.number = self.number or number
        if first and not self._deferred:
            raise Stopped(number)


def leave(number: int, saved: str) -> int:
    """Requeue this SLURM job, say what was ``saved``, and return the exit status of a signal."""
    if not is_first_rank():
        if not this_job():
            return 128 + number
        # srun --kill-on-bad-exit would kill the first rank before it has requeued the job; its end
        # is ours. Status 0 would not do: where the signal reached us alone, the others would wait.
        time.sleep(FIRST_RANK_SECONDS)
        # Still here: the first rank had just deferred signals when this came, and waits for us.
    outcome = requeue(number)
    print(f"{signal.Signals(number).name}: {saved}; {outcome}", file=sys.stderr, flush=True)
    return 128 + number


def is_first_rank() -> bool:
    """Whether this process speaks for all, as far as the environment tells."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")  # srun's shell hands on the third
    return next((os.environ[name] for name in names if os.environ.get(name)), "0") == "0"


def this_job() -> str:
    """This job as SLURM's commands name it, empty outside of SLURM.

    The last task of an array has the number of the array, by which SLURM would take all its tasks.
    """
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def requeue(number: int) -> str:
    """Put this process's SLURM job back into the queue, unless SLURM is ending it.

    Call it last: SLURM then ends all of the job's processes. Returns what was done, for people.
    """
    job, again = this_job(), "the same command goes on from there"
    if not job:
        return again
    answered, state = scontrol("--oneliner", "show", "job", job)
    # Ending already, by its user, its time or SLURM, a job is COMPLETING. Requeued then, one that
    # was cancelled would come back (SLURM 22.05). Without an answer: nobody cancels by USR1.
    if answered and "JobState=RUNNING" not in state.split():
        return f"SLURM is ending job {job}; {again}"
    # A job that is to make room for another gets SIGTERM and this field. Any other SIGTERM comes
    # from somebody who wants this process to end, such as a sweep that stops.
    if number == signal.SIGTERM and " PreemptTime=" not in state:
        return again
    requeued, reason = scontrol("requeue", job)
    problem = f"job {job} cannot be requeued ({reason}); {again}"
    return f"job {job} is requeued and goes on from there" if requeued else problem


def scontrol(*words: str) -> tuple[bool, str]:
    """Whether a command of SLURM's worked, and what it printed."""
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return False, str(error)
    return not done.returncode, (done.stdout + done.stderr).strip()
