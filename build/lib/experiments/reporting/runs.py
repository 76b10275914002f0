"""What a report says of where its figures come from: configurations, data, versions, commands."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from callbacks.checkpoints import load_checkpoint
from datamodules import SOURCES
from experiments.config import Config, load_config, to_plain
from experiments.doctor import installed_version
from experiments.evaluation.run import Evaluation
from experiments.reporting.claim import Joined

PACKAGES = (
    *("torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations"),
    *("opencv-python-headless", "numpy", "scipy", "pandas", "matplotlib"),
)
HASHES = {
    "index_hash": "images, labels and splits",
    "judges_hash": "val and test images",
    "image_hash": "pixels of the images",
    "mask_hash": "lesion masks",
}
SHORT = 16  # digits of a hash


def runs_of(joined: Sequence[Joined]) -> list[dict[str, Any]]:
    """Each run: what it is, what it was trained on, and how to train it again."""
    found = []
    for group in joined:
        for run in group.runs:
            about = run.about
            content = load_checkpoint(run.folder / "checkpoints" / about["checkpoint"])
            data: dict[str, Any] = next(
                (v for k, v in content.items() if k.endswith("DataModule")), {}
            )
            found.append(
                {
                    "name": group.name,
                    "folder": str(run.folder),
                    "seed": about["seed"],
                    "checkpoint": about["checkpoint"],
                    "epoch": f"{about['epoch']} of {about['epochs']}",
                    "lightning": content["pytorch-lightning_version"],
                    "hashes": {
                        words: str(data[name])[:SHORT]
                        for name, words in HASHES.items()
                        if data.get(name)
                    },
                    "notes": run.notes,
                    "config": yaml.safe_dump(
                        to_plain(run.config), sort_keys=False, allow_unicode=True
                    ),
                    "train": train_command(run.config),
                }
            )
    return found


def train_command(config: Config) -> str:
    """The command that trains a run of this configuration."""
    name = f"data.name={config.data.name}"
    plain, usual = (_settings(one) for one in (config, load_config(config.stage, [name])))
    changed = {"data.name": config.data.name} | {
        key: value for key, value in plain.items() if key != "stage" and value != usual.get(key)
    }
    words = [f"{key}={_word(value)}" for key, value in changed.items()]
    return shlex.join(["python", "-m", "experiments.train", config.stage, *words])


def commands(joined: Sequence[Joined], split: str, words: Sequence[str]) -> list[str]:
    """The commands that make a report: trainings, evaluation, the report itself."""
    runs = [run for group in joined for run in group.runs]
    folders = [str(_named(run)) for run in runs]
    compare = ["--compare"] if len(folders) > 1 else []
    of_split = [] if split == "test" else ["--split", split]
    evaluate = ["python", "-m", "experiments.evaluate", *folders, *of_split, *compare]
    return [
        *(train_command(run.config) for run in runs),
        shlex.join(evaluate),
        shlex.join(["python", "-m", "experiments.report", *words]),
    ]


def versions() -> dict[str, str]:
    """What this page was made with."""
    found = {"decision-basis": installed_version("decision-basis") or "from source"}
    if commit := _commit():
        found["commit"] = commit
    found["Python"] = platform.python_version()
    return found | {name: version for name in PACKAGES if (version := installed_version(name))}


def _named(run: Evaluation) -> Path:
    """What a person names the run by: its folder, or the checkpoint if it is not the best one."""
    checkpoint = str(run.about["checkpoint"])
    return run.folder if checkpoint == "best.ckpt" else run.folder / "checkpoints" / checkpoint


def _commit() -> str:
    """The commit of this source, with a + where it has changed since; "" if nobody can tell."""
    house = Path(__file__).resolve().parents[2]
    if not (house / ".git").exists():
        return ""
    try:
        said = [
            subprocess.run(
                ["git", "-C", str(house), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said[0] + ("+" if said[1] else "")


def _settings(config: Config) -> dict[str, Any]:
    """The configuration by dotted keys, with the source's own values where null stands for them."""
    source = SOURCES[config.data.name]
    own = {
        "data.image_size": source.default_image_size,
        "data.crop": source.default_crop,
        "data.contrast": source.default_contrast,
        "data.unreadable": source.unreadable,
    }
    flat = _flat(to_plain(config))
    return flat | {key: value for key, value in own.items() if flat[key] is None}


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _word(value: Any) -> str:
    """A value as it is written on the command line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1e9)
    return text.split("\n")[0]
