"""Training on two ranks: the same images as on one, stopped and resumed together."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest

from experiments import train
from experiments.config import load_config
from experiments.training.describe import describe_batch
from tests.recorded_train import steps
from tests.runs import run_folder, same_results, tiny_words

RANKS = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4", "lesions.per_batch=1"]
NAME = "lambda1.0-seed0"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Words of a narrow stage 3 in float32."""
    words = tiny_words(tmp_path_factory.mktemp("tiny"))
    return ["stage3", *words, "model.width=0.25", "trainer.precision=32-true"]


def start(tmp_path, *words, **environment):
    """Start a recorded training; its steps go to ``tmp_path / "steps"``."""
    with socket.socket() as free:  # two tests at once must not meet at one port
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.recorded_train", *words, f"run.root={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_PORT": str(port),
            "RECORD": str(tmp_path / "steps"),
            **environment,
        },
    )


def run(tmp_path, *words, **environment):
    process = start(tmp_path, *words, **environment)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return told


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """A finished run on two ranks."""
    root = tmp_path_factory.mktemp("two")
    told = run(root, *tiny, *RANKS)
    assert "4 a rank x 2 ranks = 8 images a step" in told
    assert "learning rate 0.001 (as given, whatever the batch)" in told
    assert "BatchNorm  over each rank's own 4 images" in told
    return root


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("true", "PyTorch can do this on NVIDIA's GPUs only, not on cpu; leave it out"),
        ("maybe", "expected true or false"),
    ],
)
def test_batchnorm_over_all_ranks_is_refused_where_it_cannot_be(
    tiny, tmp_path, capsys, value, said
):
    word = f"trainer.sync_batchnorm={value}"
    assert train.main([*tiny, *RANKS, f"run.root={tmp_path}", word]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: trainer.sync_batchnorm")
    assert said in told


def test_the_start_says_what_a_step_and_batchnorm_see():
    config = load_config("stage1", ["trainer.sync_batchnorm=true", "optimizer.learning_rate=4e-3"])
    trainer = SimpleNamespace(world_size=4, accumulate_grad_batches=2)
    batch, optimizer, norm = describe_batch(config, trainer, 16)
    assert batch == "batch      16 a rank x 4 ranks x 2 batches a step = 128 images a step"
    assert "learning rate 0.004 (as given" in optimizer
    assert norm == "BatchNorm  over all 64 images"
    trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)
    assert len(describe_batch(config, trainer, 16)) == 2


@pytest.mark.slow
def test_two_ranks_train_on_what_one_rank_with_a_double_batch_trains_on(tiny, tmp_path):
    """Same images, augmented alike, at each step; with BatchNorm frozen the same losses."""
    # Sums in another order differ in the last bit and training multiplies a difference: the slower
    # it learns, the longer the losses stay comparable.
    plain = [*tiny, "optimizer.average_epochs=0", "optimizer.learning_rate=1e-4"]
    run(tmp_path / "two", *plain, *RANKS, FREEZE="1")
    run(tmp_path / "one", *plain, "data.batch_size=8", "lesions.per_batch=2", FREEZE="1")
    ranks, (one,) = steps(tmp_path / "two" / "steps"), steps(tmp_path / "one" / "steps")
    assert len(ranks) == 2
    assert len(one) >= 20
    for first, second, both in zip(*ranks, one, strict=True):
        seen = zip(first["images"] + second["images"], first["sums"] + second["sums"], strict=True)
        assert sorted(seen) == sorted(zip(both["images"], both["sums"], strict=True))
    for first, second, both in list(zip(*ranks, one, strict=True))[:20]:
        assert (first["loss"] + second["loss"]) / 2 == pytest.approx(both["loss"], abs=1e-4)
    # Each val image counts once, whatever the ranks.
    first_epochs = [
        pd.read_csv(run_folder(tmp_path / name, "stage3", NAME) / "metrics.csv")
        .drop(columns="images_per_second")
        .head(1)
        for name in ("one", "two")
    ]
    pd.testing.assert_frame_equal(*first_epochs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_ranks_stopped_together_go_on_as_if_nothing_had_been(tiny, uninterrupted, tmp_path, number):
    """USR1 to one rank alone repeats no step; SIGKILL of one those since the last save."""
    words = [*tiny, *RANKS, "checkpoint.every_steps=2"]
    process = start(tmp_path, *words)
    wait_for_steps(process, tmp_path / "steps", 4)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (138 if number == signal.SIGUSR1 else -9), errors
    wait_until_alone(tmp_path)
    run(tmp_path, *words)
    same_results(run_folder(uninterrupted, "stage3", NAME), run_folder(tmp_path, "stage3", NAME))
    for whole, resumed in zip(
        steps(uninterrupted / "steps"), steps(tmp_path / "steps"), strict=True
    ):
        latest = {step["step"]: step for step in resumed}
        assert [latest[step["step"]] for step in whole] == whole
        if number == signal.SIGUSR1:
            assert resumed == whole
        else:
            assert len(resumed) - len(whole) <= 2


def wait_for_steps(process, folder, count):
    """Until the first rank has made so many steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if folder.is_dir() and (found := steps(folder)) and len(found[0]) >= count:
            return
        time.sleep(0.01)
    pytest.fail(f"no {count} steps: {process.communicate(timeout=5)[1][-2000:]}")


def wait_until_alone(root):
    """Until the other rank has noticed that the first is gone."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = subprocess.run(["pgrep", "-f", f"run.root={root}"], capture_output=True)
        if not found.stdout:
            return
        time.sleep(0.1)
    pytest.fail("a rank lives on")
