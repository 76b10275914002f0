"""Sweeps without a server: one command that trains, goes on after a kill, and reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import matplotlib.image
import optuna
import pandas as pd
import pytest

from callbacks.checkpoints import DECIMALS, load_checkpoint
from experiments import metrics_csv, sweep
from experiments.cluster import sweep_report
from experiments.cluster.sweep_file import read_sweep
from experiments.cluster.sweep_study import open_study
from tests.runs import tiny_words
from tests.sweeps import HOUSE, srun, standin, sweep_file

GRID = {"loss.lambda_lesion": {"values": [0, 0.3, 1]}}
WORDS = ["trainer.max_epochs=3", "logger.wandb=off"]


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def run(file, root, *words):
    return sweep.main([str(file), f"run.root={root}", *WORDS, *words])


def start(file, root, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", str(file), f"run.root={root}", *WORDS, *words],
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


def results(root, data="phantom"):
    return pd.read_csv(root / data / "sweeps" / "sweep" / "results.csv")


def trained(folder):
    """The lambda of each training that was started, in order."""
    path = folder / "trained.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    words = [dict(word.split("=", 1) for word in json.loads(line)[1:]) for line in lines]
    return [float(word["loss.lambda_lesion"]) for word in words]


def wait_for(condition, process=None):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert condition()


def test_a_grid_is_trained_in_order_and_reported(tmp_path, capsys):
    file = sweep_file(tmp_path, standin(tmp_path), parameters=GRID)
    assert run(file, tmp_path / "runs") == 0
    assert trained(tmp_path) == [0, 0.3, 1]
    table = results(tmp_path / "runs")
    assert table["state"].tolist() == ["done"] * 3
    # All epochs are equal by val/auroc: the best checkpoint is the latest of them.
    assert table["val/fcn/pixel_ap"].tolist() == pytest.approx([0.02, 0.05, 0.12])
    assert table["run"].str.endswith("stage3/lambda0.3-seed0").tolist() == [False, True, False]
    assert "best val/fcn/pixel_ap: 0.120 at loss.lambda_lesion=1" in capsys.readouterr().out
    image = matplotlib.image.imread(tmp_path / "runs/phantom/sweeps/sweep/plot.png")
    assert image.std() > 0.05
    assert run(file, tmp_path / "runs") == 0
    assert trained(tmp_path) == [0, 0.3, 1]  # finished ones are not repeated


def test_lambda_zero_and_each_seed_are_drawn(tmp_path, monkeypatch, capsys):
    drawn = []
    draw = sweep_report.draw
    monkeypatch.setattr(sweep_report, "draw", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    seeds = {**GRID, "seed": {"values": [0, 1]}}
    file = sweep_file(tmp_path, standin(tmp_path, "value += config.seed"), parameters=seeds)
    assert run(file, tmp_path / "runs") == 0
    axes = drawn[-1].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.3", "1"]
    line, dots = axes.get_lines()
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_ydata().tolist() == pytest.approx([0.07, 0.1, 0.17])
    assert dots.get_xdata().tolist() == [0, 0, 1, 1, 2, 2]
    assert dots.get_ydata().tolist() == pytest.approx([0.02, 0.12, 0.05, 0.15, 0.12, 0.22])
    assert "lambda" in axes.get_xlabel()
    assert "pixel AP" in axes.get_ylabel()
    told = capsys.readouterr().out
    assert "means over seeds" in told
    assert "best val/fcn/pixel_ap: 0.170 at loss.lambda_lesion=1" in told


def test_a_failing_trial_is_named_and_tried_anew(tmp_path, capfd):
    stumble = (
        f"if value == 0.3 and not pathlib.Path({str(tmp_path / 'mended')!r}).exists(): sys.exit(7)"
    )
    file = sweep_file(tmp_path, standin(tmp_path, stumble), parameters=GRID)
    assert run(file, tmp_path / "runs") == 1
    told = capfd.readouterr().err
    assert "lambda0.3-seed0: exit status 7 after 0 of 3 epochs" in told
    assert results(tmp_path / "runs")["state"].tolist() == ["done", "failed", "done"]
    (tmp_path / "mended").touch()
    assert run(file, tmp_path / "runs") == 0
    assert trained(tmp_path) == [0, 0.3, 1, 0.3]
    assert results(tmp_path / "runs")["state"].tolist() == ["done"] * 3


def test_a_metric_that_no_run_has_is_said(tmp_path, capfd):
    metric = {"name": "val/fcn/pixelap", "goal": "maximize"}
    parameters = {"loss.lambda_lesion": {"values": [1]}}
    file = sweep_file(tmp_path, standin(tmp_path), parameters=parameters, metric=metric)
    assert run(file, tmp_path / "runs") == 1
    assert "no figure val/fcn/pixelap; there are: val/" in capfd.readouterr().err
    assert not (tmp_path / "runs/phantom/sweeps/sweep/plot.png").exists()


def test_a_single_trial_is_drawn_too(tmp_path):
    file = sweep_file(tmp_path, standin(tmp_path), parameters={"seed": {"value": 3}})
    file.write_text(file.read_text().replace("val/fcn/pixel_ap", "val/auroc"))
    assert run(file, tmp_path / "runs") == 0
    assert (tmp_path / "runs/phantom/sweeps/sweep/plot.png").is_file()


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_search_ends_at_run_cap_and_repeats_itself(tmp_path, method):
    parameters = {
        "loss.lambda_lesion": {"distribution": "log_uniform_values", "min": 0.01, "max": 10},
        "optimizer.warmup_epochs": {"value": 1},
    }
    chosen = {"method": method, "parameters": parameters, "run_cap": 3}
    file = sweep_file(tmp_path, standin(tmp_path), **chosen)
    assert run(file, tmp_path / "one") == 0
    assert run(file, tmp_path / "one") == 0
    assert run(file, tmp_path / "two") == 0
    first = trained(tmp_path)[:3]
    assert trained(tmp_path) == first * 2
    assert len(set(first)) == 3
    assert all(0.01 <= value <= 10 for value in first)
    more = sweep_file(tmp_path, standin(tmp_path), **{**chosen, "run_cap": 4})
    assert run(more, tmp_path / "one") == 0  # a longer search goes on
    assert len(trained(tmp_path)) == 7


def test_hyperband_stops_the_worse_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "SECONDS", 0.1)
    slow = """
