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
from experiments.build import build_data
from experiments.config import ConfigError, LoggerConfig, load_config, run_directory
from experiments.training import loop
from experiments.training import wandb as ours
from experiments.training.preemption import StopRequest
from tests.sweeps import HOUSE, SHIPPED, srun
from tests.wandb_server import WandbServer

# A process of its own each: W&B's service outlives a run, and takes the environment only once.
RUN = """
import sys, time
from pathlib import Path
from experiments.training import wandb as ours
from experiments.config import LoggerConfig

ours.ANSWER_SECONDS = ours.UPLOAD_SECONDS = 4
mode, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
for first in map(int, sys.argv[3:]):
    logger = ours.start_wandb(LoggerConfig(wandb=mode, wandb_project="p"), folder, {})
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
# A service that other processes may share, as under a sweep's agent.
SERVICE = """
import os, sys, wandb
wandb.init(mode="offline", project="other", dir=sys.argv[1])
print(os.environ["WANDB_SERVICE"], flush=True)
sys.stdin.readline()
"""
# In place of python on PATH: writes down its words and the variables that W&B and SLURM set.
RECORDER = """#!{python}
import json, os, sys
given = {{name: os.environ[name] for name in os.environ if name.startswith(("WANDB_", "SLURM"))}}
with open({log!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], given]) + "\\n")
"""
AGENT = """
import sys
from wandb.cli.cli import agent
from wandb.wandb_agent import Agent
Agent.POLL_INTERVAL = 0.05
agent(sys.argv[1:])
"""
NOWHERE = "http://127.0.0.1:9"


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


def is_kept(folder: Path) -> bool:
    """Whether W&B's records of a run lie on the disk."""
    return any(path.stat().st_size for path in folder.glob("wandb/*run-*/*.wandb"))


@pytest.mark.slow
def test_without_a_server_a_run_is_kept_offline(tmp_path):
    owner = start(SERVICE, tmp_path)
    service = owner.stdout.readline().strip()
    process = start(
        RUN, "online", tmp_path / "run", 0, WANDB_BASE_URL=NOWHERE, WANDB_SERVICE=service
    )
    output, errors = process.communicate("\n\n\n", timeout=120)
    owner.communicate("\n", timeout=60)
    assert owner.returncode == 0  # its service is left to it
    assert output.split("\n")[0] == "mode offline", errors
    assert "closed" in output
    assert "connection refused" in errors
    assert "this run is kept offline" in errors
    assert is_kept(tmp_path / "run")


def test_a_project_that_wandb_refuses_is_refused_before_training(tmp_path):
    """No run is offline where only its name is wrong."""
    refused = LoggerConfig(wandb="offline", wandb_project="team/project")
    with pytest.raises(ConfigError, match=r"W&B cannot keep this run offline \(.*logger.wandb=off"):
        ours.start_wandb(refused, tmp_path, {})
    wandb.teardown()


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["server", "service"])
def test_what_dies_stops_nothing(tmp_path, dies):
    server = WandbServer()
    process = start(RUN, "online", tmp_path, 0, WANDB_BASE_URL=server.url)
    assert process.stdout.readline().strip() == "mode online", process.stderr.read()
    assert process.stdout.readline().strip() == "logged 0"
    if dies == "service":
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    server.switch_off()
    output, errors = process.communicate("\n\n\n", timeout=120)
    assert "closed" in output, errors
    assert is_kept(tmp_path)
    assert errors.count("W&B failed") <= 1
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_a_requeued_run_becomes_one_run_at_wandb(tmp_path):
    """By ``make sync``: each part begins where the one before ended, and is sent once."""
    run = tmp_path / "runs" / "phantom" / "stage 1" / "seed0"
    parts = start(RUN, "offline", run, 0, 3)
    _, errors = parts.communicate("\n" * 6, timeout=120)
    assert parts.returncode == 0, errors
    identity = (run / "wandb_id").read_text()
    empty = run / "wandb" / f"offline-run-20260103_000000-{identity}" / f"run-{identity}.wandb"
    empty.parent.mkdir()
    empty.write_bytes(b"x" * 7)  # killed before it wrote
    server = WandbServer()
    variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}
    variables["WANDB_DIR"] = str(tmp_path)  # of its log
    for _ in range(2):
        subprocess.run(
            ["make", "sync", f"PYTHON={sys.executable}", f"ARGS={tmp_path}"],
            cwd=HOUSE,
            env={**os.environ, **variables},
            check=True,
        )
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
        with pytest.raises(ConfigError, match="run 'wandb login', or use logger.wandb=offline"):
            ours.wandb_mode("online")
        login = tmp_path / ".netrc"
        login.touch(mode=0o600)
        login.write_text("machine api.wandb.ai login user password " + "0" * 40)
        assert ours.wandb_mode("online") == "online"


