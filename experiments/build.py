"""From a configuration to Lightning's objects; the one place where all rooms meet."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule

from datamodules import SOURCES, DataError
from datamodules.files import usable_cores
from datamodules.radiographs import RadiographDataModule
from experiments.config import Config, differences, load_config, read_plain, to_plain
from experiments.hardware import choose_device
from experiments.runs import RunError, file_hash, find_checkpoint, network_of, read_checkpoint
from lightning_modules import STAGES, Stage1Classifier
from lightning_modules.stage2 import Stage2GuidedAttention


@dataclass
class Run:
    """A run directory, opened; its data and its network are built when they are first asked for.

    Attributes:
        folder: the run directory.
        checkpoint: the file of the weights, ``best.ckpt`` unless another one was named.
        config: as it was trained, with today's paths.
        content: of the checkpoint.
    """

    folder: Path
    checkpoint: Path
    config: Config
    content: dict[str, Any]

    @cached_property
    def module(self) -> Stage1Classifier:
        """The network: float32, evaluation mode, channels_last, on the GPU where there is one."""
        network = network_of(self.content, self.checkpoint)
        return cast(Stage1Classifier, network.to(choose_device()).eval())

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
        trained_on: dict[str, Any] = self.content[SOURCES[self.config.data.name].__qualname__]
        return trained_on

    @cached_property
    def identity(self) -> dict[str, str | int]:
        """What every evaluation of this very checkpoint says of it."""
        return {
            "stage": self.config.stage,
            "data": self.config.data.name,
            "seed": self.config.seed,
            "checkpoint": self.checkpoint.name,
            "epoch": int(self.content["epoch"]) + 1,
            "checkpoint_hash": file_hash(self.checkpoint),
        }

    def results(self, split: str) -> Path:
        """The folder of an evaluation's results: only the best checkpoint's are the run's."""
        best = self.checkpoint.stem == "best"
        return self.folder / "evaluation" / (split if best else f"{split}-{self.checkpoint.stem}")

    def summary(self, split: str) -> dict[str, Any] | None:
        """The ``summary.json`` of an evaluation of this very checkpoint; None without one."""
        try:
            summary = json.loads((self.results(split) / "summary.json").read_text(encoding="utf-8"))
            known = all(summary[name] == value for name, value in self.identity.items())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return summary if known else None

    def decisions(self) -> tuple[dict[str, Any], Path] | None:
        """A summary that holds what val decided (``fitted``), and its file; None: never judged."""
        for split in ("val", "test", "left_out"):
            summary = self.summary(split)
            if summary is not None and isinstance(summary.get("fitted"), dict):
                return summary, self.results(split) / "summary.json"
        return None


