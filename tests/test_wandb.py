"""W&B without its server: nothing that befalls it stops a training, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb

from callbacks.panels import MapPanels
from experiments.build import build_data
from experiments.config import ConfigError, load_config
from experiments.training import wandb as ours
from experiments.training.loop import build_callbacks
from experiments.training.preemption import StopRequest
from tests.sweeps import HOUSE
from tests.wandb_server import WandbServer

pytestmark = pytest.mark.slow

# A process of its own each: W&B's service outlives a run, and takes the environment only once.
RUN = """
import sys
from pathlib import Path
from experiments.training import wandb as ours
from experiments.config import load_config

ours.ANSWER_SECONDS = ours.UPLOAD_SECONDS = 4
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
config = load_config("stage1", ["logger.wandb=online", *sys.argv[2:]])
logger = ours.start_wandb(config.logger, folder, {})
print("mode", logger.experiment.settings.mode, flush=True)
for step in range(3):
    logger.log_metrics({"loss": 0.5}, step=step)
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
# A part of a run that was requeued.
PART = """
import sys, wandb
first = int(sys.argv[1])
settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
run = wandb.init(mode="offline", project="p", id="id1", resume="allow", settings=settings)
for step in range(first, first + 3):
    run.log({"trainer/global_step": step, "val/loss": step / 10})
run.finish()
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


@pytest.mark.parametrize(
    ("address", "key", "shared", "reason"),
    [
        (NOWHERE, "0" * 40, False, "connection refused"),
        (NOWHERE, "0" * 40, True, "connection refused"),
        (NOWHERE, "short", False, "API key must have 40+"),
        ("127.0.0.1:9", "0" * 40, False, "valid URL"),
    ],
)
def test_without_server_key_or_address_a_run_is_kept_offline(
    tmp_path, address, key, shared, reason
):
    owner = start(SERVICE if shared else "input()", tmp_path)
    service = owner.stdout.readline().strip() if shared else ""
    variables = {"WANDB_BASE_URL": address, "WANDB_API_KEY": key, "WANDB_SERVICE": service}
    process = start(RUN, tmp_path / "run", **variables)
    output, errors = process.communicate("\n\n\n", timeout=120)
    owner.communicate("\n", timeout=60)
    assert owner.returncode == 0  # its service is left to it
    assert output.split("\n")[0] == "mode offline", errors
    assert "closed" in output
    assert reason in errors
    assert "this run is kept offline" in errors
    assert is_kept(tmp_path / "run")


@pytest.mark.parametrize("name", ["team/project", "a" * 129, "50%"])
def test_a_project_that_wandb_refuses_is_refused_before_training(tmp_path, name):
    """No run is offline where only its name is wrong."""
    with pytest.raises(wandb.errors.UsageError, match="Invalid project name"):
        wandb.Settings(project=name)
    process = start(RUN, tmp_path, f"logger.wandb_project={name}", WANDB_BASE_URL=NOWHERE)
    _, errors = process.communicate("\n\n\n", timeout=120)
    assert "ConfigError: W&B cannot keep this run offline (" in errors
    assert "logger.wandb=off" in errors


@pytest.mark.parametrize("dies", ["server", "service"])
def test_what_dies_stops_nothing(tmp_path, dies):
    server = WandbServer()
    process = start(RUN, tmp_path, WANDB_BASE_URL=server.url)
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


def test_a_requeued_run_becomes_one_run_at_wandb(tmp_path):
    """By ``make sync``: each part begins where the one before ended, and is sent once."""
    run = tmp_path / "runs" / "phantom" / "stage 1" / "seed0"
    for first in (0, 3):
        run.mkdir(parents=True, exist_ok=True)
        part = start(PART, first, WANDB_DIR=str(run), WANDB_MODE="offline")
        _, errors = part.communicate(timeout=120)
        assert part.returncode == 0, errors
        time.sleep(1.1)  # a part is named by the second that it began in
    empty = run / "wandb" / "offline-run-20260103_000000-id1" / "run-id1.wandb"
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
    lines = [json.loads(line) for line in server.history("id1")]
    assert [line["trainer/global_step"] for line in lines] == list(range(6))
    assert [line["_step"] for line in lines] == list(range(6))


def test_an_empty_id_is_made_anew_and_kept(tmp_path):
    """A full disk leaves one."""
    (tmp_path / "wandb_id").touch()
    made = ours.run_id(tmp_path)
    assert len(made) == 12
    assert ours.run_id(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == ["wandb_id"]


@pytest.mark.parametrize(
    ("wanted", "variables", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "x"}, "online"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "off"),
        ("online", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "online"),
        ("off", {"WANDB_API_KEY": "x"}, "off"),
    ],
)
def test_nothing_is_sent_unless_wanted(tmp_path, monkeypatch, wanted, variables, mode):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ours.wandb_mode(wanted) == mode


def test_online_needs_a_key_and_a_mode_must_be_one(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="run 'wandb login', or use logger.wandb=offline"):
        ours.wandb_mode("online")
    login = tmp_path / ".netrc"
    login.touch(mode=0o600)
    login.write_text("machine api.wandb.ai login user password " + "0" * 40)
    assert ours.wandb_mode("online") == "online"
    with pytest.raises(ConfigError, match=r"logger\.wandb"):
        load_config("stage1", ["logger.wandb=onlin"])


@pytest.mark.parametrize(
    ("source", "asked", "sent"),
    [
        ("phantom", "null", True),
        ("phantom", "false", False),
        ("mura", "null", False),
        ("mura", "true", True),
        ("fracatlas", "null", False),
    ],
)
def test_radiographs_leave_the_machine_only_when_asked(tmp_path, source, asked, sent):
    words = [f"data.name={source}", f"data.root={tmp_path}", f"logger.wandb_images={asked}"]
    config = load_config("stage1", words)
    callbacks = build_callbacks(config, tmp_path, build_data(config), StopRequest())
    (panels,) = [one for one in callbacks if isinstance(one, MapPanels)]
    assert panels.to_loggers is sent
    assert panels.count == 8
