"""W&B's sweep file, read as W&B reads it: its points, and the command line of each."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.config import Config, ConfigError, load_config

# name, description, program, project and entity are W&B's alone: where its server keeps the sweep.
KEYS = ["program", "name", "description", "project", "entity", "method", "metric", "parameters"]
KEYS += ["run_cap", "command"]
MACROS = ("${env}", "${interpreter}", "${args_no_hyphens}")
MODULE = "experiments.train"
# distribution of an interval -> its value for a u that is uniform in [0, 1)
DISTRIBUTIONS: dict[str, Callable[[float, Any, Any], float]] = {
    "int_uniform": lambda u, low, high: low + int(u * (high - low + 1)),
    "uniform": lambda u, low, high: low + u * (high - low),
    "log_uniform_values": lambda u, low, high: low * (high / low) ** u,
}


@dataclass(frozen=True)
class Sweep:
    """A sweep file together with the words of the command line, which hold for every point."""

    path: Path
    metric: str  # a figure of val
    maximize: bool
    parameters: dict[str, dict[str, Any]]  # as in the file
    points: list[dict[str, Any]]  # a grid in the file's order, or random ones
    command: list[str]
    words: list[str]

    @property
    def swept(self) -> list[str]:
        """The keys in which points differ, in the file's order."""
        return [key for key, given in self.parameters.items() if len(listed(given)) != 1]

    def command_line(self, values: dict[str, Any]) -> list[str]:
        """What to execute for a point: as W&B's agent would, and the command line's words."""
        settings = [f"{key}={value}" for key, value in values.items()]
        expanded = dict(zip(MACROS, (["/usr/bin/env"], [sys.executable], settings), strict=True))
        return [part for word in self.command for part in expanded.get(word, [word])] + self.words

    def config(self, values: dict[str, Any]) -> Config:
        """The configuration of a point, as its training will read it."""
        words = self.command_line(values)
        stage, *settings = words[words.index(MODULE) + 1 :]
        return load_config(stage, settings)


def read_sweep(file: str, words: list[str]) -> Sweep:
    """Read and check a sweep file."""
    path = Path(file).expanduser()
    try:
        # W&B's own reading, not that of the configuration: 1e-3 is text to it.
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if problem := fault(content):
        raise ConfigError(f"{path}: {problem}")
    parameters = {str(key): given for key, given in content["parameters"].items()}
    if content["method"] == "grid":
        every = itertools.product(*map(listed, parameters.values()))
        points = [dict(zip(parameters, values, strict=True)) for values in every]
    else:
        points = [random_point(parameters, number) for number in range(content["run_cap"])]
    sweep = Sweep(
        path=path,
        metric=content["metric"]["name"],
        maximize=content["metric"].get("goal") == "maximize",
        parameters=parameters,
        points=points[: content.get("run_cap")],
        command=[str(word) for word in content["command"]],
        words=words,
    )
    for key in {word.partition("=")[0].strip() for word in words} & {*sweep.swept}:
        raise ConfigError(f"{key} is swept by {path}; take {key}=... off the command line")
    return sweep


def random_point(parameters: dict[str, dict[str, Any]], number: int) -> dict[str, Any]:
    """Point ``number``: a pure function of the file, so that a restart finds the same points."""
    source, point = random.Random(number), {}
    for key, given in parameters.items():
        u, values = source.random(), listed(given)
        draw = DISTRIBUTIONS[distribution(given)]
        point[key] = values[int(u * len(values))] if values else draw(u, given["min"], given["max"])
    return point


def listed(given: dict[str, Any]) -> list[Any]:
    """The values of a parameter; empty: an interval."""
    return [given["value"]] if "value" in given else given.get("values", [])


def distribution(given: dict[str, Any]) -> str:
    """The distribution of an interval; where none is named, what W&B takes."""
    whole = type(given.get("min")) is type(given.get("max")) is int
    return str(given.get("distribution", "int_uniform" if whole else "uniform"))


def fault(content: Any) -> str:
    """What is wrong with a sweep file; empty where it can be carried out."""
    if not isinstance(content, dict):
        return "expected W&B's sweep format, such as in experiments/sweep_lambda.yaml"
    if unknown := [str(key) for key in content if key not in KEYS]:
        return f"{', '.join(unknown)}: not supported here, expected some of {', '.join(KEYS)}"
    method, metric, cap = (content.get(key) for key in ("method", "metric", "run_cap"))
    if method not in ("grid", "random"):
        return (
            f"method: expected grid or random, got {method}. Fix for bayes: W&B's server, by wandb "
            "sweep and wandb agent (docs/cluster.md)."
        )
    metric = metric if isinstance(metric, dict) else {"name": metric}
    goal = metric.get("goal", "minimize")
    if not str(metric.get("name")).startswith("val/") or goal not in ("minimize", "maximize"):
        return (
            "metric: expected a name: val/... (test is not for choosing) and a goal: minimize or "
            f"maximize, got {metric}"
        )
    if (method == "random" or cap is not None) and (type(cap) is not int or cap < 1):
        return f"run_cap: expected the number of points, such as run_cap: 20, got {cap}"
    parameters = content.get("parameters")
    for key, given in (parameters if isinstance(parameters, dict) else {"": parameters}).items():
        if not isinstance(given, dict) or not is_sound(given, method == "grid"):
            return (
                f"parameters.{key}: expected value, values or, for method random, min < max and a "
                f"distribution among {', '.join(DISTRIBUTIONS)}; got {given} (a nested key is "
                "written a.b; 1e-3 is text to YAML, 1.0e-3 a number)"
            )
    # W&B's default command would write --key=value, which the training does not read.
    command = [*map(str, content.get("command") or [])]
    if MACROS[-1] not in command[[*command, MODULE].index(MODULE) + 2 :]:
        return f"command: expected -m, {MODULE}, a stage and then {MACROS[-1]}, got {command}"
    return ""


def is_sound(given: dict[str, Any], grid: bool) -> bool:
    """Whether a parameter has values, or an interval of a distribution that is known here."""
    if given.keys() - {"value", "values", "min", "max", "distribution"}:
        return False
    if not isinstance(listed(given), list):
        return False
    if grid or not {"min", "max"} <= given.keys():
        return bool(listed(given))
    low, high, kind = given["min"], given["max"], distribution(given)
    if kind not in DISTRIBUTIONS or not all(isinstance(end, int | float) for end in (low, high)):
        return False
    return bool(low < high and (low > 0 or not kind.startswith("log")))
