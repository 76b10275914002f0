"""Sweeps without a server: what a file may say; trained, shared, killed and resumed; reported."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time

import matplotlib.image
import pandas as pd
import pytest

from callbacks.checkpoints import load_checkpoint
from experiments import sweep
from experiments.cluster import results
from experiments.cluster.points import read_sweep
from experiments.config import ConfigError
from tests.runs import tiny_words
from tests.sweeps import HOUSE, SHIPPED, WORDS, make_ready, srun, standin, sweep_file, trained

GRID = {"loss.lambda_lesion": {"values": [0, 0.3, 1]}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with three finished runs that the stand-in puts into their places."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for value in GRID["loss.lambda_lesion"]["values"]:
        make_ready(tmp_path, value)
    return tmp_path


def run(file, *words):
    return sweep.main([str(file), f"run.root={file.parent / 'runs'}", *WORDS, *words])


def start(file, *words):
    root = f"run.root={file.parent / 'runs'}"
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", str(file), root, *WORDS, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HOUSE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill(process):
    """SIGKILL, to the sweep alone: its training lives on and holds the pipes."""
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def table_in(folder):
    return pd.read_csv(folder / "runs" / "phantom" / "sweeps" / "sweep" / "results.csv")


def wait_for(condition, process=None):
    deadline = time.monotonic() + 180
    while not condition() and time.monotonic() < deadline:
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert condition()


# What a file may say ------------------------------------------------------------------------------


def test_the_shipped_file_is_the_papers_question():
    asked = read_sweep(str(SHIPPED), [])
    assert [point["loss.lambda_lesion"] for point in asked.points] == [0, 0.3, 1, 3, 10]
    assert asked.config({"loss.lambda_lesion": 0.3}).stage == "stage3"
    assert (asked.metric, asked.maximize) == ("val/fcn/pixel_ap", True)


OMEGA = {"attention.omega": {"values": [1, 2]}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methd": "grid"}, "methd: not supported"),
        ({"controller": {"type": "local"}}, "controller: not supported"),
        ({"method": "anneal"}, "method: expected grid or random, got anneal"),
        ({"method": "bayes", "run_cap": 3}, "method: bayes needs W&B's server"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate needs W&B's server"),
        ({"method": "random"}, "run_cap: expected the number of points"),
        ({"run_cap": 0}, "run_cap: expected the number of points"),
        ({"metric": None}, "metric: expected"),
        ({"metric": {"name": "test/accuracy"}}, "metric: expected .* val/"),
        ({"metric": {"name": "val/auroc", "goal": "high"}}, "metric: expected .*minimize"),
        ({"metric": {"name": "val/auroc", "target": 1}}, "metric: expected name and goal"),
        ({"parameters": None}, "parameters: expected keys"),
        ({"parameters": {"loss.lamda": {"value": 1}}}, "loss.lamda"),
        ({"parameters": {"loss": {"parameters": {}}}}, "parameters.loss: .*nested key"),
        ({"parameters": {"loss.lambda_lesion": {"values": [1, -1]}}}, "loss.lambda_lesion.*-1"),
        ({"parameters": OMEGA}, "attention.omega: .* share the run directory"),
        ({"command": None}, "command is missing"),
        ({"command": ["python", "train.py", "${args}"]}, r"\${args} is not supported"),
        ({"command": ["python", "-m", "experiments.train"]}, "expected -m, experiments.train"),
        ("loss.lambda_lesion=2", "is swept by .*; take loss.lambda_lesion=... off"),
        ("los.lambda=2", "los.lambda"),
        ("run.name=x", "share the run directory"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_before_anything_is_trained(
    tmp_path, capsys, changed, message
):
    words = [changed] if isinstance(changed, str) else []
    assert run(sweep_file(tmp_path, **({} if words else changed)), *words) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("grid", {}),
        ("grid", {"values": [0, 0]}),
        ("grid", {"values": [None]}),
        ("grid", {"values": 3}),
        ("grid", {"values": [0], "q": 1}),
        ("grid", {"min": 0, "max": 3}),
        ("random", {"min": 0}),
        ("random", {"min": 1, "max": 1}),
        ("random", {"min": "1e-3", "max": 1}),
        ("random", {"min": 0.1, "max": math.inf}),
        ("random", {"distribution": "normal", "mu": 0}),
        ("random", {"distribution": ["x"], "min": 0, "max": 1}),
        ("random", {"distribution": "log_uniform_values", "min": 0, "max": 1}),
        ("random", {"distribution": "q_uniform", "min": 0, "max": 1}),
        ("random", {"distribution": "q_uniform", "min": 0, "max": 1, "q": math.nan}),
        ("random", {"distribution": "log_uniform", "min": 0, "max": 1000}),
        ("random", {"distribution": "log_uniform", "min": -1000, "max": 0}),
    ],
)
def test_a_parameter_that_is_none_is_named(tmp_path, method, given):
    parameters = {"loss.lambda_lesion": given}
    file = sweep_file(tmp_path, method=method, run_cap=2, parameters=parameters)
    with pytest.raises(ConfigError, match="parameters.loss.lambda_lesion: expected value, values"):
        read_sweep(str(file), [])


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        ({"value": 3}, lambda x: x == 3),
        ({"values": [1, "a", 2.5]}, lambda x: x in (1, "a", 2.5)),
        ({"min": 0, "max": 3}, lambda x: type(x) is int and 0 <= x <= 3),
        ({"min": 0.5, "max": 3}, lambda x: 0.5 <= x < 3),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.1}, lambda x: x == round(x, 1)),
        ({"distribution": "log_uniform", "min": -2, "max": 2}, lambda x: -2 <= math.log(x) <= 2),
        ({"distribution": "log_uniform_values", "min": 0.01, "max": 10}, lambda x: 0.01 <= x < 10),
    ],
)
def test_random_points_are_a_pure_function_of_the_file(tmp_path, given, holds):
    parameters = {"loss.lambda_lesion": given, "seed": {"min": 0, "max": 99}}
    changed = {"method": "random", "parameters": parameters}
    few, many = (
        read_sweep(str(sweep_file(tmp_path, run_cap=cap, **changed)), []).points for cap in (5, 50)
    )
    assert many[:5] == few  # a longer search goes on
    values = [point["loss.lambda_lesion"] for point in many]
    assert all(map(holds, values))
    assert len(set(values)) >= (1 if "value" in given else 3)


def test_a_file_that_is_no_sweep_file_is_refused(tmp_path, capsys):
    assert run(tmp_path / "none.yaml") == 2
    assert "none.yaml: No such file" in capsys.readouterr().err
    for text, message in [("a: [", "not valid YAML"), ("- a", "expected W&B's sweep format")]:
        (tmp_path / "bad.yaml").write_text(text)
        assert run(tmp_path / "bad.yaml") == 2
        assert message in capsys.readouterr().err
    for words in (["--count=0"], ["more.yaml"]):
        with pytest.raises(SystemExit, match="2"):
            run(sweep_file(tmp_path), *words)


def test_another_parameter_names_its_run_by_a_word_of_the_command(tmp_path):
    file = sweep_file(tmp_path, parameters=OMEGA)
    file.write_text(file.read_text() + "- run.name=omega${attention.omega}-seed${seed}\n")
    asked = read_sweep(str(file), [])
    names = [asked.config(point).run.name for point in asked.points]
    assert names == ["omega1.0-seed0", "omega2.0-seed0"]


# Trained, shared, killed and resumed --------------------------------------------------------------


def test_a_grid_is_trained_in_order_reported_and_not_repeated(place, capsys):
    file = sweep_file(place, standin(place), parameters=GRID)
    assert run(file) == 0
    assert trained(place) == [0, 0.3, 1]
    table = table_in(place)
    assert table["state"].tolist() == ["done"] * 3
    # All epochs are equal by val/auroc: the best checkpoint is the latest of them.
    assert table["epoch"].tolist() == [2] * 3
    assert table["val/fcn/pixel_ap"].tolist() == pytest.approx([0, 0.03, 0.1])
    assert table["run"].str.endswith("stage3/lambda0.3-seed0").tolist() == [False, True, False]
    assert "best val/fcn/pixel_ap: 0.100 at loss.lambda_lesion=1" in capsys.readouterr().out
    assert matplotlib.image.imread(place / "runs/phantom/sweeps/sweep/plot.png").std() > 0.05
    assert run(file) == 0
    assert trained(place) == [0, 0.3, 1]


def test_a_failing_trial_is_named_and_tried_anew(place, capfd):
    mended = place / "mended"
    stumble = f"if value == '0.3' and not pathlib.Path({str(mended)!r}).exists(): sys.exit(7)"
    file = sweep_file(place, standin(place, stumble), parameters=GRID)
    assert run(file) == 1
    assert "lambda0.3-seed0: exit status 7 after 0 of 3 epochs" in capfd.readouterr().err
    assert table_in(place)["state"].tolist() == ["done", "failed", "done"]
    mended.touch()
    assert run(file) == 0
    assert trained(place) == [0, 0.3, 1, 0.3]
    assert table_in(place)["state"].tolist() == ["done"] * 3


def test_a_metric_that_no_run_has_is_named(place, capfd):
    metric = {"name": "val/fcn/pixelap", "goal": "maximize"}
    file = sweep_file(place, standin(place), parameters=GRID, metric=metric, run_cap=1)
    assert run(file) == 1
    assert "no val/fcn/pixelap, only val/auroc" in capfd.readouterr().err
    assert not (place / "runs/phantom/sweeps/sweep/plot.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.alpha=0.5"], "loss.alpha: accuracy -> 0.5"),
        # By itself a run may be resumed with more epochs; among trials to compare none may.
        (["trainer.max_epochs=4"], "max_epochs: 3 -> 4"),
        (["trainer.max_epochs=2"], "max_epochs: 3 -> 2"),
    ],
)
def test_runs_of_other_settings_are_refused_with_the_difference(place, capsys, words, message):
    file = sweep_file(place, standin(place), parameters=GRID)
    assert run(file, "--count=1") == 0
    assert run(file, *words) == 2
    assert message in capsys.readouterr().err
    assert trained(place) == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_training_and_the_trial_is_taken_up_again(place, number):
    waits = f"""
