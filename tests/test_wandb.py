"""W&B without its server: nothing that befalls it stops a training, and nothing is lost.

Its service, command line and agent are real, with ``wandb_server`` in place of the server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import wandb

from callbacks.panels import MapPanels
from experiments import train
from experiments.build import build_data
from experiments.config import ConfigError, load_config, run_directory
from experiments.runs import best_row
from experiments.training import loop
from experiments.training import wandb as ours
from experiments.training.preemption import StopRequest
from tests.standins import calls_of, stand_in
from tests.wandb_server import HOUSE, SHIPPED, WandbServer

# A process of its own: W&B's service outlives a run, and takes the environment only once.
RUN = """
import sys, time
from pathlib import Path
from experiments.training import wandb as ours
from experiments.config import load_config

ours.ANSWER_SECONDS, ours.UPLOAD_SECONDS = 4, 1
config, folder = load_config("stage1", [f"logger.wandb={sys.argv[1]}"]), Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
for first in (0, 3):
    logger = ours.start_wandb(config, folder)
    print("mode", logger.experiment.settings.mode, flush=True)
    for step in range(first, first + 3):
        logger.log_metrics({"val/loss": 0.5}, step=step)
        print("logged", step, flush=True)
        sys.stdin.readline()
    logger.summarise({"val/loss": 0.5})
    logger.close(failed=False)
    print("closed", flush=True)
    time.sleep(1.1)  # a run's files are named by the second that it began in
"""
# In place of SLURM's srun: starts two ranks in turn; SLURM_OPTIONS are its own.
SRUN = """#!/bin/sh
while case "$1" in --*) ;; *) false ;; esac
do export SLURM_OPTIONS="$SLURM_OPTIONS $1"; shift; done
SLURM_PROCID=0 "$@" && SLURM_PROCID=1 "$@"
"""
AGENT = """
import sys
from wandb.cli.cli import agent
from wandb.wandb_agent import Agent
Agent.POLL_INTERVAL = 0.05
agent(sys.argv[1:])
"""


def start(code: str, *words: object, **variables: str) -> subprocess.Popen:
    # This process may have a service, of a run of another test's: not that one.
    own = {"WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true", "WANDB_SERVICE": "", **variables}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **own},
    )


def test_a_project_that_wandb_refuses_is_refused_before_training(tmp_path):
    """No run is offline where only its name is wrong."""
    refused = load_config("stage1", ["logger.wandb=offline", "logger.wandb_project=team/project"])
    with pytest.raises(ConfigError, match=r"W&B cannot keep this run offline \(.*logger.wandb=off"):
        ours.start_wandb(refused, tmp_path)
    wandb.teardown()


@pytest.mark.slow
def test_what_dies_stops_nothing(tmp_path):
    """First the server, so that the next run is kept offline, then W&B's service beside it."""
    server = WandbServer()
    process = start(RUN, "online", tmp_path, WANDB_BASE_URL=server.url)

    def read(last: str) -> list[str]:
        lines = [process.stdout.readline().strip()]
        while lines[-1] not in (last, ""):
            lines.append(process.stdout.readline().strip())
        return lines[:-1]

    assert read("logged 0") == ["mode online"], process.communicate()
    server.switch_off()
    process.stdin.write("\n\n\n")
    process.stdin.flush()
    assert read("logged 3") == ["logged 1", "logged 2", "closed", "mode offline"]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    output, errors = process.communicate("\n\n\n", timeout=120)
    assert process.returncode == 0, errors
    assert output.endswith("closed\n")
    assert errors.count("this run is kept offline") == 1
    assert errors.count("W&B failed") == 1
    kept = [path for path in tmp_path.glob("wandb/*run-*/*.wandb") if path.stat().st_size]
    assert {path.parent.name.partition("-")[0] for path in kept} == {"run", "offline"}


@pytest.mark.slow
def test_a_requeued_run_becomes_one_run_at_wandb(tmp_path):
    """By ``make sync``: each part begins where the one before ended."""
    run = tmp_path / "runs" / "phantom" / "stage 1" / "seed0"
    parts = start(RUN, "offline", run)
    _, errors = parts.communicate("\n" * 6, timeout=120)
    assert parts.returncode == 0, errors
    identity = (run / "wandb_id").read_text()
    empty = run / "wandb" / f"offline-run-20260103_000000-{identity}" / f"run-{identity}.wandb"
    empty.parent.mkdir()
    empty.write_bytes(b"x" * 7)  # killed before it wrote
    server = WandbServer()
    variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}
    variables["WANDB_DIR"] = str(tmp_path)  # of its log
    sync = ["make", "sync", f"PYTHON={sys.executable}", f"ARGS={tmp_path}"]
    subprocess.run(sync, cwd=HOUSE, env={**os.environ, **variables}, check=True)
    server.switch_off()
    lines = [json.loads(line) for line in server.history(identity)]
    assert [line["trainer/global_step"] for line in lines] == list(range(6))
    assert [line["_step"] for line in lines] == list(range(6))


