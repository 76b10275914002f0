"""Helpers of the sweep tests: a sweep file and a stand-in for the training that takes no time."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.config import load_config, save_config

HOUSE = Path(__file__).parents[1]
SHIPPED = HOUSE / "experiments" / "sweep_lambda.yaml"
EPOCHS = 3
# What a training would take from the phantom is given: the stand-in knows no data.
WORDS = [f"trainer.max_epochs={EPOCHS}", "logger.wandb=off", "data.image_size=64"]
WORDS += ["data.crop=none", "data.contrast=none", "data.unreadable=error"]
# Called as an interpreter would be: -m experiments.train STAGE key=value ...
# Writes what a finished run of stage 3 leaves, without the seconds that our imports take.
STANDIN = """#!{python}
import json, pathlib, shutil, signal, sys, time
assert sys.argv[1:4] == ["-m", "experiments.train", "stage3"]
words = dict(word.split("=", 1) for word in sys.argv[4:])
here, log = pathlib.Path({here!r}), pathlib.Path({log!r})
with log.open("a") as file:
    file.write(json.dumps(words) + "\\n")
value, seed = float(words.get("loss.lambda_lesion", 1)), int(words.get("seed", 0))
name = words.get("run.name", f"lambda{{value}}-seed{{seed}}").replace("${{loss.alpha}}", words.get("loss.alpha", ""))
folder = pathlib.Path(words["run.root"], "phantom", "stage3", name.replace("${{seed}}", str(seed)))
"""
