"""Sweeps without a server: W&B's sweep file, trained point by point, with a table and a plot.

A run directory tells whether its trial is finished, locked or to be resumed: no other store. A
process claims a trial by a lock on a file, which the kernel frees with the process: the trial of a
killed one is anybody's, on every node that shares the disk. Figures are of val at training size.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from datamodules.files import locked, take, whole_file
from experiments import runs
from experiments.build import build_data, resolve, unfinished
from experiments.cluster.drawing import draw
from experiments.command import BY_CTRL_C, BY_SIGTERM, BY_USR1
from experiments.config import Config, ConfigError, load_config, read_plain, run_directory
from experiments.evaluation.names import PANELS
from experiments.training.loop import monitor
from experiments.training.pretrained import find_origin

# name, description, program, project and entity are W&B's alone: where its server keeps the sweep.
KEYS = ["program", "name", "description", "project", "entity", "method", "metric", "parameters"]
KEYS += ["run_cap", "command"]
PARAMETER = "value, values or (random) min < max of int_uniform, uniform or log_uniform_values"
MODULE, SETTINGS = "experiments.train", "${args_no_hyphens}"
# Passed on to the training, which saves and ends by itself. USR1: SLURM's warning before the limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True)
class Sweep:
    """A sweep file; its command ends with the words of the command line."""

    path: Path
    metric: str  # a figure of val
    maximize: bool
    parameters: dict[str, dict[str, Any]]  # by key: values, or an interval
    swept: list[str]  # the keys in which points differ, in the file's order
    points: list[dict[str, Any]]  # a grid in the file's order, or random ones
    command: list[str]


@dataclass
class Trial:
    """A point of the sweep and its run directory."""

    number: int
    values: dict[str, Any]
    command: list[str]  # as W&B's agent would execute it
    config: Config
    folder: Path
    metric: str
    failure: str = ""  # why this process could not train it

    def figures(self) -> dict[str, float]:
        """The run's figures of its best epoch."""
        row = runs.best_row(self.folder, monitor(self.config))
        return {key: row[key] for key in row if key.startswith(("epoch", "train/", "val/"))}

    def state(self) -> str:
        """``done`` means: trained to its end, and the sweep's metric is there."""
        judged = pd.notna(self.figures().get(self.metric))
        if judged and not unfinished(self.folder, self.config.trainer["max_epochs"]):
            return "done"
        if runs.is_training(self.folder):
            return "running"
        return "failed" if self.failure else "waiting"


def sweep(file: str, words: list[str], count: int | None) -> int:
    """Train trial after trial until none is left, at most ``count``; return the exit status."""
    asked = read_sweep(file, words)
    trials = plan(asked)
    folder = trials[0].folder.parents[1] / "sweeps" / asked.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(count or len(trials)):
        stopped = train_next(asked, trials, folder)
        table = write_table(trials, folder)
        if "done" in {*table["state"]}:
            with whole_file(folder / "plot.png") as partial:
                draw(asked.parameters, asked.swept, table).savefig(partial, format="png", dpi=150)
        if stopped is None:
            break
        if stopped:
            print("stopped; the same command goes on", file=sys.stderr)
            return stopped
    print(f"\n{describe(asked, table)}\n\ntable and plot: {folder}")
    failed = [trial for trial in trials if trial.failure]
    for trial in failed:
        print(f"failed: {trial.folder}: {trial.failure}; again: this command", file=sys.stderr)
    return int(bool(failed))


def read_sweep(file: str, words: list[str]) -> Sweep:
    """Read and check a sweep file; ``words`` of the command line hold for every point."""
    path = Path(file).expanduser()
    try:
        # W&B's own reading, not that of the configuration: 1e-3 is text to it.
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    check_file(path, content)
    parameters = {
        str(key): {"values": [given["value"]]} if "value" in given else given
        for key, given in content["parameters"].items()
    }
    if content["method"] == "grid":
        every = itertools.product(*(given["values"] for given in parameters.values()))
        points = [dict(zip(parameters, values, strict=True)) for values in every]
    else:  # a pure function of the file, so that a restart finds the same points
        points = [
            {key: value_at(source.random(), given) for key, given in parameters.items()}
            for source in map(random.Random, range(content["run_cap"]))
        ]
    if both := parameters.keys() & {word.partition("=")[0] for word in words}:
        what = f"{path}: {', '.join(sorted(both))}: given here and on the command line"
        raise ConfigError(f"{what} (make: DATA, ROOT). Fix: not both")
    metric, command = content["metric"], [*map(str, content["command"]), *words]
    maximize, points = metric.get("goal") == "maximize", points[: content.get("run_cap")]
    swept = [key for key, given in parameters.items() if len(given.get("values", ())) != 1]
    return Sweep(path, metric["name"], maximize, parameters, swept, points, command)


def check_file(path: Path, content: Any) -> None:
    """Refuse what is no sweep file, or one that cannot be carried out here."""
    content = content if isinstance(content, dict) else {}
    names = ("method", "metric", "run_cap", "parameters", "command")
    method, metric, cap, parameters, command = map(content.get, names)
    parameters = parameters if isinstance(parameters, dict) else {"": parameters}
    name, goal = (metric.get(key) if isinstance(metric, dict) else None for key in ("name", "goal"))
    is_metric = str(name).startswith("val/") and goal in (None, "minimize", "maximize")
    is_cap = (method, cap) == ("grid", None) or (type(cap) is int and cap > 0)
    words = [*map(str, command or []), MODULE]
    # W&B's default command would write --key=value, which the training does not read.
    is_command = SETTINGS in words[words.index(MODULE) + 2 :]
    rules = [
        *((key, key in KEYS, f"one of {', '.join(KEYS)}") for key in content),
        ("method", method in ("grid", "random"), "grid or random (bayes: docs/cluster.md)"),
        ("metric", is_metric, "a name, val/... (test is not for choosing), and a goal"),
        ("run_cap", is_cap, "the number of points, such as 20"),
        ("command", is_command, f"-m, {MODULE}, a stage and then {SETTINGS}"),
        *((key, is_sound(given, method == "grid"), PARAMETER) for key, given in parameters.items()),
    ]
    for key, holds, expected in rules:
        if not holds:
            got = content.get(key, parameters.get(key))
            raise ConfigError(f"{path}: {key}: expected {expected}, got {got}")


def is_sound(given: Any, grid: bool) -> bool:
    """Whether a parameter has values, or an interval of a distribution that is known here."""
    try:
        if given.keys() - {"value", "values", "min", "max", "distribution"}:
            return False
        values = [given["value"]] if "value" in given else given.get("values")
        if grid or values:
            return isinstance(values, list) and bool(values)
        return bool(given["min"] < given["max"] and value_at(0.5, given) >= given["min"])
    except (AttributeError, KeyError, TypeError, ZeroDivisionError):
        return False


def value_at(u: float, given: dict[str, Any]) -> Any:
    """The value of a parameter for a ``u`` in [0, 1); its distribution is W&B's."""
    if values := given.get("values"):
        return values[int(u * len(values))]
    low, high = given["min"], given["max"]
    usual = "int_uniform" if type(low) is type(high) is int else "uniform"
    match given.get("distribution", usual):
        case "int_uniform":
            return low + int(u * (high - low + 1))
        case "uniform":
            return low + u * (high - low)
        case "log_uniform_values":
            return low * (high / low) ** u
    raise KeyError("distribution")


def plan(asked: Sweep) -> list[Trial]:
    """The trials; runs of other settings are refused before any is trained."""
    trials: dict[Path, Trial] = {}
    for values in asked.points:
        macros = {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable]}
        macros[SETTINGS] = [f"{key}={value}" for key, value in values.items()]
        command = [part for word in asked.command for part in macros.get(word, [word])]
        stage, *settings = command[command.index(MODULE) + 1 :]
        config = load_config(stage, settings)
        folder, epochs = run_directory(config), config.trainer["max_epochs"]
        trial = Trial(len(trials), values, command, config, folder, asked.metric)
        other = trials.setdefault(folder, trial).values
        if differing := [key for key in values if values[key] != other[key]]:
            line = f"- run.name=x${{{differing[0]}}}-seed${{seed}}"
            raise ConfigError(
                f"{asked.path}: points that differ in {', '.join(differing)} share {folder}. Fix: "
                f"end command with a line that names the runs by it, such as '{line}'."
            )
        resolve(config, build_data(config))
        config.model.weights_origin = find_origin(config.model, folder)
        runs.check_config(folder, config)
        # A single run may be resumed with more epochs, but trials must stay comparable.
        is_begun = (folder / "checkpoints" / "last.ckpt").is_file()
        if is_begun and read_plain(folder / "config.yaml")["trainer"]["max_epochs"] != epochs:
            raise runs.RunError(
                f"{folder} was begun with another trainer.max_epochs than {epochs}. Fix: take the "
                "same, or give the sweep its own run.root."
            )
    return list(trials.values())


