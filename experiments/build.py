"""From a configuration to Lightning's objects, on this machine: where all rooms meet."""

import contextlib
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from datamodules.files import usable_cores
from datamodules.index import DataError
from datamodules.radiographs import RadiographDataModule
from datamodules.sources import SOURCES
from experiments import runs
from experiments.config import LOADING, Config, ConfigError, flatten, load_config, show, to_plain
from experiments.runs import RunError, find_checkpoint, read_checkpoint
from lightning_modules.attention import views
from lightning_modules.stage2 import SecondPass, Stage2GuidedAttention
from lightning_modules.stages import STAGES, Stage1Classifier

CPUINFO = Path("/proc/cpuinfo")
RULES = 2  # how figures and thresholds are made: one more with each change, all is judged anew
HALF, LOST = "half finished", "last.ckpt is lost or damaged"


@dataclass
class Run:
    """A run directory, opened; its data and its network are built when they are first asked for."""

    folder: Path
    checkpoint: Path  # best.ckpt unless another one was named
    config: Config  # as it was trained, with today's paths
    content: dict[str, Any]  # of the checkpoint

    @cached_property
    def module(self) -> Stage1Classifier:
        """The network: float32, evaluation mode, on the GPU where there is one."""
        try:
            module = STAGES[self.content["stage"]](**self.content["hyper_parameters"])
            module.load_state_dict(self.content["state_dict"])
        except (KeyError, TypeError, RuntimeError) as error:
            reason = f"{self.checkpoint} is of another version of this project"
            raise RunError(f"{reason}: {error}") from error
        runs.check_cells(module, self.content, self.checkpoint)
        # channels_last: a third faster on a CPU
        return module.to(choose_device(), memory_format=torch.channels_last).eval()

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
            "precision": str(self.content.get("precision", "")),  # of the training
            "rules": RULES,
        }

    @cached_property
    def unfinished(self) -> list[str]:
        """As :func:`unfinished`."""
        return unfinished(self.folder, self.config.trainer["max_epochs"])

    def results(self, split: str) -> Path:
        """The folder of an evaluation's results; a checkpoint other than the best has its own."""
        best = self.checkpoint.stem == "best"
        return self.folder / "evaluation" / (split if best else f"{split}-{self.checkpoint.stem}")

    def summary(self, split: str) -> dict[str, Any] | None:
        """The ``summary.json`` of an evaluation of this very checkpoint; None without one."""
        with contextlib.suppress(OSError, ValueError):
            summary = json.loads((self.results(split) / "summary.json").read_text(encoding="utf-8"))
            if self.identity.items() <= summary.items():
                # Training may have gone on since, and kept this checkpoint.
                notes = [n for n in summary.get("notes", []) if HALF not in n and LOST not in n]
                today = {"epochs": self.config.trainer["max_epochs"]}
                return summary | today | {"notes": notes + self.unfinished}
        return None

    def decisions(self) -> tuple[dict[str, Any], Path] | None:
        """The newest summary with what val decided (``fitted``), its file; None: never judged."""
        found = {}
        for split in ("val", "test", "left_out"):
            if (summary := self.summary(split)) and isinstance(summary.get("fitted"), dict):
                found[self.results(split) / "summary.json"] = summary
        newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
        return (found[newest], newest) if newest else None


def unfinished(run: Path, epochs: int = 0) -> list[str]:
    """A note where a run has epochs before it (0: of those it planned), or nobody can tell."""
    try:
        last = read_checkpoint(run / "checkpoints" / "last.ckpt", ("loops", "max_epochs"))
        done, epochs = runs.epochs_done(last), epochs or last["max_epochs"]
    except (OSError, ValueError, KeyError):
        return [f"{LOST}: whether training had ended is not known"]
    half = f"{HALF}: {done} of {epochs} epochs are trained; the same command goes on"
    return [half] if done < epochs else []


def open_run(
    run: Path, overrides: Sequence[str] = (), free: tuple[str, ...] = ("data.batch_size",)
) -> Run:
    """Open a run (a directory, or a checkpoint in one) as it was trained: the door for all users.

    ``overrides`` change no result: paths, workers, and keys that begin as in ``free``.
    """
    folder, checkpoint = find_checkpoint(run)
    saved = str(folder / "config.yaml")
    config = load_config(saved, list(overrides))
    was, now = (flatten(to_plain(one)) for one in (load_config(saved, []), config))
    free = (*LOADING, "run.", *free)
    changed = [key for key in now if now[key] != was.get(key) and not key.startswith(free)]
    if changes := [f"{key}: {show(was.get(key))} -> {show(now[key])}" for key in changed]:
        listed = "\n  ".join(changes)
        raise RunError(
            f"{folder} was trained otherwise:\n  {listed}\nFix: use it as it was trained (only "
            "paths, workers and the batch size may change), or train a run of its own."
        )
    content = read_checkpoint(checkpoint)
    source = SOURCES.get(config.data.name)
    if content["stage"] != config.stage or not source or source.__qualname__ not in content:
        raise RunError(
            f"{checkpoint} was not trained on data.name={config.data.name} in {config.stage}, as "
            f"{saved} says. Fix: restore the original files."
        )
    return Run(folder, checkpoint, config, content)


def build_data(config: Config) -> RadiographDataModule:
    """The data module of ``data.*``, ``augmentation.*`` and ``lesions.*``."""
    if not (source := SOURCES.get(config.data.name)):
        raise DataError(f"data.name: expected {' | '.join(SOURCES)}, got {config.data.name}")
    cache_dir = config.data.cache_dir or str(Path(config.run.root) / "cache")
    data = replace(config.data, cache_dir=cache_dir)
    return source(data, config.lesions, config.augmentation, order_seed=config.seed)


def resolve(config: Config, data: RadiographDataModule) -> None:
    """Put the source's own choices into the configuration: a run must not change with them."""
    config.data.image_size = data.recipe.image_size
    config.data.crop = data.recipe.crop
    config.data.contrast = data.recipe.contrast
    config.data.unreadable = data.on_unreadable
    if len({*seen_at(config)}) < len(seen_at(config)):
        at = f"at {data.recipe.image_size} px two of its views are one"
        raise ConfigError(f"model.zoom={config.model.zoom:g}: {at}. Fix: a larger zoom or image")


def seen_at(config: Config) -> list[int]:
    """The sides of the views in which the network will see an image, pixels."""
    assert config.data.image_size, "resolved"
    return [view.side(config.data.image_size) for view in views(False, config.model.zoom)]


def build_module(config: Config, data: RadiographDataModule) -> Stage1Classifier:
    """The stage's LightningModule; ``data`` is set up."""
    weights = data.class_weights() if config.loss.class_weights == "balanced" else (1.0, 1.0)
    sections = config.model, config.loss, config.attention, config.optimizer
    return STAGES[config.stage](*sections, body_parts=data.body_parts, class_weights=weights)


def start_from(module: Stage1Classifier, config: Config, data: RadiographDataModule) -> None:
    """Give ``module`` the encoder and the FC layer of ``model.init_from``, an earlier stage's run.

    A directory stands for its best checkpoint. Everything else of ``module`` stays as initialised.
    """
    earlier = list(STAGES)[: list(STAGES).index(config.stage)]
    try:
        _, checkpoint = find_checkpoint(Path(str(config.model.init_from)))
        content = read_checkpoint(checkpoint, ("stage", "state_dict", "hyper_parameters"))
        if content["stage"] not in earlier:
            expected = " or ".join(earlier) or "none"
            raise RunError(
                f"{checkpoint} is of {content['stage']}: {config.stage} can start from {expected}"
            )
        # Weights of the same shapes may be of an encoder whose cells look elsewhere.
        encoder = content["hyper_parameters"]["model"].get("encoder", config.model.encoder)
        if encoder != config.model.encoder:
            raise RunError(f"{checkpoint} has model.encoder={encoder}. Fix: the same here")
        # An equal configuration is not enough: one more patient in a folder reassigns all splits,
        # one more mask all folds.
        trained_on = content.get(type(data).__qualname__, {})
        dealt_alike = not config.lesions.folds or trained_on.get("index_hash") == data.index_hash
        if not (data.judges_as(trained_on) and dealt_alike):
            raise RunError(
                f"{checkpoint} was trained on other images: they may be val or test images here. "
                "Fix: start from a run on the same data, with the same data.* and, with "
                "lesions.folds, the same lesions.*."
            )
        weights = content["state_dict"].items()
        for part, prefix in ((module.encoder, "encoder."), (module.fc, "fc.")):
            own = {name.removeprefix(prefix): w for name, w in weights if name.startswith(prefix)}
            part.load_state_dict(own)
    except RuntimeError as error:
        raise RunError(
            f"model.init_from: {checkpoint} holds another network ({error}). Fix: start from a run "
            "with the same model.width."
        ) from error
    except ValueError as error:  # a RunError, or a damaged file
        raise RunError(f"model.init_from: {error}") from error
    if isinstance(module, Stage2GuidedAttention):
        module.second_pass = SecondPass(module.encoder, module.attention.statistics)


