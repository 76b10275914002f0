"""The schema of the configuration: every key with its type, default, unit and allowed values."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

STAGES = ("stage1", "stage2", "stage3")


class ConfigError(ValueError):
    """The configuration cannot be used: the message names the key, its origin and the remedy."""


@dataclass
class DataConfig:
    """What is learned from."""

    name: str = "phantom"  # phantom | mura | fracatlas
    root: str | None = None  # folder of the data set as downloaded; null: the phantom draws itself
    seed: int = 0  # draws phantom, splits and lesion subset; runs of several `seed`s stay paired
    cache_dir: str | None = None  # folder of the decoded images; null: beside the runs
    image_size: int | None = None  # side in pixels, a multiple of 16; null: the source's own
    crop: str | None = None  # none | content (the exposed area); null: the source's own
    contrast: str | None = None  # none | stretch | clahe; null: the source's own
    batch_size: int = 16  # images a step and a rank; small, since few images mean few steps
    num_workers: int | None = None  # loader processes a rank; null: from the cores at hand
    limit: int | None = None  # images a split, for quick tries; null: all
    split: str = "patient"  # patient | image (leaks patients into test: old figures only)
    unreadable: str | None = None  # error | skip (reported); null: the source's own
    count: int = 2000  # images drawn (phantom only)


@dataclass
class AugmentationConfig:
    """Random changes of train images, a pure function of (seed, epoch, image)."""

    enabled: bool = True
    rotate: float = 10.0  # degrees, either way
    scale: float = 0.1  # share of the size, either way
    shift: float = 0.05  # share of the side, either way
    flip: float = 0.5  # probability of a left-right flip
    brightness: float = 0.1  # share of the grey range, either way
    contrast: float = 0.1  # share of the contrast, either way
    noise: float = 0.0  # highest standard deviation, share of the grey range


@dataclass
class LesionsConfig:
    """The images whose lesion was drawn by hand."""

    path: str | None = None  # folder with lesions.csv; null: what the source brings
    count: int = 100  # train images whose mask may be used
    folds: int | None = None  # cross-fitting: masks in so many parts; null: all of train's train
    fold: int = 0  # the part left out, 0 to folds - 1: judge it with evaluate --split left_out
    per_batch: int = 0  # images with a mask in every train batch; 0: as they come


@dataclass
class ModelConfig:
    """The network."""

    init_from: str | None = None  # run directory or checkpoint to start from; null: from scratch
    width: float = 1.0  # factor on the number of filters
    dropout: float = 0.0  # probability, before the last layer


@dataclass
class LossConfig:
    """The terms of the loss."""

    class_weights: str = "balanced"  # balanced | none
    label_smoothing: float = 0.0  # share of the label given to the other class
    alpha: float | int | str = "accuracy"  # accuracy | balanced_accuracy | fixed number, 0 to 1
    lambda_lesion: float = 1.0  # weight of the lesion term L3
    classification: bool = True  # false: the lesion masks alone train (stage 3)
    lambda_attention: float = 0.0  # weight of L4, PCAM against its target (stage 3; ours)
    normal_masks: bool = False  # normal images join L3 with an empty mask (stage 3; ours)


@dataclass
class AttentionConfig:
    """The soft mask T(A) = sigmoid(omega (A - sigma)) of the second pass."""

    omega: float = 10.0  # steepness
    sigma: float = 0.5  # threshold on the map, which runs from 0 to 1
    source: str = "abnormal"  # whose map: abnormal | predicted | true (leaks) | fcn (stage 3)
    target: str = "fcn"  # of L4: masks (the drawn lesions) | fcn (elsewhere what the FCN draws)
    statistics: str = "own"  # BatchNorm in the masked pass: own | image (whole images') | both
    shrink: int = 1  # sides of the masked pass's image are divided by it; 2 is faster (ours)
    gradient: str = "pytorch"  # at the masked image: pytorch | convolution (faster on processors)
    fill: float = 0.0  # what is masked out becomes; model input: -1 black, 0 dark grey, 4 white


@dataclass
class OptimizerConfig:
    """How the weights move: AdamW."""

    learning_rate: float = 1e-3  # highest, after the warm-up
    weight_decay: float = 0.3  # a step takes learning_rate * weight_decay of each weight
    warmup_epochs: float = 1.0  # epochs, fractions allowed
    schedule: str = "cosine"  # cosine | constant, after the warm-up
    gradient_clip: float = 0.0  # highest gradient norm; 0: off
    average_epochs: float = 1.0  # weights are judged and kept as an average over them; 0: off


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
class CheckpointConfig:
    """How much work a killed run may lose: whichever of the two comes first."""

    every_minutes: float = 10.0
    every_steps: int | None = None  # null: by the clock alone


@dataclass
class RunConfig:
    """Where results lie: ``<root>/<data.name>/<stage>/<name>/``."""

    root: str = "runs"
    # null: seed<seed>, in stage 3 lambda<loss.lambda_lesion>-seed<seed>; with folds -fold<n> more
    name: str | None = None


@dataclass
class LoggerConfig:
    """Weights & Biases; ``metrics.csv`` is always written."""

    wandb: str = "auto"  # auto (online only where a key is configured) | online | offline | off
    wandb_project: str = "decision-basis"
    wandb_images: bool | None = None  # may radiographs leave the machine; null: phantom only


@dataclass
class Config:
    """All keys with their defaults."""

    stage: str = "stage1"  # stage1 | stage2 | stage3: the first word of the command, or the file's
    seed: int = 0  # initialisation, order and augmentation
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    lesions: LesionsConfig = field(default_factory=LesionsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: dict[str, Any] = field(default_factory=trainer_defaults)  # for Lightning's Trainer
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


CHOICES: dict[str, tuple[str, ...]] = {
    "stage": STAGES,
    "data.crop": ("none", "content"),
    "data.contrast": ("none", "stretch", "clahe"),
    "data.split": ("patient", "image"),
    "data.unreadable": ("error", "skip"),
    "loss.class_weights": ("balanced", "none"),
    "attention.source": ("abnormal", "predicted", "true", "fcn"),
    "attention.target": ("fcn", "masks"),
    "attention.statistics": ("own", "image", "both"),
    "attention.gradient": ("pytorch", "convolution"),
    "optimizer.schedule": ("cosine", "constant"),
    "logger.wandb": ("auto", "online", "offline", "off"),
}
# Intervals as mathematicians write them: [ ] with the end, ( ) without. Optional keys may be null.
INTERVALS: dict[str, str] = {
    "seed": "[0, 4294967295]",  # 32 bits: what NumPy takes
    "data.seed": "[0, 4294967295]",
    "data.image_size": "[16, inf)",
    "data.batch_size": "[1, inf)",
    "data.num_workers": "[0, inf)",
    "data.limit": "[1, inf)",
    "data.count": "[1, inf)",
    "augmentation.rotate": "[0, 180]",
    "augmentation.scale": "[0, 1)",
    "augmentation.shift": "[0, 1)",
    "augmentation.flip": "[0, 1]",
    "augmentation.brightness": "[0, 1]",
    "augmentation.contrast": "[0, 1]",
    "augmentation.noise": "[0, 1]",
    "lesions.count": "[0, inf)",
    "lesions.per_batch": "[0, inf)",
    "lesions.folds": "[2, inf)",
    "lesions.fold": "[0, inf)",
    "model.width": "(0, inf)",
    "model.dropout": "[0, 1)",
    "loss.label_smoothing": "[0, 1)",
    "loss.lambda_lesion": "[0, inf)",
    "loss.lambda_attention": "[0, inf)",
    "attention.omega": "(0, inf)",
    "attention.sigma": "[0, 1]",
    "attention.shrink": "[1, 2]",
    "attention.fill": "[-1, 4]",  # the range of the model's input
    "optimizer.learning_rate": "(0, inf)",
    "optimizer.weight_decay": "[0, inf)",
    "optimizer.warmup_epochs": "[0, inf)",
    "optimizer.gradient_clip": "[0, inf)",
    "optimizer.average_epochs": "[0, inf)",
    "checkpoint.every_minutes": "(0, inf)",
    "checkpoint.every_steps": "[1, inf)",
}
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


def _schema() -> dict[str, Any]:
    hints = typing.get_type_hints(Config)
    found = {}
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            inner = typing.get_type_hints(hint)
            found.update({f"{name}.{key}": inner[key] for key in inner})
        elif name != "trainer":
            found[name] = hint
    found.update({f"trainer.{key}": Any for key in trainer_defaults()})
    return found


HINTS = _schema()  # every dotted key with its type
SECTIONS = {key.split(".")[0] for key in HINTS if "." in key}
