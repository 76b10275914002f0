"""Whole runs on the card through the commands that people use."""

import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from experiments.runs import read_checkpoint
from tests.runs import kill_at_step, run_folder, same_results, tiny_words

pytestmark = pytest.mark.gpu

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # else cuBLAS sums in any order
NAME = "lambda1.0-seed0"
EPOCHS = 3  # of tiny_words


@pytest.fixture(scope="module")
def words(root, device):
    """A run of stage 3 whose steps are the same each time, as far as PyTorch can."""
    own = [f"trainer.accelerator={device.type}", "trainer.deterministic=warn"]
    return ["stage3", *tiny_words(root), *own]


def run(command, *words):
    """Run a command of the project; return what it warned of."""
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{command}", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def uninterrupted(words, tmp_path_factory):
    """A finished run, and the operations that PyTorch called not deterministic in it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    warned = run("train", *words, f"run.root={folder}")
    names = set(re.findall(r"(\w+) does not have a deterministic implementation", warned))
    return run_folder(folder, "stage3", NAME), sorted(names)


def test_a_resumed_run_equals_an_uninterrupted_one(words, uninterrupted, tmp_path, record_property):
    whole, random_operations = uninterrupted
    words = [*words, f"run.root={tmp_path}", "checkpoint.every_steps=1"]
    resumed = run_folder(tmp_path, "stage3", NAME)
    steps = read_checkpoint(whole / "checkpoints" / "last.ckpt")["global_step"]
    kill_at_step(words, resumed, steps // EPOCHS + 1)
    assert read_checkpoint(resumed / "checkpoints" / "last.ckpt")["global_step"] < steps
    run("train", *words)
    record_property("not deterministic", ", ".join(random_operations) or "nothing")
    if not random_operations:
        same_results(whole, resumed)
    losses = [pd.read_csv(run / "metrics.csv")["train/loss"].tolist() for run in (whole, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # sums in another order, over a training


def test_checkpoints_travel_to_the_cpu_and_back(words, uninterrupted, device, tmp_path):
    run_there = run_folder(tmp_path, "stage3", NAME)
    shutil.copytree(uninterrupted[0], run_there)
    for epochs, accelerator in ((EPOCHS + 1, "cpu"), (EPOCHS + 2, device.type)):
        longer = [f"trainer.max_epochs={epochs}", f"trainer.accelerator={accelerator}"]
        run("train", *words, f"run.root={tmp_path}", *longer)
        assert pd.read_csv(run_there / "metrics.csv")["train/loss"].count() == epochs


def test_a_checkpoint_of_the_card_becomes_onnx(uninterrupted, tmp_path):
    """The command itself compares the file's answers with PyTorch's."""
    run("export", str(uninterrupted[0]), "--out", str(tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx").stat().st_size > 1e5