# This machine: its device, native bfloat16, and the SLURM job around us.


def choose_device(accelerator: str = "auto") -> torch.device:
    """The device of ``trainer.accelerator``; ``auto`` is CUDA, else the CPU."""
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda", 0) if cuda else torch.device("cpu")


def choose_precision(accelerator: str = "auto") -> str:
    """``bf16-mixed`` where bfloat16 is multiplied in hardware; emulated, ``32-true`` is faster."""
    device = choose_device(accelerator)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)  # from Ampere on
    else:
        flags = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 (AVX-512, AMX) and of Arm
        native = not flags.isdisjoint(_cpu("flags|Features").split())
    return "bf16-mixed" if native else "32-true"


def describe_device(device: torch.device) -> str:
    """Name and size of ``device`` for people, such as ``CPU Intel Xeon, 2 cores, 1 thread``."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return f"{card.name} (cuda:{device.index or 0}), {card.total_memory / 2**30:.0f} GiB"
    counts = {"core": usable_cores(), "thread": torch.get_num_threads()}
    parts = [f"{number} {name}{'s' * (number > 1)}" for name, number in counts.items()]
    return ", ".join([f"CPU {_cpu('model name') or platform.machine()}", *parts])


def _cpu(pattern: str) -> str:
    """What follows a line's name in the system's description of its processor, if it has one."""
    text = CPUINFO.read_text(errors="replace") if CPUINFO.is_file() else ""
    match = re.search(rf"^(?:{pattern})\s*:(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def slurm_fault(trainer: dict[str, Any]) -> str:
    """Why Lightning cannot train in the SLURM job around us, with the remedy; "" where it can."""
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    try:
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            job = SLURMEnvironment()
            one = job.global_rank() == 0 and job.world_size() == devices == nodes == 1
            if isinstance(devices, int) and not one:
                job.validate_settings(devices, nodes)
                if job.world_size() != devices * nodes:  # ranks would train alone, or wait
                    raise ValueError
    except (RuntimeError, ValueError, KeyError):
        return (
            f"SLURM_NTASKS={os.environ['SLURM_NTASKS']}, but this is no task that srun started for "
            f"trainer.devices={devices} and trainer.num_nodes={nodes}. Fix: start it by srun "
            f"--nodes={nodes} --ntasks-per-node={devices}, or, as one process (shell, notebook), "
            "with SLURM_JOB_NAME=interactive or without SLURM_NTASKS."
        )
    return ""


def check_ranks(trainer: Trainer, first: bool) -> None:
    """Refuse processes that were started together and would each train the same run alone.

    ``first``: whether the environment calls this process the first.
    """
    started = ranks = trainer.world_size
    if TorchElasticEnvironment.detect():
        started = int(os.environ["WORLD_SIZE"])
    elif SLURMEnvironment.detect():
        started = int(os.environ["SLURM_NTASKS"])
    if started != ranks or trainer.is_global_zero != first:
        raise ConfigError(
            f"trainer.devices: this training has {ranks} rank{'s' * (ranks > 1)}, but torchrun, "
            "srun or variables such as RANK and SLURM_PROCID speak of others. Fix: trainer.devices "
            "and trainer.num_nodes as they were started; to train alone, unset those variables."
        )
