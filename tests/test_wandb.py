"""W&B without its server: nothing that befalls it stops a training, and nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from experiments import train
from experiments.config import load_config
from experiments.training import wandb as wandb_run
from tests.wandb_server import WandbServer

pytestmark = pytest.mark.slow

# A process of its own each: W&B's service outlives a run, and takes the environment only once.
RUN = """
import sys
from pathlib import Path
from experiments.training import wandb as wandb_run
from experiments.config import load_config

wandb_run.ANSWER_SECONDS = wandb_run.UPLOAD_SECONDS = 4
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
logger = wandb_run.wandb_logger(load_config("stage1", ["logger.wandb=online"]).logger, folder, {})
print("mode", logger.experiment.settings.mode, flush=True)
for step in range(3):
    logger.log_metrics({"loss": 0.5}, step=step)
    print("logged", step, flush=True)
    sys.stdin.readline()
wandb_run.close_wandb(failed=False)
print("closed", flush=True)
"""


# A service that other processes may share, as under a sweep's agent.
SERVICE = """
import os, sys, wandb
wandb.init(mode="offline", project="other", dir=sys.argv[1])
print(os.environ["WANDB_SERVICE"], flush=True)
sys.stdin.readline()
"""


def start(folder: Path, url: str, key: str = "0" * 40, service: str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # This process may have a service, of a run of another test's: not that one.
        env={
            **os.environ,
            "WANDB_API_KEY": key,
            "WANDB_BASE_URL": url,
            "WANDB_SILENT": "true",
            "WANDB_SERVICE": service,
        },
    )


def segments(folder: Path) -> list[Path]:
    """Records on the disk."""
    return [path for path in folder.glob("wandb/*run-*/*.wandb") if path.stat().st_size]


@pytest.mark.parametrize(
    ("key", "said"), [("0" * 40, "connection refused"), ("short", "API key must have 40+")]
)
def test_without_server_or_key_a_run_is_kept_offline(tmp_path, key, said):
    process = start(tmp_path, "http://127.0.0.1:9", key)
    told, errors = process.communicate("\n\n\n", timeout=120)
    assert told.split("\n")[0] == "mode offline", errors
    assert "closed" in told
    assert "W&B cannot be reached" in errors
    assert said in errors
    assert segments(tmp_path)


def test_an_address_that_is_none_keeps_a_run_offline(tmp_path):
    process = start(tmp_path, "127.0.0.1:9")
    told, errors = process.communicate("\n\n\n", timeout=120)
    assert told.split("\n")[0] == "mode offline", errors
    assert "valid URL" in errors
    assert "this run is kept offline" in errors
    assert segments(tmp_path)


def test_other_settings_that_are_wrong_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    process = start(tmp_path, "http://127.0.0.1:9")
    _, errors = process.communicate("\n\n\n", timeout=120)
    assert "ConfigError: W&B cannot keep this run offline (" in errors
    assert "logger.wandb=off" in errors


def test_under_a_shared_service_too_a_run_is_kept_offline(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WANDB_SILENT": "true", "WANDB_SERVICE": ""},
    )
    assert owner.stdout is not None
    service = owner.stdout.readline().strip()
    process = start(tmp_path / "run", "http://127.0.0.1:9", service=service)
    told, errors = process.communicate("\n\n\n", timeout=120)
    owner.communicate("\n", timeout=60)
    assert told.split("\n")[0] == "mode offline", errors
    assert "connection refused" in errors
    assert segments(tmp_path / "run")
    assert owner.returncode == 0


def test_a_server_that_goes_away_stops_nothing(tmp_path):
    server = WandbServer()
    process = start(tmp_path, server.url)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline().strip() == "mode online", process.stderr.read()
    assert process.stdout.readline().strip() == "logged 0"
    server.switch_off()
    told, errors = process.communicate("\n\n\n", timeout=120)
    assert "closed" in told, errors
    assert segments(tmp_path)


def test_a_service_that_dies_stops_nothing(tmp_path):
    process = start(tmp_path, "http://127.0.0.1:9", "short")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "mode offline"
    assert process.stdout.readline().strip() == "logged 0"
    subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=True)
    told, errors = process.communicate("\n\n\n", timeout=120)
    assert "closed" in told, errors
    assert errors.count("W&B failed") <= 1
    assert process.returncode == 0, errors


@pytest.mark.parametrize("name", ["team/project", "a" * 129, "50%"])
def test_a_project_that_wandb_refuses_is_said_before_training(name, capsys):
    assert train.main(["stage1", f"logger.wandb_project={name}"]) == 2
    assert f"error: logger.wandb_project={name}: W&B knows no such names" in capsys.readouterr().err
    with pytest.raises(wandb.errors.UsageError, match="Invalid project name"):
        wandb.Settings(project=name)


def test_an_empty_id_is_made_anew_and_kept(tmp_path):
    """A full disk leaves one."""
    (tmp_path / "wandb_id").touch()
    made = wandb_run.run_id(tmp_path)
    assert len(made) == 12
    assert wandb_run.run_id(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == ["wandb_id"]


def test_a_wrong_mode_is_said():
    with pytest.raises(wandb_run.ConfigError, match="logger.wandb"):
        load_config("stage1", ["logger.wandb=onlin"])
