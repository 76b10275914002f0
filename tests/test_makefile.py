"""The Makefile, run with a stand-in interpreter that writes down what it is asked to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

RECORDER = """#!{python} -S
import json, os, pathlib, shutil, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
if sys.argv[1:3] == ["-m", "venv"]:
    (pathlib.Path(sys.argv[3]) / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(sys.argv[0], pathlib.Path(sys.argv[3]) / "bin" / "python")
"""


class Clone:
    """A clone without .venv, with a recording interpreter ``bin/python3`` and a plain PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, folder / ".venv"
        (folder / "bin").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(HOUSE / name, folder / name)
        recorder = folder / "bin" / "python3"
        recorder.write_text(RECORDER.format(python=sys.executable, log=str(folder / "calls")))
        recorder.chmod(0o755)
        for tool in ("bash", "make", "awk", "sed", "touch", "find", "env"):
            (folder / "bin" / tool).symlink_to(shutil.which(tool) or tool)

    def make(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self.folder), "PATH": str(self.folder / "bin"), **variables}
        command = [str(self.folder / "bin" / "make"), *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60
        )

    def calls(self) -> list[list[str]]:
        lines = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        self.environment = lines[-1][1]  # of the last
        return [words for words, _ in lines]


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "a clone")


def test_help_is_the_default_and_lists_every_target_and_variable(clone):
    done = clone.make()
    text = (HOUSE / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.*)", text, re.MULTILINE)[0].split()
    assert {"setup", "stage1", "evaluate", "doctor"} <= {*targets}
    assert [target for target in targets if f"  make {target} " not in done.stdout] == []
    used = set(re.findall(r"\b[A-Z_]{3,}(?=[),])", text))
    inner = {"READY", "SOURCE", "RUN_NAME", "NODE", "LIMITS", "EACH", "CLUSTER"}
    assert {"ROOT", "STAGE", "DRY", "GPUS", "SBATCH_ARGS"} <= used
    assert used - inner <= set(re.findall(r"\b([A-Z_]+)=", done.stdout))
    assert not clone.venv.exists()


def test_a_fresh_clone_sets_up_once_then_runs_one_printed_command(clone):
    done = clone.make("stage1")
    assert done.returncode == 0, done.stderr
    _, *calls = clone.calls()  # first of all, Python's version is asked
    command = "-m experiments.train stage1 data.name=phantom"
    setup = ["-m venv .venv", "-m pip install -c constraints.txt -e .[dev]"]
    assert [" ".join(call) for call in calls] == [*setup, command]
    assert clone.environment["NO_ALBUMENTATIONS_UPDATE"] == "1"
    assert done.stdout.splitlines()[-1] == f".venv/bin/python {command}"
    clone.make("stage1")
    assert clone.calls()[4:] == calls[-1:]  # nothing is set up again
    later = (clone.venv / ".ready").stat().st_mtime + 10
    os.utime(clone.folder / "constraints.txt", (later, later))  # changed pins set up again
    clone.make("lint")
    assert ["-m", "pip"] in [call[:2] for call in clone.calls()[5:]]


def test_without_a_suitable_python_nothing_is_set_up(clone):
    (clone.folder / "bin" / "python3").write_text(f"#!{clone.folder / 'bin' / 'bash'}\nexit 1\n")
    done = clone.make("stage1")
    assert done.returncode == 2
    assert "Python 3.10 or later is needed" in done.stderr
    assert not clone.venv.exists()


def test_own_interpreter_makes_no_venv(clone):
    assert clone.make("-j4", "stage2", "stage3", PYTHON="python3").returncode == 0
    words = [["-m", "experiments.train", f"stage{n}", "data.name=phantom"] for n in (2, 3)]
    assert clone.calls() == words  # in the order given, even with jobs
    assert not clone.venv.exists()


@pytest.mark.parametrize("root", ["/a  b ", "/it's", '/a"b;c & d,(x) *', "/data/$HOME"])
def test_values_survive_the_shell(clone, root):
    words = [f"ROOT={root}", "DATA=mura", "RUN=my $run", "ARGS=seed=1 loss.alpha=0.5"]
    assert clone.make("stage2", "PYTHON=python3", *words).returncode == 0
    settings = ["data.name=mura", f"data.root={root}", "run.name=my $run", "seed=1"]
    assert clone.calls() == [["-m", *TRAIN, "stage2", *settings, "loss.alpha=0.5"]]


TRAIN, SWEEP = ["experiments.train"], ["experiments.sweep", "experiments/sweep_lambda.yaml"]
SUBMIT = ["PARTITION=a b", "GPUS=2", "SEEDS=0 1", "SBATCH_ARGS=--comment='a  b'", "RUN=x y"]
SUBMITTED = ["experiments.submit", "--dry-run", "stage1", "evaluate", "--partition=a b"]
SUBMITTED += ["--gpus=2", "--seeds=0 1", "--sbatch-args=--comment='a  b'", "run.name=x y"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data", "ROOT=/x", "RUN=ignored"], [*TRAIN, "--data-only", "stage1", "data.root=/x"]),
        (["evaluate"], ["experiments.evaluate", "stage1", "stage2", "stage3"]),
        (
            ["report", "STAGE=stage1 stage2", "ROOT=/a b", "ARGS=--no-images"],
            ["experiments.report", "stage1", "stage2", "data.root=/a b", "--no-images"],
        ),
        (["sweep", "ARGS=a=2 --count 1", "RUN=x"], [*SWEEP, "run.name=x", "a=2", "--count", "1"]),
        (["bench", "ARGS=--quick"], ["experiments.bench", "--quick"]),
        (["doctor"], ["experiments.doctor"]),
        (
            ["submit", "DRY=1", "STAGE=stage1 evaluate", "ARGS=seed=1 'run.root=x  y'", *SUBMIT],
            [*SUBMITTED, "seed=1", "run.root=x  y"],
        ),
    ],
)
def test_targets_hand_on_the_source_and_the_words(clone, words, expected):
    assert clone.make(*words, "PYTHON=python3").returncode == 0
    (call,) = clone.calls()
    call.remove("data.name=phantom")
    assert call == ["-m", *expected]


def test_sync_sends_offline_runs_below_the_folders_given(clone):
    for place, size in [("runs/a b", 100), ("elsewhere", 100), ("runs/empty", 7)]:
        file = clone.folder / place / "wandb" / "offline-run-20260101_000000-id1" / "run-id1.wandb"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * size)
    clone.make("sync", "PYTHON=python3", WANDB_MODE="offline")
    clone.make("sync", "PYTHON=python3", "DRY=1", "ARGS=elsewhere")
    file = "wandb/offline-run-20260101_000000-id1/run-id1.wandb"
    assert clone.calls() == [
        ["-m", "wandb", "sync", f"runs/a b/{file}"],
        ["-m", "wandb", "sync", "--dry-run", f"elsewhere/{file}"],
    ]
    assert "WANDB_MODE" not in clone.environment
