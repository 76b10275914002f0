"""Sweeps without a server: what a file may say; trained, shared, killed and resumed; reported."""

import errno
import re
import signal
import threading

import matplotlib.image
import pandas as pd
import pytest
import torch
import yaml

from experiments import sweep
from experiments.build import build_data, resolve
from experiments.cluster import sweeping
from experiments.cluster.drawing import draw
from experiments.cluster.sweeping import plan, read_sweep
from experiments.config import load_config, run_directory, save_config
from tests.runs import hold
from tests.standins import calls_of, stand_in
from tests.wandb_server import SHIPPED

WORDS = ["trainer.max_epochs=3", "logger.wandb=off"]
LAMBDA = "loss.lambda_lesion"
GRID = {LAMBDA: {"values": [0, 0.3, 1]}}
OMEGA = {"attention.omega": {"values": [1, 2]}}
# Called as an interpreter would be: -m experiments.train STAGE key=value ... It puts the run that
# lies ready in its place, without the seconds that imports of ours would take.
STANDIN = """
import signal, time
assert sys.argv[1:4] == ["-m", "experiments.train", "stage3"], sys.argv
words = dict(word.split("=", 1) for word in sys.argv[4:])
here, value = pathlib.Path({here!r}), words["loss.lambda_lesion"]
{behaviour}
run = pathlib.Path("phantom", "stage3", f"lambda{{float(value)}}-seed0")
shutil.copytree(here / "ready" / run, words["run.root"] / run, dirs_exist_ok=True)
"""


def standin(folder, behaviour=""):
    """An executable in place of the interpreter; ``behaviour``: Python before it trains."""
    return stand_in(folder / "standin", STANDIN.format(here=str(folder), behaviour=behaviour))


def make_ready(folder, value):
    """What a finished training over ``value`` leaves, for the stand-in; pixel AP value / 10."""
    words = [*WORDS, f"loss.lambda_lesion={value}", f"run.root={folder / 'ready'}"]
    config = load_config("stage3", words)
    resolve(config, build_data(config))
    run = run_directory(config)
    (run / "checkpoints").mkdir(parents=True)
    save_config(config, run / "config.yaml")
    rows = [f"{epoch},0.9,0.8,{value / 10}\n" for epoch in range(3)]
    head = "epoch,val/auroc,val/accuracy,val/fcn/pixel_ap\n"
    (run / "metrics.csv").write_text("".join([head, *rows]))
    progress = {"epoch_progress": {"current": {"processed": 3}}}
    parts = ("epoch", "global_step", "max_epochs", "state_dict", "hyper_parameters")
    content = {**dict.fromkeys(parts, 0), "stage": "stage3", "loops": {"fit_loop": progress}}
    torch.save(content, run / "checkpoints" / "last.ckpt")


def trained(folder):
    """The lambda of each training that was started, in order."""
    words = " ".join(word for words, _ in calls_of(folder / "standin") for word in words)
    return [float(value) for value in re.findall(rf"{LAMBDA}=(\S+)", words)]


def sweep_file(folder, interpreter="${interpreter}", **changed):
    """The shipped sweep file with keys changed (None: left out) and another interpreter."""
    content = {**yaml.safe_load(SHIPPED.read_text()), **changed}
    content = {key: value for key, value in content.items() if value is not None}
    if isinstance(content.get("command"), list):
        content["command"] = [
            str(interpreter) if word == "${interpreter}" else word for word in content["command"]
        ]
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with three finished runs that the stand-in puts into their places."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for value in GRID[LAMBDA]["values"]:
        make_ready(tmp_path, value)
    return tmp_path


def run(file, *words):
    return sweep.main([str(file), f"run.root={file.parent / 'runs'}", *WORDS, *words])


def table_in(folder):
    return pd.read_csv(folder / "runs" / "phantom" / "sweeps" / "sweep" / "results.csv")


# What a file may say ------------------------------------------------------------------------------


def test_the_shipped_files_are_the_papers_question_and_how_many_masks_it_takes(
    tmp_path, monkeypatch
):
    asked = read_sweep(str(SHIPPED.with_name("sweep_masks.yaml")), [f"run.root={tmp_path}"])
    monkeypatch.setattr(sweeping, "find_origin", lambda model, _: model.weights and "timm's")
    curve = plan(asked)
    assert [trial.config.model.weights for trial in curve].count(None) == len(curve) / 2 == 15
    curve[0].config.model.weights_origin = "timm's"  # as its training writes it
    (curve[0].folder / "checkpoints").mkdir(parents=True)
    (curve[0].folder / "checkpoints" / "last.ckpt").touch()
    save_config(curve[0].config, curve[0].folder / "config.yaml")
    assert len(plan(asked)) == 30
    asked = read_sweep(str(SHIPPED), [f"run.root={tmp_path}"])
    trials = plan(asked)
    assert [trial.config.loss.lambda_lesion for trial in trials] == [0, 0.3, 1, 3, 10]
    assert {trial.config.stage for trial in trials} == {"stage3"}
    assert (asked.metric, asked.maximize) == ("val/fcn/pixel_ap", True)


