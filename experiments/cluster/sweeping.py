"""Train the points of a sweep file, one after the other, shared with other processes.

There is no store of trials: a run directory tells whether it is finished, locked or to be resumed.
A process claims a trial by a lock on a file as long as it trains it. The kernel frees it with the
process, so that the trial of a killed one is anybody's, on every node that shares the file system.
"""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from datamodules.files import locked, take
from experiments import runs
from experiments.build import build_data
from experiments.cluster import results
from experiments.cluster.points import Sweep, read_sweep
from experiments.command import BY_CTRL_C, BY_SIGTERM, BY_USR1
from experiments.config import Config, ConfigError, read_plain, run_directory
from experiments.runs import RunError, best_row, check_config, is_training
from experiments.training.loop import monitor, resolve

# Passed on to the training, which saves and ends by itself. USR1: SLURM's warning before the limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Trial(NamedTuple):
    """A point of the sweep and its run directory."""

    number: int
    values: dict[str, Any]
    config: Config
    folder: Path

    def figures(self) -> dict[str, float]:
        """The run's figures of its best epoch."""
        row = best_row(self.folder, monitor(self.config))
        return {name: value for name, value in row.items() if math.isfinite(value)}

    def is_done(self, metric: str) -> bool:
        """Whether the run is trained to its end and has the sweep's metric."""
        last = self.folder / "checkpoints" / "last.ckpt"
        with contextlib.suppress(RunError):  # damaged: its training says what to do
            wanted = self.config.trainer["max_epochs"]
            if metric in self.figures() and last.is_file():
                return runs.epochs_done(runs.read_checkpoint(last)) >= int(wanted)
        return False


def sweep(file: str, words: list[str], count: int | None) -> int:
    """Train trial after trial until none is left, at most ``count``; return the exit status."""
    asked = read_sweep(file, words)
    trials, folder = plan(asked)
    failed: dict[int, str] = {}  # the number of a trial, and why
    stopped = trained = 0
    while not stopped and (count is None or trained < count):
        # From the first one each time: the trial of a process that was killed is anybody's.
        for trial in trials:
            if trial.number in failed or trial.is_done(asked.metric):
                continue
            with (folder / f".{trial.folder.name}.claim").open("w") as claim:
                free = True
                with contextlib.suppress(OSError):  # no locks on this file system: nobody shares
                    free = take(claim)
                if free and not trial.is_done(asked.metric):
                    stopped = train(asked, trial, failed)
                    break
        else:
            break
        trained += 1
        report(asked, trials, folder, failed)
    if stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return stopped
    rows = report(asked, trials, folder, failed)
    print(f"\n{results.describe(asked, rows)}\n\nwritten: {folder}/results.csv")
    states = [row["state"] for row in rows]
    if "done" in states:
        results.write_plot(asked, rows, folder)
        print(f"         {folder}/plot.png")
    if left := states.count("running") + states.count("waiting"):
        print(f"{left} trials are still to come: from other processes, or by this command again")
    for number, why in failed.items():
        print(f"failed: {trials[number].folder}: {why}", file=sys.stderr)
    if failed:
        print("the same command again tries what failed anew", file=sys.stderr)
    return int(bool(failed))


def plan(asked: Sweep) -> tuple[list[Trial], Path]:
    """The trials, and the sweep's own folder; runs of other settings are refused before any."""
    trials: dict[Path, Trial] = {}
    for values in asked.points:
        config = asked.config(values)
        folder = run_directory(config)
        other = trials.setdefault(folder, Trial(len(trials), values, config, folder)).values
        for key in (key for key in values if values[key] != other[key]):
            raise ConfigError(
                f"{asked.path}: parameters.{key}: points that differ in it share the run directory "
                f"{folder}. Name the runs by it: a line '- run.name={key.split('.')[-1]}${{{key}}}-"
                "...' at the end of command."
            )
        resolve(config, build_data(config))
        check_config(folder, config)
        if (folder / "checkpoints" / "last.ckpt").is_file():
            # By itself a run may be resumed with more epochs; among trials to compare none may.
            begun = read_plain(folder / "config.yaml")["trainer"]["max_epochs"]
            if begun != config.trainer["max_epochs"]:
                raise RunError(
                    f"{folder} was begun with trainer.max_epochs: {begun} -> "
                    f"{config.trainer['max_epochs']}. Fix: sweep with the same, or give the sweep "
                    "its own run.root."
                )
    place = Path(config.run.root) / config.data.name / "sweeps" / asked.path.stem
    place.mkdir(parents=True, exist_ok=True)
    return list(trials.values()), place


def train(asked: Sweep, trial: Trial, failed: dict[int, str]) -> int:
    """Train a trial; return 0, or, where it was stopped, the exit status."""
    words = "  ".join(f"{key}={trial.values[key]}" for key in asked.swept or trial.values)
    print(f"\ntrial {trial.number}: {words}  ->  {trial.folder}", flush=True)
    if is_training(trial.folder):  # it has outlived its sweep, which was killed
        print(f"another process trains in {trial.folder}; waiting for it", flush=True)
    while is_training(trial.folder):
        time.sleep(2)
    status, signalled = execute(asked.command_line(trial.values))
    if status != 0 and (signalled or status in (BY_CTRL_C, BY_SIGTERM, BY_USR1)):
        return signalled or status  # unfinished: the same command takes it up
    if not trial.is_done(asked.metric):
        epochs, wanted = len(runs.read_metrics(trial.folder)), trial.config.trainer["max_epochs"]
        why = f"exit status {status} after {epochs} of {wanted} epochs, see its messages above"
        if status == 0 and epochs >= wanted:
            there = [name for name in trial.figures() if name.startswith("val/")]
            why = f"its metrics.csv has no {asked.metric}, only {', '.join(there) or 'no figures'}"
        failed[trial.number] = why
    return signalled


def execute(command: list[str]) -> tuple[int, int]:
    """Run a training to its end: its exit status, and ours if a signal came meanwhile, else 0."""
    # A session of its own: Ctrl-C at the terminal reaches it once, through us.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    signalled = 0

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        signalled = BY_CTRL_C if number == signal.SIGINT else BY_SIGTERM
        # SIGTERM for Ctrl-C, too: srun answers a single SIGINT with a report only.
        child.send_signal(number if number == signal.SIGUSR1 else signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        return child.wait(), signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(
    asked: Sweep, trials: list[Trial], folder: Path, failed: dict[int, str]
) -> list[dict[str, Any]]:
    """Write ``results.csv`` and return its rows, one a trial."""
    # Two tasks that end together would write over one another, and the one that knows less last.
    with locked(folder / ".lock"):
        rows = []
        for trial in trials:
            state = "failed" if trial.number in failed else "waiting"
            state = "running" if is_training(trial.folder) else state
            state = "done" if trial.is_done(asked.metric) else state
            row = {"trial": trial.number, **trial.values, "state": state, **trial.figures()}
            why = failed.get(trial.number, "")
            rows.append({**row, "why": why, "run": str(trial.folder)})
        results.write_table(asked, rows, folder)
    return rows
