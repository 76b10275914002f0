"""Train the points of a sweep file, one after the other, shared with other processes; report them.

There is no store of trials: a run directory tells whether it is finished, locked or to be resumed.
A process claims a trial by a lock on a file as long as it trains it. The kernel frees it with the
process, so that the trial of a killed one is anybody's, on every node that shares the file system.
All figures are of val at training size, of each run's best epoch.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from datamodules.files import locked, take, whole_file
from experiments import runs
from experiments.build import build_data
from experiments.cluster.points import Sweep, distribution, listed, read_sweep
from experiments.command import BY_CTRL_C, BY_SIGTERM, BY_USR1
from experiments.config import Config, ConfigError, read_plain, run_directory
from experiments.evaluation.names import PANELS
from experiments.runs import RunError, best_row, check_config, is_training
from experiments.training.loop import monitor, resolve

# Passed on to the training, which saves and ends by itself. USR1: SLURM's warning before the limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass
class Trial:
    """A point of the sweep and its run directory."""

    number: int
    values: dict[str, Any]
    config: Config
    folder: Path
    metric: str
    failure: str = ""  # why this process could not train it

    def figures(self) -> dict[str, float]:
        """The run's figures of its best epoch."""
        return best_row(self.folder, monitor(self.config))

    def state(self) -> str:
        """``done`` means: trained to its end, and the sweep's metric is there."""
        last = self.folder / "checkpoints" / "last.ckpt"
        with contextlib.suppress(RunError):  # damaged: its training says what to do
            judged = last.is_file() and pd.notna(self.figures().get(self.metric))
            if (
                judged
                and runs.epochs_done(runs.read_checkpoint(last))
                >= self.config.trainer["max_epochs"]
            ):
                return "done"
        if is_training(self.folder):
            return "running"
        return "failed" if self.failure else "waiting"


def sweep(file: str, words: list[str], count: int | None) -> int:
    """Train trial after trial until none is left, at most ``count``; return the exit status."""
    asked = read_sweep(file, words)
    trials = plan(asked)
    config = trials[0].config
    folder = Path(config.run.root) / config.data.name / "sweeps" / asked.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(count or len(trials)):
        stopped = train_next(asked, trials, folder)
        table = write_table(asked, trials, folder)
        if stopped is None:
            break
        if stopped:
            print("stopped; the same command goes on", file=sys.stderr)
            return stopped
    print(f"\n{describe(asked, table)}\n\nwritten: {folder}/results.csv")
    if "done" in set(table["state"]):
        with whole_file(folder / "plot.png") as partial:
            draw(asked, table).savefig(partial, format="png", dpi=150)
        print(f"         {folder}/plot.png")
    if left := int(table["state"].isin(["running", "waiting"]).sum()):
        print(f"{left} trials are still to come: from other processes, or by this command again")
    failed = [trial for trial in trials if trial.failure]
    for trial in failed:
        print(f"failed: {trial.folder}: {trial.failure}; again: this command", file=sys.stderr)
    return int(bool(failed))


def plan(asked: Sweep) -> list[Trial]:
    """The trials; runs of other settings are refused before any is trained."""
    trials: dict[Path, Trial] = {}
    for values in asked.points:
        config = asked.config(values)
        folder = run_directory(config)
        trial = Trial(len(trials), values, config, folder, asked.metric)
        other = trials.setdefault(folder, trial).values
        if differing := [key for key in values if values[key] != other[key]]:
            raise ConfigError(
                f"{asked.path}: points that differ in {', '.join(differing)} share the run "
                f"directory {folder}. Fix: name the runs by it, by a line such as '- run.name="
                f"x${{{differing[0]}}}-seed${{seed}}' at the end of command."
            )
        resolve(config, build_data(config))
        check_config(folder, config)
        if (folder / "checkpoints" / "last.ckpt").is_file():
            # By itself a run may be resumed with more epochs; among trials to compare none may.
            begun = read_plain(folder / "config.yaml")["trainer"]["max_epochs"]
            if begun != config.trainer["max_epochs"]:
                raise RunError(
                    f"{folder} was begun with trainer.max_epochs={begun}. Fix: take the same, or "
                    "give the sweep its own run.root."
                )
    return list(trials.values())


def train_next(asked: Sweep, trials: list[Trial], folder: Path) -> int | None:
    """Train the first trial that is nobody's; return :func:`train`'s status, None if none is left.

    From the first one each time: the trial of a process that was killed is anybody's.
    """
    for trial in trials:
        if trial.failure or trial.state() == "done":
            continue
        with (folder / f".{trial.folder.name}.claim").open("w") as claim:
            free = True
            with contextlib.suppress(OSError):  # no locks on this file system: nobody shares
                free = take(claim)
            if free and trial.state() != "done":
                return train(asked, trial)
    return None


