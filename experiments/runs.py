"""Run directories: one configuration each, resumed where it stopped, never shared."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from callbacks.checkpoints import load_checkpoint
from datamodules.files import take, whole_file
from experiments.config import Config, differences, read_plain, to_plain
from experiments.metrics_csv import read_metrics
from experiments.schema import flatten, show
from lightning_modules.stages import STAGES, Stage1Classifier

# What a checkpoint must hold to be judged, or to be started from.
PARTS = ("stage", "epoch", "global_step", "max_epochs", "loops", "state_dict", "hyper_parameters")
# And for a run to go on from it.
STATES = ("callbacks", "optimizer_states", "lr_schedulers", "random_state")
# A network's arguments that follow from the data, which has a check and a message of its own.
OF_THE_DATA = ("body_parts", "class_weights")
# In a run directory: whoever trains there holds it.
LOCK = ".lock"


class RunError(ValueError):
    """A run directory cannot be used as asked: the message says why and what to do."""


def check_config(folder: Path, config: Config) -> None:
    """Make sure that the run begun in ``folder``, if there is one, is of this configuration."""
    saved = folder / "config.yaml"
    # Before the first save nothing has been trained: a mistake can be mended in place.
    if not any((folder / "checkpoints").glob("*.ckpt")):
        return
    if not saved.is_file():
        raise RunError(
            f"{folder} holds checkpoints but no config.yaml: what they were trained with is not "
            "known. Fix: put it back, or choose another run.name."
        )
    if changed := differences(read_plain(saved), to_plain(config)):
        listed = "\n  ".join(changed)
        raise RunError(
            f"{folder} holds a run of another configuration:\n  {listed}\n"
            "Fix: give this one its own name (run.name=..., make: RUN=...), or delete the folder."
        )


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keep every other process out of ``folder``; the kernel frees the lock when its owner dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise RunError(
            f"cannot write the run directory {folder} ({error.strerror}). Fix: another run.root."
        ) from error
    with lock as handle:
        try:
            free = take(handle)
        except OSError as error:
            free = True
            problem = f"its file system has no locks ({error.strerror})"
            print(f"{folder}: {problem}; never train there twice at a time", file=sys.stderr)
        if not free:
            raise RunError(
                f"another process trains in {folder}. Fix: wait for it, or choose another run.name."
            )
        yield


def is_training(folder: Path) -> bool:
    """Whether another process trains in a run directory."""
    try:
        with (folder / LOCK).open("r+") as handle:
            return not take(handle)
    except OSError:  # no such file, or nothing is known
        return False


def resume_point(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to go on from and its content, or (None, {}) for a fresh start."""
    last = folder / "checkpoints" / "last.ckpt"
    for unfinished in last.parent.glob("*.partial"):
        unfinished.unlink(missing_ok=True)  # cut short by a crash; last.ckpt is the one before
    if not last.is_file():
        best = last.with_name("best.ckpt")
        # A kill between the first epoch's two saves may leave this one alone.
        if best.is_file() and read_checkpoint(best)["epoch"] > 0:
            problem = f"{last} is lost, and training would start over and overwrite best.ckpt"
            raise RunError(f"{problem}. {_remedy(folder)}")
        return None, {}
    remedy = f" (best.ckpt can still be evaluated). {_remedy(folder)}"
    return last, read_checkpoint(last, remedy, (*PARTS, *STATES))


def _remedy(folder: Path) -> str:
    return f"Fix: put it back, choose another run.name, or delete {folder} to start over."


def check_states(checkpoint: dict[str, Any], path: Path, wanted: Iterable[str]) -> None:
    """Raise a RunError unless the checkpoint has the state of all that a run goes on with.

    Lightning starts anew what it finds no state of: "best" at minus infinity, alpha at chance.
    ``wanted`` names callbacks, the data module, and parts.
    """
    present = checkpoint.keys() | checkpoint["callbacks"].keys()
    if absent := [name for name in wanted if name not in present]:
        problem = f"{path} is no whole checkpoint of this run (it lacks {', '.join(absent)})"
        raise RunError(f"{problem}. {_remedy(path.parents[1])}")


