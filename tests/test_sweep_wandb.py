"""The shipped sweep file under W&B's own agent: its real code, with a stand-in for the server.

No server can be reached from a test. What W&B's command line and agent make of the file is real:
reading it, expanding ``command``, starting it with the run's id, taking its exit status.
"""

from __future__ import annotations

import json
import os
import sys
from unittest import mock

import pandas as pd
import pytest
import wandb
import yaml
from click.testing import CliRunner
from wandb.cli import cli

from experiments.config import LoggerConfig, load_config, run_directory
from experiments.training import wandb as wandb_run
from tests.runs import tiny_words
from tests.sweeps import HOUSE, SHIPPED, srun

LAMBDAS = (0, 0.3)
# In place of python on PATH: writes down its words and the variables that W&B and SLURM set.
RECORDER = """#!{python}
import json, os, sys
told = {{name: value for name, value in os.environ.items() if name.startswith(("WANDB_", "SLURM"))}}
with open({log!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], told]) + "\\n")
"""


@pytest.fixture(autouse=True)
def left_as_found():
    """The agent sets variables of this very process, and W&B remembers them: undo both."""
    with mock.patch.dict(os.environ):
        yield
    wandb.teardown()


class Server:
    """What W&B's server would answer: a sweep, an agent, then a command a heartbeat."""

    def __init__(self, config, lambdas, fixed):
        self.config = config
        self.left = [
            {"type": "run", "run_id": f"run{i}", "args": {key: {"value": v} for key, v in args}}
            for i, value in enumerate(lambdas)
            for args in [[*fixed, ("loss.lambda_lesion", value)]]
        ]

    def sweep_with_runs(self, api, sweep_id, specs, **kwargs):
        return {"config": yaml.safe_dump(self.config)}

    def register(self, api, host, **kwargs):
        return {"id": "agent"}

    def heartbeat(self, api, agent, metrics, running):
        if running:
            return []
        command = self.left.pop(0) if self.left else {"type": "exit"}
        return [{"program": self.config["program"], **command}]


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """``wandb agent``, at the command line, against a stand-in server."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith(("WANDB_", "SLURM_")):
            monkeypatch.delenv(name)
    # The agent sets these itself: known to monkeypatch, they are gone afterwards.
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(wandb, "Api", lambda *a, **k: None)
    monkeypatch.setattr(wandb, "teardown", lambda *a: None)
    monkeypatch.setattr("wandb.sdk.wandb_login._login", lambda **kwargs: True)
    monkeypatch.setattr("wandb.wandb_agent.Agent.POLL_INTERVAL", 0.05)

    def start(lambdas=LAMBDAS, fixed=()):
        server = Server(yaml.safe_load(SHIPPED.read_text()), lambdas, fixed)
        sweeps = "wandb.apis.public.sweeps"
        monkeypatch.setattr(f"{sweeps}._sweep_with_runs", server.sweep_with_runs)
        monkeypatch.setattr(f"{sweeps}._register_agent", server.register)
        monkeypatch.setattr(f"{sweeps}._agent_heartbeat", server.heartbeat)
        done = CliRunner().invoke(cli.agent, ["lab/decision-basis/sweep7"])
        assert done.exit_code == 0, (done.output, done.exception)
        assert server.left == []

    return start


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A python on PATH that only writes down how it was called."""
    places = tmp_path / "bin"
    places.mkdir()
    (places / "python").write_text(
        RECORDER.format(python=sys.executable, log=str(tmp_path / "calls"))
    )
    (places / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{places}:{os.environ['PATH']}")

    def calls():
        return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return calls


@pytest.mark.filterwarnings("ignore:Read the `app_url`:DeprecationWarning")  # W&B's own calls
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves it open
def test_wandb_sweep_sends_the_file_as_it_stands(monkeypatch):
    sent = {}

    def upsert(api, config, **kwargs):
        sent.update(config)
        return {"name": "sweep7"}, []

    class Api:
        def __init__(self):
            self.settings = {"entity": "lab", "project": "x", "base_url": "https://x"}

    monkeypatch.setattr("wandb.apis.public.sweeps._upsert_sweep", upsert)
    monkeypatch.setattr(wandb, "Api", Api)
    done = CliRunner().invoke(cli.sweep, [str(SHIPPED)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert sent == yaml.safe_load(SHIPPED.read_text())
    assert sent["parameters"] == {"loss.lambda_lesion": {"values": [0, 0.3, 1, 3, 10]}}


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


def initialised(monkeypatch):
    """What wandb.init is called with; the run stays away."""
    calls = []

    class Run:
        def __init__(self):
            self.summary = {}

        def define_metric(self, *args, **kwargs):
            pass

    def init(**options):
        calls.append(options)
        monkeypatch.setattr(wandb, "run", Run())
        return wandb.run

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr("experiments.training.logger.PatientWandbLogger", lambda **kwargs: kwargs)
    return calls


def test_in_a_sweep_the_agent_chooses_the_runs_id(tmp_path, monkeypatch):
    calls = initialised(monkeypatch)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    wandb_run.wandb_logger(LoggerConfig(wandb="offline"), tmp_path, {})
    assert {"id", "project"}.isdisjoint(calls[0])
    assert calls[0]["resume"] == "allow"
    assert not (tmp_path / "wandb_id").exists()
    monkeypatch.delenv("WANDB_SWEEP_ID")
    wandb_run.wandb_logger(LoggerConfig(wandb="offline"), tmp_path, {})
    assert calls[1]["id"] == (tmp_path / "wandb_id").read_text()


def test_a_sweep_hears_the_figures_of_a_run_that_was_finished_before(tmp_path, monkeypatch):
    calls = initialised(monkeypatch)
    row = {"epoch": 3.0, "val/fcn/pixel_ap": 0.5}
    wandb_run.report_finished(LoggerConfig(wandb="offline"), tmp_path, {}, row)
    assert calls == []  # outside of a sweep nobody waits for them
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    closed = []
    monkeypatch.setattr(wandb, "finish", lambda exit_code: closed.append(exit_code))
    wandb_run.report_finished(LoggerConfig(wandb="offline"), tmp_path, {}, row)
    assert wandb.run.summary == {"val/fcn/pixel_ap": 0.5}
    assert closed == [0]


@pytest.mark.slow
def test_the_agent_trains_for_real(agent, tmp_path, monkeypatch):
    """Its run id in W&B's offline run, its parameters in the run directory."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(HOUSE))
    words = [*tiny_words(tmp_path / "data"), "model.width=0.25", "lesions.per_batch=2"]
    words += ["trainer.max_epochs=1", "logger.wandb=offline", f"run.root={tmp_path / 'runs'}"]
    agent(lambdas=[0.3], fixed=dict(word.split("=", 1) for word in words).items())
    run = tmp_path / "runs" / "phantom" / "stage3" / "lambda0.3-seed0"
    assert pd.read_csv(run / "metrics.csv")["val/fcn/pixel_ap"].notna().all()
    assert [path.name.split("-")[-1] for path in (run / "wandb").glob("offline-run-*")] == ["run0"]