def train(asked: Sweep, trial: Trial) -> int:
    """Train a trial; return 0, or, where it was stopped, the exit status."""
    words = "  ".join(f"{key}={trial.values[key]}" for key in asked.swept or trial.values)
    print(f"\ntrial {trial.number}: {words}  ->  {trial.folder}", flush=True)
    while is_training(trial.folder):  # it has outlived its sweep, which was killed
        time.sleep(2)
    status, signalled = execute(asked.command_line(trial.values))
    if status != 0 and (signalled or status in (BY_CTRL_C, BY_SIGTERM, BY_USR1)):
        return signalled or status  # unfinished: the same command takes it up
    if trial.state() != "done":
        epochs, wanted = len(runs.read_metrics(trial.folder)), trial.config.trainer["max_epochs"]
        trial.failure = f"exit status {status} after {epochs} of {wanted} epochs"
        if trial.metric not in trial.figures():
            trial.failure += f", no {trial.metric} in metrics.csv"
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


def write_table(asked: Sweep, trials: list[Trial], folder: Path) -> pd.DataFrame:
    """Write ``results.csv`` and return it: a row a trial, in the order of what was swept."""
    # Two tasks that end together would write over one another, and the one that knows less last.
    with locked(folder / ".lock"), whole_file(folder / "results.csv") as partial:
        rows = [
            {"trial": trial.number, **trial.values, "state": trial.state(), **trial.figures()}
            | {"why": trial.failure, "run": str(trial.folder)}
            for trial in trials
        ]
        table = pd.DataFrame(rows)
        figures = sorted(name for name in table if str(name).startswith(("val/", "train/")))
        first = ["trial", *asked.parameters, "state", *["epoch"] * ("epoch" in table)]
        table = table[[*first, *figures, "why", "run"]]
        table = table.sort_values(asked.swept, key=lambda column: places(asked, column))
        table.to_csv(partial, index=False)
    return table


def places(asked: Sweep, column: pd.Series) -> pd.Series:
    """Places on an axis; listed values stand side by side, so that lambda = 0 has its place."""
    values = listed(asked.parameters[str(column.name)])
    return column.map(values.index) if values else column


def describe(asked: Sweep, table: pd.DataFrame) -> str:
    """The table as a person reads it, and the best trial by the sweep's metric."""

    def text(table: pd.DataFrame) -> str:
        plain = table.rename(columns=lambda name: str(name).removeprefix("val/"))
        return plain.round(3).to_string(index=False)

    names = dict.fromkeys([*(name for panel in PANELS.values() for name in panel), asked.metric])
    figures = [name for name in names if name in table]
    rows = table[[*asked.swept, "state", *figures]]
    blocks = [f"figures on val, of each run's best epoch:\n{text(rows)}"]
    done = table[table["state"] == "done"]
    keys = [key for key in asked.swept if key != "seed"]
    if keys and len(done):
        groups = done.groupby(keys, as_index=False)
        means = groups[figures].mean()
        if "seed" in asked.swept:
            means.insert(len(keys), "seeds", groups.size()["size"])
            blocks.append(f"means over seeds:\n{text(means)}")
        scores = means[asked.metric]
        best = means.loc[scores.idxmax() if asked.maximize else scores.idxmin()]
        words = "  ".join(f"{key}={best[key]}" for key in keys)
        blocks.append(f"best {asked.metric}: {best[asked.metric]:.3f} at {words}")
    return "\n\n".join(blocks)


def draw(asked: Sweep, table: pd.DataFrame) -> Figure:
    """Localisation and classification over each swept key: a dot a run, a line through means."""
    table = table[table["state"] == "done"]
    keys = [key for key in asked.swept if key != "seed"] or asked.swept or [*asked.parameters][:1]
    figure = Figure(figsize=(11, 3.9 * len(keys)), layout="constrained")
    grid = figure.subplots(len(keys), len(PANELS), squeeze=False)
    for (row, key), (column, label) in itertools.product(enumerate(keys), enumerate(PANELS)):
        axes, values, x = (
            grid[row, column],
            listed(asked.parameters[key]),
            places(asked, table[key]),
        )
        lines = {name: line for name, line in PANELS[label].items() if name in table}
        for name, line in lines.items():
            if len(keys) == 1:
                axes.plot(table[name].groupby(x).mean(), color=line.colour, linewidth=1.6)
            (dots,) = axes.plot(x, table[name], line.marker, color=line.colour, label=line.heading)
            dots.set(alpha=0.8, markeredgewidth=0, clip_on=False)
        if values:
            axes.set_xticks(range(len(values)), map(str, values))
            axes.set_xlim(-0.4, len(values) - 0.6)
        elif distribution(asked.parameters[key]).startswith("log"):
            axes.set_xscale("log")
        chance = 0.5 if "val/auroc" in lines else 0.0
        axes.set_ylim(min(chance, table[[*lines]].min().min()), 1)
        axes.set_xlabel({"loss.lambda_lesion": "lambda, weight of the lesion term"}.get(key, key))
        axes.set_ylabel(label)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if lines:  # above the axes: figures from 0 to 1 leave no corner free for certain
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure
