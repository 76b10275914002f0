"""Run directories: one configuration each, resumed where it stopped, never shared."""

import contextlib
import logging
import re
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from callbacks.options import DECIMALS
from datamodules.files import take, whole_file
from datamodules.index import digest
from experiments.config import LOADING, Config, flatten, read_plain, show, to_plain
from lightning_modules.stages import STAGES, Stage1Classifier

log = logging.getLogger(__name__)
# What a checkpoint must hold to be judged, or to be started from.
PARTS = ("stage", "epoch", "global_step", "max_epochs", "loops", "state_dict", "hyper_parameters")
# And for a run to go on from it.
STATES = ("callbacks", "optimizer_states", "lr_schedulers", "random_state")
# A change of these never changes a result, or (paths, data.patients, and what a network takes
# from the data) is seen by the hashes of the index, the masks and the weights.
EXEMPT = re.compile(
    "|".join(map(re.escape, LOADING))
    + r"|(logger|run)\..*|checkpoint\.every_.*|model\.weights|body_parts|class_weights"
    r"|trainer\.(accelerator|devices|num_nodes|strategy|profiler|log_every_n_steps"
    r"|num_sanity_val_steps|enable_\w+)"
)
# The file in a run directory that the process training there keeps locked.
LOCK = ".lock"
REMEDY = "Fix: put the file back, choose another run.name, or delete the run and train it anew."


class RunError(ValueError):
    """A run directory cannot be used as asked: the message says why and what to do."""


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines ``key: old -> new`` of what changes a result: no EXEMPT key, no longer training."""
    before, after = flatten(old), flatten(new)
    lines = []
    for key in before | after:
        was, now = before.get(key, "not set"), after.get(key, "not set")
        longer = key == "trainer.max_epochs" and type(was) is type(now) is int and now >= was
        if was != now and not longer and not EXEMPT.fullmatch(key):
            lines.append(f"{key}: {show(was)} -> {show(now)}")
    return lines


def check_config(folder: Path, config: Config) -> None:
    """Make sure that the run begun in ``folder``, if there is one, is of this configuration."""
    saved = folder / "config.yaml"
    # Before the first save nothing has been trained: a mistake can be mended in place.
    if not any((folder / "checkpoints").glob("*.ckpt")):
        return
    if not saved.is_file():
        raise RunError(f"{folder} holds checkpoints but no config.yaml. {REMEDY}")
    if changed := differences(read_plain(saved), to_plain(config)):
        listed = "\n  ".join(changed)
        raise RunError(
            f"{folder} holds a run of another configuration:\n  {listed}\n"
            "Fix: give this one its own name (run.name=..., make: RUN=...; a sweep: run.root=...), "
            "or delete the folder."
        )


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keep every other process out of ``folder``; the kernel frees the lock when its owner dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        reason = f"cannot write the run directory {folder} ({error.strerror})"
        raise RunError(f"{reason}. Fix: another run.root.") from error
    with lock:
        try:
            # is_training() in another process holds the lock for a moment: try again.
            for wait in (0.2, 0.2, 0.2, 0.2, 0):
                if held := take(lock):
                    break
                time.sleep(wait)
            if not held:
                remedy = "Fix: wait for it, or choose another run.name."
                raise RunError(f"another process trains in {folder}. {remedy}")
        except OSError:
            log.warning("%s: no locks on this file system; never train there twice", folder)
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
    if last.is_file():
        return last, read_checkpoint(last, (*PARTS, *STATES))
    best = last.with_name("best.ckpt")
    # A kill between the first epoch's two saves may leave best.ckpt without last.ckpt.
    if best.is_file() and read_checkpoint(best)["epoch"] > 0:
        problem = f"{last} is lost, and training would start over and overwrite best.ckpt"
        raise RunError(f"{problem}. {REMEDY}")
    return None, {}


def read_checkpoint(checkpoint: Path, parts: Iterable[str] = PARTS) -> dict[str, Any]:
    """Its tensors and plain values (no code is run); RunError unless whole and with ``parts``."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:  # torch.load compares no checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError("it holds no dictionary")
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        problem = f"{checkpoint} is no whole checkpoint of this project ({reason})"
        raise RunError(f"{problem}. {REMEDY}") from error
    check_states(content, checkpoint, parts)
    return content


def check_states(content: dict[str, Any], checkpoint: Path, wanted: Iterable[str]) -> None:
    """Raise a RunError unless a checkpoint has the ``wanted`` parts and states of callbacks.

    Lightning starts anew what it finds no state of: "best" at minus infinity, alpha at chance.
    """
    present = content.keys() | content.get("callbacks", {}).keys()
    if absent := [name for name in wanted if name not in present]:
        problem = f"{checkpoint} is no whole checkpoint of this project"
        raise RunError(f"{problem} (it lacks {', '.join(absent)}). {REMEDY}")


