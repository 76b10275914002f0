"""Asked to stop: USR1 (a time limit or a preemption is near) and SIGTERM, and back into the queue.

Only the standard library is imported: the handlers must stand before anything that takes seconds,
since a USR1 without one kills a task, and stay to the end, where one would make a finished job
fail. Lightning's own handler saves inside the signal handler and may lose the save (issue 21406).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
# A job that SLURM is already ending, since its user cancelled it, its time is up or SLURM itself
# requeues it, is COMPLETING. Requeued then, a cancelled job would come back (SLURM 22.05).
RUNNING = "JobState=RUNNING"
# A running job that is to make room for another gets SIGTERM and some time; it has this field. Any
# other SIGTERM comes from somebody who wants this process to end, such as a sweep that stops.
PREEMPTED = "PreemptTime="
# How long another rank, stopped while it starts, leaves the first one to have the job requeued.
FIRST_RANK_SECONDS = 60.0


class Stopped(BaseException):
    """Asked to stop where nothing is to be saved. Like Ctrl-C, no ``except Exception`` meets it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopRequest:
    """Hears USR1 and SIGTERM while it is entered; ``number`` is the first one's, 0 before.

    At first a signal raises :class:`Stopped` at once: no work would be lost. One that follows is
    only remembered: whoever stops is requeueing the job. From ``defer()`` on so is the first one,
    and training stops at a batch's end, when all ranks know of it.

    Args:
        last: the process ends with this. What comes while Python shuts down, which takes a second,
            is ignored: its exit status stands. Otherwise the earlier handlers are put back.
    """

    def __init__(self, last: bool = False) -> None:
        self.number = 0
        self._last = last
        self._deferred = False
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_IGN if self._last else handler)

    def defer(self) -> None:
        """From now on remember a signal and go on; take the handlers back from whoever took them.

        Lightning's SIGTERM handler talks to the other ranks, which may be anywhere.
        """
        self._deferred = True
        self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():  # others may not
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked process inherits the handler, not the business
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
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
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
    job = this_job()
    if not job:
        return "the same command goes on from there"
    try:
        state = _slurm("scontrol", "--oneliner", "show", "job", job).split()
        if RUNNING not in state:
            return f"SLURM is ending job {job}; started again, it goes on from there"
        if number != signal.SIGUSR1 and not any(word.startswith(PREEMPTED) for word in state):
            return "the same command goes on from there"
    except (OSError, subprocess.SubprocessError):
        # Nobody cancels by USR1; by SIGTERM somebody may.
        if number != signal.SIGUSR1:
            return f"job {job} is not requeued, its state is unknown; start it again to go on"
    try:
        _slurm("scontrol", "requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        return f"job {job} cannot be requeued ({reason.strip()}); start it again to go on"
    return f"job {job} is requeued and goes on from there"


def _slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout
