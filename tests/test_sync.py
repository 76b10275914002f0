"""Sending W&B runs that were kept offline, with a stand-in for wandb."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import sync
from tests.wandb_server import WandbServer


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to send from."""
    monkeypatch.chdir(tmp_path)


def segment(run: str, started: str, size: int = 100, identity: str = "id1") -> Path:
    folder = Path(run) / "wandb" / f"offline-run-{started}-{identity}"
    folder.mkdir(parents=True)
    (folder / f"run-{identity}.wandb").write_bytes(b"x" * size)
    return folder


def test_sync_sends_the_segments_of_a_run_in_their_order(capsys):
    late = segment("runs/phantom/stage1/seed0", "20260102_000000")
    early = segment("runs/phantom/stage1/seed0", "20260101_000000")
    segment("runs/phantom/stage1/seed0", "20260103_000000", size=7)  # killed before it wrote
    other = segment("runs/phantom/stage2/a b", "20260101_000000", identity="id2")
    sent = segment("runs/phantom/stage3/seed0", "20260101_000000")
    (sent / "run-id1.wandb.synced").touch()
    assert sync.main(["--dry-run"]) == 0
    first, second = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    assert first == [sys.executable, "-m", "wandb", "sync", str(early), str(late)]
    assert second[4:] == [str(other)]


def test_each_of_wandbs_runs_in_a_folder_is_sent(capsys):
    """As of two sweeps, whose agents chose the id."""
    run = "runs/phantom/stage3/seed0"
    late = segment(run, "20260102_000000", identity="aaa")
    early = segment(run, "20260101_000000", identity="aaa")
    other = segment(run, "20260101_120000", identity="bbb")
    assert sync.main(["--dry-run"]) == 0
    lines = [shlex.split(line)[4:] for line in capsys.readouterr().out.splitlines()]
    assert lines == [[str(early), str(late)], [str(other)]]


def test_sync_leaves_a_run_that_is_being_trained(capsys):
    run = Path("runs/phantom/stage1/seed0")
    segment(str(run), "20260101_000000")
    code = "import sys; from datamodules.files import take; handle = open(sys.argv[1], 'w'); "
    owner = subprocess.Popen(
        [sys.executable, "-c", code + "print(take(handle), flush=True); input()", f"{run}/.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(sync.__file__).parents[1])},
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "True\n"
        assert sync.main([]) == 0
        owner.kill()
    told = capsys.readouterr().out
    assert f"{run}: a job trains here now" in told
    assert "nothing to send below runs" in told


def test_sync_without_key_runs_or_folder_says_so(capsys, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sync.main([]) == 2
    assert "there is no folder runs" in capsys.readouterr().err
    Path("runs").mkdir()
    assert sync.main([]) == 0
    assert "nothing to send below runs" in capsys.readouterr().out
    segment("runs/phantom/stage1/seed0", "20260101_000000")
    assert sync.main([]) == 2
    assert "1 runs to send, but no W&B key: set WANDB_API_KEY" in capsys.readouterr().err


def test_sync_names_what_was_not_sent(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    good = segment("runs/phantom/stage1/seed0", "20260101_000000")
    segment("runs/phantom/stage2/seed0", "20260101_000000")
    modes = []

    def send(command, env, check):
        modes.append(env.get("WANDB_MODE"))
        if command[-1] == str(good):
            (good / "run-id1.wandb.synced").touch()

    monkeypatch.setattr(subprocess, "run", send)
    assert sync.main([]) == 1
    assert "not sent, see above: runs/phantom/stage2/seed0;" in capsys.readouterr().err
    assert modes == [None, None]  # set for compute nodes, it would keep sync from sending


LOG = """
import sys, wandb
first = int(sys.argv[1])
settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
run = wandb.init(mode="offline", project="p", id="id1", resume="allow", settings=settings)
for step in range(first, first + 3):
    run.log({"trainer/global_step": step, "val/loss": step / 10})
run.finish()
"""


@pytest.mark.slow
def test_a_requeued_run_becomes_one_run_at_wandb(capfd, monkeypatch):
    """By the real wandb: each segment begins where the one before ended."""
    run = Path("runs/phantom/stage1/seed0")
    run.mkdir(parents=True)
    monkeypatch.delenv("WANDB_MODE")
    for first in (0, 3):
        environment = {**os.environ, "WANDB_DIR": str(run)}
        subprocess.run([sys.executable, "-c", LOG, str(first)], env=environment, check=True)
        time.sleep(1.1)  # a segment is named by the second that it began in
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert sync.main([]) == 0, capfd.readouterr()
    assert sync.main([]) == 0
    server.switch_off()
    assert "nothing to send below runs" in capfd.readouterr().out
    lines = [json.loads(line) for line in server.history("id1")]
    assert [line["trainer/global_step"] for line in lines] == list(range(6))
    assert [line["_step"] for line in lines] == list(range(6))
