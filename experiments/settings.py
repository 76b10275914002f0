"""Reading settings: YAML files and ``key=value`` words into dotted keys, values and origins.

A key that the schema lacks fails here, with its file and line and the nearest valid key.
"""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments.schema import CHOICES, HINTS, SECTIONS, TRAINER_TAKEN, ConfigError

ALPHA = "accuracy | balanced_accuracy | a number from 0 to 1"


class Setting(NamedTuple):
    """One key and its value as somebody wrote it."""

    key: str  # dotted
    value: Any
    origin: str  # for messages: "command line", or file and line


class _Loader(yaml.SafeLoader):
    """Safe YAML with 1.2's scalars: ``off`` and ``no`` are words, ``1e-3`` is a number."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
]:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def read_yaml(path: Path, known_only: bool = True) -> list[Setting]:
    """The settings of a file in their order, each with its line."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}, line 1: expected lines of 'key: value'")
        return list(_walk(loader, node, "", path, known_only))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context
        tab = "; indent with spaces, YAML allows no tabs" if "'\\t'" in str(problem) else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}{tab}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: not a YAML text file: {reason}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _walk(
    loader: _Loader, node: yaml.MappingNode, prefix: str, path: Path, known_only: bool
) -> Iterator[Setting]:
    seen = set()
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        origin = f"{path}, line {key_node.start_mark.line + 1}"
        if key in seen:
            raise ConfigError(f"{key} ({origin}): set twice in this file; keep one")
        seen.add(key)
        section = isinstance(value_node, yaml.MappingNode)
        if section and (not known_only or key in SECTIONS):
            yield from _walk(loader, value_node, f"{key}.", path, known_only)
            continue
        if key in SECTIONS and value_node.tag.endswith(":null"):
            continue  # a section with all its lines commented out
        if known_only:
            check_key(key, origin)
        yield Setting(key, _value(loader, key, value_node), origin)


def _value(loader: _Loader, key: str, node: yaml.Node) -> Any:
    """The value of a node; text keys take the text as written, so ``true`` and ``007`` stay."""
    hint = HINTS.get(key)
    text = hint in (str, str | None) and isinstance(node, yaml.ScalarNode)
    if text and not node.tag.endswith(":null"):
        return node.value
    return loader.construct_object(node, deep=True)


def parse_word(word: str) -> Setting:
    """The setting of a ``key=value`` word from the command line.

    Raises:
        ConfigError: no key=value, an unknown key, or a value that cannot be read.
    """
    key, equals, text = word.partition("=")
    if word.startswith("-"):
        raise ConfigError(f"{word!r} (command line): keys have no dashes; write key=value")
    if not equals or not key.strip():
        raise ConfigError(f"{word!r} (command line): expected key=value, such as seed=1")
    key = key.strip()
    check_key(key, "command line")
    if key == "stage":
        raise ConfigError("stage (command line): the command's first word chooses the stage")
    if not text.strip():
        raise ConfigError(f"{key} (command line): no value after '='; write {key}=null to unset it")
    if HINTS.get(key) in (str, str | None):
        return Setting(key, None if text in ("null", "~") else text, "command line")
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError:
        raise ConfigError(f"{key} = {text!r} (command line): cannot be read as a value") from None
    return Setting(key, value, "command line")


def check_key(key: str, origin: str) -> None:
    """Raise a ConfigError, with the nearest valid key, unless ``key`` may be set."""
    if key in HINTS:
        return
    if key in SECTIONS:
        inner = ", ".join(k for k in HINTS if k.startswith(f"{key}."))
        raise ConfigError(f"{key} ({origin}): this is a section; set one of {inner}")
    known = list(HINTS)
    section, _, leaf = key.partition(".")
    if section == "trainer":
        if leaf in TRAINER_TAKEN:
            raise ConfigError(f"{key} ({origin}): the run sets this; {TRAINER_TAKEN[leaf]}")
        import pytorch_lightning as pl  # here: the import takes seconds and is seldom needed

        arguments = list(inspect.signature(pl.Trainer).parameters)
        if leaf in arguments:
            return
        known += [f"trainer.{name}" for name in arguments if name not in TRAINER_TAKEN]
    raise ConfigError(f"unknown key {key} ({origin}); did you mean {_nearest(key, known)}?")


def _nearest(key: str, known: list[str]) -> str:
    """The valid key most like ``key``, as a whole or by its last part alone."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        mine, other = (name.rpartition(".")[2].replace("_", "") for name in (key, candidate))
        return max(whole, 0.95 * difflib.SequenceMatcher(None, mine, other).ratio()) + 0.1 * whole

    return max(known, key=likeness)


def expected_type(key: str) -> str:
    """What may stand for ``key``, in words: ``a whole number or null``."""
    if key in CHOICES:
        return " | ".join(CHOICES[key])
    if key == "loss.alpha":
        return ALPHA
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    hint = HINTS.get(key, Any)
    kinds = typing.get_args(hint) or (hint,)
    words = [names.get(kind, "null" if kind is type(None) else "a value") for kind in kinds]
    return " or ".join(words)