def check_network(module: Stage1Classifier, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a RunError unless the checkpoint is of ``module``: its weights and its options."""
    changed = differences(checkpoint["hyper_parameters"], dict(module.hparams))
    states = module.state_dict(), checkpoint["state_dict"]
    ours, theirs = ({name: tensor.shape for name, tensor in one.items()} for one in states)
    if changed or ours != theirs:
        trained = "; ".join(changed) or "another version of this project"
        raise RunError(f"{path} is of another run ({trained}). {REMEDY}")
    check_cells(module, checkpoint, path)


def check_cells(module: Stage1Classifier, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise a RunError where timm's cells, which are measured, look elsewhere than in training."""
    now = [*module.encoder.offsets, *module.encoder.shifts]
    if (before := checkpoint.get("cells", now)) != now:
        raise RunError(
            f"{path}: the encoder's cells looked at {before}, here at {now}. Fix: the versions of "
            "torch and timm that it was trained with."
        )


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Whole epochs that a checkpoint has behind it; 0 for the empty one of a fresh start."""
    if not checkpoint:
        return 0
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def choose_runs(places: list[str], settings: list[str]) -> list[Path]:
    """The runs named; a stage stands for its latest trained run, if it has one.

    ``data.name``, ``run.root`` and ``run.name`` among the settings say where the latest lie.
    """
    where = {"data.name": "phantom", "run.root": "runs", "run.name": "*"}
    where |= dict(word.split("=", 1) for word in settings)
    root, chosen = Path(where["run.root"]).expanduser() / where["data.name"], []
    for place in places:
        if place not in STAGES:
            chosen.append(Path(place))
        elif best := [*root.glob(f"{place}/{where['run.name']}/checkpoints/best.ckpt")]:
            chosen.append(max(best, key=lambda path: path.stat().st_mtime).parents[1])
    if not chosen:
        remedy = f"make {(places or ['stage1'])[0]} DATA={root.name}, or name a run directory"
        raise RunError(f"no trained run in {root}. Fix: {remedy}.")
    for run in chosen:  # all are checked before work on the first begins
        find_checkpoint(run)
    return chosen


def find_checkpoint(run: Path) -> tuple[Path, Path]:
    """The run directory and the checkpoint that ``run`` (a directory or a .ckpt) means."""
    checkpoint = run if run.suffix == ".ckpt" else run / "checkpoints" / "best.ckpt"
    folder = checkpoint.parents[1]
    if not (folder / "config.yaml").is_file():
        example = "Fix: name one such as runs/phantom/stage1/seed0."
        raise RunError(f"{run} is no run directory (no config.yaml). {example}")
    if not checkpoint.is_file():
        last = checkpoint.with_name("last.ckpt")
        raise RunError(f"{checkpoint} does not exist. Fix: train an epoch more, or name {last}.")
    return folder, checkpoint


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return digest(path.read_bytes())


def read_metrics(folder: Path) -> pd.DataFrame:
    """``metrics.csv`` of a run directory; an empty table where there is none or it is damaged."""
    path = folder / "metrics.csv"
    if path.exists():
        try:
            return pd.read_csv(path).astype({"epoch": int})
        except (KeyError, ValueError):  # ValueError: from pandas, or not UTF-8
            log.warning("%s is damaged: the figures of earlier epochs are lost", path)
    return pd.DataFrame(columns=["epoch"])


def best_row(folder: Path, monitor: str) -> dict[str, float]:
    """The row of ``metrics.csv`` that the best checkpoint stands for; empty without figures."""
    table = read_metrics(folder)
    if monitor in table and table[monitor].notna().any():  # else the last row counts
        scores = table[monitor].round(DECIMALS)
        table = table[scores == scores.max()]
    return {} if table.empty else dict(table.iloc[-1].astype(float))


class MetricsCsv(Logger):
    """``metrics.csv``: a row an epoch, rewritten whole; a resumed run drops what it will repeat.

    (Lightning's CSVLogger deletes the file of the run that it resumes.) The checkpoint that is
    resumed has ``epochs_kept`` epochs, with the figures ``last`` of the last of them.
    """

    name, version = "metrics", ""  # Lightning asks for both

    def __init__(self, folder: Path, epochs_kept: int, last: dict[str, float]) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        table = read_metrics(folder)
        kept = table[table["epoch"] < epochs_kept].to_dict("records")
        self.rows: dict[int, dict[str, float]] = {int(row["epoch"]): row for row in kept}
        if epochs_kept:
            # A kill between an epoch's save and its last row: the checkpoint knows the figures.
            self.rows.setdefault(epochs_kept - 1, {"epoch": epochs_kept - 1}).update(last)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Merge what an epoch logs into its row and write the file."""
        values = {name: float(value) for name, value in metrics.items()}
        epoch = int(values.pop("epoch"))  # Lightning gives it with all that it logs
        self.rows.setdefault(epoch, {"epoch": epoch, "step": step or 0}).update(values)
        table = pd.DataFrame([self.rows[key] for key in sorted(self.rows)])
        table = table.set_index(["epoch", "step"]).sort_index(axis="columns")
        with whole_file(self.path) as partial:
            table.to_csv(partial)
