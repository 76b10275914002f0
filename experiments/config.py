"""The configuration: YAML files and ``key=value`` words merged into the schema.

Later wins: the schema's defaults, ``experiments/<stage>.yaml``, a YAML file of the user's
(optional), the command line. An unknown key, a wrong type or an impossible value is a
``ConfigError`` that names the key, where it was set and the remedy. Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import typing
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.schema import CHOICES, INTERVALS, STAGES, Config, ConfigError, LoggerConfig
from experiments.settings import ALPHA, Setting, expected_type, parse_word, read_yaml

__all__ = [
    "STAGES",
    "Config",
    "ConfigError",
    "LoggerConfig",
    "differences",
    "load_config",
    "read_plain",
    "run_directory",
    "save_config",
    "to_plain",
]

# A change of these never changes a result, or (data.root, lesions.path) is seen by the hashes of
# the index and of the masks.
_EXEMPT = re.compile(
    r"(logger|checkpoint|run)\..*|data\.(root|cache_dir|num_workers)|lesions\.path"
    r"|trainer\.(accelerator|devices|num_nodes|strategy|profiler|log_every_n_steps"
    r"|num_sanity_val_steps|enable_\w+)"
)
# What a run did before there was the key.
_FORMERLY = {"attention.gradient": "pytorch", "attention.shrink": 1}
_PATHS = [
    ("data", "root"),
    ("data", "cache_dir"),
    ("lesions", "path"),
    ("model", "init_from"),
    ("run", "root"),
]


def load_config(stage_or_file: str, overrides: list[str]) -> Config:
    """Merge defaults, YAML and ``key=value`` words into a checked ``Config``.

    Args:
        stage_or_file: ``stage1``, ``stage2``, ``stage3``, or a YAML file with a ``stage:`` key; the
            file is laid over that stage's own YAML, so it needs only what differs.
        overrides: words such as ``data.batch_size=16``; a later word wins.

    Raises:
        ConfigError: an unknown stage or key, a wrong type or value, or a file that is no YAML.
    """
    settings: list[Setting] = []
    stage = stage_or_file
    if stage not in STAGES:
        settings = read_yaml(_config_file(stage_or_file))
        stages = [str(setting.value) for setting in settings if setting.key == "stage"]
        if not stages or stages[0] not in STAGES:
            given = f"has stage: {stages[0]}" if stages else "has no stage: key"
            raise ConfigError(f"{stage_or_file} {given}; add a line such as 'stage: stage1'")
        stage = stages[0]
    settings = read_yaml(Path(__file__).parent / f"{stage}.yaml") + settings
    settings += [parse_word(word) for word in overrides]
    merged = OmegaConf.structured(Config)
    origins = {}
    for setting in settings:
        try:
            OmegaConf.update(merged, setting.key, setting.value)
        except OmegaConfBaseException:
            expected = expected_type(setting.key)
            raise ConfigError(
                f"{setting.key} = {setting.value!r} ({setting.origin}): expected {expected}"
            ) from None
        origins[setting.key] = setting.origin
    try:
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # ${...} that leads nowhere
        key = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key} ({origins.get(key or '', 'default')}): {reason}") from None
    _check_values(config, origins)
    for section, name in _PATHS:
        path = getattr(getattr(config, section), name)
        if path is not None:  # a shell leaves the ~ in data.root=~/x as it is
            setattr(getattr(config, section), name, str(Path(path).expanduser()))
    return config


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts of str, int, float, bool and None."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: Path) -> None:
    """Write the configuration as YAML that ``load_config`` reads back; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            yaml.safe_dump(to_plain(config), file, sort_keys=False, allow_unicode=True)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_plain(path: Path) -> dict[str, Any]:
    """A saved configuration as nested dicts, keys of other versions kept; for ``differences``."""
    plain: dict[str, Any] = {}
    for setting in read_yaml(path, known_only=False):
        *sections, leaf = setting.key.split(".")
        place = plain
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = setting.value
    return plain