def stopped(number, frame):
    pathlib.Path({str(place)!r}, "stopped").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stopped)
if not pathlib.Path({str(place)!r}, "stopped").exists():
    pathlib.Path({str(place)!r}, "ready_to_stop").touch()
    time.sleep(60)
"""
    file = sweep_file(place, standin(place, waits), parameters=GRID)
    process = start(file)
    wait_for((place / "ready_to_stop").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "stopped; the same command goes on" in errors
    assert "Traceback" not in errors
    assert (place / "stopped").is_file()
    assert table_in(place)["state"].tolist() == ["waiting"] * 3
    assert run(file, "--count=1") == 0
    assert trained(place) == [0, 0]


def test_several_processes_share_the_trials(place):
    """As the tasks of a SLURM array do; one of them is killed."""
    killed = place / "killed"
    hang = f"while value == '0' and not pathlib.Path({str(killed)!r}).exists(): time.sleep(0.05)"
    file = sweep_file(place, standin(place, hang), parameters=GRID)
    first = start(file)
    wait_for(lambda: trained(place) == [0], first)
    other = start(file)
    output, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    assert "1 trials are still to come" in output
    assert trained(place) == [0, 0.3, 1]
    kill(first)
    killed.touch()
    assert run(file) == 0
    assert trained(place)[:3] == [0, 0.3, 1]
    assert table_in(place)["state"].tolist() == ["done"] * 3


def test_a_slurm_job_starts_each_rank_and_ends_after_count_trials(place, monkeypatch):
    srun(place)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    file = sweep_file(place, standin(place), parameters=GRID)
    for expected in ([0, 0], [0, 0, 0.3, 0.3]):  # two ranks, one trial
        assert run(file, "--count", "1") == 0
        assert trained(place) == expected


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(tmp_path):
    """Real trainings: SIGKILL to the sweep leaves its training alive; it is waited for."""
    words = [*tiny_words(tmp_path / "data"), "model.width=0.25", "lesions.per_batch=2"]
    file = sweep_file(tmp_path, parameters={"loss.lambda_lesion": {"values": [0, 3]}})
    process = start(file, *words, "trainer.max_epochs=4")
    runs = [tmp_path / f"runs/phantom/stage3/lambda{value}-seed0" for value in ("0.0", "3.0")]
    wait_for((runs[0] / "checkpoints" / "last.ckpt").is_file, process)
    kill(process)
    again = start(file, *words, "trainer.max_epochs=4")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    table = table_in(tmp_path)
    assert table["state"].tolist() == ["done", "done"]
    for folder in runs:
        metrics = pd.read_csv(folder / "metrics.csv")
        assert metrics["epoch"].tolist() == [0, 1, 2, 3]
        row = table[table["run"] == str(folder)].iloc[0]
        best = load_checkpoint(folder / "checkpoints" / "best.ckpt")
        assert row["epoch"] == best["epoch"]
        assert row["val/fcn/pixel_ap"] == metrics["val/fcn/pixel_ap"][best["epoch"]]


# Reported -----------------------------------------------------------------------------------------


def rows_of(points, state="done"):
    return [
        {"trial": number, **point, "state": state, "epoch": 1.0, "val/fcn/pixel_ap": score}
        | {"why": "", "run": f"r{number}"}
        for number, (point, score) in enumerate(points)
    ]


def test_lambda_zero_and_each_seed_are_drawn(tmp_path):
    parameters = {**GRID, "seed": {"values": [0, 1]}}
    asked = read_sweep(str(sweep_file(tmp_path, parameters=parameters)), [])
    scores = (0.02, 0.12, 0.05, 0.15, 0.12, 0.22)
    rows = rows_of(zip(asked.points, scores, strict=True))
    axes = results.draw(asked, rows).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.3", "1"]
    line, dots = axes.get_lines()
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_ydata().tolist() == pytest.approx([0.07, 0.1, 0.17])
    assert dots.get_xdata().tolist() == [0, 0, 1, 1, 2, 2]
    assert dots.get_ydata().tolist() == pytest.approx(scores)
    assert "lambda" in axes.get_xlabel()
    assert "pixel AP" in axes.get_ylabel()
    text = results.describe(asked, rows)
    assert "means over seeds" in text
    assert "best val/fcn/pixel_ap: 0.170 at loss.lambda_lesion=1" in text


def test_words_and_numbers_stand_in_one_table(tmp_path):
    values = {"loss.alpha": {"values": ["accuracy", 0.5, 0.1]}, "seed": {"values": [0, 1]}}
    asked = read_sweep(str(sweep_file(tmp_path, parameters=values)), [])
    rows = rows_of((point, 0.5) for point in asked.points)
    table = results.table_of(asked, rows)
    assert table["loss.alpha"].tolist() == [0.1, 0.1, 0.5, 0.5, "accuracy", "accuracy"]
    assert table["seed"].tolist() == [0, 1] * 3
    assert "means over seeds" in results.describe(asked, rows)


def test_a_single_trial_and_an_interval_are_drawn_too(tmp_path):
    for given in ({"value": 3}, {"distribution": "log_uniform_values", "min": 1, "max": 9}):
        changed = {"method": "random", "run_cap": 2, "parameters": {"loss.lambda_lesion": given}}
        asked = read_sweep(str(sweep_file(tmp_path, **changed)), [])
        figure = results.draw(asked, rows_of((point, 0.5) for point in asked.points))
        assert figure.axes[0].get_xscale() == ("linear" if "value" in given else "log")
