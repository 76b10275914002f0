"""A trained network with all that new images need, from its run directory alone."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules import SOURCES, DataError, cache
from datamodules.cache import Recipe
from datamodules.radiographs import to_model_input
from experiments.build import Run, build_data, open_run
from experiments.config import ConfigError
from experiments.evaluation.figures import Fitted
from experiments.evaluation.run import EVEN, REPLACED, evaluate
from experiments.evaluation.store import plain, summarise, write
from experiments.runs import RunError

CLASSES = ("normal", "abnormal")


@dataclass(frozen=True)
class Trained:
    """A run and what val decided for it.

    Attributes:
        run: The run; its summaries are of this very checkpoint.
        fitted: Val's decisions on classification; None for a network that does not classify.
        map_thresholds: Of each map, from val's lesion masks; 0.5 where val could not decide.
        undecided_maps: Maps whose threshold val could not decide, having no lesion mask.
        decided_by: Where the other thresholds come from, a phrase for people.
        notes: What a reader must know before believing a decision, a sentence each.
    """

    run: Run
    fitted: Fitted | None
    map_thresholds: dict[str, float]
    undecided_maps: tuple[str, ...]
    decided_by: str
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Stage and data set, such as ``stage3 on phantom``."""
        return f"{self.run.config.stage} on {self.run.config.data.name}"

    @property
    def map_methods(self) -> tuple[str, ...]:
        """The network's maps that training taught something, such as ("cam", "pcam")."""
        return tuple(self.map_thresholds)

    @property
    def best_map(self) -> str:
        """The map to look at."""
        return "fcn" if "fcn" in self.map_methods else "pcam"

    @property
    def map_scales(self) -> dict[str, float]:
        """What became 1 in each map, in units of the raw map."""
        module = self.run.module
        scales = dict(zip(module.map_methods, module.map_scale.tolist(), strict=True))
        return {name: scales[name] for name in self.map_methods}

    @cached_property
    def recipe(self) -> Recipe:
        """What turns an upright uint8 image into the network's square, as for training."""
        data, source = self.run.config.data, SOURCES[self.run.config.data.name]
        return Recipe(
            data.image_size or source.default_image_size,
            data.crop or source.default_crop,
            data.contrast or source.default_contrast,
        )

    def explain(self, squares: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Probability of abnormal ``(B,)`` and maps ``(B, S, S)`` in [0, 1], unmasked pass.

        A short batch is filled up with black: how the arithmetic is cut depends on the number of
        images, and the last digits of an answer must not depend on what else is asked.

        Args:
            squares: uint8 ``(B, S, S)``, made by ``recipe``.
        """
        count, missing = len(squares), max(0, self.run.config.data.batch_size - len(squares))
        image = torch.from_numpy(np.pad(squares, ((0, missing), (0, 0), (0, 0))))[:, None]
        with torch.inference_mode():
            probability, maps = self.run.module.explain(
                to_model_input(image.to(self.run.module.device))
            )
        asked = {name: maps[name][:count, 0].float().cpu().numpy() for name in self.map_methods}
        return probability[:count].float().cpu().numpy(), asked


def load_trained(place: Path) -> Trained:
    """Open a run directory or checkpoint; val is judged now where nobody has judged it yet."""
    run = open_run(place)
    summary, decided_by, notes = _decisions(run, place)
    decided = summary.get("fitted", {})
    notes += [note for note in summary.get("notes", []) if note == REPLACED]
    tuned = {
        name: decided.get("maps", {}).get(name, {}).get("threshold")
        for name in run.module.judged_maps
    }
    undecided = tuple(name for name, threshold in tuned.items() if threshold is None)
    if undecided and decided:
        notes.append(
            f"NO MAP THRESHOLD: val holds no lesion mask; 0.5 stands in for {', '.join(undecided)}"
        )
    fitted = Fitted(
        threshold=float(decided.get("threshold", EVEN)),
        study_threshold=float(decided.get("study_threshold", EVEN)),
        temperature=float(decided.get("temperature", 1.0)),
    )
    return Trained(
        run=run,
        fitted=fitted if run.module.classifies else None,
        map_thresholds={name: EVEN if t is None else float(t) for name, t in tuned.items()},
        undecided_maps=undecided,
        decided_by=decided_by,
        notes=tuple(notes),
    )


def _decisions(run: Run, place: Path) -> tuple[dict[str, Any], str, list[str]]:
    """The summary that holds what val decided, where it is from, and notes."""
    if known := run.decisions():
        return known[0], f"val, as {known[1]} says", []
    why = "this checkpoint has not been judged"
    try:
        data = build_data(run.config)
        if data.root.is_dir() and cache.is_whole(data.cache_folder):
            judged = evaluate(place, "val", [], trivial=False)
            with contextlib.suppress(RunError):  # a read-only run: val is judged again next time
                write(judged)
            return plain(summarise(judged)), f"val, judged now: {judged.target}", []
        why += ", and there is no cache of its val images here"
    except (ConfigError, DataError, RunError) as error:
        why += f", and on val it cannot be ({str(error).splitlines()[0]})"
    note = (
        f"NO THRESHOLD: {why}; 0.5 stands in for all thresholds. Where its data is: python -m "
        f"experiments.evaluate {place} --split val"
    )
    return {}, "nobody: 0.5 stands in", [note]


def project_version() -> str:
    """This project's version, as installed."""
    try:
        return version("decision-basis")
    except PackageNotFoundError:  # run from a folder that nobody installed
        return "not installed"