def open_run(
    run: Path, overrides: Sequence[str] = (), free: tuple[str, ...] = ("data.batch_size",)
) -> Run:
    """Open a run as it was trained: the one door for all that use a run.

    Args:
        run: run directory, or a checkpoint in one.
        overrides: ``key=value`` words that change no result: paths, workers, keys in ``free``.
        free: beginnings of keys that may differ from the training, too.
    """
    folder, checkpoint = find_checkpoint(run)
    saved = folder / "config.yaml"
    config = load_config(str(saved), list(overrides))
    changed = [
        line
        for line in differences(to_plain(load_config(str(saved), [])), to_plain(config))
        if not line.startswith(free)
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise RunError(
            f"{folder} was trained otherwise:\n  {listed}\nUse it as it was trained (only paths, "
            "workers and the batch size may change), or train a run of its own"
        )
    content = read_checkpoint(
        checkpoint, "; name another one of the run, such as checkpoints/last.ckpt"
    )
    if content["stage"] != config.stage:
        raise RunError(f"{checkpoint} is a checkpoint of {content['stage']}, not of {config.stage}")
    source = SOURCES.get(config.data.name)
    if source is None or source.__qualname__ not in content:
        raise RunError(
            f"{checkpoint} was not trained on data.name={config.data.name}, as {saved} says: one "
            "of them is another run's; put this run's own back"
        )
    return Run(folder, checkpoint, config, content)


def build_data(config: Config) -> RadiographDataModule:
    """The data module of ``data.*``, ``augmentation.*`` and ``lesions.*``.

    Raises:
        DataError: the source is unknown or lacks its root.
    """
    data = config.data
    if data.name not in SOURCES:
        near = difflib.get_close_matches(data.name, SOURCES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"data.name={data.name} is none of {', '.join(SOURCES)}{hint}")
    strength = {
        name: value for name, value in vars(config.augmentation).items() if name != "enabled"
    }
    root, only_here = data.root, {}
    if data.name == "phantom":
        # A folder a drawing: asking for another seed or count never meets the one that is there.
        root = root or str(Path("data") / f"phantom-{data.count}-seed{data.seed}")
        only_here = {"count": data.count}
    return SOURCES[data.name](
        root=root,
        cache_dir=data.cache_dir or str(Path(config.run.root) / "cache"),
        seed=data.seed,
        image_size=data.image_size,
        crop=data.crop,
        contrast=data.contrast,
        batch_size=data.batch_size,
        num_workers=default_workers() if data.num_workers is None else data.num_workers,
        limit=data.limit,
        split=data.split,
        unreadable=data.unreadable,
        augmentation=strength if config.augmentation.enabled else None,
        order_seed=config.seed,
        lesions_path=config.lesions.path,
        lesions_count=config.lesions.count,
        lesions_per_batch=config.lesions.per_batch,
        lesions_folds=config.lesions.folds,
        lesions_fold=config.lesions.fold,
        **only_here,
    )


def default_workers() -> int:
    """Loader processes a rank: none on a CPU, where reading takes a few per cent of a step."""
    if not torch.cuda.is_available():
        return 0
    return min(8, max(1, usable_cores() // torch.cuda.device_count()))


def build_module(config: Config, data: RadiographDataModule) -> LightningModule:
    """The stage's LightningModule with plain values as arguments (``data`` is set up).

    Raises:
        DataError: it shall learn from lesion masks alone, and there are none.
    """
    if not config.loss.classification and not len(data.lesion_rows):
        raise DataError(
            "loss.classification=false learns from the lesion masks of train alone, and there are "
            "none; give some by lesions.path, and lesions.count above 0"
        )
    optimizer = config.optimizer
    arguments: dict[str, Any] = {
        "body_parts": data.body_parts,
        "class_weights": (
            data.class_weights() if config.loss.class_weights == "balanced" else (1.0, 1.0)
        ),
        "label_smoothing": config.loss.label_smoothing,
        "dropout": config.model.dropout,
        "width": config.model.width,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "warmup_epochs": optimizer.warmup_epochs,
        "schedule": optimizer.schedule,
    }
    if config.stage != "stage1":
        arguments |= {
            "omega": config.attention.omega,
            "sigma": config.attention.sigma,
            "mask_source": config.attention.source,
            "mask_fill": config.attention.fill,
            "mask_statistics": config.attention.statistics,
            "mask_shrink": config.attention.shrink,
            "mask_gradient": config.attention.gradient,
        }
    if config.stage == "stage3":
        arguments |= {
            "lambda_lesion": config.loss.lambda_lesion,
            "classification": config.loss.classification,
            "normal_masks": config.loss.normal_masks,
            "lambda_attention": config.loss.lambda_attention,
            "attention_target": config.attention.target,
        }
    return stage_class(config.stage)(**arguments)


def start_from(
    module: LightningModule, config: Config, data: RadiographDataModule | None = None
) -> None:
    """Give ``module`` the encoder and the FC layer of ``model.init_from``, an earlier stage's run.

    A directory stands for its best checkpoint. Everything else of ``module`` stays as initialised.

    Raises:
        RunError: no such run or checkpoint, one of the same or a later stage, one of a run on other
            data, or weights of another network.
    """
    path = Path(str(config.model.init_from))
    try:
        if not path.exists():
            raise RunError(f"{path} does not exist; give a run directory or a .ckpt file in one")
        if path.is_file() and path.suffix != ".ckpt":
            raise RunError(f"{path} is no checkpoint; give a run directory or a .ckpt file in one")
        folder, checkpoint = find_checkpoint(path)
        check_same_data(read_plain(folder / "config.yaml"), to_plain(config), folder)
        content = read_checkpoint(checkpoint, parts=("stage", "state_dict"))
        if data is not None:
            check_same_judges(content, data, folder)
            if config.lesions.folds:
                check_same_fold(content, config, data, folder)
        earlier = list(STAGES)[: list(STAGES).index(config.stage)]
        if content.get("stage") not in earlier:
            remedy = f"give one of {' or '.join(earlier)}" if earlier else "leave it out"
            raise RunError(
                f"{checkpoint} is a checkpoint of {content.get('stage')}, and {config.stage} can "
                f"start from an earlier stage only; {remedy}"
            )
        hand_over(content["state_dict"], module, checkpoint)
    except ValueError as error:  # a RunError, or a damaged file
        raise RunError(f"model.init_from: {error}") from error


def check_same_data(theirs: dict[str, Any], ours: dict[str, Any], folder: Path) -> None:
    """Raise a RunError where the run in ``folder`` may have trained on our val or test images."""
    keys = ["name", "seed", "split", *(["count"] if ours["data"]["name"] == "phantom" else [])]
    for key in keys:
        was, now = theirs.get("data", {}).get(key), ours["data"][key]
        if was != now:
            raise RunError(
                f"{folder} was trained with data.{key}={was}, this run has data.{key}={now}: its "
                "train images may be val or test images here; start from a run on the same data"
            )


def check_same_judges(content: dict[str, Any], data: RadiographDataModule, folder: Path) -> None:
    """Raise a RunError unless the run in ``folder`` had our val and test images as val and test.

    The same configuration is not enough: one patient more in a folder deals all splits anew.
    """
    theirs = content.get(type(data).__qualname__, {})
    if "judges_hash" in theirs:
        same = theirs["judges_hash"] == data.judges_hash
    else:  # a checkpoint of before knows the whole index's only, masks included
        same = theirs.get("index_hash") == data.index_hash
    if not same:
        raise RunError(
            f"{folder} was trained on other val and test images: its train images may be val or "
            "test images here; start from a run on the same images, with the same data.limit"
        )


def check_same_fold(
    content: dict[str, Any], config: Config, data: RadiographDataModule, folder: Path
) -> None:
    """Raise a RunError unless the run in ``folder`` left out the images that judge this one."""
    # One mask more deals all folds anew: only the very same splits are safe.
    trained_on = content[type(data).__qualname__]["index_hash"]
    if trained_on != data.index_hash:
        raise RunError(
            f"{folder} did not leave out fold {config.lesions.fold} of {config.lesions.folds} of "
            "these masks: it was trained on images that judge this run; start from a run with the "
            "same lesions.* and data.limit"
        )


def hand_over(weights: dict[str, torch.Tensor], module: LightningModule, source: Path) -> None:
    """Copy ``encoder.*`` and ``fc.*`` of a state dict into ``module``: all of them or none.

    Raises:
        RunError: a weight is missing, unknown or of another shape.
    """
    shared = ("encoder.", "fc.")
    given = {name: tensor for name, tensor in weights.items() if name.startswith(shared)}
    wanted = {name: t for name, t in module.state_dict().items() if name.startswith(shared)}
    problems = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    problems += [f"{name} is unknown here" for name in given.keys() - wanted.keys()]
    problems += [
        f"{name} is {tuple(given[name].shape)}, here {tuple(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if given[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise RunError(
            f"{source} holds another network: {', '.join(sorted(problems)[:3])}{more}; "
            "start from a run with the same model.width"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[name])
    if isinstance(module, Stage2GuidedAttention):
        module.second_pass.restart(module.encoder)


def stage_class(stage: str) -> type[LightningModule]:
    """The LightningModule class of a stage."""
    if stage not in STAGES:
        raise RunError(f"{stage} is none of the stages {', '.join(STAGES)}")
    return STAGES[stage]
