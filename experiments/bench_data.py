"""Rows of the data: batches from the warm cache, and the cache's building."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]  # no type hints
from torchvision.transforms import InterpolationMode, v2  # type: ignore[import-untyped]

from datamodules import cache
from datamodules.decode import decode
from datamodules.geometry import letterbox
from datamodules.index import COLUMNS
from datamodules.options import Augmentation
from experiments.bench_steps import Bench, prepare, speed, stage_step
from experiments.bench_table import Line, Request, ratios, take_turns
from experiments.runs import RunError

# MURA's images are up to 512 pixels long, 80 KB a file; the phantom draws smaller ones.
LONGEST = 512
# Standard deviation of grain, grey values: enlarged without it, files are smaller than MURA's.
GRAIN = 2.0
IMAGES, QUICK_IMAGES = 256, 32
READ, QUICK_READ = 64, 16  # images a turn
TIMES = 8  # each file, when the cache is built


def data(request: Request) -> list[Line]:
    """A worker's batches from the warm cache beside ImageFolder's, and beside training's need."""
    bench = prepare(tuple(request.overrides))
    size, batch = bench.data.recipe.image_size, bench.data.batch_size
    count = QUICK_READ if request.quick else READ
    loader = bench.data.train_dataloader()
    # No lesion masks: ImageFolder has none to move along.
    loader.dataset.shows_lesion = np.zeros(len(bench.data.table), dtype=bool)
    files = image_folder(large_images(bench, request), size)
    folder = DataLoader(files, batch, shuffle=True)
    # At least one batch, and none that the other one has not.
    items = list(loader.sampler)[: min(max(1, count // batch), len(files) // batch)]
    if not items:
        raise RunError(f"{len(files)} images make no batch of {batch}")

    def read() -> None:
        for item in items:
            loader.dataset[item]

    def read_folder() -> None:
        for number, _ in enumerate(folder, start=1):
            if number == len(items):
                return

    with one_thread():
        seconds = take_turns({"ours": read, "folder": read_folder}, request.rounds, request.clock)
        step, _ = stage_step("stage1", request, bench)
        both = take_turns({"read": read, "step": step}, max(2, request.rounds // 3), request.clock)
    images = batch * len(items)
    return [
        Line(
            f"training data, cache warm, augmented, {size} px",
            f"{speed(images, seconds['ours'])}",
            f"ImageFolder and v2, a worker: {speed(images, seconds['folder'])}",
            ratios(seconds["folder"], seconds["ours"]),
            ">= 8",
        ),
        Line(
            "  twice that beside stage 1 on one core",
            f"{speed(2 * images, both['read'])}",
            f"steps take {speed(batch, both['step'])}",
            ratios(both["step"], both["read"], 2 * images / batch),
            ">= 1",
        ),
    ]


def image_folder(files: Path, size: int) -> ImageFolder:
    """The files as they are usually read, with transforms of equal effect.

    Grey from the start and on PIL images: faster here than RGB, and than tensors.
    """
    strength = Augmentation()
    steps = [
        v2.Resize(size=None, max_size=size),
        v2.CenterCrop(size),  # pads what is smaller: the letterbox
        v2.RandomHorizontalFlip(strength.flip),
        v2.RandomAffine(
            degrees=strength.rotate,
            translate=(strength.shift, strength.shift),
            scale=(1 - strength.scale, 1 + strength.scale),
            interpolation=InterpolationMode.BILINEAR,
        ),
        v2.ColorJitter(brightness=strength.brightness, contrast=strength.contrast),
        v2.PILToTensor(),
    ]
    return ImageFolder(str(files), v2.Compose(steps), loader=load_grey)


def load_grey(path: str) -> Any:
    """Decode with Pillow."""
    with Image.open(path) as image:
        return image.convert("L")


def cache_build(request: Request) -> list[Line]:
    """Building the cache beside a loop of ``cv2.imread`` and ``cv2.resize`` in one process."""
    bench = prepare(tuple(request.overrides))
    files = large_images(bench, request)
    # Several times, so that starting and flushing weigh as little as in a real data set.
    paths = sorted(files.rglob("*.png")) * (1 if request.quick else TIMES)
    size = bench.data.recipe.image_size
    table = pd.DataFrame({"path": [str(path.relative_to(files)) for path in paths]})
    for name, kind in COLUMNS.items():
        if name != "path":
            table[name] = "" if kind == "str" else 0
    target = request.folder / "cache-built"

    def build() -> None:
        shutil.rmtree(target, ignore_errors=True)
        cache.build(target, lambda: table, files, cache.Recipe(size), "error")

    threads = cv2.getNumThreads()  # building sets them for itself

    def loop() -> None:
        cv2.setNumThreads(threads)
        read_all(paths, size)

    steps: dict[str, Callable[[], object]] = {"ours": build, "loop": loop}
    seconds = take_turns(steps, max(2, request.rounds // 3), request.clock)
    shutil.rmtree(target, ignore_errors=True)
    weight = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    return [
        Line(
            f"first epoch: cache of {LONGEST} px, {weight:.0f} KB files",
            speed(len(paths), seconds["ours"]),
            f"cv2.imread and resize, a loop: {speed(len(paths), seconds['loop'])}",
            ratios(seconds["loop"], seconds["ours"]),
            ">= 1.6",
        )
    ]


def read_all(paths: list[Path], size: int) -> np.ndarray:
    """The plain loop: decode, shrink, letterbox, keep in memory; no check, nothing on the disk."""
    squares = np.zeros((len(paths), size, size), dtype=np.uint8)
    for square, path in zip(squares, paths, strict=True):
        image = cast(np.ndarray, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        height, width = image.shape
        place = letterbox(height, width, size)
        inner = cv2.resize(
            image, (place.inner_width, place.inner_height), interpolation=cv2.INTER_AREA
        )
        top, left = place.top, place.left
        square[top : top + place.inner_height, left : left + place.inner_width] = inner
    return squares


def large_images(bench: Bench, request: Request) -> Path:
    """A folder a class of PNG files of MURA's size, made from train images; kept for next time."""
    rows = bench.data.rows_of("train")[: QUICK_IMAGES if request.quick else IMAGES]
    # Of these images: the cache's name tells the data from others.
    folder = request.folder / f"images-{bench.data.cache_folder.name}-{len(rows)}"
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    grain = np.random.default_rng(0)
    table = bench.data.table
    for row in rows:
        pixels = decode(bench.data.root / table["path"].iat[row])
        scale = LONGEST / max(pixels.shape)
        large = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        noisy = np.rint(large + grain.normal(0, GRAIN, large.shape)).clip(0, 255)
        place = partial / str(table["label"].iat[row])
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{row}.png"), noisy.astype(np.uint8))
    partial.rename(folder)
    return folder


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in a loader's worker."""
    before, before_cv2 = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cv2.setNumThreads(before_cv2)
