"""Helpers of the sweep tests: a sweep file, and a stand-in for the training that takes no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.build import build_data
from experiments.config import load_config, run_directory, save_config
from experiments.training.loop import resolve

HOUSE = Path(__file__).parents[1]
SHIPPED = HOUSE / "experiments" / "sweep_lambda.yaml"
WORDS = ["trainer.max_epochs=3", "logger.wandb=off"]
# Called as an interpreter would be: -m experiments.train STAGE key=value ... It puts the run that
# lies ready in its place, without the seconds that imports of ours would take.
STANDIN = """#!{python} -IS
import json, pathlib, shutil, signal, sys, time
assert sys.argv[1:4] == ["-m", "experiments.train", "stage3"], sys.argv
words = dict(word.split("=", 1) for word in sys.argv[4:])
here, value = pathlib.Path({here!r}), words["loss.lambda_lesion"]
with (here / "trained").open("a") as file:
    file.write(json.dumps(float(value)) + "\\n")
{behaviour}
run = pathlib.Path("phantom", "stage3", f"lambda{{float(value)}}-seed0")
shutil.copytree(here / "ready" / run, words["run.root"] / run, dirs_exist_ok=True)
"""


def standin(folder: Path, behaviour: str = "") -> Path:
    """An executable in place of the interpreter; ``behaviour``: Python before it trains."""
    path = folder / "standin"
    path.write_text(STANDIN.format(python=sys.executable, here=str(folder), behaviour=behaviour))
    path.chmod(0o755)
    return path


def make_ready(folder: Path, value: float) -> None:
    """What a finished training over ``value`` leaves, for the stand-in; pixel AP value / 10."""
    words = [*WORDS, f"loss.lambda_lesion={value}", f"run.root={folder / 'ready'}"]
    config = load_config("stage3", words)
    resolve(config, build_data(config))
    run = run_directory(config)
    (run / "checkpoints").mkdir(parents=True)
    save_config(config, run / "config.yaml")
    rows = [f"{epoch},0.9,0.8,{value / 10}\n" for epoch in range(3)]
    head = "epoch,val/auroc,val/accuracy,val/fcn/pixel_ap\n"
    (run / "metrics.csv").write_text("".join([head, *rows]))
    progress = {"epoch_progress": {"current": {"processed": 3}}}
    parts = ("epoch", "global_step", "max_epochs", "state_dict", "hyper_parameters")
    content = {**dict.fromkeys(parts, 0), "stage": "stage3", "loops": {"fit_loop": progress}}
    torch.save(content, run / "checkpoints" / "last.ckpt")


def trained(folder: Path) -> list[float]:
    """The lambda of each training that was started, in order."""
    log = folder / "trained"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def sweep_file(folder: Path, interpreter: Path | str = "${interpreter}", **changed: Any) -> Path:
    """The shipped sweep file with keys changed (None: left out) and another interpreter."""
    content = {**yaml.safe_load(SHIPPED.read_text()), **changed}
    content = {key: value for key, value in content.items() if value is not None}
    if isinstance(content.get("command"), list):
        content["command"] = [
            str(interpreter) if word == "${interpreter}" else word for word in content["command"]
        ]
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def srun(folder: Path) -> Path:
    """A stand-in for SLURM's srun: starts two ranks in turn; SLURM_OPTIONS is what it was told."""
    path = folder / "srun"
    path.write_text(
        "#!/bin/sh\n"
        'while case "$1" in --*) ;; *) false ;; esac\n'
        'do export SLURM_OPTIONS="$SLURM_OPTIONS $1"; shift; done\n'
        'SLURM_PROCID=0 "$@" && SLURM_PROCID=1 "$@"\n'
    )
    path.chmod(0o755)
    return path
