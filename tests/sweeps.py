"""Helpers of the sweep tests: a sweep file and a stand-in for the training that takes no time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

HOUSE = Path(__file__).parents[1]
SHIPPED = HOUSE / "experiments" / "sweep_lambda.yaml"
# Called as an interpreter would be: -m experiments.train STAGE key=value ...
# Reads the configuration as the training does and writes the metrics.csv of a finished run.
STANDIN = """#!{python}
import json, os, pathlib, sys, time
sys.path.insert(0, {house!r})
from experiments.config import load_config, run_directory
assert sys.argv[1:3] == ["-m", "experiments.train"]
config = load_config(sys.argv[3], sys.argv[4:])
folder = run_directory(config)
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[3:]) + "\\n")
folder.mkdir(parents=True, exist_ok=True)
value, columns = config.loss.lambda_lesion, "epoch,val/auroc,val/accuracy,val/fcn/pixel_ap"
{behaviour}
epochs = range(config.trainer["max_epochs"])
rows = [f"{{epoch}},0.9,0.8,{{min(1, value / 10 + epoch / 100)}}" for epoch in epochs]
(folder / "metrics.csv").write_text("\\n".join([columns, *rows]) + "\\n")
"""


def standin(folder: Path, behaviour: str = "") -> Path:
    """An executable in place of the interpreter; ``behaviour``: Python before it writes."""
    path = folder / "standin"
    log = str(folder / "trained.jsonl")
    path.write_text(
        STANDIN.format(python=sys.executable, house=str(HOUSE), log=log, behaviour=behaviour)
    )
    path.chmod(0o755)
    return path


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
