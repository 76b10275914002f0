"""Signals before, in and after training; which SLURM jobs go back into the queue."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from experiments import train
from experiments.training import preemption
from experiments.training.preemption import Stopped, StopRequest, leave, requeue

USR1, TERM = preemption.SIGNALS


def test_the_first_signal_stops_at_once_or_is_remembered():
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with StopRequest() as stop, pytest.raises(Stopped, match="SIGUSR1"):
        os.kill(os.getpid(), USR1)
    assert stop.number == USR1
    with StopRequest() as stop:
        signal.signal(TERM, signal.SIG_DFL)  # as Lightning takes it
        stop.defer()
        os.kill(os.getpid(), TERM)
        os.kill(os.getpid(), USR1)
        assert stop.number == TERM
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before


# With proctrack/linuxproc SLURM signals every descendant, loader processes too.
FORKED = """
import os, signal, sys
from experiments.training.preemption import StopRequest
with StopRequest() as stop:
    child = os.fork()
    os.kill(os.getpid(), signal.SIGUSR1) if child == 0 else None
    if child == 0:
        os._exit(stop.number)
    assert os.waitpid(child, 0)[1] == 0
with StopRequest(last=True):
    pass
os.kill(os.getpid(), signal.SIGUSR1)  # while Python shuts down
os.kill(os.getpid(), signal.SIGTERM)
"""
LIGHT = "import sys, experiments.train, experiments.config\n"
LIGHT += "assert not {'torch', 'numpy'} & {*sys.modules}"  # handlers and a mistyped key come first


@pytest.mark.parametrize("code", [FORKED, LIGHT])
def test_forked_ending_and_starting_processes_are_not_disturbed(code):
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_signal_while_the_data_is_prepared_ends_with_its_status(monkeypatch, capsys, tmp_path):
    def prepare(_):
        os.kill(os.getpid(), TERM)

    monkeypatch.setattr("datamodules.phantom.source.PhantomDataModule.prepare_data", prepare)
    monkeypatch.chdir(tmp_path)
    assert train.main(["stage1"]) == 143
    assert "SIGTERM: nothing was under way" in capsys.readouterr().err


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A stand-in for ``scontrol``; returns the file of what it was called with."""

    def answer(show, requeued="exit 0"):
        """Shell code of ``scontrol show job`` and of ``scontrol requeue``."""
        calls, command = tmp_path / "calls", tmp_path / "scontrol"
        calls.touch()
        cases = f"*show*) {show};; *requeue*) {requeued};;"
        command.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncase "$*" in {cases} esac\n')
        command.chmod(0o755)
        return calls

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    return answer


RUNNING, ENDING = "echo JobId=41 JobState=RUNNING", "echo JobId=41 JobState=COMPLETING"
MAKE_ROOM = "PreemptTime=2026-01-01T00:00:00"


@pytest.mark.parametrize(
    ("number", "answer", "outcome"),
    [
        (USR1, RUNNING, "job 41 is requeued"),
        (TERM, f"{RUNNING} {MAKE_ROOM}", "job 41 is requeued"),
        # Somebody wants this process to end, such as a sweep that stops.
        (TERM, RUNNING, "the same command goes on"),
        # scancel sends SIGTERM too: a cancelled job must not come back.
        (USR1, ENDING, "SLURM is ending job 41"),
        (TERM, f"{ENDING} {MAKE_ROOM}", "SLURM is ending job 41"),
        # Without an answer: nobody cancels by USR1.
        (USR1, "exit 1", "job 41 is requeued"),
        (TERM, "exit 1", "the same command goes on"),
    ],
)
def test_a_job_is_requeued_only_where_it_is_to_make_room(slurm, number, answer, outcome):
    calls = slurm(answer)
    assert outcome in requeue(number)
    assert ("requeue 41" in calls.read_text()) is ("is requeued" in outcome)


def test_of_an_array_only_the_task_itself_is_requeued(slurm, monkeypatch):
    """The last task has the array's number: by that all tasks would be requeued."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "41")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    calls = slurm(RUNNING, "echo 'is not requeuable' >&2; exit 1")
    assert "job 41_3 cannot be requeued (is not requeuable)" in requeue(USR1)
    assert calls.read_text().splitlines() == ["--oneliner show job 41_3", "requeue 41_3"]


def test_further_signals_do_not_keep_a_job_from_being_requeued(slurm, monkeypatch, capsys):
    """SLURM sends SIGTERM twice where a job is to make room; people press twice."""
    calls = slurm("kill -USR1 $PPID; kill -TERM $PPID; echo JobState=RUNNING")
    monkeypatch.setattr(train, "carry_out", lambda *given: os.kill(os.getpid(), USR1))
    assert train.main(["stage1"]) == 138
    assert "job 41 is requeued" in capsys.readouterr().err
    assert "requeue 41" in calls.read_text()


def test_another_rank_lets_the_first_requeue_before_it_leaves(slurm, monkeypatch):
    """srun ends all ranks as soon as one has a bad exit status.

    The first may have deferred signals already, and wait for this one: then it is requeued here.
    """
    waited = []
    calls = slurm(RUNNING)

    def sleep(seconds):
        assert not calls.read_text()
        waited.append(seconds)

    # Not time.sleep itself: subprocess, too, sleeps while it waits for an answer.
    monkeypatch.setattr(preemption, "time", SimpleNamespace(sleep=sleep))
    assert preemption.is_first_rank()
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("LOCAL_RANK", "1")  # started by Lightning in a shell of srun's
    assert not preemption.is_first_rank()
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert leave(USR1, "nothing was under way") == 138
    assert waited == [preemption.FIRST_RANK_SECONDS]
    assert "requeue 41" in calls.read_text()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert leave(USR1, "nothing was under way") == 138
    assert len(waited) == 1  # nothing is requeued
