"""Loader processes: they outlive a signal that is meant for the job, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Two loader processes that look for their parent every 0.2 s, and are stuck from batch 10 on.
# Prints their numbers, then a batch a line that it is told; "end" leaves while they are stuck.
LOADER = """
import multiprocessing, sys, time
from torch.utils.data import DataLoader, _utils
from datamodules.batches import start_worker

_utils.MP_STATUS_CHECK_INTERVAL = _utils.worker.MP_STATUS_CHECK_INTERVAL = 0.2

class Batches:
    def __len__(self): return 1000
    def __getitem__(self, item):
        time.sleep(1000 if item >= 10 else 0)
        return item

loader = DataLoader(
    Batches(), batch_size=None, num_workers=2, prefetch_factor=1, persistent_workers=True,
    worker_init_fn=start_worker, multiprocessing_context="fork",
)
batches = iter(loader)
next(batches), next(batches)  # one of each
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
for line in sys.stdin:
    if line == "end\\n":
        while next(batches) < 9: pass
        break
    print(int(next(batches)), flush=True)
"""


@pytest.fixture
def loader():
    """A process with a loader, and its workers' numbers."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOADER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    yield process, workers
    for number in (process.pid, *workers):
        if runs(number):
            os.kill(number, signal.SIGKILL)
    process.communicate()


def runs(number: int) -> bool:
    """Whether a process is there and no zombie."""
    status = Path(f"/proc/{number}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(numbers: list[int]) -> bool:
    """Whether the processes end by themselves."""
    deadline = time.monotonic() + 60
    while any(map(runs, numbers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(runs, numbers))


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")


def test_workers_outlive_a_signal_to_the_job_and_end_with_a_killed_parent(loader):
    process, workers = loader
    for number in (signal.SIGTERM, signal.SIGUSR1):
        for worker in workers:
            os.kill(worker, number)
    for batch in ("2\n", "3\n", "4\n", "5\n", "6\n"):
        process.stdin.write("next\n")
        process.stdin.flush()
        assert process.stdout.readline() == batch
    assert all(map(runs, workers))
    process.kill()
    assert gone(workers)


def test_a_stuck_worker_does_not_keep_its_parent_from_ending(loader):
    """PyTorch gives it up by SIGTERM, which it ignores, and multiprocessing would wait for it."""
    process, _ = loader
    process.communicate("end\n", timeout=60)
    assert process.returncode == 0
