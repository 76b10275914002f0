"""From a configuration to Lightning's objects; the one place where all rooms meet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.index import DataError
from datamodules.radiographs import RadiographDataModule
from datamodules.sources import SOURCES
from experiments import runs
from experiments.config import Config, load_config, read_plain, to_plain
from experiments.hardware import choose_device
from experiments.runs import RunError, differences, find_checkpoint, read_checkpoint
from lightning_modules.stage2 import SecondPass, Stage2GuidedAttention
from lightning_modules.stages import STAGES, Stage1Classifier


@dataclass
class Run:
    """A run directory, opened; its data and its network are built when they are first asked for."""

    folder: Path
    checkpoint: Path  # best.ckpt unless another one was named
    config: Config  # as it was trained, with today's paths
    content: dict[str, Any]  # of the checkpoint

    @cached_property
    def module(self) -> Stage1Classifier:
        """The network: float32, evaluation mode, channels_last, on the GPU where there is one."""
        return runs.network_of(self.content, self.checkpoint).to(choose_device()).eval()

    @cached_property
    def data(self) -> RadiographDataModule:
        """The data module of the configuration, prepared and set up: today's images."""
        data = build_data(self.config)
        data.prepare_data()
        data.setup()
        return data

    @property
    def trained_on(self) -> dict[str, Any]:
        """What the checkpoint knows of its training's data: ``index_hash`` and the like."""
        return dict(self.content[SOURCES[self.config.data.name].__qualname__])

    @cached_property
    def identity(self) -> dict[str, str | int]:
        """What every evaluation of this very checkpoint says of it."""
        return {
            "stage": self.config.stage,
            "data": self.config.data.name,
            "seed": self.config.seed,
            "checkpoint": self.checkpoint.name,
            "epoch": int(self.content["epoch"]) + 1,
            "checkpoint_hash": runs.file_hash(self.checkpoint),
        }

    def results(self, split: str) -> Path:
        """The folder of an evaluation's results: only the best checkpoint's are the run's."""
        best = self.checkpoint.stem == "best"
        return self.folder / "evaluation" / (split if best else f"{split}-{self.checkpoint.stem}")

    def summary(self, split: str) -> dict[str, Any] | None:
        """The ``summary.json`` of an evaluation of this very checkpoint; None without one."""
        try:
            summary = json.loads((self.results(split) / "summary.json").read_text(encoding="utf-8"))
            matches = all(summary[name] == value for name, value in self.identity.items())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return summary if matches else None

    def decisions(self) -> tuple[dict[str, Any], Path] | None:
        """A summary that holds what val decided (``fitted``), and its file; None: never judged."""
        for split in ("val", "test", "left_out"):
            summary = self.summary(split) or {}
            if isinstance(summary.get("fitted"), dict):
                return summary, self.results(split) / "summary.json"
        return None


def open_run(
    run: Path, overrides: Sequence[str] = (), free: tuple[str, ...] = ("data.batch_size",)
) -> Run:
    """Open a run (a directory, or a checkpoint in one) as it was trained: the door for all users.

    ``overrides`` change no result: paths, workers, and keys that begin as in ``free``.
    """
    folder, checkpoint = find_checkpoint(run)
    saved = str(folder / "config.yaml")
    config = load_config(saved, list(overrides))
    changes = differences(to_plain(load_config(saved, [])), to_plain(config))
    if changes := [line for line in changes if not line.startswith(free)]:
        listed = "\n  ".join(changes)
        raise RunError(
            f"{folder} was trained otherwise:\n  {listed}\nFix: use it as it was trained (only "
            "paths, workers and the batch size may change), or train a run of its own."
        )
    content = read_checkpoint(checkpoint, ". Fix: name another one of the run.")
    source = SOURCES.get(config.data.name)
    if content["stage"] != config.stage or not source or source.__qualname__ not in content:
        raise RunError(
            f"{checkpoint} was not trained on data.name={config.data.name} in {config.stage}, as "
            f"{saved} says. Fix: restore the original files."
        )
    return Run(folder, checkpoint, config, content)


def build_data(config: Config) -> RadiographDataModule:
    """The data module of ``data.*``, ``augmentation.*`` and ``lesions.*``."""
    name = config.data.name
    if name not in SOURCES:
        raise DataError(f"data.name: expected {' | '.join(SOURCES)}, got {name}")
    cache_dir = config.data.cache_dir or str(Path(config.run.root) / "cache")
    data = dataclasses.replace(config.data, cache_dir=cache_dir)
    return SOURCES[name](data, config.lesions, config.augmentation, order_seed=config.seed)


def build_module(config: Config, data: RadiographDataModule) -> Stage1Classifier:
    """The stage's LightningModule; ``data`` is set up."""
    if not config.loss.classification and not len(data.lesion_rows):
        raise DataError(
            "loss.classification=false learns from the lesion masks of train alone, and there are "
            "none. Fix: give some by lesions.path, and lesions.count above 0."
        )
    weights = data.class_weights() if config.loss.class_weights == "balanced" else (1.0, 1.0)
    sections = config.model, config.loss, config.attention, config.optimizer
    return STAGES[config.stage](*sections, body_parts=data.body_parts, class_weights=weights)


def start_from(module: Stage1Classifier, config: Config, data: RadiographDataModule) -> None:
    """Give ``module`` the encoder and the FC layer of ``model.init_from``, an earlier stage's run.

    A directory stands for its best checkpoint. Everything else of ``module`` stays as initialised.
    """
    earlier = list(STAGES)[: list(STAGES).index(config.stage)]
    try:
        folder, checkpoint = find_checkpoint(Path(str(config.model.init_from)))
        content = read_checkpoint(checkpoint, parts=("stage", "state_dict"))
        if content["stage"] not in earlier:
            raise RunError(
                f"{checkpoint} is of {content['stage']}: {config.stage} can start from "
                f"{' or '.join(earlier) or 'none'}"
            )
        # The same configuration is not enough: one patient more in a folder deals all splits anew,
        # and one mask more all folds.
        trained_on = content.get(type(data).__qualname__, {})
        dealt_alike = not config.lesions.folds or trained_on.get("index_hash") == data.index_hash
        if not (data.judges_as(trained_on) and dealt_alike):
            changed = differences(read_plain(folder / "config.yaml"), to_plain(config))
            of_data = "; ".join(line for line in changed if line.startswith("data."))
            raise RunError(
                f"{folder} was trained on other images ({of_data or 'the same options'}): its "
                "train images may be val or test images here. Fix: start from a run on the same "
                "data, with the same data.limit and, with lesions.folds, the same lesions.*."
            )
        for part, prefix in ((module.encoder, "encoder."), (module.fc, "fc.")):
            named = content["state_dict"].items()
            part.load_state_dict(
                {name[len(prefix) :]: tensor for name, tensor in named if name.startswith(prefix)}
            )
    except RuntimeError as error:
        raise RunError(
            f"model.init_from: {checkpoint} holds another network ({error}). Fix: start from a run "
            "with the same model.width."
        ) from error
    except ValueError as error:  # a RunError, or a damaged file
        raise RunError(f"model.init_from: {error}") from error
    if isinstance(module, Stage2GuidedAttention):
        module.second_pass = SecondPass(module.encoder, module.attention.statistics)
