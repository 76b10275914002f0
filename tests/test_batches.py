"""Batches are a pure function of (seed, epoch), and loader processes end when they should."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datamodules.batches import EvaluationBatches, TrainBatches

ROWS = np.arange(100, 203)


def collect(sampler):
    return [rows.tolist() for _, rows in sampler]


def test_an_epoch_draws_every_image_at_most_once_and_repeats_itself():
    first = TrainBatches(ROWS, 10)
    batches = collect(first)
    drawn = {row for batch in batches for row in batch}
    assert (len(batches), len(drawn)) == (10, 100)
    assert drawn <= set(ROWS.tolist())
    assert collect(TrainBatches(ROWS, 10)) == batches != collect(TrainBatches(ROWS, 10, seed=1))
    first.set_epoch(1)
    assert collect(first) != batches


def test_two_ranks_see_what_one_rank_with_a_double_batch_sees():
    lesions = ROWS[::9]
    one = collect(TrainBatches(ROWS, 12, 0, (0, 1), lesions, 4))
    ranks = [collect(TrainBatches(ROWS, 6, 0, (rank, 2), lesions, 2)) for rank in range(2)]
    assert [sorted(batch) for batch in one] == [sorted(a + b) for a, b in zip(*ranks, strict=True)]


def test_resumes_with_the_next_batch_and_all_lesions_are_used_alike():
    lesions = ROWS[:7]
    whole, resumed = (
        TrainBatches(ROWS, 10, lesion_rows=lesions, lesions_per_batch=3) for _ in range(2)
    )
    turns = []
    for epoch in range(6):
        whole.set_epoch(epoch)
        epoch_batches = collect(whole)
        turns += [row for batch in epoch_batches for row in batch[:3]]
        if epoch == 4:
            resumed.resume_at(4, 6)
            assert len(resumed) == len(epoch_batches)
            assert collect(resumed) == epoch_batches[6:]
    resumed.set_epoch(5)
    assert collect(resumed) == epoch_batches
    for start in range(0, len(turns) - 6, 7):
        assert sorted(turns[start : start + 7]) == lesions.tolist()


@pytest.mark.parametrize("batch_size", [5, 25, 40])
def test_evaluation_sees_each_row_once_and_gives_every_rank_as_many_batches(batch_size):
    """103 rows on 4 ranks: 26, 26, 26 and 25; with 25 a batch the last rank's second is empty."""
    ranks = [EvaluationBatches(ROWS, batch_size, (rank, 4)) for rank in range(4)]
    assert len({len(sampler) for sampler in ranks}) == 1
    assert [len(collect(sampler)) for sampler in ranks] == [len(sampler) for sampler in ranks]
    seen = [row for sampler in ranks for _, rows in sampler for row in rows]
    assert sorted(seen) == ROWS.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 104}, r"holds 103 images.*smaller data.batch_size"),
        ({"batch_size": 10, "lesions_per_batch": 2}, "no training image has a lesion mask"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainBatches(ROWS, **options)


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
    if not Path("/proc/self/stat").exists():
        pytest.skip("reads Linux's /proc")
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
    deadline = time.monotonic() + 60
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))


def test_a_stuck_worker_does_not_keep_its_parent_from_ending(loader):
    """PyTorch gives it up by SIGTERM, which it ignores, and multiprocessing would wait for it."""
    process, _ = loader
    process.communicate("end\n", timeout=60)
    assert process.returncode == 0
