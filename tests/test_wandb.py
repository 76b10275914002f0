"""W&B without its server: nothing that befalls it stops a training, nothing is lost, and its agent.

Its service and its command line are real. The agent's server is replaced inside this process; where
a run is sent, by ``wandb_server``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import wandb
import yaml
from click.testing import CliRunner
from wandb.cli import cli

from callbacks import MapPanels
from experiments.build import build_data
from experiments.config import ConfigError, LoggerConfig, load_config, run_directory
from experiments.training import loop
from experiments.training import wandb as ours
from experiments.training.preemption import StopRequest
from tests.sweeps import HOUSE, SHIPPED, srun
from tests.wandb_server import WandbServer

# A process of its own each: W&B's service outlives a run, and takes the environment only once.
RUN = """
import sys
from pathlib import Path
from experiments.training import wandb as ours
from experiments.config import LoggerConfig

ours.ANSWER_SECONDS = ours.UPLOAD_SECONDS = 4
mode, folder, first, project = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
folder.mkdir(parents=True, exist_ok=True)
logger = ours.start_wandb(LoggerConfig(wandb=mode, wandb_project=project), folder, {})
print("mode", logger.experiment.settings.mode, flush=True)
for step in range(first, first + 3):
    logger.log_metrics({"val/loss": 0.5}, step=step)
    print("logged", step, flush=True)
    sys.stdin.readline()
logger.summarise({"val/loss": 0.5})
logger.close(failed=False)
print("closed", flush=True)
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
NOWHERE = "http://127.0.0.1:9"
LAMBDAS = (0, 0.3)


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
@pytest.mark.parametrize(
    ("key", "shared", "reason"),
    [("0" * 40, True, "connection refused"), ("short", False, "API key must have 40+")],
)
def test_without_server_or_key_a_run_is_kept_offline(tmp_path, key, shared, reason):
    owner = start(SERVICE if shared else "input()", tmp_path)
    service = owner.stdout.readline().strip() if shared else ""
    variables = {"WANDB_BASE_URL": NOWHERE, "WANDB_API_KEY": key, "WANDB_SERVICE": service}
    process = start(RUN, "online", tmp_path / "run", 0, "p", **variables)
    output, errors = process.communicate("\n\n\n", timeout=120)
    owner.communicate("\n", timeout=60)
    assert owner.returncode == 0  # its service is left to it
    assert output.split("\n")[0] == "mode offline", errors
    assert "closed" in output
    assert reason in errors
    assert "this run is kept offline" in errors
    assert is_kept(tmp_path / "run")


def test_a_project_that_wandb_refuses_is_refused_before_training(tmp_path):
    """No run is offline where only its name is wrong."""
    process = start(RUN, "offline", tmp_path, 0, "team/project")
    _, errors = process.communicate("\n\n\n", timeout=120)
    assert "ConfigError: W&B cannot keep this run offline (" in errors
    assert "Invalid project name" in errors
    assert "logger.wandb=off" in errors


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["server", "service"])
def test_what_dies_stops_nothing(tmp_path, dies):
    server = WandbServer()
    process = start(RUN, "online", tmp_path, 0, "p", WANDB_BASE_URL=server.url)
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
    for first in (0, 3):
        part = start(RUN, "offline", run, first, "p")
        _, errors = part.communicate("\n\n\n", timeout=120)
        assert part.returncode == 0, errors
        time.sleep(1.1)  # a part is named by the second that it began in
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


def test_an_empty_id_is_made_anew_and_kept(tmp_path):
    """A full disk leaves one."""
    (tmp_path / "wandb_id").touch()
    made = ours.run_id(tmp_path)
    assert len(made) == 12
    assert ours.run_id(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == ["wandb_id"]


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


# A sweep of W&B's server --------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """Runs ``wandb agent`` against a server that hands out a lambda a heartbeat.

    Returns the words and the variables of each python that it started.
    """
    monkeypatch.chdir(tmp_path)
    log, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text(RECORDER.format(python=sys.executable, log=str(log)))
    (folder / "python").chmod(0o755)
    srun(folder)
    monkeypatch.setattr("wandb.wandb_agent.Agent.POLL_INTERVAL", 0.05)
    config = yaml.safe_load(SHIPPED.read_text())
    left = [
        {"type": "run", "run_id": f"run{n}", "args": {"loss.lambda_lesion": {"value": value}}}
        for n, value in enumerate(LAMBDAS)
    ]

    def heartbeat(api, agent, metrics, running):
        if running:
            return []
        return [{"program": config["program"], **(left.pop(0) if left else {"type": "exit"})}]

    answers = {
        "wandb.Api": None,
        "wandb.teardown": None,
        "wandb.sdk.wandb_login._login": True,
        "wandb.apis.public.sweeps._sweep_with_runs": {"config": yaml.safe_dump(config)},
        "wandb.apis.public.sweeps._register_agent": {"id": "agent"},
    }
    for name, answer in answers.items():
        monkeypatch.setattr(name, lambda *args, answer=answer, **options: answer)
    monkeypatch.setattr("wandb.apis.public.sweeps._agent_heartbeat", heartbeat)

    def run():
        done = CliRunner().invoke(cli.agent, ["lab/decision-basis/sweep7"])
        assert done.exit_code == 0, (done.output, done.exception)
        return [json.loads(line) for line in log.read_text().splitlines()]

    # The agent sets variables of this very process, and W&B remembers them: undo both.
    with mock.patch.dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}"):
        for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_"))]:
            del os.environ[name]
        yield run
    monkeypatch.undo()
    wandb.teardown()


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


def test_the_agent_writes_a_command_line_that_trains(agent):
    calls = agent()
    for (words, variables), value in zip(calls, LAMBDAS, strict=True):
        assert words == ["-m", "experiments.train", "stage3", f"loss.lambda_lesion={value}"]
        config = load_config(words[2], words[3:])
        assert config.loss.lambda_lesion == value
        assert run_directory(config).name == f"lambda{float(value)}-seed0"
        assert variables["WANDB_SWEEP_ID"] == "sweep7"
    assert [variables["WANDB_RUN_ID"] for _, variables in calls] == ["run0", "run1"]


def test_in_a_slurm_job_every_rank_reads_the_same_command_line(agent):
    """One agent, one srun a trial; srun here starts two ranks."""
    os.environ |= {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3"}
    calls = agent()
    options = " --export=ALL --kill-on-bad-exit=1 --cpus-per-task=3"
    assert [variables["SLURM_OPTIONS"] for _, variables in calls] == [options] * 4
    assert [variables["SLURM_PROCID"] for _, variables in calls] == ["0", "1"] * 2
    assert calls[0][0] == calls[1][0] != calls[2][0] == calls[3][0]
    assert [variables["WANDB_RUN_ID"] for _, variables in calls] == ["run0"] * 2 + ["run1"] * 2


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
