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


def trained(folder: Path, *runs: str) -> None:
    """Lay runs below ``folder``, each later than the one before."""
    for age, run in enumerate(runs):
        best = folder / run / "checkpoints" / "best.ckpt"
        best.parent.mkdir(parents=True)
        best.touch()
        os.utime(best, (1000 + age, 1000 + age))


def test_help_is_the_default_and_lists_every_target_and_variable(clone):
    done = make(clone)
    assert done.returncode == 0
    assert done.stdout == make(clone, "help").stdout
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


def test_failed_set_up_is_tried_again(clone):
    (clone / "bin" / "touch").unlink()  # whatever breaks before the end
    assert make(clone, "stage1").returncode != 0
    assert not (clone / ".venv" / ".ready").exists()
    assert "experiments.train" not in str(calls(clone))


def test_no_suitable_python_or_a_later_one_beside_it(clone):
    recorder = (clone / "bin" / "python3").rename(clone / "bin" / "python3.12")
    (clone / "bin" / "python3").write_text(f"#!{clone / 'bin' / 'bash'}\nexit 1\n")
    (clone / "bin" / "python3").chmod(0o755)
    assert make(clone, "setup").returncode == 0
    assert calls(clone)[1] == ["-m", "venv", ".venv"]
    shutil.rmtree(clone / ".venv")
    recorder.unlink()
    done = make(clone, "stage1")
    assert done.returncode == 2
    assert "Python 3.10 or later is needed" in done.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("by_environment", [True, False])
def test_own_interpreter_makes_no_venv(clone, by_environment):
    shutil.copy(clone / "bin" / "python3", clone / "bin" / "mine")
    words = [] if by_environment else ["PYTHON=mine"]
    done = make(clone, "stage1", *words, **({"PYTHON": "mine"} if by_environment else {}))
    assert done.returncode == 0, done.stderr
    assert calls(clone) == [["-m", "experiments.train", "stage1", "data.name=phantom"]]
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    "root", ["/a b/c", "/a  b ", "/it's", "/a,b", '/a"b', "/a;b & c", "/(x) *", "/data/$HOME"]
)
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


def test_stages_run_in_the_order_given_even_with_jobs(clone):
    done = make(clone, "-j4", "stage1", "stage2", "stage3", "PYTHON=python3")
    assert done.returncode == 0, done.stderr
    assert [call[2] for call in calls(clone)] == ["stage1", "stage2", "stage3"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate"], ["stage1/new run", "stage3/seed0"]),
        (["evaluate", "STAGE=stage1", "RUN=old"], ["stage1/old"]),
        (["evaluate", "ARGS=--split val"], ["stage1/new run", "stage3/seed0", "--split", "val"]),
        (
            ["report", "ARGS=--no-images", "ROOT=/a b"],
            ["stage1/new run", "stage3/seed0", "data.root=/a b", "--no-images"],
        ),
    ],
)
def test_evaluate_and_report_take_the_latest_trained_run_of_each_stage(clone, words, expected):
    place = "runs/phantom/"
    trained(clone, *(f"{place}{run}" for run in ("stage1/old", "stage1/new run", "stage3/seed0")))
    (clone / place / "stage2" / "untrained" / "checkpoints").mkdir(parents=True)
    done = make(clone, *words, "PYTHON=python3")
    assert done.returncode == 0, done.stderr
    runs = [f"{place}{word}" if word.startswith("stage") else word for word in expected]
    assert calls(clone) == [["-m", f"experiments.{words[0]}", *runs]]
    assert f"+ python3 -m experiments.{words[0]} " in done.stderr


@pytest.mark.parametrize("root", ["elsewhere", "else where"])
def test_evaluate_looks_where_the_runs_were_written(clone, root):
    trained(clone, "runs/phantom/stage1/seed0", f"{root}/phantom/stage1/seed0")
    make(clone, "evaluate", "PYTHON=python3", f"ARGS=--split val 'run.root={root}'")
    words = [f"{root}/phantom/stage1/seed0", "--split", "val", f"run.root={root}"]
    assert calls(clone) == [["-m", "experiments.evaluate", *words]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no trained run runs/phantom/*/*; there are: runs/phantom/stage1/one/"),
        (["run.name=x"], "no trained run runs/phantom/*/x; there are: runs/phantom/stage1/one/"),
        (["data.name=mura"], "to train one: make stage1 DATA=mura"),
        (
            ["run.root=nowhere", "--split", "val"],
            "no trained run nowhere/phantom/*/*; there are: n",
        ),
        (["--stages=stage9"], "STAGE=stage9 is none of stage1, stage2, stage3"),
    ],
)
def test_without_a_trained_run_there_is_a_way_out(clone, monkeypatch, capsys, words, message):
    (clone / "runs" / "phantom" / "stage1" / "one").mkdir(parents=True)
    monkeypatch.chdir(clone)
    assert latest.main(words) == 2
    assert message in capsys.readouterr().err
    assert make(clone, "evaluate", "PYTHON=python3").returncode == 2
    assert calls(clone) == []


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


def test_what_is_exported_holds_no_blanks(clone):
    make(clone, "test", "PYTHON=python3")
    assert environment(clone)["NO_ALBUMENTATIONS_UPDATE"] == "1"
    assert environment(clone)["DECISION_BASIS_TEST_DATA"] == ""
    text = (HOUSE / "Makefile").read_text()
    assignments = re.findall(r"^(?:export )?[\w.]+ *[:?+]?= *.*$", text, re.MULTILINE)
    assert len(assignments) > 10
    assert [line for line in assignments if "#" in line or line.endswith(" ")] == []


def test_real_radiographs_beside_the_checkout_are_found_unless_named(clone):
    (clone.parent / "shared" / "data").mkdir(parents=True)
    for given, expected in [(None, "../shared/data"), ("/x", "/x"), ("", "")]:
        variables = {} if given is None else {real.VARIABLE: given}
        make(clone, "test", "PYTHON=python3", **variables)
        assert environment(clone)[real.VARIABLE] == expected


def test_tests_on_real_radiographs_skip_and_say_why(tmp_path, monkeypatch):
    monkeypatch.setenv(real.VARIABLE, "")
    with pytest.raises(pytest.skip.Exception, match="name their folder in DECISION"):
        real.real_data("set")
    monkeypatch.setenv(real.VARIABLE, str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"no real radiographs at .*set; correct DEC"):
        real.real_data("set")
    (tmp_path / "set").mkdir()
    assert real.real_data("set") == tmp_path / "set"
