"""W&B's sweep file, read as W&B reads it: its points, and the command line of each.

What cannot be carried out here is an error that names the key: nothing is silently ignored.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.config import Config, ConfigError, load_config

# name, description, program, project and entity are W&B's alone: where its server keeps the sweep.
KEYS = ["program", "name", "description", "project", "entity", "method", "metric", "parameters"]
KEYS += ["run_cap", "early_terminate", "command"]
MACROS = ("${env}", "${interpreter}", "${args_no_hyphens}")
MODULE = "experiments.train"
# distribution -> the keys that go with it, and its value for a u that is uniform in [0, 1)
DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "constant": (("value",), lambda u, value: value),
    "categorical": (("values",), lambda u, values: values[int(u * len(values))]),
    "int_uniform": (("min", "max"), lambda u, low, high: low + int(u * (high - low + 1))),
    "uniform": (("min", "max"), lambda u, low, high: low + u * (high - low)),
    "q_uniform": (
        ("min", "max", "q"),
        lambda u, low, high, q: round(round((low + u * (high - low)) / q) * q, 12),
    ),
    # Exponents of e, says W&B.
    "log_uniform": (("min", "max"), lambda u, low, high: math.exp(low + u * (high - low))),
    "log_uniform_values": (("min", "max"), lambda u, low, high: low * (high / low) ** u),
}
# What an interval must lie above, and may reach at most.
LIMITS = {"log_uniform": (-700.0, 700.0), "log_uniform_values": (0.0, math.inf)}


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
    if problem := next(problems(content), None):
        raise ConfigError(f"{path}: {problem}")
    parameters = {str(key): given for key, given in content["parameters"].items()}
    if content["method"] == "grid":
        every = itertools.product(*(listed(given) for given in parameters.values()))
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
        keys, value = DISTRIBUTIONS[distribution(given)]
        point[key] = value(source.random(), *(given[name] for name in keys))
    return point


def distribution(given: dict[str, Any]) -> str:
    """The distribution of a parameter; where none is named, what W&B takes."""
    if "distribution" in given or "min" not in given:
        kind = given.get("distribution", "constant" if "value" in given else "categorical")
        return str(kind)
    return "int_uniform" if type(given["min"]) is type(given.get("max")) is int else "uniform"


def listed(given: dict[str, Any]) -> list[Any]:
    """The values of a parameter; empty: an interval."""
    return [given["value"]] if "value" in given else list(given.get("values", []))


def problems(content: Any) -> Iterator[str]:
    """What is wrong with a sweep file; take the first only, since each check relies on it."""
    if not isinstance(content, dict):
        yield "expected W&B's sweep format, such as in experiments/sweep_lambda.yaml"
    if unknown := [str(key) for key in content if key not in KEYS]:
        yield f"{', '.join(unknown)}: not supported, expected some of {', '.join(KEYS)}"
    method, cap, metric = content.get("method"), content.get("run_cap"), content.get("metric")
    if method == "bayes" or content.get("early_terminate"):
        what = "method: bayes" if method == "bayes" else "early_terminate"
        yield f"{what} needs W&B's server. Use wandb sweep and wandb agent (docs/cluster.md)."
    if method not in ("grid", "random"):
        yield f"method: expected grid or random, got {method}"
    if not isinstance(metric, dict) or not str(metric.get("name")).startswith("val/"):
        yield f"metric: expected a name: val/... (test is not for choosing), got {metric}"
    if metric.keys() - {"name", "goal"} or metric.get("goal") not in (None, "minimize", "maximize"):
        yield f"metric: expected name and goal (minimize or maximize), got {metric}"
    if (method == "random" or cap is not None) and (type(cap) is not int or cap < 1):
        yield f"run_cap: expected the number of points, such as run_cap: 20, got {cap}"
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        yield "parameters: expected keys to sweep, such as loss.lambda_lesion: {values: [0, 1]}"
    for key, given in parameters.items():
        if not (isinstance(given, dict) and is_sound(given, method == "grid")):
            yield (
                f"parameters.{key}: expected value, values (each once) or, for method random, "
                f"min < max and a distribution among {', '.join(DISTRIBUTIONS)}; got {given} "
                "(a nested key is written a.b; 1e-3 is text to YAML, 1.0e-3 a number)"
            )
    command = content.get("command")
    if not isinstance(command, list):
        # W&B's default command would write --key=value, which the training does not read.
        yield "command is missing. Take the lines of experiments/sweep_lambda.yaml."
    for word in map(str, command):
        if "${envvar:" in word or (word[:2] == "${" and word[-1] == "}" and word not in MACROS):
            yield f"command: {word} is not supported here, expected {', '.join(MACROS)}"
    if "${args_no_hyphens}" not in command[[*command, MODULE].index(MODULE) + 2 :]:
        yield f"command: expected -m, {MODULE}, a stage and then ${{args_no_hyphens}}"


def is_sound(given: dict[str, Any], grid: bool) -> bool:
    """Whether a parameter's distribution is known, has its keys, and they are possible."""
    kind = distribution(given)
    keys = DISTRIBUTIONS.get(kind, ((), None))[0]
    if not keys or given.keys() - {"distribution"} != {*keys}:
        return False
    if "min" not in keys:
        values = [given["value"]] if kind == "constant" else given["values"]
        # null cannot be meant: the agent writes key=None, which is a text.
        scalars = isinstance(values, list) and {*map(type, values)} <= {bool, int, float, str}
        return scalars and 0 < len(values) == len({repr(value) for value in values})
    if grid or not all(type(given[key]) in (int, float) for key in keys):
        return False
    above, at_most = LIMITS.get(kind, (-math.inf, sys.float_info.max))
    return bool(above < given["min"] < given["max"] <= at_most and 0 < given.get("q", 1) < math.inf)
