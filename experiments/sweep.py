"""Sweep without a server: ``python -m experiments.sweep FILE.yaml [key=value ...]``.

FILE is a sweep file of W&B's format, such as experiments/sweep_lambda.yaml; key=value holds for
every trial. Each trial is a process of its own: the ``command`` of the file. The same command again
goes on after a kill and tries anew what had failed; several at once, such as the tasks of a SLURM
array, share the trials. Study, table and plot lie in ``<run.root>/<data.name>/sweeps/<FILE>/``.
Exit status: 0 done, 1 some trials failed (named), 2 the request cannot be carried out, 130 and 143
stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command import BY_CTRL_C, BY_SIGTERM, BY_USR1, answered, run
from experiments.runs import is_training

if TYPE_CHECKING:  # at run time each function imports what it needs, see experiments.command
    from optuna import Study, Trial

    from experiments.cluster.sweep_file import Sweep

SECONDS = 2.0  # between two looks at a trial's metrics.csv, where early_terminate is asked for
# Passed on to the training, which saves and ends by itself. USR1: SLURM's warning before the limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep", description="Train over a W&B sweep file, or go on."
    )
    parser.add_argument("file", help="sweep file, such as experiments/sweep_lambda.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every trial")
    parser.add_argument("--count", type=int, metavar="N", help="train N trials at most, then end")
    parser.add_argument(
        "--journal",
        action="store_true",
        help="keep a new study in a file for network file systems (by itself under SLURM)",
    )
    arguments = parser.parse_intermixed_args(words)
    if arguments.count is not None and arguments.count < 1:
        parser.error(f"--count {arguments.count}: expected a whole number, at least 1")
    from experiments.cluster.sweep_file import read_sweep

    sweep = read_sweep(arguments.file, arguments.overrides)
    from experiments.cluster.sweep_study import open_study

    config = sweep.config(sweep.example())
    folder = Path(config.run.root) / config.data.name / "sweeps" / sweep.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    study = open_study(sweep, config, folder, arguments.journal)
    return carry_out(sweep, study, folder, arguments.count)


def carry_out(sweep: Sweep, study: Study, folder: Path, count: int | None) -> int:
    """Train trial after trial until none is left; return the exit status."""
    from experiments.cluster.sweep_report import describe
    from experiments.cluster.sweep_study import rows, take

    retry = {row["trial"] for row in rows(study) if row["state"] == "failed"}
    trained = 0
    while count is None or trained < count:
        with contextlib.ExitStack() as held:
            trial = take(sweep, study, folder, retry, held)
            if trial is None:
                break
            stopped = train(sweep, study, trial)
        report(sweep, study, folder, plot=False)
        if stopped:
            print("stopped; the same command goes on", file=sys.stderr)
            return stopped
        trained += 1
    current = report(sweep, study, folder)
    print(f"\n{describe(sweep, current)}\n\nwritten: {folder}/results.csv")
    if any(row["state"] == "done" for row in current):
        print(f"         {folder}/plot.png")
    ended = sum(row["state"] not in ("running", "waiting") for row in current)
    left = (len(sweep.points()) or sweep.run_cap or 0) - ended
    if left > 0:
        print(f"{left} trials are still to come: from other processes, or by this command again")
    failed = [row for row in current if row["state"] == "failed"]
    for row in failed:
        print(f"failed: {row['run']}: {row['why']}", file=sys.stderr)
    if failed:
        print("the same command again tries what failed anew", file=sys.stderr)
    return int(bool(failed))


def report(sweep: Sweep, study: Study, folder: Path, plot: bool = True) -> list[dict[str, Any]]:
    """Write the table, and the plot where some trial is done; return the rows."""
    from datamodules.files import locked
    from experiments.cluster.sweep_report import write_plot, write_table
    from experiments.cluster.sweep_study import rows

    # Two tasks that end together would write over one another, and the one that knows less last.
    with locked(folder / ".lock"):
        current = rows(study)
        write_table(sweep, current, folder)
        if plot and any(row["state"] == "done" for row in current):
            write_plot(sweep, current, folder)
    return current


def train(sweep: Sweep, study: Study, trial: Trial) -> int:
    """Train a trial and tell the study; return 0, or, where it was stopped, the exit status."""
    from optuna.trial import TrialState

    from experiments.config import run_directory
    from experiments.metrics_csv import best_row, by_epoch
    from experiments.train import monitor

    values = trial.user_attrs["values"]
    config = sweep.config(values)
    folder = run_directory(config)
    trial.set_user_attr("run", str(folder))
    words = "  ".join(f"{key}={values[key]}" for key in sweep.swept or values)
    print(f"\ntrial {trial.number}: {words}  ->  {folder}", flush=True)
    wait_for_other(folder)

    reported: set[int] = set()

    def hopeless() -> bool:
        verdict = False
        for epoch, score in by_epoch(folder, sweep.metric).items():
            if epoch not in reported:
                reported.add(epoch)
                trial.report(score, epoch + 1)
                verdict = verdict or trial.should_prune()
        return verdict

    watch = hopeless if sweep.min_epochs else None
    status, signalled, pruned = execute(sweep.command_line(values), watch)
    if watch:
        watch()  # others are compared with its last epochs, too
    row = best_row(folder, monitor(config))
    figures = {name: value for name, value in row.items() if math.isfinite(value)}
    trial.set_user_attr("figures", figures)
    epochs, wanted = len(by_epoch(folder)), config.trainer["max_epochs"]
    if status == 0 and epochs >= wanted and sweep.metric in figures:
        study.tell(trial, figures[sweep.metric])
    elif status != 0 and pruned and not signalled:
        print(f"stopped after {epochs} epochs: others were better by then (early_terminate)")
        study.tell(trial, state=TrialState.PRUNED)
    elif status != 0 and (signalled or status in (BY_CTRL_C, BY_SIGTERM, BY_USR1)):
        return signalled or status  # nothing told: unfinished, the same command takes it up
    else:
        why = f"exit status {status} after {epochs} of {wanted} epochs, see its messages above"
        if status == 0 and epochs >= wanted:
            there = ", ".join(name for name in figures if name.startswith("val/")) or "none"
            why = f"its metrics.csv has no figure {sweep.metric}; there are: {there}"
        trial.set_user_attr("why", why)
        study.tell(trial, state=TrialState.FAIL)
    return signalled


def execute(command: list[str], hopeless: Callable[[], bool] | None) -> tuple[int, int, bool]:
    """Run a training to its end.

    Returns:
        Its exit status, our own if a signal came meanwhile (else 0), and whether it was
        ``hopeless`` and therefore told to end.
    """
    # A session of its own: Ctrl-C at the terminal reaches it once, through us.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    signalled, pruned = 0, False

    def forward(number: int, frame: Any) -> None:
        nonlocal signalled
        signalled = BY_CTRL_C if number == signal.SIGINT else BY_SIGTERM
        # SIGTERM for Ctrl-C, too: srun answers a single SIGINT with a report only.
        child.send_signal(number if number == signal.SIGUSR1 else signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        while True:
            try:
                return child.wait(SECONDS if hopeless else None), signalled, pruned
            except subprocess.TimeoutExpired:
                if hopeless and not pruned and hopeless():
                    pruned = True
                    child.terminate()  # it saves and ends by itself
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_other(folder: Path) -> None:
    """Wait while another process trains in ``folder``, such as one that outlived a killed sweep."""
    if is_training(folder):
        print(f"another process trains in {folder}; waiting for it", flush=True)
    while is_training(folder):
        time.sleep(SECONDS)


if __name__ == "__main__":
    sys.exit(run(main))
