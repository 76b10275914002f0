"""How to get to a report again: the training commands, and the versions that wrote it."""

from __future__ import annotations

import platform
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

import yaml

from datamodules import SOURCES
from experiments.config import Config, load_config, to_plain
from experiments.schema import flatten

PACKAGES = (
    *("decision-basis", "torch", "torchvision", "pytorch-lightning", "torchmetrics"),
    *("albumentations", "opencv-python-headless", "numpy", "scipy", "pandas", "matplotlib"),
)


def train_command(config: Config) -> str:
    """The command that trains a run of this configuration, which was resolved by its training."""
    source, words = SOURCES[config.data.name], [f"data.name={config.data.name}"]
    size, crop = source.default_image_size, source.default_crop
    own = [
        f"data.image_size={size}",
        f"data.crop={crop}",
        f"data.contrast={source.default_contrast}",
    ]
    own += [f"data.unreadable={source.unreadable}"]
    usual = flatten(to_plain(load_config(config.stage, words + own)))
    for key, value in flatten(to_plain(config)).items():
        if value != usual.get(key):
            text = yaml.safe_dump(
                value, default_flow_style=True, allow_unicode=True, width=1e9
            ).splitlines()[0]
            words.append(f"{key}={text}")
    return shlex.join(["python", "-m", "experiments.train", config.stage, *words])


def saved(config: Config) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


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
