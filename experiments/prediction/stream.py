"""A stream of images through a trained network: batch by batch, memory stays flat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

from callbacks.panels import encode
from datamodules.decode import decode_noted, is_dicom, read_content
from datamodules.dicom import read_dicom
from datamodules.files import usable_cores
from datamodules.geometry import Geometry, from_square
from datamodules.index import DataError
from experiments.evaluation.judge import one_thread
from experiments.prediction.folder import NOTE, PredictionFolder, Row
from experiments.prediction.network import CLASSES, Trained
from experiments.prediction.pictures import draw, secondary_capture
from lightning_modules.attention import has_peak, peak

SMALLEST = 32  # pixels a side: the network's map has a cell each 16, and one cell shows nothing
# Largest longer side of the image in an overlay and in a Secondary Capture, pixels.
OVERLAY, CAPTURE = 1024, 2048


class Seen(NamedTuple):
    """A decoded image ``(H, W)``, and how it came into the network's square ``(S, S)``; uint8."""

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

    def run(self, inputs: Sequence[Row]) -> None:
        """Predict on images, a batch at a time: memory does not grow with their number."""
        size = self.trained.run.config.data.batch_size
        cv2.setNumThreads(0)  # the threads here are enough; OpenCV's own would only compete
        bar = tqdm(total=len(inputs), desc="images", unit=" images", leave=False, disable=None)
        with bar, ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(inputs), size):
                batch = list(pool.map(self._decode, inputs[start : start + size]))
                seen = [each for each in batch if isinstance(each, Seen)]
                answers = []
                if seen:
                    with one_thread():
                        probability, maps = self.trained.explain(
                            np.stack([each.square for each in seen])
                        )
                    of_each = [{name: maps[name][i] for name in maps} for i in range(len(seen))]
                    answers = list(pool.map(self._finish, seen, probability.tolist(), of_each))
                done = iter(answers)
                self.folder.add([e if isinstance(e, Row) else next(done) for e in batch])
                bar.update(len(batch))

    def _decode(self, row: Row) -> Seen | Row:
        try:
            data = read_content(Path(row.file))
            row = row._replace(content_hash=hashlib.sha256(data).hexdigest())
            image, note = decode_noted(data, Path(row.file))
        except DataError as error:
            return row._replace(error=_reason(error, row))
        height, width = image.shape
        if min(width, height) < SMALLEST:
            fault = f"is {width} x {height} pixels: expected {SMALLEST} or more a side"
            return row._replace(error=f"{fault}. Fix: give the radiograph itself")
        row = row._replace(error=f"{NOTE}{note}" if note else "")
        return Seen(row, image, *self.trained.recipe.apply(image))

    def _finish(self, seen: Seen, probability: float, maps: dict[str, np.ndarray]) -> Row:
        row, fitted, best = seen.row, self.trained.fitted, self.trained.run.module.best_map
        if fitted is not None:
            called = int(probability > fitted.threshold)
            row = row._replace(probability_abnormal=probability, predicted_abnormal=called)
        for method in dict.fromkeys((best, *self.methods)):
            heat = from_square(maps[method], seen.geometry)
            np.clip(heat, 0, 1, out=heat)  # interpolation may round a 1 up
            if method in self.methods:
                grey = cv2.convertScaleAbs(heat, alpha=255)  # rounds
                self.folder.write("maps", f"{row.path}.{method}.png", encode(grey))
            if method == best:
                row = self._show(seen, row, heat)
        return row

    def _show(self, seen: Seen, row: Row, heat: np.ndarray) -> Row:
        """Add the peak of the best map ``(H, W)``, and write the pictures that show it.

        No name of a file or a patient is drawn. A map that nowhere reaches its threshold gets no
        cross: its peak is no evidence.
        """
        run, fitted, pointing = self.trained.run, self.trained.fitted, torch.from_numpy(heat)
        best, cross, words = run.module.best_map, None, []
        threshold = self.trained.map_thresholds[best]
        shows = f"nothing reaches {threshold:.2f}"
        if bool(has_peak(pointing[None, None])):
            x, y = (int(value) for value in peak(pointing[None, None])[0].tolist())
            row = row._replace(map_peak_x=x, map_peak_y=y)
            if heat.max() >= threshold:
                cross, shows = (x, y), f"outlined from {threshold:.2f}, cross at the peak"
        if fitted is not None:
            called = f"called {CLASSES[row.predicted_abnormal or 0]}"
            decided = f"(threshold {fitted.threshold:.2f})"
            words = [f"abnormal {row.probability_abnormal:.2f}: {called} {decided}"]
        words.append(f"{best.upper()} map, {run.config.stage.replace('stage', 'stage ')}: {shows}")
        picture = partial(draw, seen.image, heat, threshold, cross, words)
        name = f"{row.path}.{best}"
        self.folder.write("overlays", f"{name}.png", encode(picture(OVERLAY, True)))
        data = Path(row.file).read_bytes() if self.dicom else b""
        if is_dicom(data):
            rgb, series = picture(CAPTURE, False)[..., ::-1], str(run.identity["checkpoint_hash"])
            how = f"{best.upper()} map of a neural network ({self.trained.title}) over the source "
            how += "image; research use only, not for diagnosis"
            try:
                source = read_dicom(data, Path(row.file))
                capture = secondary_capture(source, rgb, series, how)
                self.folder.write("dicom", f"{name}.dcm", capture)
            except DataError as error:  # the prediction stands
                return row._replace(error=f"{_reason(error, row)} {row.error}".rstrip())
        return row


def _reason(error: DataError, row: Row) -> str:
    """One line without the file's name, which the row has already."""
    return " ".join(str(error).removeprefix(f"{row.file}: ").split())
