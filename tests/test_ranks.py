"""Training on two ranks: the same images as on one, stopped and resumed together."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from tests.recorded import goes_of, install
from tests.runs import run_folder, same_results, tiny_words

pytestmark = pytest.mark.slow

RANKS = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4", "lesions.per_batch=1"]
NAME = "lambda1.0-seed0"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Words of a narrow stage 3 in float32.

    Sums in another order differ in the last bit and training multiplies a difference: the slower
    it learns, the longer the losses stay comparable.
    """
    words = tiny_words(tmp_path_factory.mktemp("tiny"))
    words += ["model.width=0.25", "trainer.precision=32-true", "trainer.max_epochs=2"]
    return ["stage3", *words, "optimizer.learning_rate=1e-4"]


def start(root, *words):
    """Start a recorded training."""
    own = {"OMP_NUM_THREADS": "1", "FREEZE": "1", "RECORD": str(root / "steps")}
    own["PYTHONPATH"] = install(root / "plugin")
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *words, f"run.root={root}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **own},
    )


def run(root, *words):
    process = start(root, *words)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return output


def steps(root):
    """The steps of each rank; a resumed run adds to them."""
    goes = goes_of(root / "steps" / NAME)
    return goes[0].steps if goes else []


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory):
    """A run of two ranks that nobody disturbed."""
    root = tmp_path_factory.mktemp("two")
    output = run(root, *tiny, *RANKS)
    assert "4 a rank x 2 ranks = 8 images a step" in output
    assert "learning rate 0.0001 (as given, whatever the batch)" in output
    assert "BatchNorm  over each rank's own 4 images" in output
    return root


def test_two_ranks_train_on_what_one_rank_with_a_double_batch_trains_on(tiny, two, tmp_path):
    """Same images, augmented alike, at each step; with BatchNorm frozen the same losses."""
    run(tmp_path, *tiny, "data.batch_size=8", "lesions.per_batch=2")
    ranks, (one,) = steps(two), steps(tmp_path)
    assert len(ranks) == 2
    assert len(one) >= 14
    for first, second, both in zip(*ranks, one, strict=True):
        seen = zip(first["images"] + second["images"], first["sums"] + second["sums"], strict=True)
        assert sorted(seen) == sorted(zip(both["images"], both["sums"], strict=True))
        assert (first["loss"] + second["loss"]) / 2 == pytest.approx(both["loss"], abs=1e-4)
    # Each val image counts once, whatever the ranks.
    files = [run_folder(root, "stage3", NAME) / "metrics.csv" for root in (tmp_path, two)]
    tables = [pd.read_csv(file, nrows=1).drop(columns="images_per_second") for file in files]
    pd.testing.assert_frame_equal(*tables, atol=1e-4, rtol=1e-4)


def test_ranks_stopped_together_go_on_as_if_nothing_had_been(tiny, two, tmp_path):
    """USR1 to one rank alone repeats no step."""
    process = start(tmp_path, *tiny, *RANKS)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (ranks := steps(tmp_path)) and ranks[0][-1]["step"] >= 4:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=120)  # both ranks write there to their end
    assert process.returncode == 138, errors
    made = steps(tmp_path)
    assert len(made[0]) == len(made[1]) < 18
    run(tmp_path, *tiny, *RANKS)
    same_results(*(run_folder(root, "stage3", NAME) for root in (two, tmp_path)))
    assert steps(tmp_path) == steps(two)
