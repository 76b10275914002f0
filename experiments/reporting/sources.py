"""How to get to a report again: the training commands, and the versions that wrote it."""

from __future__ import annotations

import platform
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from datamodules import SOURCES
from experiments.config import Config, load_config, to_plain
from experiments.schema import flatten

PACKAGES = (
    *("decision-basis", "torch", "torchvision", "pytorch-lightning", "torchmetrics"),
    *("albumentations", "opencv-python-headless", "numpy", "scipy", "pandas", "matplotlib"),
)


def train_command(config: Config) -> str:
    """The command that trains a run of this configuration."""
    name = f"data.name={config.data.name}"
    usual = _settings(load_config(config.stage, [name]))
    words = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=1e9).splitlines()[0]}"
        for key, value in _settings(config).items()
        if value != usual.get(key)
    ]
    return shlex.join(["python", "-m", "experiments.train", config.stage, name, *words])


def saved(config: Config) -> str:
    """The configuration as a run directory holds it."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def _settings(config: Config) -> dict[str, Any]:
    """By dotted keys, with the source's own choices where null stands for them."""
    source, settings = SOURCES[config.data.name], flatten(to_plain(config))
    choices = {
        "data.image_size": source.default_image_size,
        "data.crop": source.default_crop,
        "data.contrast": source.default_contrast,
        "data.unreadable": source.unreadable,
    }
    return settings | {key: value for key, value in choices.items() if settings[key] is None}


def versions() -> dict[str, str]:
    """Of the project, Python, and the packages that figures and pictures depend on."""
    installed = {package.name: package.version for package in metadata.distributions()}
    return {
        "decision-basis": "from source",
        **({"commit": commit} if (commit := _commit()) else {}),
        "Python": platform.python_version(),
        **{name: installed[name] for name in PACKAGES if name in installed},
    }


def _commit() -> str:
    """The commit of this source, with a + where it has changed since; "" where git cannot tell."""
    house = Path(__file__).resolve().parents[2]
    if not (house / ".git").exists():  # or it would be that of a repository around an environment
        return ""
    git = ["git", "-C", str(house), "describe", "--always", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run([*git, "--dirty=+"], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
