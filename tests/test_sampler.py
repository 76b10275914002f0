"""Batches are a pure function of (seed, epoch), whatever the ranks and restarts."""

import numpy as np
import pytest

from datamodules.batches import EvaluationBatches, TrainBatches

ROWS = np.arange(100, 203)


def collect(sampler: TrainBatches) -> list[list[int]]:
    return [rows.tolist() for _, rows in sampler]


def test_an_epoch_draws_every_image_at_most_once_and_repeats_itself() -> None:
    first = TrainBatches(ROWS, 10)
    batches = collect(first)
    drawn = {row for batch in batches for row in batch}
    assert (len(batches), len(drawn)) == (10, 100)
    assert drawn <= set(ROWS.tolist())
    assert collect(TrainBatches(ROWS, 10)) == batches != collect(TrainBatches(ROWS, 10, seed=1))
    first.set_epoch(1)
    assert collect(first) != batches


def test_two_ranks_see_what_one_rank_with_a_double_batch_sees() -> None:
    lesions = ROWS[::9]
    one = collect(TrainBatches(ROWS, 12, 0, (0, 1), lesions, 4))
    ranks = [collect(TrainBatches(ROWS, 6, 0, (rank, 2), lesions, 2)) for rank in range(2)]
    assert [sorted(batch) for batch in one] == [sorted(a + b) for a, b in zip(*ranks, strict=True)]


def test_resumes_with_the_next_batch_and_then_goes_on_as_ever() -> None:
    whole = TrainBatches(ROWS, 10, lesion_rows=ROWS[:7], lesions_per_batch=3)
    whole.set_epoch(4)
    expected = collect(whole)
    resumed = TrainBatches(ROWS, 10, lesion_rows=ROWS[:7], lesions_per_batch=3)
    resumed.resume_at(4, 6)
    assert len(resumed) == len(expected)
    assert collect(resumed) == expected[6:]
    resumed.set_epoch(5)
    whole.set_epoch(5)
    assert collect(resumed) == collect(whole)


def test_every_batch_holds_its_lesions_and_all_are_used_alike() -> None:
    lesions = ROWS[:10]
    sampler = TrainBatches(ROWS, 10, lesion_rows=lesions, lesions_per_batch=2)
    turns = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        for _, rows in sampler:
            assert set(rows[:2]) <= set(lesions)
            turns.extend(rows[:2])
    for start in range(0, len(turns) - 9, 10):
        assert sorted(turns[start : start + 10]) == lesions.tolist()


@pytest.mark.parametrize("batch_size", [5, 25, 26, 40])
def test_evaluation_sees_each_row_once_and_gives_every_rank_as_many_batches(batch_size) -> None:
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
        ({"batch_size": 4, "lesion_rows": ROWS, "lesions_per_batch": 4}, "leaves no room"),
    ],
)
def test_what_does_not_fit_is_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        TrainBatches(ROWS, **options)