def run_directory(config: Config) -> Path:
    """``<run.root>/<data.name>/<stage>/<run.name>/``: the same for every rank and restart."""
    name = config.run.name or f"seed{config.seed}"
    if config.run.name is None and config.stage == "stage3":
        name = f"lambda{config.loss.lambda_lesion}-{name}"
    if config.run.name is None and config.lesions.folds:
        name = f"{name}-fold{config.lesions.fold}"
    return Path(config.run.root) / config.data.name / config.stage / name


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines ``key: old -> new`` for all that would change a result.

    Devices, workers, loggers, paths of data and runs, checkpoint intervals and a longer
    ``trainer.max_epochs`` would not: a run may go on with those changed.
    """
    before, after = _flatten(old), _flatten(new)
    lines = []
    for key in dict.fromkeys([*before, *after]):
        unset = _FORMERLY.get(key, "not set")
        was, now = before.get(key, unset), after.get(key, unset)
        if was == now or _EXEMPT.fullmatch(key):
            continue
        if key == "trainer.max_epochs" and _at_least(now, was):
            continue
        lines.append(f"{key}: {_show(was)} -> {_show(now)}")
    return lines


def _config_file(word: str) -> Path:
    path = Path(word).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(word, STAGES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown stage {word!r}: use {', '.join(STAGES)} or a YAML file{hint}")
    if not path.is_file():
        raise ConfigError(f"{word}: no such file; use {', '.join(STAGES)} or an existing YAML file")
    return path


def _check_values(config: Config, origins: dict[str, str]) -> None:
    values = _flatten(to_plain(config))

    def fail(key: str, rule: str) -> typing.NoReturn:
        origin = origins.get(key, "default")
        raise ConfigError(f"{key} = {_show(values[key])} ({origin}): {rule}")

    for key, choices in CHOICES.items():
        if values[key] is not None and values[key] not in choices:
            near = difflib.get_close_matches(str(values[key]), choices, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            fail(key, f"expected {expected_type(key)}{hint}")
    for key, interval in INTERVALS.items():
        if values[key] is not None and not _inside(values[key], interval):
            fail(key, f"must lie in {interval}")
    if config.data.image_size is not None and config.data.image_size % 16:
        low = config.data.image_size // 16 * 16
        fail("data.image_size", f"must be a multiple of 16, such as {low} or {low + 16}")
    if config.data.image_size is not None and config.data.image_size % (
        16 * config.attention.shrink
    ):
        fail("attention.shrink", "the halved data.image_size must be a multiple of 16, too")
    if config.lesions.per_batch >= config.data.batch_size:
        fail("lesions.per_batch", f"must be less than data.batch_size = {config.data.batch_size}")
    if config.lesions.fold and not config.lesions.folds:
        fail("lesions.fold", "needs lesions.folds, the number of parts")
    if config.lesions.folds and config.lesions.fold >= config.lesions.folds:
        fail("lesions.fold", f"at most lesions.folds - 1 = {config.lesions.folds - 1}")
    alpha = config.loss.alpha
    if isinstance(alpha, str):
        if alpha not in ("accuracy", "balanced_accuracy"):
            fail("loss.alpha", f"expected {ALPHA}")
    elif not _inside(alpha, "[0, 1]"):
        fail("loss.alpha", f"expected {ALPHA}")
    if config.stage != "stage3":
        if not config.loss.classification:
            fail("loss.classification", "only stage3 can train on lesion masks alone")
        if config.attention.source == "fcn":
            fail("attention.source", "only stage3 has an FCN")
        if config.loss.normal_masks:
            fail("loss.normal_masks", "only stage3 learns from masks")
    if not config.loss.classification and not config.loss.lambda_lesion:
        fail("loss.lambda_lesion", "with loss.classification=false nothing else is learned")
    if config.loss.lambda_attention and (
        config.stage != "stage3" or not config.loss.classification
    ):
        fail("loss.lambda_attention", "only stage3 with loss.classification has L4")
    for key, name in (("data.name", config.data.name), ("run.name", config.run.name)):
        if name is not None and (not re.fullmatch(r"[^/\\\x00-\x1f]+", name) or name[0] == "."):
            fail(key, "is a folder's name: no '/', '\\' or leading '.'; use run.root for a path")
    if str(config.trainer["precision"]).startswith(("64", "double")):
        fail("trainer.precision", "images are float32; use 32-true, or leave it out")
    for key in ("trainer.max_epochs", "trainer.num_nodes"):
        if type(values[key]) is not int or values[key] < 1:
            fail(key, "expected a whole number, at least 1")


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    if not math.isfinite(value):
        return False
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _flatten(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _at_least(now: object, was: object) -> bool:
    return isinstance(now, int) and isinstance(was, int) and now >= was


def _show(value: object) -> str:
    """As it would be written in YAML or on the command line."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
