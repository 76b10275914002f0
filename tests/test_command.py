"""How commands end: signals, missing packages, lost and damaged files of a run."""

import os
import re
import resource
import signal
import sys

import pytest
import torch

from callbacks.checkpoints import RunCheckpoints
from experiments import command, evaluate
from experiments.config import ConfigError
from experiments.runs import read_checkpoint, resume_point
from experiments.training import loop
from tests.runs import kill_at_step, run_folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a finished stage 1, to damage."""
    return trained.copy("stage1", tmp_path)


MISSING = ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf")
OURS = ModuleNotFoundError("No module named 'datamodules.x'", name="datamodules.x")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("seed=x: a number is needed"), 2, "error: seed=x: a number is needed"),
        (FloatingPointError("the loss is nan"), 2, "error: the loss is nan"),
        (OSError(28, "No space left on device", "/data/a"), 2, "error: /data/a: No space left on"),
        (OSError(28, "No space left on device"), 2, "device. Fix: make room where results are"),
        (MISSING, 2, f"omegaconf'. Fix: make setup PYTHON={sys.executable}"),
        (KeyboardInterrupt(), 130, "stopped; what was written stays: run the same command again"),
        # A fault keeps its traceback.
        (ValueError("a fault"), None, ""),
        (OURS, None, ""),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_a_line_and_a_status(
    capsys, error, status, message
):
    @command.answered
    def main(words):
        raise error

    if status is None:
        with pytest.raises(type(error)):
            main(["a"])
    else:
        assert main(["a"]) == status
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_saves_and_ends_training_with_a_line_and_its_own_status(trained, tmp_path):
    """SLURM sends it to all of a job: its loader processes must live on to the batch's end."""
    words = [f"run.root={tmp_path}", *trained.words, "trainer.max_epochs=500"]
    command_line, run = ["stage1", *words, "data.num_workers=2"], run_folder(tmp_path)
    process, errors = kill_at_step(command_line, run, 1, signal.SIGTERM)
    assert process.returncode == 143, errors
    assert re.search(r"SIGTERM: saved at step \d+; the same command goes on from there", errors)
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no loader process is left


@pytest.mark.slow
def test_ctrl_c_ends_training_with_a_line_but_no_signal_a_finished_run(
    trained, run, monkeypatch, capsys
):
    monkeypatch.setattr(loop, "print_results", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    assert trained.again(run) == 0
    monkeypatch.setattr(
        RunCheckpoints, "on_validation_end", lambda *_: os.kill(os.getpid(), signal.SIGINT)
    )
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert trained.again(run, "trainer.max_epochs=9") == 130
    finally:
        signal.signal(signal.SIGINT, usual)
    assert "stopped; the same command goes on from the last save" in "".join(capsys.readouterr())


class Trap:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def flip(last):
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)


def change(edit):
    """Save ``last`` again with its content edited."""

    def save(last):
        content = read_checkpoint(last)
        edit(content, last)
        torch.save(content, last)

    return save


DAMAGED = "last.ckpt is no whole checkpoint of this project ("
LOST = "last.ckpt is lost, and training would start over"
DAMAGES = [
    (flip, DAMAGED),
    (change(lambda content, last: content.update(x=Trap(last.with_name("trace")))), DAMAGED),
    # A state that is lost does not start anew,
    (change(lambda content, _: content.pop("random_state")), "it lacks random_state"),
    (change(lambda content, _: content["callbacks"].pop("RunCheckpoints")), "lacks RunCheckpoints"),
    (change(lambda content, _: content.pop("current_model_state")), "lacks current_model_state"),
    # nor does a run whose last save is gone, or whose configuration is.
    (lambda last: last.unlink(), LOST),
    (lambda last: (last.parents[1] / "config.yaml").unlink(), "checkpoints but no config.yaml"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_run_is_named_left_alone_and_never_executed(
    trained, run, capsys, damage, message
):
    last = run / "checkpoints" / "last.ckpt"
    best = last.with_name("best.ckpt")
    torch.save({**read_checkpoint(best), "epoch": 2}, best)  # not the first epoch's
    damage(last)
    before = {path: path.read_bytes() for path in run.rglob("*.ckpt")}
    assert trained.again(run, "trainer.max_epochs=4") == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert str(run) in errors
    assert {path: path.read_bytes() for path in run.rglob("*.ckpt")} == before
    if message == DAMAGED:
        assert evaluate.main([str(last)]) == 2
        assert DAMAGED in capsys.readouterr().err
    assert not last.with_name("trace").exists()


@pytest.mark.slow
def test_a_lost_best_checkpoint_leads_to_the_last_and_damaged_figures_stop_nothing(
    trained, run, capsys, caplog
):
    (run / "checkpoints" / "best.ckpt").unlink()
    (run / "metrics.csv").write_bytes(b"")
    assert trained.again(run) == 0
    output = capsys.readouterr().out
    assert "last.ckpt (best.ckpt is lost)" in output
    assert output.strip().endswith("last.ckpt")
    assert "metrics.csv is damaged" in caplog.text
    assert evaluate.main([str(run)]) == 2
    last = run / "checkpoints" / "last.ckpt"
    assert f"or name {last}" in capsys.readouterr().err
    # A kill between the first epoch's two saves: it starts over.
    torch.save({**read_checkpoint(last), "epoch": 0}, last.with_name("best.ckpt"))
    last.unlink()
    assert resume_point(run) == (None, {})


@pytest.mark.slow
def test_a_full_disk_keeps_the_save_before(trained, run, capsys):
    """The limit on a file's size stands for the disk's: writing fails in its middle."""
    last = run / "checkpoints" / "last.ckpt"
    before = read_checkpoint(last)["global_step"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size // 2, hard))
    try:
        assert trained.again(run, "trainer.max_epochs=4") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be saved (File too large); the one before" in capsys.readouterr().err
    assert read_checkpoint(last)["global_step"] == before
    assert not list(last.parent.glob("*.partial"))
