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

from tests import real

HOUSE = Path(__file__).parents[1]
FILES = ("Makefile", "pyproject.toml", "constraints.txt")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

RECORDER = """#!{python}
import json, os, pathlib, shutil, sys
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
    for name in FILES:
        shutil.copy(HOUSE / name, folder / name)
    recorder = folder / "bin" / "python3"
    recorder.write_text(RECORDER.format(python=sys.executable, log=str(folder / "calls")))
    recorder.chmod(0o755)
    for tool in ("bash", "make", "awk", "ls", "head", "touch"):
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


def test_help_is_the_default_and_lists_every_target(clone):
    done = make(clone)
    assert done.returncode == 0
    assert done.stdout == make(clone, "help").stdout
    targets = "setup test lint data stage1 stage2 stage3 evaluate report sweep bench submit sync"
    targets += " doctor"
    for target in targets.split():
        assert f"  make {target} " in done.stdout
    for variable in ("DATA=", "ROOT=", "RUN=", "STAGE=", "ARGS=", "PYTHON=", "DRY=", "GPUS="):
        assert variable in done.stdout
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


def test_changed_pins_set_up_again(clone):
    make(clone, "setup")
    before = len(calls(clone))
    later = (clone / ".venv" / ".ready").stat().st_mtime + 10
    os.utime(clone / "constraints.txt", (later, later))
    make(clone, "lint")
    assert ["-m", "pip"] in [call[:2] for call in calls(clone)[before:]]


def test_failed_set_up_is_tried_again(clone):
    (clone / "bin" / "touch").unlink()  # whatever breaks before the end
    assert make(clone, "stage1").returncode != 0
    assert not (clone / ".venv" / ".ready").exists()
    assert "experiments.train" not in str(calls(clone))


@pytest.mark.parametrize("by_environment", [True, False])
def test_own_interpreter_makes_no_venv(clone, by_environment):
    own = str(clone / "bin" / "python3")
    shutil.copy(own, clone / "bin" / "mine")
    words = [] if by_environment else ["PYTHON=mine"]
    done = make(clone, "stage1", *words, **({"PYTHON": "mine"} if by_environment else {}))
    assert done.returncode == 0, done.stderr
    assert calls(clone) == [["-m", "experiments.train", "stage1", "data.name=phantom"]]
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    "root", ["/a b/c", "/a  b ", "/it's", "/a,b", '/a"b', "/a;b & c", "/(x) *"]
)
def test_values_survive_the_shell(clone, root):
    words = [f"ROOT={root}", "DATA=mura", "RUN=my run", "ARGS=seed=1 loss.alpha=0.5"]
    done = make(clone, "stage2", "PYTHON=python3", *words)
    assert done.returncode == 0, done.stderr
    settings = [
        "data.name=mura",
        f"data.root={root}",
        "run.name=my run",
        "seed=1",
        "loss.alpha=0.5",
    ]
    assert calls(clone) == [["-m", "experiments.train", "stage2", *settings]]


def test_stages_run_in_the_order_given_even_with_jobs(clone):
    done = make(clone, "-j4", "stage1", "stage2", "stage3", "PYTHON=python3")
    assert done.returncode == 0, done.stderr
    assert [call[2] for call in calls(clone)] == ["stage1", "stage2", "stage3"]


def test_data_prepares_without_training(clone):
    make(clone, "data", "PYTHON=python3", "ROOT=/x", "RUN=ignored")
    (call,) = calls(clone)
    assert call[:3] == ["-m", "experiments.train", "--data-only"]
    assert call[3:] == ["stage1", "data.name=phantom", "data.root=/x"]


def test_evaluate_takes_the_latest_trained_run_of_each_stage(clone):
    for age, run in enumerate(["stage1/old", "stage1/new run", "stage3/seed0"]):
        best = clone / "runs" / "phantom" / run / "checkpoints" / "best.ckpt"
        best.parent.mkdir(parents=True)
        best.touch()
        os.utime(best, (1000 + age, 1000 + age))
    (clone / "runs" / "phantom" / "stage2" / "untrained" / "checkpoints").mkdir(parents=True)
    done = make(clone, "evaluate", "PYTHON=python3")
    assert done.returncode == 0, done.stderr
    evaluate = ["-m", "experiments.evaluate"]
    assert calls(clone) == [[*evaluate, "runs/phantom/stage1/new run", "runs/phantom/stage3/seed0"]]
    make(clone, "evaluate", "PYTHON=python3", "STAGE=stage1", "RUN=old")
    assert calls(clone)[1:] == [[*evaluate, "runs/phantom/stage1/old"]]
    done = make(clone, "report", "PYTHON=python3", "ARGS=--no-images", "ROOT=/a b")
    assert done.returncode == 0, done.stderr
    of_report = ["-m", "experiments.report", *calls(clone)[0][2:]]
    assert calls(clone)[2:] == [[*of_report, "data.root=/a b", "--no-images"]]


@pytest.mark.parametrize("root", ["elsewhere", "else where"])
def test_evaluate_looks_where_the_runs_were_written(clone, root):
    for place in ("runs", root):
        best = clone / place / "phantom" / "stage1" / "seed0" / "checkpoints" / "best.ckpt"
        best.parent.mkdir(parents=True)
        best.touch()
    setting = f"run.root={root}"
    done = make(clone, "evaluate", "PYTHON=python3", f"ARGS=--split val 'run.root={root}'")
    assert done.returncode == 0, done.stderr
    run = f"{root}/phantom/stage1/seed0"
    assert calls(clone) == [["-m", "experiments.evaluate", run, "--split", "val", setting]]
    done = make(clone, "evaluate", "PYTHON=python3", "ARGS=run.root=nowhere")
    assert done.returncode == 2
    assert "no trained run nowhere/phantom/*/*; there are: none" in done.stderr


def test_a_sweep_takes_the_data_and_the_words(clone):
    words = ("DATA=mura", "ROOT=/the data", "ARGS=trainer.max_epochs=2 --count 1")
    assert make(clone, "sweep", "PYTHON=python3", *words).returncode == 0
    file = "experiments/sweep_lambda.yaml"
    expected = ["data.name=mura", "data.root=/the data", "trainer.max_epochs=2", "--count", "1"]
    assert calls(clone) == [["-m", "experiments.sweep", file, *expected]]


def test_what_is_exported_holds_no_blanks(clone):
    make(clone, "test", "PYTHON=python3")
    environment = json.loads((clone / "calls.environment").read_text())
    assert environment["NO_ALBUMENTATIONS_UPDATE"] == "1"
    assert environment["DECISION_BASIS_TEST_DATA"] == ""
    assignments = re.findall(
        r"^(?:export )?[\w.]+ *[:?+]?= *.*$", (HOUSE / "Makefile").read_text(), re.MULTILINE
    )
    assert len(assignments) > 10
    assert [line for line in assignments if "#" in line or line.endswith(" ")] == []


def test_real_radiographs_beside_the_checkout_are_found_unless_named(clone):
    (clone.parent / "shared" / "data").mkdir(parents=True)
    for given, expected in [(None, "../shared/data"), ("/x", "/x"), ("", "")]:
        variables = {} if given is None else {real.VARIABLE: given}
        make(clone, "test", "PYTHON=python3", **variables)
        environment = json.loads((clone / "calls.environment").read_text())
        assert environment[real.VARIABLE] == expected


def test_tests_on_real_radiographs_skip_and_say_why(tmp_path, monkeypatch):
    monkeypatch.setenv(real.VARIABLE, "")
    with pytest.raises(pytest.skip.Exception, match="name their folder in DECISION"):
        real.real_data("set")
    monkeypatch.setenv(real.VARIABLE, str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"no real radiographs at .*set; correct DEC"):
        real.real_data("set")
    (tmp_path / "set").mkdir()
    assert real.real_data("set") == tmp_path / "set"


def test_submit_hands_on_stages_cluster_and_settings(clone):
    make(clone, "submit", "PYTHON=python3")
    words = ["DRY=1", "STAGE=stage1 evaluate", "PARTITION=a b", "GPUS=2", "SEEDS=0 1", "RUN=x y"]
    words += ["SBATCH_ARGS=--comment='a  b'", "ARGS=seed=1 'run.root=x  y'"]
    printed = make(clone, "submit", "PYTHON=python3", *words).stdout
    told = "python3 -m experiments.submit --dry-run stage1 evaluate --partition='a b' --gpus='2' "
    assert printed.startswith(told)
    assert calls(clone) == [
        ["-m", "experiments.submit", "data.name=phantom"],
        [
            *["-m", "experiments.submit", "--dry-run", "stage1", "evaluate"],
            *["--partition=a b", "--gpus=2", "--seeds=0 1", "--sbatch-args=--comment='a  b'"],
            *["data.name=phantom", "run.name=x y", "seed=1", "run.root=x  y"],
        ],
    ]


def test_sync_looks_below_the_folders_given(clone):
    make(clone, "sync", "PYTHON=python3")
    make(clone, "sync", "PYTHON=python3", "DRY=1", "ARGS=elsewhere")
    assert calls(clone) == [
        ["-m", "experiments.sync"],
        ["-m", "experiments.sync", "--dry-run", "elsewhere"],
    ]


def test_evaluate_without_a_run_says_what_to_do(clone):
    done = make(clone, "evaluate", "PYTHON=python3", "DATA=mura")
    assert done.returncode == 2
    assert "no trained run runs/mura/*/*; there are: none" in done.stderr
    assert "to train one: make stage1 DATA=mura" in done.stderr
    assert calls(clone) == []
    done = make(clone, "evaluate", "PYTHON=python3", "STAGE=stage9")
    assert done.returncode == 2
    assert "STAGE=stage9 is none of stage1, stage2, stage3" in done.stderr


def test_evaluate_names_the_runs_that_there_are(clone):
    (clone / "runs" / "phantom" / "stage1" / "one").mkdir(parents=True)
    done = make(clone, "evaluate", "PYTHON=python3", "RUN=other")
    assert done.returncode == 2
    assert "runs/phantom/*/other; there are: runs/phantom/stage1/one/" in done.stderr


def test_a_dollar_in_a_path_reaches_the_command(clone):
    make(clone, "stage1", "PYTHON=python3", "ROOT=/data/$HOME", "RUN=a$b")
    assert calls(clone)[0][-2:] == ["data.root=/data/$HOME", "run.name=a$b"]


def test_no_suitable_python_says_what_to_do(clone):
    (clone / "bin" / "python3").write_text(f"#!{clone / 'bin' / 'bash'}\nexit 1\n")
    done = make(clone, "stage1")
    assert done.returncode == 2
    assert "Python 3.10 or later is needed" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_later_python_is_found_beside_an_old_one(clone):
    (clone / "bin" / "python3").rename(clone / "bin" / "python3.12")
    (clone / "bin" / "python3").write_text(f"#!{clone / 'bin' / 'bash'}\nexit 1\n")
    (clone / "bin" / "python3").chmod(0o755)
    assert make(clone, "setup").returncode == 0
    assert calls(clone)[1] == ["-m", "venv", ".venv"]