def parameter(**given):
    return {"method": "random", "run_cap": 2, "parameters": {LAMBDA: given}}


PARAMETER = f"{LAMBDA}: expected value, values or"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate: expected one of program"),
        ({"method": "bayes", "run_cap": 3}, "method: expected grid or random .*, got bayes"),
        ({"method": "random"}, "run_cap: expected the number of points"),
        ({"metric": None}, "metric: expected"),
        ({"metric": {"name": "test/accuracy"}}, "metric: expected .* val/"),
        ({"metric": {"name": "val/auroc", "goal": "high"}}, "metric: expected .*goal"),
        ({"parameters": {"loss.lamda": {"value": 1}}}, "loss.lamda"),
        ({"parameters": {LAMBDA: {"values": [1, -1]}}}, f"{LAMBDA}.*-1"),
        ({"parameters": {LAMBDA: {"min": 0, "max": 3}}}, PARAMETER),  # no grid
        (parameter(), PARAMETER),
        (parameter(min=1, max=1), PARAMETER),
        (parameter(min="1e-3", max=1), PARAMETER),
        (parameter(min=0, max=1, distribution="normal"), PARAMETER),
        (parameter(min=0, max=1, distribution="log_uniform_values"), PARAMETER),
        ({"parameters": OMEGA}, "differ in attention.omega share"),
        ({"command": None}, "command: expected -m, experiments.train"),
        (f"{LAMBDA}=2", f"{LAMBDA}: given here and on the command line"),
        ("run.name=x", f"differ in {LAMBDA} share"),
        (b"a: [", "not valid YAML"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_before_anything_is_trained(
    tmp_path, capsys, changed, message
):
    file = sweep_file(tmp_path, **(changed if isinstance(changed, dict) else {}))
    if isinstance(changed, bytes):
        file.write_bytes(changed)
    assert run(file, *([changed] if isinstance(changed, str) else [])) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_random_points_are_a_pure_function_of_the_file(tmp_path):
    """A longer search goes on; half of what is log-uniform in [0.01, 1) is below 0.1."""
    parameters = {
        "a": {"value": 3},
        "b": {"values": [1, "b", 2.5]},
        "c": {"min": 0, "max": 3},
        "d": {"min": 0.5, "max": 3},
        "e": {"distribution": "log_uniform_values", "min": 0.01, "max": 1},
    }
    changed = {"method": "random", "parameters": parameters}
    few, many = (
        read_sweep(str(sweep_file(tmp_path, run_cap=cap, **changed)), []).points for cap in (5, 99)
    )
    assert many[:5] == few
    a, b, c, d, e = ([point[key] for point in many] for key in "abcde")
    assert (set(a), set(b), set(c)) == ({3}, {1, "b", 2.5}, {0, 1, 2, 3})
    assert 0.5 <= min(d) < 0.6 < 2.9 < max(d) < 3
    assert 0.01 <= min(e) < 0.015 < 0.08 < sorted(e)[49] < 0.12 < max(e) < 1


def test_another_parameter_names_its_run_by_a_word_of_the_command(tmp_path):
    file = sweep_file(tmp_path, parameters=OMEGA)
    file.write_text(file.read_text() + "- run.name=omega${attention.omega}-seed${seed}\n")
    trials = plan(read_sweep(str(file), [f"run.root={tmp_path}"]))
    assert [trial.folder.name for trial in trials] == ["omega1.0-seed0", "omega2.0-seed0"]


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
    assert f"best val/fcn/pixel_ap: 0.100 at {LAMBDA}=1" in capsys.readouterr().out
    assert matplotlib.image.imread(place / "runs/phantom/sweeps/sweep/plot.png").std() > 0.05
    assert run(file) == 0
    assert trained(place) == [0, 0.3, 1]
    assert run(file, "loss.alpha=0.5") == 2
    assert "loss.alpha: accuracy -> 0.5" in capsys.readouterr().err
    assert run(file, "trainer.max_epochs=4") == 2
    assert "begun with another trainer.max_epochs than 4" in capsys.readouterr().err


def test_a_failing_trial_is_named_and_tried_anew(place, capfd):
    mended = place / "mended"
    stumble = f"if value == '0.3' and not pathlib.Path({str(mended)!r}).exists(): sys.exit(7)"
    file = sweep_file(place, standin(place, stumble), parameters=GRID)
    assert run(file) == 1
    assert "lambda0.3-seed0: exit status 7" in capfd.readouterr().err
    assert table_in(place)["state"].tolist() == ["done", "failed", "done"]
    mended.touch()
    assert run(file) == 0
    assert trained(place) == [0, 0.3, 1, 0.3]
    metric = {"name": "val/fcn/pixelap", "goal": "maximize"}
    file = sweep_file(place, standin(place), parameters=GRID, metric=metric, run_cap=1)
    assert run(file) == 1
    assert "no val/fcn/pixelap logged" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_training_and_the_trial_is_taken_up_again(place, capfd, number):
    signalled = f"""
import os
if not (here / "stopped").exists():
    signal.signal(signal.SIGTERM, lambda *_: ((here / "stopped").touch(), sys.exit(143)))
    os.kill(os.getppid(), {number})
    time.sleep(60)
"""
    file = sweep_file(place, standin(place, signalled), parameters=GRID)
    assert run(file) == 128 + number
    assert "stopped; the same command goes on" in capfd.readouterr().err
    assert (place / "stopped").is_file()
    assert table_in(place)["state"].tolist() == ["waiting"] * 3
    assert run(file, "--count=1") == 0
    assert trained(place) == [0, 0]


def test_another_processs_trial_is_left_to_it_and_a_killed_ones_taken_over(place):
    """The training of a killed sweep lives on: it is waited for."""
    file = sweep_file(place, standin(place), parameters=GRID)
    claim = place / "runs/phantom/sweeps/sweep/.lambda0.0-seed0.claim"
    with hold(place / "runs/phantom/stage3/lambda0.0-seed0/.lock") as training:
        with hold(claim):
            assert run(file) == 0
        assert trained(place) == [0.3, 1]
        assert table_in(place)["state"].tolist() == ["running", "done", "done"]
        threading.Timer(1, training.kill).start()
        assert run(file) == 0
        assert trained(place) == [0.3, 1, 0]


def test_tasks_without_locks_would_train_the_same_run(place, monkeypatch, capsys):
    def take(handle):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(sweeping, "take", take)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    assert run(sweep_file(place, standin(place), parameters=GRID)) == 2
    assert "no locks on this file system: tasks would train" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "1")
    assert run(sweep_file(place, standin(place), parameters=GRID), "--count=1") == 0


