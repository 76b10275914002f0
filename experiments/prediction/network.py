"""A trained network with all that new images need, from its run directory alone."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules import cache
from datamodules.batches import to_model_input
from datamodules.cache import Recipe
from datamodules.index import DataError
from experiments.build import Run, build_data, open_run
from experiments.config import ConfigError
from experiments.evaluation.figures import EVEN, Fitted
from experiments.evaluation.run import REPLACED, evaluate
from experiments.evaluation.store import plain, summarise, write
from experiments.runs import RunError

CLASSES = ("normal", "abnormal")


@dataclass(frozen=True)
class Trained:
    """A run and what val decided for this very checkpoint."""

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

    def explain(self, squares: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Probability of abnormal ``(B,)`` and maps ``(B, S, S)`` of squares, uint8 ``(B, S, S)``.

        A short batch is filled up with black: how the arithmetic is cut depends on the number of
        images, and the last digits of an answer must not depend on what else is asked.
        """
        count, network = len(squares), self.run.module
        missing = max(0, self.run.config.data.batch_size - count)
        image = torch.from_numpy(np.pad(squares, ((0, missing), (0, 0), (0, 0))))[:, None]
        with torch.inference_mode():
            probability, maps = network.explain(to_model_input(image.to(network.device)))
        own = {name: maps[name][:count, 0].float().cpu().numpy() for name in self.map_thresholds}
        return probability[:count].float().cpu().numpy(), own


def load_trained(place: Path) -> Trained:
    """Open a run directory or checkpoint; val is judged now where nobody has judged it yet."""
    run = open_run(place)
    summary, decided_by, notes = _decisions(run, place)
    decided = {**Fitted(EVEN, EVEN, 1.0)._asdict(), **summary.get("fitted", {})}
    maps = decided.pop("maps", {})
    tuned = {name: maps.get(name, {}).get("threshold") for name in run.module.judged_maps}
    undecided = tuple(name for name, threshold in tuned.items() if threshold is None)
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
    why = "there is no cache of its val images here"
    try:
        data = build_data(run.config)
        if data.root.is_dir() and cache.is_whole(data.cache_folder):
            judged = evaluate(place, "val")
            with contextlib.suppress(OSError):  # a read-only run: val is judged again next time
                write(judged)
            return plain(summarise(judged)), f"val, judged now: {judged.target}", []
    except (ConfigError, DataError, RunError) as error:
        why = str(error).splitlines()[0]
    note = f"NO THRESHOLD: this checkpoint has not been judged ({why}); 0.5 stands in. Fix: "
    note += f"python -m experiments.evaluate {place} --split val, where its data is"
    return {}, "nobody: 0.5 stands in", [note]
