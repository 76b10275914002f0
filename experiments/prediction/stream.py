"""A stream of images through a trained network: batch by batch, memory stays flat."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

from datamodules.decode import decode_noted, is_dicom, read_content
from datamodules.dicom import read_dicom
from datamodules.files import usable_cores
from datamodules.geometry import Geometry, from_square
from datamodules.index import DataError
from datamodules.pixels import MOST_PIXELS
from experiments.drawing import encode
from experiments.evaluation.judge import one_thread
from experiments.prediction.capture import secondary_capture
from experiments.prediction.folder import NOTE, PredictionFolder, Row
from experiments.prediction.inputs import Input, readable
from experiments.prediction.network import CLASSES, Trained
from experiments.prediction.overlay import Overlay, draw
from lightning_modules.attention import has_peak, peak

SMALLEST = 32  # pixels a side: the network's map has a cell each 16, and one cell shows nothing
# Images of more pixels are finished one after the other: a map of one takes four bytes a pixel.
LARGE, ALONE = 2**24, threading.Lock()
# Smallest and largest longer side of the image in an overlay and in a Secondary Capture, pixels.
OVERLAY, CAPTURE = (480, 1024), (480, 2048)
NO_OVERLAY = "no overlay can be drawn"


class Seen(NamedTuple):
    """A decoded image ``(H, W)``, and how it came into the network's square ``(S, S)``; uint8."""

    item: Input
    row: Row
    image: np.ndarray
    square: np.ndarray
    geometry: Geometry