if value < 1:
    (folder / "metrics.csv").write_text(columns + "\\n0,0.9,0.8,0.0\\n")
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    time.sleep(60)
"""
    file = sweep_file(
        tmp_path,
        standin(tmp_path, slow),
        parameters={"loss.lambda_lesion": {"values": [10, 1, 0.3]}},
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
    )
    assert run(file, tmp_path / "runs") == 0
    table = results(tmp_path / "runs").set_index("loss.lambda_lesion")
    assert table["state"].to_dict() == {0.3: "stopped early", 1: "done", 10: "done"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_training_and_the_trial_stays_unfinished(tmp_path, number):
    waits = f"""
import signal
def told(number, frame):
    pathlib.Path({str(tmp_path)!r}, "told").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, told)
if not pathlib.Path({str(tmp_path)!r}, "told").exists():
    pathlib.Path({str(tmp_path)!r}, "ready").touch()
    time.sleep(60)
"""
    file = sweep_file(tmp_path, standin(tmp_path, waits), parameters=GRID)
    process = start(file, tmp_path / "runs")
    wait_for((tmp_path / "ready").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "stopped; the same command goes on" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "told").is_file()
    assert results(tmp_path / "runs")["state"].tolist() == ["running"]
    assert run(file, tmp_path / "runs") == 0
    assert trained(tmp_path) == [0, 0, 0.3, 1]


@pytest.mark.parametrize("journal", [[], ["--journal"]])
def test_several_processes_share_the_trials(tmp_path, journal):
    """As the tasks of a SLURM array do; one of them is killed."""
    parameters = {"loss.lambda_lesion": {"values": [0, 0.1, 0.3, 1, 3, 10]}}
    killed = tmp_path / "killed"
    hang = f"while value == 0 and not pathlib.Path({str(killed)!r}).exists(): time.sleep(0.05)"
    file = sweep_file(tmp_path, standin(tmp_path, hang), parameters=parameters)
    first = start(file, tmp_path / "runs", *journal)
    wait_for(lambda: trained(tmp_path) == [0], first)
    other = start(file, tmp_path / "runs", *journal)
    told, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    assert "1 trials are still to come" in told
    assert sorted(trained(tmp_path)) == [0, 0.1, 0.3, 1, 3, 10]  # none twice
    kill(first)
    killed.touch()
    assert run(file, tmp_path / "runs", *journal) == 0
    assert sorted(trained(tmp_path)) == [0, 0, 0.1, 0.3, 1, 3, 10]
    names = {path.name for path in (tmp_path / "runs/phantom/sweeps/sweep").glob("study.*")}
    assert names == {"study.journal" if journal else "study.db"}


def test_tasks_that_end_together_write_one_after_the_other(tmp_path, monkeypatch):
    """Or the one that knew less might write last, or take the other's unfinished file away."""
    file = sweep_file(tmp_path, standin(tmp_path), parameters=GRID)
    assert run(file, tmp_path / "runs", "--journal") == 0
    folder = tmp_path / "runs/phantom/sweeps/sweep"
    found = read_sweep(str(file), [f"run.root={tmp_path / 'runs'}", *WORDS])
    study = open_study(found, found.config(found.example()), folder, journal=True)
    inside = []

    def slowly(*_):
        inside.append("in")
        time.sleep(0.2)
        inside.append("out")

    monkeypatch.setattr(sweep_report, "write_table", slowly)
    tasks = [threading.Thread(target=sweep.report, args=(found, study, folder)) for _ in range(3)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert inside == ["in", "out"] * 3


def test_a_slurm_job_keeps_a_journal_and_starts_each_rank(tmp_path, monkeypatch):
    srun(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    file = sweep_file(tmp_path, standin(tmp_path), parameters=GRID)
    assert run(file, tmp_path / "runs", "--count", "1") == 0
    assert trained(tmp_path) == [0, 0]  # two ranks, one trial
    assert (tmp_path / "runs/phantom/sweeps/sweep/study.journal").is_file()
    assert run(file, tmp_path / "runs", "--count", "1") == 0
    assert trained(tmp_path) == [0, 0, 0.3, 0.3]


def test_a_study_of_another_sweep_is_refused_with_the_difference(tmp_path, capsys):
    file = sweep_file(tmp_path, standin(tmp_path), parameters=GRID)
    assert run(file, tmp_path / "runs", "--count", "1") == 0
    assert run(file, tmp_path / "runs", "trainer.max_epochs=4") == 2
    assert "max_epochs: 3 -> 4" in capsys.readouterr().err
    assert run(file, tmp_path / "runs", "--journal") == 2
    assert "go on without --journal" in capsys.readouterr().err
    sweep_file(tmp_path, standin(tmp_path), parameters={"loss.lambda_lesion": {"values": [5]}})
    assert run(file, tmp_path / "runs") == 2
    told = capsys.readouterr().err
    assert "holds another sweep" in told
    assert "parameters.loss.lambda_lesion: 0, 0.3, 1 -> 5" in told
    assert trained(tmp_path) == [0]


@pytest.mark.parametrize("journal", [[], ["--journal"]])
def test_a_damaged_study_is_said_and_the_runs_are_taken_over(tmp_path, capsys, journal):
    file = sweep_file(tmp_path, standin(tmp_path), parameters=GRID)
    assert run(file, tmp_path / "runs", "--count=1", *journal) == 0
    study = tmp_path / "runs/phantom/sweeps/sweep" / ("study.journal" if journal else "study.db")
    study.write_bytes(b"x" + study.read_bytes()[1:])
    assert run(file, tmp_path / "runs") == 2
    told = capsys.readouterr().err
    assert f"{study} cannot be used" in told
    assert "delete it and sweep again: finished runs are taken over" in told
    study.unlink()
    assert run(file, tmp_path / "runs") == 0
    assert results(tmp_path / "runs")["state"].tolist() == ["done"] * 3


def test_a_torn_last_line_of_the_journal_is_dropped(tmp_path, capsys):
    """As a node leaves it that crashes while it writes."""
    file = sweep_file(tmp_path, standin(tmp_path), parameters=GRID)
    assert run(file, tmp_path / "runs", "--journal", "--count=2") == 0
    study = tmp_path / "runs/phantom/sweeps/sweep/study.journal"
    capsys.readouterr()
    study.write_bytes(study.read_bytes()[:-10])
    assert run(file, tmp_path / "runs") == 0
    assert f"{study}: its last line was cut off" in capsys.readouterr().err
    assert results(tmp_path / "runs")["state"].tolist() == ["done"] * 3
    assert run(file, tmp_path / "runs") == 0
    assert "cut off" not in capsys.readouterr().err


def test_the_database_lies_in_the_sweeps_folder_whatever_it_is_called(tmp_path):
    file = sweep_file(tmp_path, standin(tmp_path), parameters=GRID)
    root = tmp_path / "what? 50%20#1"
    for _ in range(2):
        assert run(file, root, "--count=1") == 0
    assert (root / "phantom/sweeps/sweep/study.db").is_file()
    assert [path.name for path in tmp_path.glob("what*")] == [root.name]
    assert trained(tmp_path) == [0, 0.3]


def test_words_and_numbers_stand_in_one_table(tmp_path, capsys):
    values = {"loss.alpha": {"values": ["accuracy", 0.5, 0.1]}, "seed": {"values": [0, 1]}}
    file = sweep_file(tmp_path, standin(tmp_path), parameters=values)
    file.write_text(file.read_text() + "- run.name=alpha${loss.alpha}-seed${seed}\n")
    assert run(file, tmp_path / "runs") == 0
    table = results(tmp_path / "runs")
    assert table["loss.alpha"].tolist() == ["0.1", "0.1", "0.5", "0.5", "accuracy", "accuracy"]
    assert table["seed"].tolist() == [0, 1] * 3
    assert "means over seeds" in capsys.readouterr().out


def test_in_a_job_a_database_is_warned_of(tmp_path, monkeypatch, capsys):
    file = sweep_file(tmp_path, standin(tmp_path), parameters=GRID)
    assert run(file, tmp_path / "runs") == 0
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert run(file, tmp_path / "runs") == 0
    assert "study.db was begun outside of SLURM" in capsys.readouterr().err


def test_a_count_of_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(sweep_file(tmp_path), tmp_path / "runs", "--count=0")
    assert "--count 0: expected a whole number, at least 1" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_best_row_is_rounded_as_the_best_checkpoint_is():
    assert metrics_csv.DECIMALS == DECIMALS


def test_without_optuna_the_remedy_is_said(tmp_path, monkeypatch, capsys):
    from experiments import command

    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "experiments.cluster.sweep_study", raising=False)
    file = sweep_file(tmp_path, standin(tmp_path))
    assert command.run(lambda: run(file, tmp_path / "runs")) == 2
    told = capsys.readouterr().err
    assert "optuna" in told
    assert "make setup PYTHON=" in told


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(tmp_path):
    """Real trainings: SIGKILL to the sweep leaves its training alive; it is waited for."""
    words = [*tiny_words(tmp_path / "data"), "model.width=0.25", "lesions.per_batch=2"]
    file = sweep_file(tmp_path, parameters={"loss.lambda_lesion": {"values": [0, 3]}})
    process = start(file, tmp_path / "runs", *words, "trainer.max_epochs=4")
    runs = [tmp_path / f"runs/phantom/stage3/lambda{value}-seed0" for value in ("0.0", "3.0")]
    wait_for((runs[0] / "checkpoints" / "last.ckpt").is_file, process)
    kill(process)
    again = start(file, tmp_path / "runs", *words, "trainer.max_epochs=4")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    table = results(tmp_path / "runs")
    assert table["state"].tolist() == ["done", "done"]
    for run_folder in runs:
        metrics = pd.read_csv(run_folder / "metrics.csv")
        assert metrics["epoch"].tolist() == [0, 1, 2, 3]
        row = table[table["run"] == str(run_folder)].iloc[0]
        best = load_checkpoint(run_folder / "checkpoints" / "best.ckpt")
        assert row["epoch"] == best["epoch"]
        assert row["val/fcn/pixel_ap"] == metrics["val/fcn/pixel_ap"][best["epoch"]]
    study = optuna.load_study(
        study_name="sweep", storage=f"sqlite:///{tmp_path}/runs/phantom/sweeps/sweep/study.db"
    )
    assert [trial.state.name for trial in study.trials].count("COMPLETE") == 2
