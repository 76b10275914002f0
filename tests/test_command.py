"""How commands end: signals, missing packages, lost and damaged files of a run."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from callbacks.checkpoints import load_checkpoint
from datamodules.index import DataError
from experiments import command, evaluate, train
from experiments.config import ConfigError
from experiments.runs import RunError
from experiments.training import loop
from tests.runs import run_folder, same_results


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a finished stage 1, to damage."""
    return trained.copy("stage1", tmp_path)


def again(trained, run, *words):
    return train.main(["stage1", f"run.root={run.parents[2]}", *trained.words, *words])


def start(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # In the background of a shell script Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("seed=x: a number is needed"), "error: seed=x: a number is needed"),
        (DataError("a.png is truncated"), "error: a.png is truncated"),
        (RunError("no such run"), "error: no such run"),
        (FloatingPointError("the loss is nan"), "error: the loss is nan"),
        (OSError(28, "No space left on device", "/data/a"), "error: /data/a: No space left on d"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (OSError("worker died"), "error: worker died"),
    ],
)
def test_a_refused_request_is_a_line_and_status_2(capsys, error, said):
    @command.answered
    def main(words):
        assert words == ["a"]
        raise error

    assert main(["a"]) == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyError("a"), ZeroDivisionError()])
def test_a_fault_keeps_its_traceback(error):
    @command.answered
    def main():
        raise error

    with pytest.raises(type(error)):
        main()


def wait_for_save(process, run):
    last = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, r"SIGTERM: saved at step \d+; the same command goes on from there"),
        (signal.SIGUSR1, 138, r"SIGUSR1: saved at step \d+; the same command goes on from there"),
        (signal.SIGINT, 130, "stopped; the same command goes on from the last save"),
    ],
)
def test_a_signal_ends_training_with_a_line_and_its_own_status(
    trained, tmp_path, number, status, said
):
    process = start("stage1", f"run.root={tmp_path}", *trained.words, "trainer.max_epochs=500")
    wait_for_save(process, run_folder(tmp_path))
    process.send_signal(number)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert re.search(said, told + errors), told + errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_job_saves_too(trained, tmp_path):
    """As SLURM sends it; loader processes must live on, or no batch comes to its end."""
    words = ["stage1", f"run.root={tmp_path}", *trained.words, "trainer.max_epochs=500"]
    process = start(*words, "data.num_workers=2", start_new_session=True)
    wait_for_save(process, run_folder(tmp_path))
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "SIGTERM: saved at step" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no loader process is left


@pytest.mark.slow
def test_a_signal_does_not_make_a_finished_run_fail(trained, run, monkeypatch):
    show = loop.print_results

    def print_results(*given):
        os.kill(os.getpid(), signal.SIGUSR1)
        show(*given)

    monkeypatch.setattr(loop, "print_results", print_results)
    assert again(trained, run) == 0


def test_ctrl_c_while_starting_leaves_no_traceback(capsys):
    def main():
        raise KeyboardInterrupt

    assert command.run(main) == 130
    assert "stopped; nothing is lost, the same command goes on" in capsys.readouterr().err


def test_missing_packages_are_said(capsys):
    def main():
        raise ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf")

    assert command.run(main) == 2
    told = capsys.readouterr().err
    assert f"make setup PYTHON={sys.executable}" in told
    assert "No module named 'omegaconf'" in told


def test_a_fault_of_ours_is_no_missing_package():
    def main():
        raise ModuleNotFoundError("No module named 'datamodules.x'", name="datamodules.x")

    with pytest.raises(ModuleNotFoundError):
        command.run(main)