def read_checkpoint(
    checkpoint: Path, remedy: str = "", parts: Iterable[str] = PARTS
) -> dict[str, Any]:
    """A checkpoint's content, with all ``parts``; ``remedy`` ends the message where it is not."""
    try:
        content = load_checkpoint(checkpoint)
    except ValueError as error:
        raise RunError(f"{error}{remedy}") from error
    absent = [name for name in parts if name not in content]
    if "loops" in content and "fit_loop" not in content["loops"]:
        absent.append("loops")
    if absent:
        raise RunError(
            f"{checkpoint} is no whole checkpoint of this project (it lacks {', '.join(absent)})"
            f"{remedy}"
        )
    return content


def check_network(module: Stage1Classifier, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a RunError unless the checkpoint is of ``module``: its weights and its options.

    A checkpoint that came here otherwise than by this run, such as one of another lambda, must not
    be trained on.
    """
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}:
        raise RunError(
            f"{path} was written by another version of this project, with another network. Fix: "
            "finish the run with that version, or choose another run.name."
        )
    before, now = flatten(checkpoint["hyper_parameters"]), flatten(dict(module.hparams))
    changed = [
        f"{name}={show(before.get(name))}, here {show(now.get(name))}"
        for name in dict.fromkeys([*before, *now])
        if name not in OF_THE_DATA and before.get(name) != now.get(name)
    ]
    if changed:
        problem = f"{path} is of another run: it was trained with {'; '.join(changed)}"
        raise RunError(f"{problem}. {_remedy(path.parents[1])}")


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Whole epochs that a checkpoint has behind it."""
    if not checkpoint:
        return 0
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def find_checkpoint(run: Path) -> tuple[Path, Path]:
    """The run directory and the checkpoint that ``run`` (a directory or a .ckpt) means."""
    if run.suffix == ".ckpt":
        folder, checkpoint = run.parent.parent, run
    else:
        folder, checkpoint = run, run / "checkpoints" / "best.ckpt"
    if not (folder / "config.yaml").is_file():
        raise RunError(
            f"{run} is no run directory (no config.yaml); name one such as "
            "runs/phantom/stage1/seed0"
        )
    if not checkpoint.is_file():
        last = checkpoint.with_name("last.ckpt")
        remedy = f"name {last}" if last.is_file() else "train the run for an epoch first"
        raise RunError(f"{checkpoint} does not exist; {remedy}")
    return folder, checkpoint


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class MetricsCsv(Logger):
    """``metrics.csv``: a row an epoch, rewritten whole; a resumed run drops what it will repeat.

    (Lightning's CSVLogger deletes the file of the run that it resumes.) ``epochs_kept`` epochs are
    in the checkpoint that is resumed, with the figures ``last`` of the last of them.
    """

    def __init__(self, folder: Path, epochs_kept: int, last: dict[str, float]) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows: dict[int, dict[str, float]] = {}
        if epochs_kept and self.path.is_file():
            kept = read_metrics(folder)
            for row in kept[kept["epoch"] < epochs_kept].to_dict("records"):
                self.rows[int(row["epoch"])] = row
            # A kill between an epoch's save and its last row: the checkpoint knows the figures.
            self.rows.setdefault(epochs_kept - 1, {"epoch": epochs_kept - 1}).update(last)

    name = "metrics"  # Lightning asks for both
    version = ""

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsCsv:
        """The logger itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Merge what an epoch logs into its row and write the file."""
        values = {name: float(value) for name, value in metrics.items()}
        epoch = int(values.pop("epoch", -1))
        if epoch < 0:
            return
        self.rows.setdefault(epoch, {"epoch": epoch, "step": step or 0}).update(values)
        table = pd.DataFrame([self.rows[key] for key in sorted(self.rows)])
        first = ["epoch", "step"]
        with whole_file(self.path) as partial:
            table[first + sorted(set(table.columns) - set(first))].to_csv(partial, index=False)


def network_of(content: dict[str, Any], checkpoint: Path) -> Stage1Classifier:
    """The network of a checkpoint's content, as ``read_checkpoint`` returns it.

    In channels_last: on a CPU its float32 forward pass costs 0.7 of contiguous.
    """
    try:
        module = STAGES[content["stage"]](**content["hyper_parameters"])
        module.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunError(
            f"{checkpoint} was written by another version of this project: {error}"
        ) from error
    return module.to(memory_format=torch.channels_last)