# Reported -----------------------------------------------------------------------------------------


def reported(folder, scores, **changed):
    """The sweep and its table, as if each point had ended with its score."""
    asked = read_sweep(str(sweep_file(folder, **changed)), [])
    rows = [
        {**point, "state": "done", "val/fcn/pixel_ap": score}
        for point, score in zip(asked.points, scores, strict=True)
    ]
    return asked, pd.DataFrame(rows)


def plot(asked, table):
    return draw(asked.parameters, asked.swept, table)


def test_lambda_zero_and_each_seed_are_drawn(tmp_path):
    scores = (0.02, 0.12, 0.05, 0.15, 0.12, 0.22)
    asked, table = reported(tmp_path, scores, parameters={**GRID, "seed": {"values": [0, 1]}})
    axes = plot(asked, table).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.3", "1"]
    assert axes.get_xlabel() == "lambda, weight of the lesion term"
    line, dots = axes.get_lines()
    assert [*line.get_xdata(), *dots.get_xdata()] == [0, 1, 2, 0, 0, 1, 1, 2, 2]
    assert line.get_ydata().tolist() == pytest.approx([0.07, 0.1, 0.17])
    assert dots.get_ydata().tolist() == pytest.approx(scores)
    text = sweeping.describe(asked, table)
    assert re.search(f"(?s)means over seeds.*best val/fcn/pixel_ap: 0.170 at {LAMBDA}=1", text)
    table.loc[4, "state"] = "failed"  # the best point lacks a seed: it cannot be compared
    assert f"best val/fcn/pixel_ap: 0.100 at {LAMBDA}=0.3" in sweeping.describe(asked, table)


def test_several_keys_words_an_interval_and_a_single_trial_are_drawn_too(tmp_path):
    values = {"loss.alpha": {"values": ["accuracy", 0.5]}, "attention.omega": {"values": [8, 10]}}
    asked, table = reported(tmp_path, [0.1, 0.2, 0.3, 0.4], parameters=values)
    first, *others = plot(asked, table).axes
    assert len(others) == 2
    lines = {
        line.get_label(): (line.get_linestyle(), line.get_ydata().tolist())
        for line in first.get_lines()[::2]
    }
    assert lines == {"FCN 8": ("-", [0.1, 0.3]), "FCN 10": ("--", [0.2, 0.4])}
    assert "0.400 at loss.alpha=0.5  attention.omega=10" in sweeping.describe(asked, table)
    interval = parameter(distribution="log_uniform_values", min=1, max=9)
    for given, scale in ((parameter(value=3), "linear"), (interval, "log")):
        axes = plot(*reported(tmp_path, [0.5] * 2, **given)).axes[0]
        assert axes.get_xscale() == scale