class Trap:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def flip(content):
    content[len(content) // 2] ^= 4
    return bytes(content)


def lose(*keys):
    """Save ``last`` again without one part."""

    def damage(last, trace):
        content = load_checkpoint(last)
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        torch.save(content, last)

    return damage


NO_WHOLE = "last.ckpt is no whole checkpoint of this project"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda last, trace: last.write_bytes(last.read_bytes()[:-1000]), NO_WHOLE),
        (lambda last, trace: last.write_bytes(b""), f"{NO_WHOLE} (the file is empty)"),
        (lambda last, trace: last.write_bytes(flip(bytearray(last.read_bytes()))), NO_WHOLE),
        (lambda last, trace: last.write_bytes(pickle.dumps(Trap(trace))), NO_WHOLE),
        (lambda last, t: torch.save({**load_checkpoint(last), "x": Trap(t)}, last), NO_WHOLE),
        (lambda last, trace: torch.save({"state_dict": {}, "epoch": 3}, last), NO_WHOLE),
        (lambda last, trace: torch.save(7, last), NO_WHOLE),
        (lose("loops", "fit_loop"), NO_WHOLE),
        (lose("random_state"), NO_WHOLE),
        # a state that is lost does not start anew
        (lose("callbacks", "RunCheckpoints"), "it lacks RunCheckpoints"),
        (lose("PhantomDataModule"), "it lacks PhantomDataModule"),
        (lose("current_model_state"), "it lacks current_model_state"),
        # nor does a run whose last save is gone, or whose configuration is
        (lambda last, trace: last.unlink(), "last.ckpt is lost, and training would start over"),
        (
            lambda last, trace: (last.parents[1] / "config.yaml").unlink(),
            "holds checkpoints but no config.yaml",
        ),
    ],
)
def test_a_damaged_run_is_said_left_alone_and_never_executed(
    trained, run, tmp_path, capsys, damage, message
):
    last, trace = run / "checkpoints" / "last.ckpt", tmp_path / "trace"
    best = last.with_name("best.ckpt")
    torch.save({**load_checkpoint(best), "epoch": 2}, best)  # not the first epoch's
    damage(last, trace)
    before = {path: path.read_bytes() for path in run.rglob("*.ckpt")}
    assert again(trained, run, "trainer.max_epochs=4") == 2
    told = capsys.readouterr().err
    assert message in told
    assert str(run) in told
    assert {path: path.read_bytes() for path in run.rglob("*.ckpt")} == before
    if message.startswith(NO_WHOLE) and "random_state" not in told:
        assert evaluate.main([str(last)]) == 2
        assert NO_WHOLE in capsys.readouterr().err
    assert not trace.exists()


@pytest.mark.slow
def test_a_kill_between_the_first_epochs_two_saves_starts_over(trained, run):
    best = run / "checkpoints" / "best.ckpt"
    torch.save({**load_checkpoint(best), "epoch": 0}, best)
    best.with_name("last.ckpt").unlink()
    assert again(trained, run) == 0
    same_results(trained.stage1, run)


@pytest.mark.slow
def test_a_lost_best_checkpoint_leads_to_the_last(trained, run, capsys):
    (run / "checkpoints" / "best.ckpt").unlink()
    assert again(trained, run) == 0
    told = capsys.readouterr().out
    assert "last.ckpt (best.ckpt is lost)" in told
    assert told.strip().endswith("last.ckpt")
    assert evaluate.main([str(run)]) == 2
    assert f"name {run / 'checkpoints' / 'last.ckpt'}" in capsys.readouterr().err


@pytest.mark.slow
def test_damaged_figures_stop_nothing(trained, run, caplog):
    (run / "metrics.csv").write_bytes(b"")
    assert again(trained, run) == 0
    assert again(trained, run, "trainer.max_epochs=4") == 0
    assert "metrics.csv is damaged" in caplog.text


@pytest.mark.slow
def test_a_full_disk_keeps_the_save_before(trained, run):
    """The limit on a file's size stands for the disk's: writing fails in its middle."""
    last = run / "checkpoints" / "last.ckpt"
    before = load_checkpoint(last)["global_step"]
    limit = last.stat().st_size // 2
    longer = ["stage1", f"run.root={run.parents[2]}", *trained.words, "trainer.max_epochs=5"]
    code = f"""
import resource, sys
from experiments import train
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(train.main({longer}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "could not be saved (File too large); the one before it is whole" in done.stderr
    assert load_checkpoint(last)["global_step"] == before
    assert not list(last.parent.glob("*.partial"))
    assert train.main(longer) == 0


@pytest.mark.slow
def test_a_clock_that_jumps_back_changes_nothing(trained, tmp_path, monkeypatch):
    finished, clock = trained.stage1, iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert train.main(["stage1", f"run.root={tmp_path}", *trained.words]) == 0
    same_results(finished, run_folder(tmp_path))
