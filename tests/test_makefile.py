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

from experiments import latest
from tests import real

HOUSE = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

RECORDER = """#!{python} -S
import json, os, pathlib, shutil, sys
if sys.argv[1:3] == ["-m", "experiments.latest"]:
    sys.path.insert(0, {house!r})
    from experiments import latest
    sys.exit(latest.main(sys.argv[3:]))
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
with open({log!r} + ".environment", "w") as file:
    json.dump(dict(os.environ), file)
if sys.argv[1:3] == ["-m", "venv"]:
    (pathlib.Path(sys.argv[3]) / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(sys.argv[0], pathlib.Path(sys.argv[3]) / "bin" / "python")
"""


@pytest.fixture
def clone(tmp_path):
    """A clone without .venv, with a recording interpreter ``bin/python3`` and a plain PATH."""
    folder = tmp_path / "a clone"
    (folder / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(HOUSE / name, folder / name)
    recorder = folder / "bin" / "python3"
    log = str(folder / "calls")
    recorder.write_text(RECORDER.format(python=sys.executable, log=log, house=str(HOUSE)))
    recorder.chmod(0o755)
    for tool in ("bash", "make", "awk", "sed", "touch", "find", "env"):
        (folder / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    return folder


def make(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    own = ("PYTHON", "DECISION", "NO_ALB")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment |= {"PATH": str(folder / "bin"), **variables}
    return subprocess.run(
        [str(folder / "bin" / "make"), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(folder: Path) -> list[list[str]]:
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def environment(folder: Path) -> dict[str, str]:
    return json.loads((folder / "calls.environment").read_text())


def test_help_is_the_default_and_lists_every_target_and_variable(clone):
    done = make(clone)
    assert done.returncode == 0
    targets = "setup test lint data stage1 stage2 stage3 evaluate report sweep bench submit sync"
    for target in [*targets.split(), "doctor"]:
        assert f"  make {target} " in done.stdout
    used = set(re.findall(r"\b[A-Z_]{3,}(?=[),])", (HOUSE / "Makefile").read_text()))
    inner = {"READY", "SOURCE", "RUN_NAME", "NODE", "LIMITS", "EACH", "CLUSTER"}
    assert {"ROOT", "STAGE", "DRY", "GPUS", "SBATCH_ARGS"} <= used
    assert used - inner <= set(re.findall(r"\b([A-Z_]+)=", done.stdout))
    assert not (clone / ".venv").exists()


def test_a_fresh_clone_sets_up_once_then_runs_one_printed_command(clone):
    done = make(clone, "stage1")
    assert done.returncode == 0, done.stderr
    check, venv, install, train = calls(clone)
    assert check[0] == "-c"
    assert venv == ["-m", "venv", ".venv"]
    assert install == ["-m", "pip", "install", "-c", "constraints.txt", "-e", ".[dev]"]
    assert train == ["-m", "experiments.train", "stage1", "data.name=phantom"]
    printed = ".venv/bin/python -m experiments.train stage1 data.name=phantom"
    assert done.stdout.splitlines()[-1] == printed
    make(clone, "stage1")
    assert calls(clone)[4:] == [train]  # nothing is set up again
    later = (clone / ".venv" / ".ready").stat().st_mtime + 10
    os.utime(clone / "constraints.txt", (later, later))  # changed pins set up again
    make(clone, "lint")
    assert ["-m", "pip"] in [call[:2] for call in calls(clone)[5:]]


def test_without_a_suitable_python_nothing_is_set_up(clone):
    (clone / "bin" / "python3").write_text(f"#!{clone / 'bin' / 'bash'}\nexit 1\n")
    done = make(clone, "stage1")
    assert done.returncode == 2
    assert "Python 3.10 or later is needed" in done.stderr
    assert not (clone / ".venv").exists()


def test_own_interpreter_makes_no_venv(clone):
    assert make(clone, "stage1", "PYTHON=python3").returncode == 0
    assert make(clone, "-j4", "stage2", "stage3", PYTHON="python3").returncode == 0
    words = [["-m", "experiments.train", f"stage{n}", "data.name=phantom"] for n in (1, 2, 3)]
    assert calls(clone) == words  # in the order given, even with jobs
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("root", ["/a  b ", "/it's", '/a"b', "/a;b & c,(x) *", "/data/$HOME"])
def test_values_survive_the_shell(clone, root):
    words = [f"ROOT={root}", "DATA=mura", "RUN=my $run", "ARGS=seed=1 loss.alpha=0.5"]
    assert make(clone, "stage2", "PYTHON=python3", *words).returncode == 0
    settings = ["data.name=mura", f"data.root={root}", "run.name=my $run", "seed=1"]
    assert calls(clone) == [["-m", "experiments.train", "stage2", *settings, "loss.alpha=0.5"]]


TRAIN, SWEEP = ["experiments.train"], ["experiments.sweep", "experiments/sweep_lambda.yaml"]
SUBMIT = ["PARTITION=a b", "GPUS=2", "SEEDS=0 1", "SBATCH_ARGS=--comment='a  b'", "RUN=x y"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data", "ROOT=/x", "RUN=ignored"], [*TRAIN, "--data-only", "stage1", "data.root=/x"]),
        (["sweep", "ARGS=a=2 --count 1", "RUN=x"], [*SWEEP, "run.name=x", "a=2", "--count", "1"]),
        (["bench", "ARGS=--quick"], ["experiments.bench", "--quick"]),
        (["doctor"], ["experiments.doctor"]),
        (["submit"], ["experiments.submit"]),
        (
            ["submit", "DRY=1", "STAGE=stage1 evaluate", "ARGS=seed=1 'run.root=x  y'", *SUBMIT],
            [
                *("experiments.submit", "--dry-run", "stage1", "evaluate", "--partition=a b"),
                *("--gpus=2", "--seeds=0 1", "--sbatch-args=--comment='a  b'"),
                *("run.name=x y", "seed=1", "run.root=x  y"),
            ],
        ),
    ],
)
def test_targets_hand_on_the_source_and_the_words(clone, words, expected):
    assert make(clone, *words, "PYTHON=python3").returncode == 0
    (call,) = calls(clone)
    call.remove("data.name=phantom")
    assert call == ["-m", *expected]


@pytest.fixture
def runs(clone, monkeypatch):
    """Runs below a clone, each later than the one before; the last is not trained."""
    monkeypatch.chdir(clone)
    names = "stage1/old", "stage1/new run", "stage3/seed0"
    for age, run in enumerate(
        [*(f"runs/phantom/{name}" for name in names), "a b/phantom/stage1/x"]
    ):
        best = clone / run / "checkpoints" / "best.ckpt"
        best.parent.mkdir(parents=True)
        best.touch()
        os.utime(best, (1000 + age, 1000 + age))
    (clone / "runs/phantom/stage2/untrained/checkpoints").mkdir(parents=True)


def test_evaluate_and_report_take_the_latest_trained_run_of_each_stage(clone, runs):
    words = ["report", "ARGS=--no-images", "ROOT=/a b", "PYTHON=python3"]
    done = make(clone, *words)
    assert done.returncode == 0, done.stderr
    taken = ["runs/phantom/stage1/new run", "runs/phantom/stage3/seed0"]
    expected = ["-m", "experiments.report", *taken, "data.root=/a b", "--no-images"]
    assert "+ python3 -m experiments.report " in done.stderr
    assert make(clone, "evaluate", "ARGS='run.root=a b'", "PYTHON=python3").returncode == 0
    evaluate = ["-m", "experiments.evaluate", "a b/phantom/stage1/x", "run.root=a b"]
    assert calls(clone) == [expected, evaluate]
    assert make(clone, "evaluate", "DATA=mura", "PYTHON=python3").returncode == 2


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--stages=stage1", "run.name=old", "--split", "val"], 0, "runs/phantom/stage1/old\n"),
        (["run.name=x"], 2, "no trained run runs/phantom/*/x; there are: runs/phantom/stage1/new"),
        (["data.name=mura"], 2, "to train one: make stage1 DATA=mura"),
        (["run.root=nowhere"], 2, "no trained run nowhere/phantom/*/*; there are: none"),
    ],
)
def test_the_latest_runs_are_printed_or_a_way_out(runs, capsys, words, status, message):
    assert latest.main(words) == status
    assert message in "".join(capsys.readouterr())


def test_sync_sends_offline_runs_below_the_folders_given(clone):
    for place, size in [("runs/a b", 100), ("elsewhere", 100), ("runs/empty", 7)]:
        file = clone / place / "wandb" / "offline-run-20260101_000000-id1" / "run-id1.wandb"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * size)
    make(clone, "sync", "PYTHON=python3", WANDB_MODE="offline")
    make(clone, "sync", "PYTHON=python3", "DRY=1", "ARGS=elsewhere")
    file = "wandb/offline-run-20260101_000000-id1/run-id1.wandb"
    assert calls(clone) == [
        ["-m", "wandb", "sync", f"runs/a b/{file}"],
        ["-m", "wandb", "sync", "--dry-run", f"elsewhere/{file}"],
    ]
    assert "WANDB_MODE" not in environment(clone)


def test_what_tests_are_given(clone):
    (clone.parent / "shared" / "data").mkdir(parents=True)
    for given, expected in [(None, "../shared/data"), ("/x", "/x"), ("", "")]:
        variables = {} if given is None else {real.VARIABLE: given}
        make(clone, "test", "PYTHON=python3", **variables)
        assert environment(clone)[real.VARIABLE] == expected
    assert environment(clone)["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_tests_on_real_radiographs_skip_and_say_why(tmp_path, monkeypatch):
    monkeypatch.setenv(real.VARIABLE, "")
    with pytest.raises(pytest.skip.Exception, match="name their folder in DECISION"):
        real.real_data("set")
    monkeypatch.setenv(real.VARIABLE, str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"no real radiographs at .*set; correct DEC"):
        real.real_data("set")
    (tmp_path / "set").mkdir()
    assert real.real_data("set") == tmp_path / "set"
