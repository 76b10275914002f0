"""The configuration: YAML files and ``key=value`` words over the defaults of all options.

Later wins: the defaults, ``experiments/<stage>.yaml``, a YAML file of the user's (optional), the
command line. An unknown key, a wrong type or an impossible value is a ``ConfigError``. Nothing
heavy is imported here. ``python -m experiments.config`` prints all options as a table.
"""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.files import write_text
from experiments.schema import (
    OPTIONS,
    SECTIONS,
    STAGES,
    Config,
    ConfigError,
    LoggerConfig,
    check_values,
    expected_type,
    flatten,
    options_table,
    show,
    to_plain,
)

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
# A shell leaves the ~ in data.root=~/x as it is.
_PATHS = ("data.root", "data.cache_dir", "lesions.path", "model.init_from", "run.root")
# Trainer arguments that the run sets itself, with what to use instead.
TRAINER_TAKEN = {
    "logger": "use logger.wandb",
    "fast_dev_run": "use data.limit and trainer.max_epochs",
    "callbacks": "use checkpoint.*",
    "enable_checkpointing": "use checkpoint.*",
    "enable_progress_bar": "leave it out",
    "default_root_dir": "use run.root",
    "gradient_clip_val": "use optimizer.gradient_clip",
    "use_distributed_sampler": "leave it out",
    "val_check_interval": "leave it out; alpha and the best checkpoint are decided once an epoch",
    "check_val_every_n_epoch": "leave it out; alpha and the best are decided at each epoch's end",
}


def load_config(stage_or_file: str, overrides: list[str]) -> Config:
    """Merge defaults, YAML and ``key=value`` words into a checked ``Config``.

    Args:
        stage_or_file: ``stage1``, ``stage2``, ``stage3``, or a YAML file with a ``stage:`` key; the
            file is laid over that stage's own YAML, so it needs only what differs.
        overrides: words such as ``data.batch_size=16``; a later word wins.
    """
    settings: dict[str, Any] = {}
    stage = stage_or_file
    if stage not in STAGES:
        settings = read_yaml(_config_file(stage_or_file))
        stage = str(settings.get("stage"))
        if stage not in STAGES:
            raise ConfigError(
                f"{stage_or_file}: stage: expected {' | '.join(STAGES)}, got {stage}. Fix: a line "
                "such as 'stage: stage1'."
            )
    own = read_yaml(Path(__file__).parent / f"{stage}.yaml")
    merged = OmegaConf.structured(Config)
    for key, value in [*own.items(), *settings.items(), *map(parse_word, overrides)]:
        try:
            OmegaConf.update(merged, key, value)
        except OmegaConfBaseException:
            raise ConfigError(f"{key}: expected {expected_type(key)}, got {show(value)}") from None
    try:
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # ${...} that leads nowhere
        key = str(getattr(error, "full_key", None))
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from None
    check_values(config)
    for section, _, name in (path.partition(".") for path in _PATHS):
        options = getattr(config, section)
        if (path := getattr(options, name)) is not None:
            setattr(options, name, str(Path(path).expanduser()))
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a file, by dotted keys."""
    typed, written = _load_yaml(path)
    settings: dict[str, Any] = {}
    for section, value in typed.items():
        if section in SECTIONS and isinstance(value, dict):
            texts = written[section]
            inner = {f"{section}.{name}": (texts[name], value[name]) for name in value}
        else:
            inner = {section: (written[section], value)}
        if section in SECTIONS and value is None:
            continue  # all its lines are commented out
        for key, (text, one) in inner.items():
            check_key(key)
            settings[key] = text if one is not None and _is_read_as_written(key) else one
    return settings


def read_plain(path: Path) -> dict[str, Any]:
    """A saved configuration as nested dicts, keys of other versions kept; for ``differences``."""
    return _load_yaml(path)[0]


def parse_word(word: str) -> tuple[str, Any]:
    """The dotted key and the value of a ``key=value`` word."""
    key, equals, text = (part.strip() for part in word.partition("="))
    if word.startswith("-"):
        raise ConfigError(f"{word!r}: keys have no dashes. Fix: key=value.")
    if not equals or not key:
        raise ConfigError(f"{word!r}: expected key=value, such as seed=1")
    check_key(key)
    if key == "stage":
        raise ConfigError("stage: the command's first word chooses the stage")
    if not text:
        raise ConfigError(f"{key}: no value after '='. Fix: {key}=null to unset it.")
    if _is_read_as_written(key):
        return key, None if text in ("null", "~") else text
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except yaml.YAMLError:
        raise ConfigError(f"{key}: {text!r} cannot be read as a value") from None
    return key, typing.cast(dict[str, Any], parsed)["value"]


def check_key(key: str) -> None:
    """Raise a ConfigError, with the nearest valid key, unless ``key`` may be set."""
    if key in OPTIONS:
        return
    if key in SECTIONS:
        inner = ", ".join(k for k in OPTIONS if k.startswith(f"{key}."))
        raise ConfigError(f"{key}: this is a section. Fix: set one of {inner}.")
    keys = list(OPTIONS)
    section, _, leaf = key.partition(".")
    if section == "trainer":
        if leaf in TRAINER_TAKEN:
            raise ConfigError(f"{key}: the run sets this; {TRAINER_TAKEN[leaf]}")
        import pytorch_lightning as pl  # here: the import takes seconds and is seldom needed

        arguments = list(inspect.signature(pl.Trainer).parameters)
        if leaf in arguments:
            return
        keys += [f"trainer.{name}" for name in arguments if name not in TRAINER_TAKEN]

    def likeness(candidate: str) -> float:  # as a whole, or by its last part alone
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        mine, other = (name.rpartition(".")[2].replace("_", "") for name in (key, candidate))
        return max(whole, 0.95 * difflib.SequenceMatcher(None, mine, other).ratio()) + 0.1 * whole

    raise ConfigError(f"unknown key {key}; did you mean {max(keys, key=likeness)}?")


def save_config(config: Config, path: Path) -> None:
    """Write the configuration as YAML that ``load_config`` reads back; whole or not at all."""
    write_text(path, yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True))


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
    before, after = flatten(old), flatten(new)
    lines = []
    for key in dict.fromkeys([*before, *after]):
        was, now = before.get(key, "not set"), after.get(key, "not set")
        longer = key == "trainer.max_epochs" and type(was) is type(now) is int and now >= was
        if was != now and not longer and not _EXEMPT.fullmatch(key):
            lines.append(f"{key}: {show(was)} -> {show(now)}")
    return lines


def _config_file(word: str) -> Path:
    path = Path(word).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    expected = f"{' | '.join(STAGES)} or an existing YAML file"
    near = difflib.get_close_matches(word, STAGES, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"unknown stage {word!r}: expected {expected}{hint}")


def _load_yaml(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file's values as YAML types them, and all as text, as written."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        written = yaml.load(text, Loader=yaml.BaseLoader) or {}  # text only: no code is run
        if not isinstance(written, dict):
            raise ConfigError(f"{path}: expected lines of 'key: value'")
        return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text))), written
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise ConfigError(f"{path}: not valid YAML: {reason}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _is_read_as_written(key: str) -> bool:
    """Whether the option's type reads the text itself: to YAML ``off`` is false, 007 a number."""
    kind = OPTIONS[key].kind if key in OPTIONS else Any
    kinds = set(typing.get_args(kind) or [kind]) - {type(None)}
    return (kind is not Any and len(kinds) == 1) or key == "trainer.max_time"  # 1:30:00


if __name__ == "__main__":
    print(options_table())
