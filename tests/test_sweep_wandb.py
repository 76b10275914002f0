"""The shipped sweep file under W&B's own agent: its real code, with a stand-in for the server.

No server can be reached from a test. What W&B's command line and agent make of the file is real:
reading it, expanding ``command``, starting it with the run's id, taking its exit status.
"""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from unittest import mock

import pandas as pd
import pytest
import wandb
import yaml
from click.testing import CliRunner
from wandb.cli import cli

from experiments.config import LoggerConfig, load_config, run_directory
from experiments.training import loop
from experiments.training.wandb import start_wandb
from tests.runs import tiny_words
from tests.sweeps import HOUSE, SHIPPED, srun

LAMBDAS = (0, 0.3)
# In place of python on PATH: writes down its words and the variables that W&B and SLURM set.
RECORDER = """#!{python}
import json, os, sys
given = {{name: os.environ[name] for name in os.environ if name.startswith(("WANDB_", "SLURM"))}}
with open({log!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], given]) + "\\n")
"""


@pytest.fixture(autouse=True)
def clean_environment():
    """The agent sets variables of this very process, and W&B remembers them: undo both."""
    with mock.patch.dict(os.environ):
        yield
    wandb.teardown()


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """``wandb agent``, against a server that hands out a lambda a heartbeat."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith(("WANDB_", "SLURM_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(wandb, "Api", lambda *a, **k: None)
    monkeypatch.setattr(wandb, "teardown", lambda *a: None)
    monkeypatch.setattr("wandb.sdk.wandb_login._login", lambda **kwargs: True)
    monkeypatch.setattr("wandb.wandb_agent.Agent.POLL_INTERVAL", 0.05)

    def start(lambdas=LAMBDAS, fixed=()):
        config = yaml.safe_load(SHIPPED.read_text())
        left = []
        for number, value in enumerate(lambdas):
            parameters = {**dict(fixed), "loss.lambda_lesion": value}
            arguments = {key: {"value": value} for key, value in parameters.items()}
            left.append({"type": "run", "run_id": f"run{number}", "args": arguments})

        def heartbeat(api, agent, metrics, running):
            if running:
                return []
            return [{"program": config["program"], **(left.pop(0) if left else {"type": "exit"})}]

        answers = {
            "_sweep_with_runs": lambda *a, **k: {"config": yaml.safe_dump(config)},
            "_register_agent": lambda *a, **k: {"id": "agent"},
            "_agent_heartbeat": heartbeat,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(f"wandb.apis.public.sweeps.{name}", answer)
        done = CliRunner().invoke(cli.agent, ["lab/decision-basis/sweep7"])
        assert done.exit_code == 0, (done.output, done.exception)
        assert left == []

    return start


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Puts a text as ``python`` on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(text):
        (folder / "python").write_text(text)
        (folder / "python").chmod(0o755)

    return install


@pytest.fixture
def recorded(tmp_path, python):
    """A python on PATH that only writes down how it was called."""
    log = tmp_path / "calls"
    python(RECORDER.format(python=sys.executable, log=str(log)))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:Read the `app_url`:DeprecationWarning")  # W&B's own calls
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves it open
def test_wandb_sweep_sends_the_file_as_it_stands(monkeypatch):
    sent = {}

    def upsert(api, config, **kwargs):
        sent.update(config)
        return {"name": "sweep7"}, []

    settings = {"entity": "lab", "project": "x", "base_url": "https://x"}
    monkeypatch.setattr("wandb.apis.public.sweeps._upsert_sweep", upsert)
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(settings=settings))
    done = CliRunner().invoke(cli.sweep, [str(SHIPPED)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert sent == yaml.safe_load(SHIPPED.read_text())


def test_the_agent_writes_a_command_line_that_trains(agent, recorded):
    agent()
    for (words, variables), value in zip(recorded(), LAMBDAS, strict=True):
        assert words == ["-m", "experiments.train", "stage3", f"loss.lambda_lesion={value}"]
        config = load_config(words[2], words[3:])
        assert config.loss.lambda_lesion == value
        assert run_directory(config).name == f"lambda{float(value)}-seed0"
        assert variables["WANDB_SWEEP_ID"] == "sweep7"
    assert [variables["WANDB_RUN_ID"] for _, variables in recorded()] == ["run0", "run1"]


def test_in_a_slurm_job_every_rank_reads_the_same_command_line(
    agent, recorded, tmp_path, monkeypatch
):
    """One agent, one srun a trial; srun here starts two ranks."""
    srun(tmp_path / "bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    agent()
    calls = recorded()
    options = " --export=ALL --kill-on-bad-exit=1 --cpus-per-task=3"
    assert [variables["SLURM_OPTIONS"] for _, variables in calls] == [options] * 4
    assert [variables["SLURM_PROCID"] for _, variables in calls] == ["0", "1"] * 2
    assert calls[0][0] == calls[1][0] != calls[2][0] == calls[3][0]
    assert [variables["WANDB_RUN_ID"] for _, variables in calls] == ["run0"] * 2 + ["run1"] * 2


@pytest.fixture
def started(monkeypatch):
    """What wandb.init is called with, and the run that it returns."""
    calls = []
    run = mock.Mock(summary={})
    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options) or run)
    return calls, run


def test_in_a_sweep_the_agent_chooses_the_runs_id(tmp_path, monkeypatch, started):
    calls, _ = started
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    start_wandb(LoggerConfig(wandb="offline"), tmp_path, {})
    assert {"id", "project"}.isdisjoint(calls[0])
    assert calls[0]["resume"] == "allow"
    assert not (tmp_path / "wandb_id").exists()
    monkeypatch.delenv("WANDB_SWEEP_ID")
    start_wandb(LoggerConfig(wandb="offline"), tmp_path, {})
    assert calls[1]["id"] == (tmp_path / "wandb_id").read_text()


def test_a_sweep_hears_the_figures_of_a_run_that_was_finished_before(
    tmp_path, monkeypatch, started
):
    calls, run = started
    (tmp_path / "metrics.csv").write_text("epoch,val/auroc,val/fcn/pixel_ap\n3,0.9,0.5\n")
    monkeypatch.setattr(loop, "print_results", lambda *a: None)
    config = load_config("stage3", ["logger.wandb=offline"])
    loop.say_finished(config, tmp_path, 4)
    assert calls == []  # outside of a sweep nobody waits for them
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    loop.say_finished(config, tmp_path, 4)
    assert run.summary == {"val/auroc": 0.9, "val/fcn/pixel_ap": 0.5}
    run.finish.assert_called_once_with(exit_code=0)


@pytest.mark.slow
def test_the_agent_trains_for_real(agent, python, tmp_path, monkeypatch):
    """Its run id in W&B's offline run, its parameters in the run directory."""
    python(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    monkeypatch.setenv("PYTHONPATH", str(HOUSE))
    words = [*tiny_words(tmp_path / "data"), "model.width=0.25", "lesions.per_batch=2"]
    words += ["trainer.max_epochs=1", "logger.wandb=offline", f"run.root={tmp_path / 'runs'}"]
    agent(lambdas=[0.3], fixed=[word.split("=", 1) for word in words])
    run = tmp_path / "runs" / "phantom" / "stage3" / "lambda0.3-seed0"
    assert pd.read_csv(run / "metrics.csv")["val/fcn/pixel_ap"].notna().all()
    assert [path.name.split("-")[-1] for path in (run / "wandb").glob("offline-run-*")] == ["run0"]
