"""W&B's sweep file, read as W&B reads it: parameters, method, and the command line of a trial.

What cannot be carried out here is an error that names the key: nothing is silently ignored.
"""

from __future__ import annotations

import difflib
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from experiments.config import Config, load_config, run_directory
from experiments.schema import ConfigError
from experiments.settings import check_key, parse_word

METHODS = ("grid", "random", "bayes")
# name, description, program, project and entity are W&B's alone: where its server keeps the sweep.
KEYS = ["program", "name", "description", "project", "entity", "method", "metric", "parameters"]
KEYS += ["run_cap", "early_terminate", "command"]
# distribution -> the keys that go with it
DISTRIBUTIONS = {
    "constant": ("value",),
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform": ("min", "max"),  # exponents of e, says W&B
    "log_uniform_values": ("min", "max"),
}
MAX_EXPONENT = math.log(sys.float_info.max)
MODULE = "experiments.train"
Fail = Callable[[str, str], NoReturn]  # key, problem


@dataclass(frozen=True)
class Parameter:
    """What a key may be: one of ``values``, or a number from ``low`` to ``high``."""

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None  # None: continuous
    log: bool = False
    whole: bool = False  # numbers without a fraction

    @property
    def swept(self) -> bool:
        """Whether trials differ in it."""
        return len(self.values) != 1

    def examples(self) -> tuple[Any, ...]:
        """Its values, or the ends of its interval."""
        return self.values or (self.low, self.high)

    def __str__(self) -> str:
        if self.values:
            return ", ".join(map(str, self.values))
        kind = [*["log"] * self.log, *([f"step {self.step}"] if self.step else [])]
        return " ".join([f"{self.low} to {self.high}", *kind])


@dataclass(frozen=True)
class Sweep:
    """A sweep file together with the words of the command line, which hold for every trial."""

    path: Path
    method: str  # grid | random | bayes
    metric: str  # val/...
    maximize: bool
    parameters: dict[str, Parameter]
    run_cap: int | None  # trials; None: the whole grid
    min_epochs: int | None  # before a trial may be stopped early; None: never
    eta: int  # of so many trials that reach a rung, the best one goes on
    command: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def swept(self) -> list[str]:
        """The keys in which trials differ, in the file's order."""
        return [key for key, parameter in self.parameters.items() if parameter.swept]

    def example(self) -> dict[str, Any]:
        """The values of some trial."""
        return {key: parameter.examples()[0] for key, parameter in self.parameters.items()}

    def points(self) -> list[dict[str, Any]]:
        """The trials of a grid, in the file's order; none for the other methods."""
        if self.method != "grid":
            return []
        every = itertools.product(*(parameter.values for parameter in self.parameters.values()))
        return [dict(zip(self.parameters, point, strict=True)) for point in every][: self.run_cap]

    def command_line(self, values: dict[str, Any]) -> list[str]:
        """What to execute for a trial: as W&B's agent would, and the overrides behind it."""
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${args_no_hyphens}": [f"{key}={value}" for key, value in values.items()],
        }
        words = [part for word in self.command for part in macros.get(word, [word])]
        return [*words, *self.overrides]

    def config(self, values: dict[str, Any]) -> Config:
        """The configuration of a trial, as its training will read it."""
        words = self.command_line(values)
        stage, *settings = words[words.index(MODULE) + 1 :]
        return load_config(stage, settings)


def read_sweep(file: str, overrides: list[str]) -> Sweep:
    """Read and check a sweep file; every trial's configuration is tried before any is trained.

    Raises:
        ConfigError: the file is no sweep file, asks for what is not supported, or a key or value
            does not fit ``experiments/schema.py``.
    """
    path = Path(file).expanduser()
    try:
        # W&B's own reading, not experiments.settings': 1e-3 is text to both, then.
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected W&B's sweep format, such as in sweep_lambda.yaml")

    def fail(key: str, problem: str) -> NoReturn:
        raise ConfigError(f"{key} ({path}): {problem}")

    for key in content:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(KEYS)}"
            fail(str(key), f"is not supported; {hint}")
    method = content.get("method")
    if method not in METHODS:
        fail("method", f"is {method}; use {', '.join(METHODS)}")
    metric = _section(content, "metric", ("name", "goal"), fail)
    if not str(metric.get("name", "")).startswith("val/"):
        fail("metric.name", f"is {metric.get('name')}; sweeps are judged on val: use a val/ metric")
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        fail("metric.goal", f"is {metric['goal']}; use maximize or minimize")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        fail("parameters", "names no key to sweep, such as loss.lambda_lesion: {values: [0, 1]}")
    run_cap = content.get("run_cap")
    if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
        fail("run_cap", "expected a whole number, at least 1")
    if run_cap is None and method != "grid":
        fail("run_cap", f"method {method} never ends by itself; say how many trials, run_cap: 20")
    min_epochs, eta = _early(content, fail)
    sweep = Sweep(
        path=path,
        method=method,
        metric=metric["name"],
        maximize=metric.get("goal") == "maximize",
        parameters={
            str(key): _parameter(f"parameters.{key}", str(key), given, method, fail)
            for key, given in parameters.items()
        },
        run_cap=run_cap,
        min_epochs=min_epochs,
        eta=eta,
        command=_command(content, fail),
        overrides=tuple(overrides),
    )
    for key in (parse_word(word)[0] for word in overrides):
        if key in sweep.swept:
            fail(f"parameters.{key}", f"is swept; take {key}=... off the command line")
    _try_all(sweep, fail)
    return sweep


def _section(content: dict[str, Any], name: str, known: tuple[str, ...], fail: Fail) -> Any:
    section = content.get(name)
    if not isinstance(section, dict):
        fail(name, f"is missing; it has the keys {', '.join(known)}")
    for key in section:
        if key not in known:
            fail(f"{name}.{key}", f"is not supported; use {', '.join(known)}")
    return section


def _parameter(name: str, key: str, given: Any, method: str, fail: Fail) -> Parameter:
    """A parameter of W&B's format; ``fail`` raises."""
    check_key(key)
    if not isinstance(given, dict) or "parameters" in given:
        fail(name, "expected such as {values: [0, 1]}; nested keys are written a.b here")
    kind = given.get("distribution") or _distribution(given)
    if not isinstance(kind, str) or kind not in DISTRIBUTIONS:
        problem = f"distribution {kind} is not supported" if kind else "has no values"
        fail(name, f"{problem}; use value, values, min and max, or {', '.join(DISTRIBUTIONS)}")
    wanted = DISTRIBUTIONS[kind]
    for word in given:
        if word not in (*wanted, "distribution"):
            fail(f"{name}.{word}", f"does not go with {kind}; it has {', '.join(wanted)}")
    for word in wanted:
        if word not in given:
            fail(name, f"{kind} needs {word}")
    if kind in ("constant", "categorical"):
        values = [given["value"]] if kind == "constant" else given["values"]
        if not isinstance(values, list) or not values:
            fail(name, "values: expected a list")
        for value in values:
            if not isinstance(value, (bool, int, float, str)):
                # The agent writes key=None, which is a text: null cannot be meant.
                fail(name, f"{value}: expected a number, a text, true or false")
        if any(values.index(value) != place for place, value in enumerate(values)):
            fail(name, "values: one stands there twice")
        return Parameter(values=tuple(values))
    if method == "grid":
        fail(name, "a grid needs values: [...]; min and max go with method random or bayes")
    for word in wanted:
        if type(given[word]) not in (int, float):
            fail(f"{name}.{word}", f"{given[word]!r} is no number to YAML (1e-3 is: 1.0e-3)")
        if not math.isfinite(given[word]):
            fail(f"{name}.{word}", f"{given[word]} is no number to draw up to or by")
    low, high = given["min"], given["max"]
    if kind == "log_uniform":
        if high > MAX_EXPONENT:
            fail(f"{name}.max", f"{high} is an exponent of e; log_uniform_values takes the values")
        low, high = math.exp(low), math.exp(high)
    log = kind.startswith("log")
    if low >= high or (log and low <= 0) or given.get("q", 1) <= 0:
        fail(name, f"expected {'0 < ' if log else ''}min < max{', q > 0' if 'q' in given else ''}")
    return Parameter(low=low, high=high, step=given.get("q"), log=log, whole=kind == "int_uniform")


def _distribution(given: dict[str, Any]) -> str | None:
    """What W&B takes where no distribution is named."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical"
    if "min" not in given or "max" not in given:
        return None
    return "int_uniform" if type(given["min"]) is type(given["max"]) is int else "uniform"


def _early(content: dict[str, Any], fail: Fail) -> tuple[int | None, int]:
    """The first rung of successive halving, in epochs, and its factor eta."""
    if content.get("early_terminate") is None:
        return None, 3
    known = ("type", "min_iter", "max_iter", "s", "eta")
    early = _section(content, "early_terminate", known, fail)
    if early.get("type") != "hyperband":
        fail("early_terminate.type", f"is {early.get('type')}; W&B has hyperband only")
    for key, least in (("min_iter", 1), ("max_iter", 1), ("s", 1), ("eta", 2)):
        if key in early and (type(early[key]) is not int or early[key] < least):
            fail(f"early_terminate.{key}", f"expected a whole number, at least {least}")
    eta = early.get("eta", 3)
    if ("min_iter" in early) == ("max_iter" in early and "s" in early):
        fail("early_terminate", "needs min_iter, or max_iter and s")
    return early.get("min_iter") or max(1, early["max_iter"] // eta ** early["s"]), eta


def _command(content: dict[str, Any], fail: Fail) -> tuple[str, ...]:
    command = content.get("command")
    if not isinstance(command, list):
        # W&B's default command would write --key=value, which the training does not read.
        fail("command", "is missing; take the lines of experiments/sweep_lambda.yaml")
    words = [str(word) for word in command]
    for word in words:
        known = ("${env}", "${interpreter}", "${args_no_hyphens}")
        if word.startswith("${") and word.endswith("}") and word not in known:
            fail("command", f"{word} is not supported here; use {', '.join(known)}")
        if "${envvar:" in word:
            fail("command", f"{word}: ${{envvar:...}} is not supported here")
    stage = words.index(MODULE) + 1 if MODULE in words else len(words)
    if stage >= len(words) or "${args_no_hyphens}" not in words[stage + 1 :]:
        fail("command", f"must hold -m, {MODULE}, a stage and then ${{args_no_hyphens}}")
    return tuple(words)


def _try_all(sweep: Sweep, fail: Fail) -> None:
    """Each value must be possible, and must lead to a run directory of its own."""
    for point in sweep.points():
        sweep.config(point)
    for key, parameter in sweep.parameters.items():
        values = [{**sweep.example(), key: value} for value in parameter.examples()]
        folders = [run_directory(sweep.config(trial)) for trial in values]
        if len(set(folders)) < len(folders):
            fail(
                f"parameters.{key}",
                f"trials that differ in it share the run directory {folders[0]}; name the runs by "
                f"it: a line '- run.name={key.split('.')[-1]}${{{key}}}-...' at the end of command",
            )
