"""Tiny runs that are trained once a test session, for all tests that use a trained run.

Ask for a run before you patch anything: the first test that asks trains it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path

import pytest

from datamodules.files import locked
from tests.runs import run_folder, tiny_words

NAMES = {"stage1": "seed0", "stage2": "seed0", "stage3": "lambda1.0-seed0"}


class Trained:
    """Run directories of three epochs; never change one, see :meth:`copy`.

    Attributes:
        root: their ``run.root``, on which ``.words`` do not decide.
        words: of their configuration, without ``run.root``.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "runs"
        self.words = [*tiny_words(folder), "model.width=0.25", "lesions.per_batch=2"]

    stage1 = property(lambda self: self._train("stage1", 0))
    stage2 = property(lambda self: self._train("stage2", 0))
    stage3 = property(lambda self: self._train("stage3", 0))
    second = property(lambda self: self._train("stage1", 1))  # stage 1 of seed 1

    def copy(self, stage: str, root: Path) -> Path:
        """A run (``stage1`` to ``stage3`` or ``second``) as if trained with ``run.root={root}``."""
        run: Path = getattr(self, stage)
        return Path(shutil.copytree(run, root / run.relative_to(self.root)))

    def _train(self, stage: str, seed: int) -> Path:
        from experiments import train  # not before the environment is set

        run = run_folder(self.root, stage, NAMES[stage].replace("seed0", f"seed{seed}"))
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / f"{stage}-{seed}.lock"):  # the workers of pytest-xdist share them
            done = self.root / f"{stage}-{seed}.done"
            if not done.exists():
                out = io.StringIO()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                    words = [stage, f"seed={seed}", f"run.root={self.root}", *self.words]
                    assert train.main(words) == 0, out.getvalue()
                done.touch()
        return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One tiny run of each stage and a second seed, shared by all workers."""
    base = tmp_path_factory.getbasetemp()
    return Trained((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained")
