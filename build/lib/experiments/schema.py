"""What can be set: every option with its type, default, unit and allowed values.

The sections live in the rooms that use them (their ``options.py``); here they are put together,
checked and printed as a table.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from callbacks.options import Checkpoint
from datamodules.options import Augmentation, Data, Lesions
from lightning_modules.options import STRIDES, Attention, Loss, Model, Optimizer

STAGES = ("stage1", "stage2", "stage3")


class ConfigError(ValueError):
    """The configuration cannot be used: the message names the key and the remedy."""


@dataclass
class RunConfig:
    """Where results lie: ``<root>/<data.name>/<stage>/<name>/``."""

    root: str = "runs"
    # null: seed<seed>, in stage 3 lambda<loss.lambda_lesion>-seed<seed>; with folds -fold<n> more
    name: str | None = None


@dataclass
class LoggerConfig:
    """Weights & Biases; ``metrics.csv`` is always written."""

    # auto: online only where a key is configured
    wandb: Annotated[str, "auto | online | offline | off"] = "auto"
    wandb_project: str = "decision-basis"
    wandb_images: bool | None = None  # may radiographs leave the machine; null: phantom only


def trainer_defaults() -> dict[str, Any]:
    """The arguments of Lightning's Trainer that differ by default or are often changed."""
    return {
        "max_epochs": 20,
        "accelerator": "auto",
        "devices": 1,  # a number | "auto"
        "num_nodes": 1,
        "strategy": "auto",
        "precision": None,  # null: bf16-mixed where the device does it natively, else 32-true
    }


@dataclass
class Config:
    """All options with their defaults."""

    # the first word of the command, or the file's
    stage: Annotated[str, "stage1 | stage2 | stage3"] = "stage1"
    # initialisation, order and augmentation (32 bits: what NumPy takes)
    seed: Annotated[int, "[0, 4294967295]"] = 0
    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    lesions: Lesions = field(default_factory=Lesions)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    attention: Attention = field(default_factory=Attention)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: dict[str, Any] = field(default_factory=trainer_defaults)  # for Lightning's Trainer
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    run: RunConfig = field(default_factory=RunConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


class Option(NamedTuple):
    """One key: its type, and what is allowed: "(0, inf)", "own | image"; empty: anything."""

    kind: Any
    allowed: str


def _options(kind: type, prefix: str = "") -> dict[str, Option]:
    options: dict[str, Option] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            options |= _options(typing.cast(type, hint), f"{name}.")
        elif name == "trainer":
            options |= {f"trainer.{key}": Option(Any, "") for key in trainer_defaults()}
        else:
            allowed = getattr(hint, "__metadata__", ("",))[0]
            options[prefix + name] = Option(hint.__origin__ if allowed else hint, allowed)
    return options


OPTIONS = _options(Config)
SECTIONS = {key.split(".")[0] for key in OPTIONS if "." in key}


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts of str, int, float, bool and None."""
    return dataclasses.asdict(config)


def flatten(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        inner = flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        flat |= {f"{prefix}{key}": value} if inner is None else inner
    return flat


def show(value: object) -> str:
    """As it would be written in YAML or on the command line."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def expected_type(key: str) -> str:
    """What may stand for ``key``, in words: ``a whole number or null``."""
    option = OPTIONS.get(key, Option(Any, ""))
    if " | " in option.allowed:
        return option.allowed
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    kinds = typing.get_args(option.kind) or (option.kind,)
    return " or ".join(names.get(k, "null" if k is type(None) else "a value") for k in kinds)


def check_values(config: Config) -> None:
    """Raise a ConfigError where a value, or two together, make no sense."""
    values = flatten(to_plain(config))
    for key, option in OPTIONS.items():
        value, allowed = values[key], option.allowed
        if allowed and value is not None and not _is_allowed(value, allowed):
            near = difflib.get_close_matches(str(value), allowed.split(" | "), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{key}: expected {allowed}, got {show(value)}{hint}")
    for key, wrong, rule in _rules(config):
        if wrong:
            raise ConfigError(f"{key}={show(values[key])}: {rule}")


def _rules(config: Config) -> list[tuple[str, object, str]]:
    """Key, whether its value is wrong, and why."""
    data, lesions, loss, trainer = config.data, config.lesions, config.loss, config.trainer
    size, stride = data.image_size or 0, STRIDES[config.model.encoder]
    near = f"{size // stride * stride} or {(size // stride + 1) * stride}"
    folds, fold = lesions.folds, lesions.fold
    no_masks, masks_alone = config.stage != "stage3", not loss.classification
    no_l4 = loss.lambda_attention and (no_masks or masks_alone)
    folder = re.compile(r"(?!\.)[^/\\\x00-\x1f]+")
    not_folder = "expected a folder's name, without '/', '\\' or a leading '.'; a path: run.root"
    number = "expected a whole number, at least 1"
    double = str(trainer["precision"]).startswith(("64", "double"))
    return [
        ("data.image_size", size % stride, f"expected a multiple of {stride}, such as {near}"),
        ("lesions.per_batch", lesions.per_batch >= data.batch_size, "expected < data.batch_size"),
        ("lesions.fold", fold and not folds, "needs lesions.folds, the number of parts"),
        ("lesions.fold", folds and fold >= folds, "expected less than lesions.folds"),
        ("loss.classification", masks_alone and no_masks, "only stage3 trains on masks alone"),
        ("attention.source", no_masks and config.attention.source == "fcn", "stage3 has the FCN"),
        ("loss.normal_masks", loss.normal_masks and no_masks, "only stage3 learns from masks"),
        ("loss.lambda_lesion", masks_alone and not loss.lambda_lesion, "leaves nothing to learn"),
        ("loss.lambda_attention", no_l4, "only stage3 with loss.classification has L4"),
        ("data.name", not folder.fullmatch(data.name), not_folder),
        ("run.name", not folder.fullmatch(config.run.name or "-"), not_folder),
        ("trainer.precision", double, "images are float32; use 32-true, or leave it out"),
        ("trainer.max_epochs", not _is_count(trainer["max_epochs"]), number),
        ("trainer.num_nodes", not _is_count(trainer["num_nodes"]), number),
    ]


def _is_allowed(value: Any, allowed: str) -> bool:
    """Whether a value is one of the words, or in one of the intervals, of ``allowed``."""
    return any(
        value == one if one[0] not in "[(" else not isinstance(value, str) and _inside(value, one)
        for one in allowed.split(" | ")
    )


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def options_table() -> str:
    """All options as Markdown: key, default, what is allowed, and the comment in the code."""
    comments = _comments(Config, "")
    for section, kind in typing.get_type_hints(Config).items():
        if dataclasses.is_dataclass(kind):
            comments |= _comments(typing.cast(type, kind), f"{section}.")
    defaults = flatten(to_plain(Config()))
    lines = ["| key | default | allowed | |", "|---|---|---|---|"]
    for key, option in OPTIONS.items():
        cells = (f"`{key}`", f"`{show(defaults[key])}`", option.allowed or expected_type(key))
        row = [cell.replace("|", "\\|") for cell in (*cells, comments.get(key, ""))]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _comments(kind: type, prefix: str) -> dict[str, str]:
    """The comment beside or above each field of a dataclass."""
    comments, above = {}, ""
    for line in inspect.getsource(kind).splitlines():
        if match := re.match(r"    (\w+): .*?(?:  # (.*))?$", line):
            comments[prefix + match[1]] = match[2] or above
        above = line.strip()[2:] if line.strip().startswith("# ") else ""
    return comments
