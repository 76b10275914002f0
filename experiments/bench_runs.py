"""Rows of whole commands: the way to the first step, two ranks, the three stages of the paper."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from experiments.bench_table import Line, Request, Spread, median, ratios
from experiments.metrics_csv import by_epoch
from experiments.runs import RunError
from experiments.schema import STAGES

# What a training here needs not: a run of the bench is nobody's result.
QUIET = ["logger.wandb=off"]
# Imports that are not wanted on the way to the first step.
AVOIDED = ("wandb", "matplotlib", "pydicom", "albumentations")
TIMES = 3  # runs a command, by turns; a quick bench runs each once
# Run as a program: trains until the first step is taken, then says when that was and what is
# imported. The clock is the machine's and counts on in all processes.
FIRST_STEP = """
import os, sys, time
from lightning_modules.stage1 import Stage1Classifier
def stop(*_):
    print("first step", time.monotonic(), *sorted(set(sys.modules)), flush=True)
    os._exit(0)
Stage1Classifier.on_train_batch_end = stop
from experiments.train import main
sys.exit(main(sys.argv[1:]))
"""


def start(request: Request) -> list[Line]:
    """Seconds from the command to the end of the first step, data drawn and cache warm."""
    words = ["stage1", *request.overrides, *QUIET, f"run.root={request.folder}"]
    command(["--data-only", *words])
    taken, imported = [], set[str]()
    for _ in range(1 if request.quick else TIMES):
        shutil.rmtree(request.folder / "start", ignore_errors=True)
        begun = time.monotonic()
        told = python(["-c", FIRST_STEP, *words, f"run.root={request.folder / 'start'}"])
        line = next(line for line in told.splitlines() if line.startswith("first step"))
        moment, *modules = line.split()[2:]
        taken.append(float(moment) - begun)
        imported = set(modules)
    shutil.rmtree(request.folder / "start", ignore_errors=True)
    there = [name for name in AVOIDED if name in imported]
    spread = Spread(median(taken), min(taken), max(taken))
    return [
        Line(
            "stage 1, warm cache, to the first step",
            f"{spread.middle:.1f} s ({spread.low:.1f} to {spread.high:.1f})",
            f"imported on the way: {', '.join(there) or 'none avoided'}",
        )
    ]


def ranks(request: Request) -> list[Line]:
    """Two ranks of one thread beside one rank of two, the same images a step."""
    images = 8 if request.quick else 16
    shared = ["stage1", *request.overrides, *QUIET, "trainer.max_epochs=2", "data.num_workers=0"]
    two = [*shared, "trainer.devices=2", "trainer.strategy=ddp", f"data.batch_size={images // 2}"]
    one = [*shared, "trainer.devices=1", f"data.batch_size={images}"]
    rates: dict[str, list[float]] = {"two": [], "one": []}
    for _ in range(1 if request.quick else TIMES):
        for name, words, threads in (("two", two, 1), ("one", one, 2)):
            root = request.folder / name
            shutil.rmtree(root, ignore_errors=True)
            command([*words, f"run.root={root}"], threads)
            (found,) = root.glob("*/stage1/*/metrics.csv")
            # The last epoch: the first also chooses kernels.
            rates[name].append(list(by_epoch(found.parent, "images_per_second").values())[-1])
            shutil.rmtree(root, ignore_errors=True)
    return [
        Line(
            f"two DDP ranks, {images} images a step",
            f"{median(rates['two']):,.0f} images/s",
            f"one rank, two threads: {median(rates['one']):,.0f} images/s",
            ratios(rates["two"], rates["one"]),
        )
    ]


def paper(request: Request) -> list[Line]:
    """The three stages on the phantom as ``make stage1 stage2 stage3`` trains them.

    Beside the checkout that the environment variable ``BENCH_BEFORE`` names, if it does, by turns.
    """
    before = os.environ.get("BENCH_BEFORE")
    if before and not (Path(before) / "experiments" / "train.py").is_file():
        raise RunError(f"BENCH_BEFORE={before} is no checkout of this project")
    words = [word for word in request.overrides if not word.startswith("data.")]
    words += ["trainer.max_epochs=1", "data.count=80"] if request.quick else []
    words = [*QUIET, *words, f"data.root={request.folder / 'phantom'}"]
    command(["--data-only", "stage1", *words, f"run.root={request.folder / 'paper'}"])
    seconds: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        for name, place in {"ours": None, "before": before}.items():
            if name == "before" and not before:
                continue
            root = request.folder / "paper" / name
            shutil.rmtree(root / "phantom", ignore_errors=True)
            begun = time.monotonic()
            command([stage, *words, f"run.root={root}"], place=place)
            seconds.setdefault(name, {})[stage] = time.monotonic() - begun
    lines = []
    ours, theirs = seconds["ours"], seconds.get("before", {})
    for what, stages in (*((f"make {stage}", [stage]) for stage in STAGES), ("all", STAGES)):
        own, other = (sum(of.get(stage, 0.0) for stage in stages) for of in (ours, theirs))
        lines.append(
            Line(
                f"{what}, phantom",
                f"{own / 60:.1f} minutes",
                f"before: {other / 60:.1f} minutes" if theirs else "",
                Spread(*[other / own] * 3) if theirs else None,
            )
        )
    return lines


def command(words: list[str], threads: int | None = None, place: str | None = None) -> None:
    """Run ``experiments.train`` in a process of its own.

    Raises:
        RunError: It failed.
    """
    python(["-m", "experiments.train", *words], threads, place)


def python(words: list[str], threads: int | None = None, place: str | None = None) -> str:
    """What a Python process prints.

    Args:
        words: Its arguments.
        threads: ``OMP_NUM_THREADS``; None: as it is here.
        place: The checkout whose code runs; None: this one's.

    Raises:
        RunError: It failed.
    """
    with socket.socket() as free:  # two benches at once must not meet at one port
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = str(Path(place).absolute() if place else Path(__file__).parents[1])
    environment = {**os.environ, "MASTER_PORT": str(port), "PYTHONPATH": home}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=place,  # of a module the current folder comes before PYTHONPATH
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(f"a run failed: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout
