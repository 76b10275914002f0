"""Runs that differ in their seed alone, joined, and all runs' images in one order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from experiments.config import to_plain
from experiments.evaluation.figures import all_figures
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Estimate, Figure, estimate, patient_weights
from experiments.evaluation.weighted import mean_of
from experiments.runs import RunError, differences


@dataclass
class Group:
    """Runs that differ in their seed alone; their figures are joined by the mean."""

    name: str  # what people call it, such as "stage 1"
    runs: list[Evaluation]  # by seed
    first: pd.DataFrame  # table of the run whose order of images all groups follow
    _estimates: dict[str, Estimate | None] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """Of all the runs."""
        return str(self.runs[0].about["stage"])

    @property
    def label(self) -> str:
        """The name, with the number of seeds where there are several."""
        return f"{self.name} (mean of {len(self.runs)} seeds)" if len(self.runs) > 1 else self.name

    @property
    def methods(self) -> list[str]:
        """The network's own maps, the last one the stage's best."""
        return self.runs[0].own_maps

    @property
    def classifies(self) -> bool:
        """Whether the network was taught normal and abnormal."""
        return self.runs[0].fitted is not None

    @cached_property
    def seeds(self) -> list[dict[str, Figure]]:
        """All figures of each run, of the images in the order of ``first``."""
        return [_figures_like(run, self.first) for run in self.runs]

    def figure(self, key: str) -> Figure | None:
        """A figure such as ``auroc`` or ``pcam/hit``; None unless all seeds have it."""
        if not all(key in figures for figures in self.seeds):
            return None
        return mean_of([figures[key] for figures in self.seeds])

    def estimate(self, key: str) -> Estimate | None:
        """A figure with its interval, computed when first asked for; None unless all have it."""
        if len(self.runs) == 1:
            return self.runs[0].estimates.get(key)
        if key not in self._estimates:
            figure, weights = self.figure(key), patient_weights(self.first["patient"].to_numpy())
            self._estimates[key] = None if figure is None else estimate(figure, weights)
        return self._estimates[key]


def group(runs: Sequence[Evaluation]) -> list[Group]:
    """Join the runs that differ in nothing but seed and name, in the order of the stages."""
    joined: list[list[Evaluation]] = []
    for run in sorted(runs, key=lambda one: str(one.about["stage"])):
        for alike in joined:
            if _alike(alike[0], run):
                alike.append(run)
                break
        else:
            joined.append([run])
    for alike in joined:
        alike.sort(key=lambda run: run.config.seed)
        numbers = [run.config.seed for run in alike]
        if len(set(numbers)) < len(numbers):
            folders = ", ".join(str(run.folder) for run in alike)
            raise RunError(f"two runs of one configuration and seed: {folders}. Fix: name one")
    stages = [str(alike[0].about["stage"]) for alike in joined]
    names = []
    for stage, (run, *_) in zip(stages, joined, strict=True):
        without_seed = re.sub(rf"[-_]?seed{run.config.seed}\b", "", run.folder.name)
        several = f" ({without_seed or run.folder.name})" if stages.count(stage) > 1 else ""
        names.append(stage_words(stage) + several)
    return [
        Group(name if names.count(name) == 1 else str(alike[0].folder), alike, runs[0].table)
        for name, alike in zip(names, joined, strict=True)
    ]


def same_images(table: pd.DataFrame, like: pd.DataFrame) -> np.ndarray:
    """Positions that put the images of ``table`` into the order of ``like``; ValueError: others."""
    place = pd.Index(table["path"]).get_indexer(pd.Index(like["path"]))
    if len(table) != len(like) or (place < 0).any():
        lone = sorted(set(table["path"]) ^ set(like["path"]))
        raise ValueError(
            f"the runs were judged on different images ({len(table)} and {len(like)}; only in one: "
            f"{', '.join(lone[:3])}): evaluate them on the same data and split"
        )
    for name, what in (("patient", "patient"), ("label", "label"), ("lesion_area", "lesion mask")):
        ours, theirs = table[name].to_numpy()[place], like[name].to_numpy()
        # Masks that only one of them has say nothing against the other.
        differs = (ours != theirs) & ~(pd.isna(ours) | pd.isna(theirs))
        if differs.any():
            path = like["path"].to_numpy()[differs][0]
            raise ValueError(f"the runs know another {what} of {path}: they are of different data")
    return place


def _figures_like(run: Evaluation, first: pd.DataFrame) -> dict[str, Figure]:
    try:
        order = same_images(run.table, first)
    except ValueError as error:
        raise RunError(f"{run.folder}: {error}") from error
    maps = {name: rows.take(order) for name, rows in run.maps.items()}
    return all_figures(run.table.iloc[order].reset_index(drop=True), maps, run.fitted)


def _alike(one: Evaluation, other: Evaluation) -> bool:
    """Whether two runs differ in nothing but seed and name."""
    # Paths may differ, what images and masks show may not.
    if any(one.about.get(key) != other.about.get(key) for key in ("image_hash", "mask_hash")):
        return False
    plain = []
    for run in (one, other):
        config = to_plain(run.config)
        start = config["model"]["init_from"]
        if start is not None:  # each seed starts from the run of its own seed
            config["model"]["init_from"] = re.sub(rf"seed{run.config.seed}\b", "seed", start)
        plain.append({**config, "seed": 0})
    # A longer training is no difference to a run that goes on, but it is one here.
    return not differences(plain[0], plain[1]) and not differences(plain[1], plain[0])


def stage_words(stage: str) -> str:
    """A stage in a sentence, such as ``stage 1``."""
    return stage.replace("stage", "stage ")