def train_next(asked: Sweep, trials: list[Trial], folder: Path) -> int | None:
    """Train the first trial that is nobody's: 0, its status if stopped, None if none is left."""
    for trial in trials:  # from the first: that of a killed process is anybody's
        with (folder / f".{trial.folder.name}.claim").open("w") as claim:
            free = not trial.failure
            try:
                free = free and take(claim)
            except OSError:
                if int(os.environ.get("SLURM_ARRAY_TASK_COUNT", "1")) > 1:
                    what = f"{folder}: no locks on this file system: tasks would train the same run"
                    raise runs.RunError(f"{what}. Fix: one task, or another run.root.") from None
            if not free or trial.state() == "done":
                continue
            words = "  ".join(f"{key}={trial.values[key]}" for key in asked.swept or trial.values)
            print(f"\ntrial {trial.number}: {words}  ->  {trial.folder}", flush=True)
            while runs.is_training(trial.folder):  # its sweep was killed, the training goes on
                time.sleep(2)
            status = execute(trial.command)
            if status in (BY_CTRL_C, BY_SIGTERM, BY_USR1):
                return status  # the same command takes it up
            if trial.state() != "done":
                trial.failure = f"exit status {status}" if status else f"no {trial.metric} logged"
            return 0
    return None


def execute(command: list[str]) -> int:
    """Run a training to its end: its exit status, or that of a signal that came meanwhile."""
    # A session of its own: Ctrl-C at the terminal reaches it once, through us.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    signalled = 0

    def forward(number: int, _: object) -> None:
        nonlocal signalled
        signalled = BY_CTRL_C if number == signal.SIGINT else BY_SIGTERM
        # SIGTERM for Ctrl-C, too: srun answers a single SIGINT with a report only.
        child.send_signal(number if number == signal.SIGUSR1 else signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        status = child.wait()
        return signalled or status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_table(trials: list[Trial], folder: Path) -> pd.DataFrame:
    """Write ``results.csv`` and return it: a row a trial."""
    # Locked: of two tasks that end together the one with older figures might write last.
    with locked(folder / ".lock"), whole_file(folder / "results.csv") as partial:
        table = pd.DataFrame(
            {"trial": trial.number, **trial.values, "state": trial.state(), **trial.figures()}
            | {"why": trial.failure, "run": str(trial.folder)}
            for trial in trials
        )
        table = table[[*table.columns.drop(["why", "run"]), "why", "run"]]
        table.to_csv(partial, index=False)
    return table


def describe(asked: Sweep, table: pd.DataFrame) -> str:
    """The table as a person reads it, and the best trial by the sweep's metric."""
    shown = {asked.metric, *(name for panel in PANELS.values() for name in panel)}
    rows = table[[*asked.swept, "state"]].join(table[[*filter(shown.__contains__, table)]].round(3))
    rows = rows.rename(columns=lambda name: str(name).removeprefix("val/"))
    text = f"figures on val, of each run's best epoch:\n{rows.to_string(index=False)}"
    done, keys = table[table["state"] == "done"], [key for key in asked.swept if key != "seed"]
    if keys and len(done):
        groups = done.groupby(keys, as_index=False, dropna=False)[asked.metric]
        means, count = groups.mean(), groups.size()["size"]
        if "seed" in asked.swept:
            rounded = means.round({asked.metric: 3}).assign(seeds=count).to_string(index=False)
            text += f"\n\nmeans over seeds:\n{rounded}"
        scores = means[asked.metric][count == count.max()]  # others cannot be compared
        best = scores.idxmax() if asked.maximize else scores.idxmin()
        words = "  ".join(f"{key}={means.at[best, key]}" for key in keys)
        of = f" (of points with {count.max()} seeds)" * bool(count.min() < count.max())
        text += f"\n\nbest {asked.metric}: {scores[best]:.3f} at {words}{of}"
    return text
