"""Row of memory: a training against data sets of 1,000 to 37,000 images, in MURA's own tree.

A few small files stand for all images, by hard links: the index, the sampler and the cache are as
large as MURA's, the disk is not. Counted is anonymous resident memory, what the process owns; the
cache is mapped from its file, its pages are the system's to drop.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np

from experiments.bench_runs import QUIET, python
from experiments.bench_table import Line, Request, Spread
from experiments.runs import RunError

COUNTS, QUICK_COUNTS = (1_000, 10_000, 37_000), (80, 160)
IMAGES_A_PATIENT, DISTINCT = 4, 8
SIDE = 64  # pixels: how much memory an image in the cache takes does not matter here
STEPS = 30
# Run as a program: trains, and at the end of step STEPS says what memory the process owns.
MEASURED = f"""
import os, re, sys
from lightning_modules.stage1 import Stage1Classifier
def look(module, outputs, batch, number):
    if number + 1 >= min({STEPS}, module.trainer.num_training_batches):
        found = re.search(r"RssAnon:\\s+(\\d+) kB", open("/proc/self/status").read())
        print("anonymous", found[1], flush=True)
        os._exit(0)
Stage1Classifier.on_train_batch_end = look
from experiments.train import main
sys.exit(main(sys.argv[1:]))
"""


def memory(request: Request) -> list[Line]:
    """Anonymous resident memory after some steps, for each size.

    Raises:
        RunError: The system does not tell a process's anonymous memory.
    """
    if "RssAnon" not in _status():
        raise RunError("needs /proc/self/status with RssAnon: Linux only")
    home = request.folder / "memory"
    own: dict[int, float] = {}
    for count in QUICK_COUNTS if request.quick else COUNTS:
        shutil.rmtree(home, ignore_errors=True)
        draw_tree(home / "MURA-v1.1", count)
        words = ["stage1", "data.name=mura", f"data.root={home}", f"data.image_size={SIDE}"]
        words += ["data.batch_size=16", "trainer.max_epochs=1", "data.num_workers=0", *QUIET]
        words += [f"run.root={home / 'runs'}", "seed=0"]
        # The cache first, in a process of its own: its building is not training.
        python(["-m", "experiments.train", "--data-only", *words])
        told = re.search(r"anonymous (\d+)", python(["-c", MEASURED, *words]))
        if told is None:
            raise RunError(f"the training on {count} images took no step")
        own[count] = int(told[1]) / 1024
    shutil.rmtree(home, ignore_errors=True)
    first, *others = own
    return [
        Line(
            f"anonymous memory, {count:,} images",
            f"{own[count]:,.0f} MB",
            f"{first:,} images: {own[first]:,.0f} MB",
            Spread(*[own[count] / own[first]] * 3),
            "<= 1.05",
        )
        for count in others
    ]


def draw_tree(root: Path, count: int) -> None:
    """MURA's tree of ``count`` train images and a tenth as many of valid, four views a patient."""
    root.mkdir(parents=True)
    sources = []
    for number in range(DISTINCT):
        grey = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        sources.append(root / f".source{number}.png")
        cv2.imwrite(str(sources[-1]), cv2.GaussianBlur(grey, (0, 0), 4))
    drawn = 0
    for split, images in (("train", count), ("valid", max(16, count // 10))):
        paths, studies = [], []
        for patient in range(-(-images // IMAGES_A_PATIENT)):
            label = patient % 2
            word = ("negative", "positive")[label]
            # Official splits share no patient.
            name = f"patient{patient + (50_000 if split == 'valid' else 0):05d}"
            study = f"{split}/XR_HAND/{name}/study1_{word}"
            (root / study).mkdir(parents=True)
            studies.append(f"{root.name}/{study}/,{label}")
            for view in range(1, IMAGES_A_PATIENT + 1):
                os.link(sources[drawn % DISTINCT], root / study / f"image{view}.png")
                paths.append(f"{root.name}/{study}/image{view}.png")
                drawn += 1
        (root / f"{split}_image_paths.csv").write_text("\n".join(paths) + "\n")
        (root / f"{split}_labeled_studies.csv").write_text("\n".join(studies) + "\n")


def _status() -> str:
    try:
        return Path("/proc/self/status").read_text()
    except OSError:
        return ""
