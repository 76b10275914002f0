"""Batches are a pure function of (seed, epoch), and loader processes end when they should."""

import os
import signal
import subprocess
import sys

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


# Two loader processes, stuck from batch 10 on: prints their numbers, then, told to, batches 2 to 9.
LOADER = """
import multiprocessing, time
from torch.utils.data import DataLoader
from datamodules.batches import start_worker

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
input()
print(*[int(next(batches)) for _ in range(8)])
"""


def test_workers_outlive_a_signal_to_the_job_and_do_not_keep_their_parent_from_ending():
    """PyTorch gives a stuck one up by SIGTERM, which it ignores, and would wait for it."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOADER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGUSR1):
        for worker in workers:
            os.kill(worker, number)
    assert process.communicate("\n", timeout=60)[0].split() == list("23456789")
    assert process.returncode == 0
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
