"""The Makefile, run with a stand-in interpreter that writes down what it is asked to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.standins import calls_of, stand_in

HOUSE = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

MAKE_VENV = """
if sys.argv[1:3] == ["-m", "venv"]:
    (pathlib.Path(sys.argv[3]) / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(sys.argv[0], pathlib.Path(sys.argv[3]) / "bin" / "python")
"""


class Clone:
    """A clone without .venv, with a recording interpreter ``bin/python3`` and a plain PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, folder / ".venv"
        folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(HOUSE / name, folder / name)
        self.python = stand_in(folder / "bin" / "python3", MAKE_VENV)
        for tool in ("bash", "make", "awk", "sed", "touch", "find", "env"):
            (folder / "bin" / tool).symlink_to(shutil.which(tool) or tool)

    def make(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self.folder), "PATH": str(self.folder / "bin"), **variables}
        command = [str(self.folder / "bin" / "make"), *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60
        )

    def calls(self) -> list[list[str]]:
        calls = calls_of(self.python)
        self.environment = calls[-1][1]  # of the last
        return [words for words, _ in calls]


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
    inner = {"READY", "SOURCE", "RUN_NAME", "NODE", "LIMITS", "EACH", "CLUSTER", "FILE", "RECIPE"}
    assert {"ROOT", "STAGE", "DRY", "GPUS", "SBATCH_ARGS"} <= used
    assert used - inner <= set(re.findall(r"\b([A-Z_]+)=", done.stdout))
    assert not clone.venv.exists()


def test_a_fresh_clone_sets_up_once_then_runs_one_printed_command(clone):
    done = clone.make("stage1")
    assert done.returncode == 0, done.stderr
    _, *calls = clone.calls()  # first of all, Python's version is asked
    command = "-m experiments.train stage1"
    setup = ["-m venv .venv", "-m pip install -c constraints.txt -e .[dev]"]
    assert [" ".join(call) for call in calls] == [*setup, command]
    assert clone.environment["NO_ALBUMENTATIONS_UPDATE"] == "1"
    assert done.stdout.splitlines()[-1].strip() == f".venv/bin/python {command}"
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


@pytest.mark.parametrize("root", ["/a  b ", "/it's", '/a"b;c & d,(x) *', "/data/$HOME"])
def test_values_survive_the_shell_and_stages_run_in_the_order_given(clone, root):
    words = [f"ROOT={root}", "DATA=mura", "RUN=my $run", "ARGS=seed=1 loss.alpha=0.5"]
    assert clone.make("-j4", "stage2", "stage3", *words, PYTHON="python3").returncode == 0
    settings = ["data.name=mura", f"data.root={root}", "run.name=my $run", "seed=1"]
    assert clone.calls() == [
        ["-m", *TRAIN, stage, *settings, "loss.alpha=0.5"] for stage in ("stage2", "stage3")
    ]
    assert not clone.venv.exists()  # with an interpreter of one's own


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
        (["curve", "RUN=x"], [*SWEEP[:1], "experiments/sweep_masks.yaml", "run.name=x"]),
        (["sweep", "ARGS=a=2 --count 1", "RUN=x"], [*SWEEP, "run.name=x", "a=2", "--count", "1"]),
        (["bench", "ARGS=--quick"], ["experiments.bench", "--quick"]),
        (
            ["submit", "DRY=1", "STAGE=stage1 evaluate", "ARGS=seed=1 'run.root=x  y'", *SUBMIT],
            [*SUBMITTED, "seed=1", "run.root=x  y"],
        ),
    ],
)
def test_targets_hand_on_the_source_and_the_words(clone, words, expected):
    assert clone.make(*words, "PYTHON=python3").returncode == 0
    assert clone.calls() == [["-m", *expected]]


def test_the_recipe_trains_once_a_seed(clone):
    words = "SEEDS=0 2", "RUN=a b", "ARGS=run.root=x", "PYTHON=python3"
    assert clone.make("fractures", *words).returncode == 0
    common = ["experiments/fractures.yaml"]
    assert clone.calls() == [
        ["-m", *TRAIN, "--data-only", *common, "run.root=x"],  # its weights are fetched, too
        *[
            ["-m", *TRAIN, *common, f"seed={seed}", f"run.name=a b-seed{seed}", "run.root=x"]
            for seed in (0, 2)
        ],
    ]


def test_sync_sends_offline_runs_below_the_folders_given(clone):
    """Of test_wandb, which really sends, the rest: a space, the usual folder and a dry run."""
    file = "wandb/offline-run-20260101_000000-id1/run-id1.wandb"
    for place in (clone.folder / "runs/a b" / file, clone.folder / "elsewhere" / file):
        place.parent.mkdir(parents=True)
        place.write_bytes(b"x" * 100)
    clone.make("sync", "PYTHON=python3")
    clone.make("sync", "PYTHON=python3", "DRY=1", "ARGS=elsewhere")
    sent = [f"runs/a b/{file}"], ["--dry-run", f"elsewhere/{file}"]
    assert clone.calls() == [["-m", "wandb", "sync", *words] for words in sent]