KEY = {"WANDB_API_KEY": "x"}


@pytest.mark.parametrize(
    ("wanted", "variables", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", KEY, "online"),
        ("auto", {**KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "off"),
        ("online", {**KEY, "WANDB_MODE": "offline"}, "online"),
        ("off", KEY, "off"),
    ],
)
def test_nothing_is_sent_unless_wanted(tmp_path, monkeypatch, wanted, variables, mode):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ours.wandb_mode(wanted) == mode
    if not variables:
        with pytest.raises(ConfigError, match="wandb=online needs a key"):
            ours.wandb_mode("online")
        login = tmp_path / ".netrc"
        login.touch(mode=0o600)
        login.write_text("machine api.wandb.ai login user password " + "0" * 40)
        assert ours.wandb_mode("online") == "online"


@pytest.mark.parametrize("source", ["phantom", "mura"])
@pytest.mark.parametrize("asked", ["null", "true", "false"])
def test_radiographs_leave_the_machine_only_when_asked(tmp_path, source, asked):
    words = [f"data.name={source}", f"data.root={tmp_path}", f"logger.wandb_images={asked}"]
    config = load_config("stage1", words)
    callbacks = loop.build_callbacks(config, tmp_path, build_data(config), StopRequest())
    (panels,) = [one for one in callbacks if isinstance(one, MapPanels)]
    assert panels.to_loggers is (asked == "true" or (asked, source) == ("null", "phantom"))


def test_in_a_slurm_job_the_agent_starts_each_rank_with_the_same_command_line(tmp_path):
    """The shipped file; srun here starts two ranks, and python only writes down its words."""
    folder = tmp_path / "bin"
    python, srun = stand_in(folder / "python"), stand_in(folder / "srun")
    srun.write_text(SRUN)
    parameters = {"loss.lambda_lesion": {"value": 0.3}}
    server = WandbServer(SHIPPED.read_text(), {"run_id": "run0", "args": parameters})
    variables = dict.fromkeys(("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"), str(tmp_path))
    variables |= {"WANDB_BASE_URL": server.url, "PATH": f"{folder}:{os.environ['PATH']}"}
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3"}
    agent = start(AGENT, "--count=1", "entity/project/sweep7", **variables, **job)
    output, errors = agent.communicate(timeout=120)
    server.switch_off()
    assert agent.returncode == 0, output + errors
    (words, first), (again, second) = calls_of(python)
    assert words == again == ["-m", "experiments.train", "stage3", "loss.lambda_lesion=0.3"]
    assert run_directory(load_config(words[2], words[3:])).name == "lambda0.3-seed0"
    assert (first["SLURM_PROCID"], second["SLURM_PROCID"]) == ("0", "1")
    for variables in (first, second):
        assert (variables["WANDB_SWEEP_ID"], variables["WANDB_RUN_ID"]) == ("sweep7", "run0")
        options = " --export=ALL --kill-on-bad-exit=1 --cpus-per-task=3"
        assert variables["SLURM_OPTIONS"] == options


@pytest.mark.slow
def test_in_a_sweep_the_agent_chooses_the_id_and_hears_how_a_run_ends(
    trained, tmp_path, monkeypatch
):
    calls, run = [], mock.Mock(summary={})
    folder = trained.copy("stage1", tmp_path)
    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options) or run)
    words = ["stage1", f"run.root={tmp_path}", *trained.words, "logger.wandb=offline"]
    assert train.main(words) == 0
    assert calls == []  # outside of a sweep nobody waits for the figures
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    assert train.main(words) == 0
    assert {"id", "project"}.isdisjoint(calls[0])
    assert calls[0]["resume"] == "allow"
    assert calls[0]["config"]["run"]["root"] == tmp_path.name  # nothing of where it lies
    assert run.summary["val/auroc"] == best_row(folder, "val/auroc")["val/auroc"]
    run.finish.assert_called_once_with(exit_code=0)
    run.mark_preempting.assert_not_called()
    usr1 = os.getpid(), signal.SIGUSR1
    monkeypatch.setattr(MapPanels, "on_validation_end", lambda *_: os.kill(*usr1))
    assert train.main([*words, "trainer.max_epochs=5"]) == 2  # beside points of as many epochs
    assert train.main([*words, "run.name=new"]) == 138
    run.mark_preempting.assert_called_once_with()  # it is expected back