@dataclass(frozen=True)
class Predictor:
    """Predicts on images and writes everything into a folder."""

    trained: Trained
    folder: PredictionFolder
    methods: Sequence[str]  # the maps that are written
    dicom: bool  # whether DICOM inputs also get Secondary Captures

    def run(self, inputs: Sequence[Input]) -> None:
        """Predict on images, a batch at a time: memory does not grow with their number."""
        cv2.setNumThreads(0)  # the threads here are enough; OpenCV's own would only compete
        bar = tqdm(total=len(inputs), desc="images", unit=" images", leave=False, disable=None)
        with bar, ThreadPoolExecutor(usable_cores()) as pool:
            for batch in self._batches(inputs, pool):
                with one_thread():
                    rows = self._answer(batch, pool)
                self.folder.add(rows)
                batch.clear()  # the next is decoded while this one is still named here
                bar.update(len(rows))

    def _batches(
        self, inputs: Sequence[Input], pool: ThreadPoolExecutor
    ) -> Iterator[list[Seen | Row]]:
        """Images in order, as many as a batch of the training, or 2^26 pixels of originals."""
        size = self.trained.run.config.data.batch_size
        held: list[Seen | Row] = []
        pixels, waiting = 0, iter(inputs)
        while group := list(islice(waiting, usable_cores())):
            for seen in pool.map(self._decode, group):
                held.append(seen)
                pixels += seen.image.size if isinstance(seen, Seen) else 0
                if len(held) == size or pixels >= MOST_PIXELS:
                    yield held
                    held, pixels = [], 0
        if held:
            yield held

    def _decode(self, item: Input) -> Seen | Row:
        """The decoded image, or a row that says why there is none."""
        row = Row(item.name, error=item.error, file=readable(item.file.absolute()))
        if item.error:
            return row
        try:
            data = read_content(item.file)
            row = row._replace(content_hash=hashlib.sha256(data).hexdigest())
            image, note = decode_noted(data, item.file)
        except DataError as error:
            return row._replace(error=_reason(error, item))
        if min(image.shape) < SMALLEST:
            height, width = image.shape
            fault = f"is {width} x {height} pixels, and no side may be below {SMALLEST}"
            return row._replace(error=f"{fault}; give the radiograph itself")
        row = row._replace(error=f"{NOTE}{note}" if note else "")
        return Seen(item, row, image, *self.trained.recipe.apply(image))

    def _answer(self, batch: Sequence[Seen | Row], pool: ThreadPoolExecutor) -> list[Row]:
        """The rows of a batch, in its order."""
        rows = {each.path: each for each in batch if isinstance(each, Row)}
        if seen := [each for each in batch if isinstance(each, Seen)]:
            probability, maps = self.trained.explain(np.stack([each.square for each in seen]))
            of_each = [{name: maps[name][i] for name in maps} for i in range(len(seen))]
            done = pool.map(self._finish, seen, probability.tolist(), of_each)
            rows |= {row.path: row for row in done}
        return [rows[each.path if isinstance(each, Row) else each.item.name] for each in batch]

    def _finish(self, seen: Seen, probability: float, maps: dict[str, np.ndarray]) -> Row:
        """Write the maps and pictures of an image; return its row."""
        name, best, row = seen.item.name, self.trained.run.module.best_map, seen.row
        try:
            with ALONE if seen.image.size > LARGE else contextlib.nullcontext():
                for method in (best, *(method for method in self.methods if method != best)):
                    heat = full_map(maps[method], seen.geometry)
                    if method in self.methods:
                        grey = cv2.convertScaleAbs(heat, alpha=255)  # rounds
                        self.folder.write("maps", f"{name}.{method}.png", encode(grey))
                    if method == best:
                        row = self._look(seen, probability, heat)
                    del heat  # before the next is brought back
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return seen.row._replace(error="its name is too long for names of its outputs")
        return row

    def _look(self, seen: Seen, probability: float, heat: np.ndarray) -> Row:
        """Fill the row by the best map ``(H, W)``, and write the pictures that show it."""
        row, fitted, pointing = seen.row, self.trained.fitted, torch.from_numpy(heat)[None, None]
        if bool(has_peak(pointing)):
            x, y = (int(value) for value in peak(pointing)[0].tolist())
            row = row._replace(map_peak_x=x, map_peak_y=y)
        if fitted is not None:
            called = int(probability > fitted.threshold)
            row = row._replace(probability_abnormal=probability, predicted_abnormal=called)
        shown, best = self._overlay(seen.image, row, heat), self.trained.run.module.best_map
        how = f"{best.upper()} map of a neural network ({self.trained.title}) over the source image"
        how, name = f"{how}; research use only, not for diagnosis", f"{seen.item.name}.{best}"
        try:
            picture = _draw(shown, OVERLAY, beside=True)
            self.folder.write("overlays", f"{name}.png", encode(picture))
            data = seen.item.file.read_bytes() if self.dicom else b""
            if is_dicom(data):
                picture = _draw(shown, CAPTURE, beside=False)[..., ::-1]
                source, network = read_dicom(data, seen.item.file), self.trained.run.identity
                capture = secondary_capture(source, picture, str(network["checkpoint_hash"]), how)
                self.folder.write("dicom", f"{name}.dcm", capture)
        except DataError as error:  # the prediction stands, its picture does not
            return row._replace(error=f"{_reason(error, seen.item)} {row.error}".rstrip())
        return row

    def _overlay(self, image: np.ndarray, row: Row, heat: np.ndarray) -> Overlay:
        """What an overlay shows; no name of a file or a patient.

        A map that nowhere reaches its threshold gets no cross: its peak is no evidence.
        """
        best, fitted, words = self.trained.run.module.best_map, self.trained.fitted, []
        threshold = self.trained.map_thresholds[best]
        reaches = bool(heat.max() >= threshold) and row.map_peak_x is not None
        if fitted is not None:
            called = CLASSES[row.predicted_abnormal or 0]
            words.append(
                f"abnormal {row.probability_abnormal:.2f}: called {called} "
                f"(threshold {fitted.threshold:.2f})"
            )
        stage = self.trained.run.config.stage.replace("stage", "stage ")
        outlined = f"outlined from {threshold:.2f}, cross at the peak"
        shows = outlined if reaches else f"nothing reaches {threshold:.2f}"
        words.append(f"{best.upper()} map, {stage}: {shows}")
        cross = (row.map_peak_x or 0, row.map_peak_y or 0) if reaches else None
        return Overlay(image, heat, threshold, cross, words)


def full_map(square: np.ndarray, place: Geometry) -> np.ndarray:
    """A map ``(S, S)`` at the size of the upright image, float32 ``(H, W)`` in [0, 1]."""
    full = from_square(square, place)
    return np.clip(full, 0, 1, out=full)  # interpolation may round a 1 up


def _draw(shown: Overlay, sizes: tuple[int, int], beside: bool) -> np.ndarray:
    """Draw, as :func:`draw` does, one of many: a DataError, whatever goes wrong, ends no others."""
    try:
        return draw(shown, *sizes, beside)
    except Exception as error:  # no names of files or patients are drawn: its text holds none
        size = "{1} x {0}".format(*shown.image.shape)
        why = (
            f"({type(error).__name__}: {error}); its probability and maps hold, please report this"
        )
        raise DataError(f"{NO_OVERLAY} of its {size} pixels {why}") from error


def _reason(error: DataError, item: Input) -> str:
    """One line without the file's name, which the row has already."""
    return " ".join(str(error).removeprefix(f"{item.file}: ").split())
