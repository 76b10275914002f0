"""A stream of images through a trained network: batch by batch, memory stays flat."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import torch

from datamodules import DataError
from datamodules.decode import MOST_PIXELS, decode_noted, read_content
from datamodules.files import usable_cores
from datamodules.geometry import Geometry, from_square
from experiments.drawing import encode
from experiments.evaluation.map_rows import one_thread
from experiments.prediction.folder import NOTE, PredictionFolder, Row
from experiments.prediction.inputs import Input
from experiments.prediction.network import Trained
from experiments.prediction.overlay import Overlay, draw
from experiments.prediction.sources import Source, content_hash
from lightning_modules.attention import has_peak, peak

# The network's map has a cell each 16 pixels: fewer than two cells show nothing.
SMALLEST = 32
# Images of more pixels are finished one after the other: a map of one takes four bytes a pixel.
LARGE, ALONE = 2**24, threading.Lock()
# Longer side of the image in an overlay, pixels.
OVERLAY = 480, 1024
NO_OVERLAY = "no overlay can be drawn"


class Seen(NamedTuple):
    """An image on its way; ``image`` is None where ``error`` says why, else it may be a note."""

    item: Input
    image: np.ndarray | None = None
    square: np.ndarray | None = None
    geometry: Geometry | None = None
    error: str = ""
    content_hash: str = ""


class Explained(NamedTuple):
    """An image with its probability of abnormal, and its maps ``(S, S)``."""

    seen: Seen
    probability: float
    maps: dict[str, np.ndarray]


class Answer(NamedTuple):
    """What the network said of an image.

    Attributes:
        row: Its line.
        heat: The best map, float32 ``(H, W)`` in [0, 1], at the size of the upright image.
    """

    row: Row
    heat: np.ndarray


# Writes more of an image than its maps and overlay.
Writer = Callable[[Input, Overlay], None]


def predict_all(
    trained: Trained,
    inputs: Sequence[Input],
    folder: PredictionFolder,
    methods: Sequence[str],
    also: Writer | None = None,
) -> Iterator[int]:
    """Look at images and write what is found, a batch at a time.

    Batches are of the training's size, and of one only where images are huge: what is in memory
    does not grow with the number of images.

    Args:
        trained: The network.
        inputs: What to look at.
        folder: Where maps, overlays and rows go.
        methods: Maps that are written, of ``trained.map_methods``.
        also: Writes more.

    Yields:
        How many inputs are done since the last time.

    Raises:
        OSError: The disk is full, or the folder can no longer be written.
    """
    cv2.setNumThreads(0)  # the threads here are enough; OpenCV's own would only compete
    with ThreadPoolExecutor(usable_cores()) as pool:
        for batch in _batches(trained, inputs, pool):
            rows = {seen.item.name: Row(seen.item.name, error=seen.error) for seen in batch}
            with one_thread():
                done = pool.map(
                    lambda found: _finish(trained, found, folder, methods, also),
                    _explained(trained, [seen for seen in batch if seen.image is not None]),
                )
                rows |= {row.path: row for row in done}
            folder.add(rows.values(), [Source.of(seen.item, seen.content_hash) for seen in batch])
            batch.clear()  # the next is decoded while this one is still named here
            yield len(rows)


def answer(
    trained: Trained, name: str, probability: float, best: np.ndarray, place: Geometry
) -> Answer:
    """The line and the best map of an image, as ``experiments.evaluate`` would have them.

    Args:
        trained: The network.
        name: Of the image.
        probability: Of abnormal.
        best: Its map ``(S, S)``, as :meth:`Trained.explain` gives it.
        place: How the image came into its square.
    """
    row, heat = Row(name), full_map(best, place)
    pointing = torch.from_numpy(heat)[None, None]
    if bool(has_peak(pointing)):
        x, y = (int(value) for value in peak(pointing)[0].tolist())
        row = replace(row, map_peak_x=x, map_peak_y=y)
    if trained.fitted is not None:
        called = int(probability > trained.fitted.threshold)
        row = replace(row, probability_abnormal=probability, predicted_abnormal=called)
    return Answer(row, heat)


def full_map(square: np.ndarray, place: Geometry) -> np.ndarray:
    """A map ``(S, S)`` at the size of the upright image, float32 ``(H, W)`` in [0, 1]."""
    full = from_square(square, place)
    return np.clip(full, 0, 1, out=full)  # interpolation may round a 1 up


def shown(trained: Trained, image: np.ndarray, found: Answer) -> Overlay:
    """What an overlay draws and says of an image; no name of a file or a patient.

    A map that nowhere reaches its threshold gets no cross: its peak is no evidence.
    """
    row, heat = found
    threshold = trained.map_thresholds[trained.best_map]
    reaches = bool(heat.max() >= threshold) and row.map_peak_x is not None
    name = f"{trained.best_map.upper()} map, {trained.stage.replace('stage', 'stage ')}"
    said = [f"{name}: nothing reaches {threshold:.2f}"]
    if reaches:
        said = [f"{name}: outlined from {threshold:.2f}, cross at the peak"]
    if trained.fitted is not None and row.probability_abnormal is not None:
        called = trained.classes[row.predicted_abnormal or 0]
        said.insert(
            0,
            f"abnormal {row.probability_abnormal:.2f}: called {called} "
            f"(threshold {trained.fitted.threshold:.2f})",
        )
    cross = (row.map_peak_x or 0, row.map_peak_y or 0) if reaches else None
    return Overlay(image, heat, threshold, cross, said)


def drawn(item: Input, what: Overlay, smallest: int, largest: int, beside: bool) -> np.ndarray:
    """Draw, as :func:`experiments.drawing.draw` does, one of many: no image may end the others.

    Raises:
        DataError: Whatever went wrong; it makes the row and the exit status tell.
    """
    try:
        return draw(what, smallest, largest, beside)
    except Exception as error:  # no names of files or patients are drawn: its text holds none
        height, width = what.image.shape
        raise DataError(
            f"{item.file}: {NO_OVERLAY} of its {width} x {height} pixels "
            f"({type(error).__name__}: {error}); its probability and maps hold, please report this"
        ) from error


def _explained(trained: Trained, batch: Sequence[Seen]) -> list[Explained]:
    """What the network says of each image of a batch."""
    squares = [seen.square for seen in batch if seen.square is not None]
    if not squares:
        return []
    probability, maps = trained.explain(np.stack(squares))
    return [
        Explained(
            seen,
            float(probability[place]),
            {name: values[place] for name, values in maps.items()},
        )
        for place, seen in enumerate(batch)
    ]


def _batches(
    trained: Trained, inputs: Sequence[Input], pool: ThreadPoolExecutor
) -> Iterator[list[Seen]]:
    """Decoded images in order, as many as a batch of the training, or 2^26 pixels of originals."""
    held: list[Seen] = []
    pixels, waiting = 0, iter(inputs)
    while group := list(islice(waiting, usable_cores())):
        for seen in pool.map(lambda item: _look_up(trained, item), group):
            held.append(seen)
            pixels += 0 if seen.image is None else seen.image.size
            if len(held) == trained.config.data.batch_size or pixels >= MOST_PIXELS:
                yield held
                held, pixels = [], 0
    if held:
        yield held


def _look_up(trained: Trained, item: Input) -> Seen:
    """Decode an image and bring it into the network's square."""
    if item.error:
        return Seen(item, error=item.error)
    content = ""
    try:
        data = read_content(item.file)
        content = content_hash(data)
        image, note = decode_noted(data, item.file)
    except DataError as error:
        return Seen(item, error=_reason(error, item), content_hash=content)
    if min(image.shape) < SMALLEST:
        height, width = image.shape
        return Seen(
            item,
            error=f"is {width} x {height} pixels, and no side may be below {SMALLEST}; give the "
            "radiograph itself",
            content_hash=content,
        )
    note = f"{NOTE}{note}" if note else ""
    return Seen(item, image, *trained.to_square(image), note, content)


