"""A trained network with all that new images need, from its run directory alone."""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datamodules import cache
from datamodules.batches import to_model_input
from datamodules.cache import Recipe
from datamodules.decode import decode_noted, read_content
from datamodules.geometry import Geometry, map_from_square
from datamodules.index import DataError
from datamodules.pixels import window_16bit
from experiments.build import HALF, Run, build_data, open_run
from experiments.config import ConfigError
from experiments.evaluation.figures import EVEN, Fitted
from experiments.evaluation.judge import one_thread
from experiments.evaluation.run import REPLACED, evaluate
from experiments.evaluation.store import plain, summarise, write
from experiments.runs import RunError

CLASSES = ("normal", "abnormal")
SMALLEST = 32  # pixels a side: the network's map has a cell each 16, and one cell shows nothing


class Prediction(NamedTuple):
    """What a network says of an image; a network of lesion masks alone has maps only."""

    probability: float | None  # of abnormal, 0 to 1
    decision: str | None  # normal or abnormal, at the threshold that val decided
    maps: dict[str, np.ndarray]  # float32 (H, W) in [0, 1], upright
    note: str = ""  # what is odd about the file's pixels


@dataclass(frozen=True)
class Trained:
    """A run and what val decided for this very checkpoint; called with an image, it predicts."""

    run: Run
    fitted: Fitted | None  # None for a network that does not classify
    map_thresholds: dict[str, float]  # of each map that was trained; 0.5 for undecided ones
    undecided_maps: tuple[str, ...]  # val had no lesion mask to decide on them
    decided_by: str  # where the other thresholds come from, for people
    notes: tuple[str, ...]  # what a reader must know before believing a decision

    @property
    def title(self) -> str:
        """Stage and data set, such as ``stage3 on phantom``."""
        return f"{self.run.config.stage} on {self.run.config.data.name}"

    @cached_property
    def recipe(self) -> Recipe:
        """What turns an upright uint8 image into the network's square, as for training."""
        return build_data(self.run.config).recipe

    def __call__(self, image: str | Path | np.ndarray) -> Prediction:
        """Predict on a file, or on an upright array ``(H, W)``, uint8 or uint16, bone white."""
        if isinstance(image, np.ndarray):
            if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16) or not image.size:
                got = f"{image.dtype} {image.shape}"
                raise DataError(f"image: expected uint8 or uint16 (height, width), got {got}")
            image, note = (image, "") if image.dtype == np.uint8 else window_16bit(image)
        else:
            image, note = decode_noted(read_content(Path(image)), Path(image))
        square, geometry = self.fit(image)
        with one_thread():
            probability, maps = self.explain(square[None])
        found = self.answer(float(probability[0]), {n: m[0] for n, m in maps.items()}, geometry)
        return found._replace(note=note)

    def fit(self, image: np.ndarray) -> tuple[np.ndarray, Geometry]:
        """The network's square of an upright uint8 image, and how it came into it."""
        height, width = image.shape
        if min(width, height) < SMALLEST:
            fault = f"is {width} x {height} pixels: expected {SMALLEST} or more a side"
            raise DataError(f"the image {fault}. Fix: give the radiograph itself")
        return self.recipe.apply(image)

    def answer(
        self, probability: float, maps: dict[str, np.ndarray], geometry: Geometry
    ) -> Prediction:
        """What ``explain`` says of an image, with its maps ``(S, S)`` at the image's size."""
        large = {name: map_from_square(maps[name], geometry) for name in maps}
        if self.fitted is None:
            return Prediction(None, None, large)
        return Prediction(probability, CLASSES[probability > self.fitted.threshold], large)

    def explain(self, squares: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Probability of abnormal ``(B,)`` and maps ``(B, S, S)`` of squares, uint8 ``(B, S, S)``.

        An answer must not depend on what else is asked, but how the arithmetic is cut depends on
        the number of images: on a CPU, where it is faster, too, one at a time; on a GPU always as
        many, filled up with black.
        """
        count, network = len(squares), self.run.module
        size = 1 if network.device.type == "cpu" else self.run.config.data.batch_size
        image = torch.from_numpy(np.pad(squares, ((0, -count % size), (0, 0), (0, 0))))[:, None]
        with torch.inference_mode():
            parts = (to_model_input(part.to(network.device)) for part in image.split(size))
            probabilities, maps = zip(*(network.explain(part) for part in parts), strict=True)
        own = {
            name: torch.cat([each[name] for each in maps])[:count, 0].float().cpu().numpy()
            for name in self.map_thresholds
        }
        return torch.cat(probabilities)[:count].float().cpu().numpy(), own


def load_trained(place: Path) -> Trained:
    """Open a run directory or checkpoint; val is judged now where nobody has judged it yet."""
    run = open_run(place)
    summary, decided_by, notes = _decisions(run, place)
    decided = {**Fitted(EVEN, EVEN, 1.0)._asdict(), **summary.get("fitted", {})}
    maps = decided.pop("maps", {})
    tuned = {name: maps.get(name, {}).get("threshold") for name in run.module.judged_maps}
    undecided = tuple(name for name, threshold in tuned.items() if threshold is None)
    notes += [note for note in run.unfinished if note.startswith(HALF)]
    notes += [note for note in summary.get("notes", []) if note == REPLACED]
    if undecided and summary:
        missing = "NO MAP THRESHOLD: val holds no lesion mask; 0.5 stands in for"
        notes.append(f"{missing} {', '.join(undecided)}")
    return Trained(
        run=run,
        fitted=Fitted(**decided) if run.module.classifies else None,
        map_thresholds={name: EVEN if t is None else float(t) for name, t in tuned.items()},
        undecided_maps=undecided,
        decided_by=decided_by,
        notes=tuple(notes),
    )


def _decisions(run: Run, place: Path) -> tuple[dict[str, Any], str, list[str]]:
    """The summary that holds what val decided, where it is from, and notes."""
    if decisions := run.decisions():
        summary, file = decisions
        return summary, f"val, as {file} says", []
    why = "its data is not here"
    try:
        data = build_data(run.config)
        why = f"no cache of its val images in {data.cache_folder.absolute()}"
        if data.root.is_dir() and cache.is_whole(data.cache_folder):
            judged = evaluate(run, "val")
            with contextlib.suppress(OSError):  # a read-only run: val is judged again next time
                write(judged)
            return plain(summarise(judged)), f"val, judged now: {judged.target}", []
    except (ConfigError, DataError, RunError) as error:
        why = str(error).splitlines()[0]
    note = f"NO THRESHOLD: this checkpoint has not been judged ({why}); 0.5 stands in. Fix: "
    note += f"python -m experiments.evaluate {place} --split val, where its data is"
    return {}, "nobody: 0.5 stands in", [note]
