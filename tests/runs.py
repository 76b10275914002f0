"""Tiny runs: trained and judged once for all tests that use one, killed, compared, locked."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from datamodules.files import locked
from experiments import evaluate, train
from experiments.runs import read_checkpoint

NAMES = {"stage1": "seed0", "stage2": "seed0", "stage3": "lambda1.0-seed0"}


def tiny_words(root: Path) -> list[str]:
    """Words for a run of seconds: 80 phantom images at 64 px, 3 epochs of 7 to 9 steps."""
    return [
        f"data.root={root / 'phantom'}",
        f"data.cache_dir={root / 'cache'}",
        "data.count=80",
        "data.image_size=64",
        "data.batch_size=8",
        "trainer.max_epochs=3",
        "trainer.accelerator=cpu",
        "logger.wandb=off",
    ]


def run_folder(root: Path, stage: str = "stage1", name: str = "seed0") -> Path:
    """Where a run of the tiny phantom lies."""
    return root / "phantom" / stage / name


def same_results(one: Path, other: Path) -> None:
    """Weights, optimiser and logged figures are equal to the last bit; speed may differ."""
    a, b = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, other))
    assert a["global_step"] == b["global_step"]
    for kind in ("state_dict", "current_model_state"):  # the average and the latest
        for name, weights in a[kind].items():
            assert torch.equal(weights, b[kind][name]), (kind, name)
    states = (content["optimizer_states"][0]["state"].values() for content in (a, b))
    for state_a, state_b in zip(*states, strict=True):
        assert torch.equal(state_a["exp_avg"], state_b["exp_avg"])
    tables = [
        pd.read_csv(run / "metrics.csv").drop(columns="images_per_second") for run in (one, other)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def kill_at_step(
    words: list[str], run: Path, step: int, number: int = signal.SIGKILL
) -> tuple[subprocess.Popen[str], str]:
    """Train in processes of their own and signal all when a save at ``step`` or later is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        start_new_session=True,
    )
    last = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if last.is_file() and read_checkpoint(last)["global_step"] >= step:
            break
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert last.is_file(), errors[-2000:]
    return process, errors


@contextlib.contextmanager
def hold(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, as long as it lives the owner of the lock ``path``, and its fork."""
    code = "lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); print(flush=True)"
    code = f"import fcntl, os, sys, time; {code}; os.fork(); time.sleep(60)"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            process.stdout.readline()
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that the first to ask makes for all workers of pytest-xdist."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        done = folder.with_name(f"{folder.name}.done")
        if not done.exists():
            make(folder)
            done.touch()
    return folder


def shared(factory: pytest.TempPathFactory, name: str) -> Path:
    """A path that all workers of pytest-xdist have in common."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name


def quiet(main: Callable[[list[str]], int], words: list[str]) -> None:
    """Run a command, of which nothing is printed unless it fails."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        assert main(words) == 0, out.getvalue()


class Trained:
    """Run directories of three epochs; never change one, see :meth:`copy`.

    Ask for a run before you patch anything: the first test that asks trains it. ``words`` are those
    of their configuration but ``run.root``, which is ``root``.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "runs"
        self.words = [*tiny_words(folder), "model.width=0.25", "lesions.per_batch=2"]
        self.words += ["model.dropout=0.1"]  # draws in each step

    stage1 = property(lambda self: self._train("stage1", 0))
    stage2 = property(lambda self: self._train("stage2", 0))
    stage3 = property(lambda self: self._train("stage3", 0))
    second = property(lambda self: self._train("stage1", 1))  # stage 1 of seed 1

    @property
    def judged(self) -> Path:
        """The root of copies of all four that were judged on test and compared in one go."""

        def judge(root: Path) -> None:
            runs = [self.copy(name, root) for name in (*NAMES, "second")]
            quiet(evaluate.main, [*map(str, runs), "--compare"])

        return once(self.root.with_name("judged"), judge)

    def copy(self, stage: str, root: Path, judged: bool = False) -> Path:
        """A run (``stage1`` to ``stage3`` or ``second``) as if trained with ``run.root={root}``."""
        run = getattr(self, stage).relative_to(self.root)
        return Path(shutil.copytree((self.judged if judged else self.root) / run, root / run))

    def again(self, run: Path, *words: str) -> int:
        """Run the training command of a copy again; the status."""
        stage, root = run.parent.name, run.parents[2]
        return train.main([stage, f"run.root={root}", *self.words, *words])

    def _train(self, stage: str, seed: int) -> Path:
        words = [stage, f"seed={seed}", f"run.root={self.root}", *self.words]
        once(self.root / f"{stage}-{seed}", lambda _: quiet(train.main, words))
        return run_folder(self.root, stage, NAMES[stage].replace("seed0", f"seed{seed}"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One tiny run of each stage and a second seed, shared by all workers."""
    return Trained(shared(tmp_path_factory, "trained"))