def _finish(
    trained: Trained,
    explained: Explained,
    folder: PredictionFolder,
    methods: Sequence[str],
    also: Writer | None,
) -> Row:
    """Write the maps and pictures of an image; return its row."""
    seen, _, maps = explained
    assert seen.image is not None, "only what was decoded comes here"
    assert seen.geometry is not None
    name = seen.item.name
    try:
        with ALONE if seen.image.size > LARGE else contextlib.nullcontext():
            row = _finish_best(trained, explained, folder, methods, also)
            for method in methods:
                if method != trained.best_map:
                    full = full_map(maps[method], seen.geometry)
                    _write_map(folder, f"{name}.{method}.png", full)
                    del full  # before the next is brought back
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return Row(name, error="its name is too long for a name with the map's method behind")
        raise
    return row


def _finish_best(
    trained: Trained,
    explained: Explained,
    folder: PredictionFolder,
    methods: Sequence[str],
    also: Writer | None,
) -> Row:
    """Write what is made of the best map, which is let go with it; return the row."""
    seen, probability, maps = explained
    assert seen.image is not None, "only what was decoded comes here"
    assert seen.geometry is not None
    name, best = seen.item.name, trained.best_map
    found = answer(trained, name, probability, maps[best], seen.geometry)
    row = replace(found.row, error=seen.error)
    if best in methods:
        _write_map(folder, f"{name}.{best}.png", found.heat)
    seen_as = shown(trained, seen.image, found)
    try:
        picture = drawn(seen.item, seen_as, *OVERLAY, beside=True)
        folder.write("overlays", f"{name}.{best}.png", encode(picture))
        if also is not None:
            also(seen.item, seen_as)
    except DataError as error:  # the prediction stands; what was to be made of it does not
        return replace(row, error=f"{_reason(error, seen.item)} {seen.error}".rstrip())
    return row


def _write_map(folder: PredictionFolder, name: str, full: np.ndarray) -> None:
    grey = cv2.convertScaleAbs(full, alpha=255)  # rounds, without copies in float32
    folder.write("maps", name, encode(grey))


def _reason(error: DataError, item: Input) -> str:
    """One line without the file's name, which the row has already."""
    return " ".join(str(error).removeprefix(f"{item.file}: ").split())
