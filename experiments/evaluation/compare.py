"""Runs compared on the same images: seeds joined, the paper's claim first; sentences and tables."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datamodules.files import write_text
from datamodules.sources import SOURCES
from experiments.config import to_plain
from experiments.evaluation import statistics
from experiments.evaluation.describe import render
from experiments.evaluation.figures import all_figures
from experiments.evaluation.names import method_name, phrase
from experiments.evaluation.run import TRAINED_ON, Evaluation
from experiments.evaluation.statistics import Estimate, Figure, difference, patient_weights
from experiments.runs import RunError, differences

# Below it a corrected p-value lets a difference be claimed.
LEVEL = 0.05
# The paper's claim: the maps land better on the lesions from step to step.
CLAIM = (
    (("stage1", "pcam"), ("stage1", "cam")),
    (("stage2", "pcam"), ("stage1", "pcam")),
    (("stage3", "pcam"), ("stage2", "pcam")),
    (("stage3", "fcn"), ("stage3", "pcam")),
)
# Chosen before looking; each figure more costs every p-value of its family.
PAIRED_MAP = ("hit", "pixel_ap")
PAIRED_CLASS = ("auroc", "accuracy", "study_kappa")
RUN_FIGURES = (*PAIRED_CLASS, "pcam/hit", "pcam/pixel_ap", "fcn/hit", "fcn/pixel_ap")
COLUMNS = [
    *("figure", "first", "second", "first_value", "second_value"),
    *("difference", "low", "high", "undefined", "p"),
]


@dataclass
class Group:
    """Runs that differ in their seed alone; their figures are joined by the mean."""

    name: str  # what people call it, such as "stage 1"
    runs: list[Evaluation]  # by seed
    first: pd.DataFrame  # table of the first run of all groups: they share its images
    _estimates: dict[str, Estimate] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """Of all the runs."""
        return str(self.runs[0].about["stage"])

    @property
    def methods(self) -> list[str]:
        """The network's own maps, which val gave no scale; the last one is the stage's best."""
        return [name for name in self.runs[0].maps if name not in self.runs[0].scales]

    @property
    def classifies(self) -> bool:
        """Whether the network was taught normal and abnormal."""
        return self.runs[0].fitted is not None

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Figures that all seeds have, of the same images."""
        for run in self.runs:
            check_same_images(run, self.first)
        seeds = [all_figures(run.table, run.maps, run.fitted) for run in self.runs]
        shared = [key for key in seeds[0] if all(key in figures for figures in seeds)]
        return {key: statistics.mean_of([figures[key] for figures in seeds]) for key in shared}

    def estimate(self, key: str) -> Estimate | None:
        """A figure with its interval, computed when first asked for; None unless all have it."""
        done = self.runs[0].estimates if len(self.runs) == 1 else self._estimates
        if key not in done and key in self.figures:
            weights = patient_weights(self.first["patient"].to_numpy())
            done[key] = statistics.estimate(self.figures[key], weights)
        return done.get(key)


Side = tuple[Group, str]  # a group and the name of one of its maps, or "": all of it
# A figure and its two sides in words, and as functions of the same images' weights.
Pair = tuple[str, str, str, Figure, Figure]


class Comparison(NamedTuple):
    """Differences between runs and maps, for people and for a program."""

    text: str  # all of it as Markdown: sentences and a table a section
    short: str  # what is printed: sentences for the first section only
    table: pd.DataFrame  # a row a pair; `family` is its section


def compare_runs(runs: Sequence[Evaluation]) -> Comparison:
    """Compare runs on the same images, in families with p-values corrected within each."""
    groups = group(runs)
    patients = groups[0].first["patient"].to_numpy()
    tables = []
    for title, pairs in _families(groups):
        # Enough for the smallest p-value of so many comparisons to stay below 0.05 by Holm.
        weights = patient_weights(patients, max(statistics.RESAMPLES, 100 * len(pairs)))
        tables += [compare(pairs, weights).assign(family=title)] if pairs else []
    if not tables:
        raise RunError("nothing to compare. Fix: name at least two runs, or one with maps")
    table = pd.concat(tables, ignore_index=True)
    text, short = (_markdown(groups, table, short) for short in (False, True))
    return Comparison(text, short, table)


def write_comparison(comparison: Comparison, path: Path) -> list[Path]:
    """Write the text beside the table, ``.md`` and ``.csv`` of ``path``; returns both paths."""
    text, table = (path.with_name(path.name + suffix) for suffix in (".md", ".csv"))
    write_text(text, comparison.text)
    comparison.table.to_csv(table, index=False)
    return [text, table]


def group(runs: Sequence[Evaluation]) -> list[Group]:
    """Join the runs that differ in nothing but seed and name, in the order of the stages."""
    joined: dict[tuple[str, ...], list[Evaluation]] = {}
    for run in sorted(runs, key=lambda one: str(one.about["stage"])):
        joined.setdefault(_but_seed(run), []).append(run)
    groups = [Group("", alike, runs[0].table) for alike in joined.values()]
    stages = Counter(one.stage for one in groups)
    for one in groups:
        one.runs.sort(key=lambda run: run.config.seed)
        seeds = [run.config.seed for run in one.runs]
        if len({*seeds}) < len(seeds):
            folders = ", ".join(str(run.folder) for run in one.runs)
            raise RunError(f"two runs of one configuration and seed: {folders}. Fix: name one")
        folder = one.runs[0].folder.name
        short = re.sub(rf"[-_]?seed{seeds[0]}\b", "", folder) or folder
        several = f" ({short})" if stages[one.stage] > 1 else ""
        name = one.stage.replace("stage", "stage ") + several
        taken = any(name == other.name for other in groups)
        one.name = str(one.runs[0].folder) if taken else name
    return groups


def check_same_images(run: Evaluation, first: pd.DataFrame) -> None:
    """Raise a RunError unless a run was judged on the images of this table, in its order."""
    ours, theirs = (one[["path", "patient", "label", "lesion_area"]] for one in (run.table, first))
    # A run without any mask says nothing against the other's.
    judged = ours.notna().any() & theirs.notna().any()
    differs = ours.ne(theirs) & (ours.notna() | theirs.notna()) & judged
    if len(ours) != len(theirs) or differs.to_numpy().any():
        raise RunError(
            f"{run.folder}: judged on other images, labels or lesion masks than the first run. "
            "Fix: evaluate the runs on the same data, split and lesions.path"
        )


def _but_seed(run: Evaluation) -> tuple[str, ...]:
    """All that decides a run's result but its seed."""
    config = to_plain(run.config)
    start = str(config["model"]["init_from"])  # each seed starts from the run of its own seed
    config["model"]["init_from"] = re.sub(rf"seed{run.config.seed}\b", "seed", start)
    # Paths may differ; labels, splits and what images and masks show may not.
    hashes = (str(run.about.get(key)) for key in TRAINED_ON)
    return *hashes, *differences({}, {**config, "seed": 0})


def pairs_of(sides: Iterable[tuple[Side, Side]], names: Sequence[str]) -> list[Pair]:
    """Each pair of sides in each figure that both have."""
    pairs = []
    for name, both in itertools.product(names, sides):
        one, other = (side.figures.get(f"{map_}/{name}" if map_ else name) for side, map_ in both)
        if one and other:
            pairs.append((name, _label(*both[0]), _label(*both[1]), one, other))
    return pairs


def compare(pairs: Sequence[Pair], weights: np.ndarray) -> pd.DataFrame:
    """A row a pair, first less second, and p corrected for exactly these pairs (Holm)."""
    ones = np.ones((1, weights.shape[1]))
    rows = [
        (*words, float(one(ones)[0]), float(other(ones)[0]), *difference(one, other, weights))
        for *words, one, other in pairs
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(p_holm=statistics.holm(table["p"].to_numpy(dtype=np.float64)))


def _families(groups: Sequence[Group]) -> list[tuple[str, list[Pair]]]:
    """The paper's claim, the groups among one another, the maps of each group."""
    families = []
    of = {one.stage: one for one in groups if one.classifies}
    # With several groups of a stage nobody can say which of them the paper means; with another
    # encoder or image size the difference is not the stage's.
    alike = len(of) == 3 == sum(one.classifies for one in groups)
    if alike and not any(_apart(groups[0], one) for one in of.values()):
        claim = pairs_of((((of[a], x), (of[b], y)) for (a, x), (b, y) in CLAIM), PAIRED_MAP)
        families.append(("The paper's claim: better maps at every step", claim))
    later = [((two, ""), (one, "")) for one, two in itertools.combinations(groups, 2)]
    families.append(("Runs", pairs_of(later, RUN_FIGURES)))
    for one in groups:
        own = [(one, method) for method in one.methods]
        others = [(one, method) for method in one.runs[0].maps if method not in one.methods]
        among = [(late, early) for early, late in itertools.combinations(own, 2)]
        against = [(own[-1], other) for other in others if own]
        pairs = pairs_of(among, PAIRED_MAP) + pairs_of(against, PAIRED_MAP)
        families.append((f"Maps of {one.name}", pairs))
    return families


def _apart(one: Group, other: Group) -> list[str]:
    """How two groups' networks differ beside their stage, and the images that they see."""
    changed = differences(*(to_plain(each.runs[0].config) for each in (one, other)))
    kept = ("model.", "data.", "attention.pooling", "augmentation.", "optimizer.")
    own = ("model.init_from", "data.batch_size")
    # Not masks: stages 1 and 2 learn from none.
    images = {str(each.runs[0].about.get("image_hash")) for each in (one, other)}
    settings = [line for line in changed if line.startswith(kept) and not line.startswith(own)]
    return ["trained on other images"] * (len(images) > 1) + settings


def _label(side: Group, method: str) -> str:
    seeds = f" (mean of {len(side.runs)} seeds)" if len(side.runs) > 1 else ""
    return (f"{method_name(method).phrase} of " if method else "") + side.name + seeds


def population(table: pd.DataFrame, split: str) -> str:
    """The images that were judged, as a sentence begins."""
    masks = table["lesion_area"].notna()
    return (
        f"On {len(table)} {split} images of {table['patient'].nunique()} patients ({masks.sum()} "
        f"with a lesion mask, {table['patient'][masks].nunique()} patients)"
    )


def _markdown(groups: Sequence[Group], table: pd.DataFrame, short: bool) -> str:
    """The comparison in words; ``short`` leaves the sentences of all but the first section out."""
    methods = dict.fromkeys(name for one in groups for name in one.methods)
    sections = table.groupby("family", sort=False)
    runs = [run for one in groups for run in one.runs]
    source, pixels = runs[0].config.data, [run.about.get("judged_on", {}) for run in runs]
    return render(
        "comparison.md.j2",
        judged=population(groups[0].first, groups[0].runs[0].about["split"]),
        people=SOURCES[source.name].patients_in(source),
        other_pixels=len({one.get("image_hash") for one in pixels}) > 1,
        precisions=sorted({str(run.about.get("precision", "")) for run in runs} - {""}),
        groups=groups,
        apart={one.name: _apart(groups[0], one) for one in groups},
        keys=[*PAIRED_CLASS, *(f"{method}/{name}" for method in methods for name in PAIRED_MAP)],
        families=[(name, rows.to_dict("records"), rows["p"].count()) for name, rows in sections],
        short=short,
        phrase=phrase,
        level=LEVEL,
    )