@pytest.mark.parametrize(
    ("source", "asked", "sent"),
    [
        ("phantom", "null", True),
        ("phantom", "false", False),
        ("mura", "null", False),
        ("mura", "true", True),
    ],
)
def test_radiographs_leave_the_machine_only_when_asked(tmp_path, source, asked, sent):
    words = [f"data.name={source}", f"data.root={tmp_path}", f"logger.wandb_images={asked}"]
    config = load_config("stage1", words)
    callbacks = loop.build_callbacks(config, tmp_path, build_data(config), StopRequest())
    (panels,) = [one for one in callbacks if isinstance(one, MapPanels)]
    assert panels.to_loggers is sent


def test_in_a_slurm_job_the_agent_starts_each_rank_with_the_same_command_line(tmp_path):
    """The shipped file; srun here starts two ranks, and python only writes down its words."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    srun(folder)
    (folder / "python").write_text(RECORDER.format(python=sys.executable, log=str(log)))
    (folder / "python").chmod(0o755)
    parameters = {"loss.lambda_lesion": {"value": 0.3}}
    server = WandbServer(SHIPPED.read_text(), {"run_id": "run0", "args": parameters})
    variables = dict.fromkeys(("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"), str(tmp_path))
    variables |= {"WANDB_BASE_URL": server.url, "PATH": f"{folder}:{os.environ['PATH']}"}
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3"}
    agent = start(AGENT, "--count=1", "entity/project/sweep7", **variables, **job)
    output, errors = agent.communicate(timeout=120)
    server.switch_off()
    assert agent.returncode == 0, output + errors
    (words, first), (again, second) = map(json.loads, log.read_text().splitlines())
    assert words == again == ["-m", "experiments.train", "stage3", "loss.lambda_lesion=0.3"]
    assert run_directory(load_config(words[2], words[3:])).name == "lambda0.3-seed0"
    assert (first["SLURM_PROCID"], second["SLURM_PROCID"]) == ("0", "1")
    for variables in (first, second):
        assert (variables["WANDB_SWEEP_ID"], variables["WANDB_RUN_ID"]) == ("sweep7", "run0")
        options = " --export=ALL --kill-on-bad-exit=1 --cpus-per-task=3"
        assert variables["SLURM_OPTIONS"] == options


def test_in_a_sweep_the_agent_chooses_the_id_and_hears_of_a_finished_run(tmp_path, monkeypatch):
    calls, run = [], mock.Mock(summary={})
    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options) or run)
    monkeypatch.setattr(loop, "print_results", lambda *given: None)
    (tmp_path / "metrics.csv").write_text("epoch,val/auroc,val/fcn/pixel_ap\n3,0.9,0.5\n")
    config = load_config("stage3", ["logger.wandb=offline"])
    loop.report_finished(config, tmp_path, 4)
    assert calls == []  # outside of a sweep nobody waits for the figures
    ours.start_wandb(LoggerConfig(wandb="offline"), tmp_path, {})
    assert calls[0]["id"] == (tmp_path / "wandb_id").read_text()
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    loop.report_finished(config, tmp_path, 4)
    assert {"id", "project"}.isdisjoint(calls[1])
    assert calls[1]["resume"] == "allow"
    assert run.summary == {"val/auroc": 0.9, "val/fcn/pixel_ap": 0.5}
    run.finish.assert_called_once_with(exit_code=0)
