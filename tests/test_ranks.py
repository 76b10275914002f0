"""Training on two ranks: the same images as on one, stopped and resumed together."""

import os
import signal
import socket
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
    """Words of a narrow stage 3 in float32."""
    words = tiny_words(tmp_path_factory.mktemp("tiny"))
    words += ["model.width=0.25", "trainer.precision=32-true", "trainer.max_epochs=2"]
    return ["stage3", *words]


def start(root, *words, **environment):
    """Start a recorded training."""
    with socket.socket() as free:  # two tests at once must not meet at one port
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), "RECORD": str(root / "steps")}
    own["PYTHONPATH"] = install(root / "plugin")
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *words, f"run.root={root}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **own, **environment},
    )


def run(root, *words, **environment):
    process = start(root, *words, **environment)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return output


def steps(root):
    """The steps of each rank; a resumed run adds to them."""
    goes = goes_of(root / "steps" / NAME)
    return goes[0].steps if goes else []


def test_two_ranks_train_on_what_one_rank_with_a_double_batch_trains_on(tiny, tmp_path):
    """Same images, augmented alike, at each step; with BatchNorm frozen the same losses."""
    # Sums in another order differ in the last bit and training multiplies a difference: the slower
    # it learns, the longer the losses stay comparable.
    plain = [*tiny, "optimizer.average_epochs=0", "optimizer.learning_rate=1e-4"]
    output = run(tmp_path / "two", *plain, *RANKS, FREEZE="1")
    assert "4 a rank x 2 ranks = 8 images a step" in output
    assert "learning rate 0.0001 (as given, whatever the batch)" in output
    assert "BatchNorm  over each rank's own 4 images" in output
    run(tmp_path / "one", *plain, "data.batch_size=8", "lesions.per_batch=2", FREEZE="1")
    ranks, (one,) = steps(tmp_path / "two"), steps(tmp_path / "one")
    assert len(ranks) == 2
    assert len(one) >= 14
    for first, second, both in zip(*ranks, one, strict=True):
        seen = zip(first["images"] + second["images"], first["sums"] + second["sums"], strict=True)
        assert sorted(seen) == sorted(zip(both["images"], both["sums"], strict=True))
        assert (first["loss"] + second["loss"]) / 2 == pytest.approx(both["loss"], abs=1e-4)
    # Each val image counts once, whatever the ranks.
    first_epochs = [
        pd.read_csv(run_folder(tmp_path / name, "stage3", NAME) / "metrics.csv")
        .drop(columns="images_per_second")
        .head(1)
        for name in ("one", "two")
    ]
    pd.testing.assert_frame_equal(*first_epochs, atol=1e-4, rtol=1e-4)


def test_ranks_stopped_together_go_on_as_if_nothing_had_been(tiny, tmp_path):
    """USR1 to one rank alone repeats no step; SIGKILL of one those since the last save."""
    run(tmp_path / "whole", *tiny, *RANKS)
    cut, words = tmp_path / "cut", [*tiny, *RANKS, "checkpoint.every_steps=2"]
    for number, step, status in [(signal.SIGUSR1, 4, 138), (signal.SIGKILL, 12, -9)]:
        process = start(cut, *words)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (ranks := steps(cut)) and ranks[0][-1]["step"] >= step:
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == status, errors
        wait_until_alone(cut)
        if number == signal.SIGUSR1:
            made = steps(cut)
    run(cut, *words)
    same_results(*(run_folder(tmp_path / name, "stage3", NAME) for name in ("whole", "cut")))
    for whole, resumed, before in zip(steps(tmp_path / "whole"), steps(cut), made, strict=True):
        latest = {step["step"]: step for step in resumed}
        assert [latest[step["step"]] for step in whole] == whole
        assert resumed[len(before)]["step"] == before[-1]["step"] + 1
        assert len(resumed) - len(whole) <= 2


def wait_until_alone(root):
    """Until the other rank has noticed that the first is gone."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left = subprocess.run(["pgrep", "-f", f"run.root={root}"], capture_output=True)
        if not left.stdout:
            return
        time.sleep(0.1)
    pytest.fail("a rank lives on")
