"""What a sweep file may say, and what is answered when it cannot be carried out."""

from __future__ import annotations

import math

import pytest

from experiments import sweep
from experiments.cluster.sweep_file import read_sweep
from experiments.schema import ConfigError
from tests.sweeps import SHIPPED, sweep_file


def run(file, root, *words):
    return sweep.main([str(file), f"run.root={root}", *words])


def test_the_shipped_file_is_the_papers_question():
    found = read_sweep(str(SHIPPED), [])
    assert [point["loss.lambda_lesion"] for point in found.points()] == [0, 0.3, 1, 3, 10]
    assert found.config({"loss.lambda_lesion": 0.3}).stage == "stage3"
    assert found.metric == "val/fcn/pixel_ap"
    assert found.maximize


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methd": "grid"}, "methd .*is not supported; did you mean method?"),
        ({"controller": {"type": "local"}}, "controller .*is not supported; use program"),
        ({"method": "anneal"}, "method .*is anneal; use grid, random, bayes"),
        ({"method": "random"}, "run_cap .*never ends by itself"),
        ({"run_cap": 0}, "run_cap .*at least 1"),
        ({"metric": None}, "metric .*is missing"),
        ({"metric": {"name": "test/accuracy"}}, "metric.name .*judged on val"),
        ({"metric": {"name": "val/auroc", "goal": "high"}}, "metric.goal .*is high"),
        ({"metric": {"name": "val/auroc", "target": 1}}, "metric.target .*not supported"),
        ({"parameters": None}, "parameters .*names no key"),
        ({"parameters": {"loss.lamda": {"value": 1}}}, "unknown key loss.lamda .*did you mean"),
        ({"parameters": {"loss": {"parameters": {}}}}, "loss .*this is a section"),
        ({"parameters": {"seed": {"parameters": {}}}}, "nested keys are written a.b"),
        ({"parameters": {"seed": {}}}, "parameters.seed .*has no values"),
        ({"parameters": {"seed": {"values": [0, 0]}}}, "one stands there twice"),
        ({"parameters": {"seed": {"values": [None]}}}, "expected a number, a text"),
        ({"parameters": {"seed": {"values": 3}}}, "expected a list"),
        ({"parameters": {"seed": {"min": 0, "max": 3}}}, "a grid needs values"),
        ({"parameters": {"seed": {"values": [0], "q": 1}}}, "seed.q .*does not go with"),
        ({"parameters": {"seed": {"distribution": "normal", "mu": 0}}}, "normal is not supported"),
        ({"parameters": {"loss.lambda_lesion": {"values": [1, -1]}}}, r"-1.* must lie in \[0, inf"),
        (
            {"parameters": {"attention.omega": {"values": [1, 2]}}},
            "share the run directory .*omega",
        ),
        ({"early_terminate": {"type": "median"}}, "early_terminate.type .*hyperband only"),
        ({"early_terminate": {"type": "hyperband"}}, "needs min_iter, or max_iter and s"),
        ({"command": None}, "command .*is missing"),
        ({"command": ["python", "train.py", "${args}"]}, r"\${args} is not supported"),
        ({"command": ["python", "-m", "experiments.train"]}, "must hold -m, experiments.train"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(tmp_path, changed, message, capsys):
    file = sweep_file(tmp_path, **changed)
    with pytest.raises(ConfigError, match=message):
        read_sweep(str(file), [])
    assert run(file, tmp_path / "runs") == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min": 1, "max": 1}, "expected min < max"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "expected 0 < min"),
        ({"min": "1e-3", "max": 1}, "'1e-3' is no number to YAML"),
        ({"distribution": "q_uniform", "min": 0, "max": 1}, "q_uniform needs q"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": math.nan}, "q .*nan is no number"),
        ({"min": 0.1, "max": math.inf}, "max .*inf is no number"),
        ({"distribution": "log_uniform", "min": 0, "max": 1000}, "max .*1000 is an exponent of e"),
        ({"distribution": "log_uniform", "min": -1000, "max": 0}, "expected 0 < min"),
        ({"distribution": ["x"], "min": 0, "max": 1}, r"distribution \['x'\] is not supported"),
    ],
)
def test_intervals_are_checked(tmp_path, given, message):
    parameters = {"loss.lambda_lesion": given}
    file = sweep_file(tmp_path, method="random", run_cap=2, parameters=parameters)
    with pytest.raises(ConfigError, match=message):
        read_sweep(str(file), [])


def test_another_parameter_names_its_run_with_a_word_of_the_command(tmp_path):
    file = sweep_file(tmp_path, parameters={"attention.omega": {"values": [5, 10]}})
    text = file.read_text() + "- run.name=omega${attention.omega}-seed${seed}\n"
    file.write_text(text)
    found = read_sweep(str(file), [])
    names = [found.config(point).run.name for point in found.points()]
    assert names == ["omega5.0-seed0", "omega10.0-seed0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.lambda_lesion=2"], "is swept; take loss.lambda_lesion=... off"),
        (["los.lambda=2"], "unknown key los.lambda"),
        (["run.name=x"], "share the run directory"),
    ],
)
def test_words_that_contradict_the_file_are_refused(tmp_path, words, message, capsys):
    assert run(sweep_file(tmp_path), tmp_path / "runs", *words) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_none_is_said(tmp_path, capsys):
    assert run(tmp_path / "none.yaml", tmp_path) == 2
    assert "none.yaml: cannot be read: No such file" in capsys.readouterr().err
    for text, message in [("a: [", "not valid YAML"), ("- a", "expected W&B's sweep format")]:
        (tmp_path / "bad.yaml").write_text(text)
        assert run(tmp_path / "bad.yaml", tmp_path) == 2
        assert message in capsys.readouterr().err
