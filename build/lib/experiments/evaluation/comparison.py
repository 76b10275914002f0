"""Several runs, compared: seeds joined, the paper's claim first; sentences and a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.config import differences, to_plain
from experiments.evaluation.compare import (
    Pair,
    compare,
    markdown,
    pairs_of_maps,
    pairs_of_methods,
    pairs_of_runs,
    population,
    same_images,
    sentences,
)
from experiments.evaluation.run import Evaluation, figures
from experiments.evaluation.statistics import Figure, enough, patient_weights
from experiments.runs import RunError

# The paper: the maps land better on the lesions from step to step.
CLAIM = (
    (("stage1", "pcam"), ("stage1", "cam")),
    (("stage2", "pcam"), ("stage1", "pcam")),
    (("stage3", "pcam"), ("stage2", "pcam")),
    (("stage3", "fcn"), ("stage3", "pcam")),
)
# Chosen before looking; each figure more costs every p-value of its family.
MAP_FIGURES = ("hit", "pixel_ap")
RUN_FIGURES = (
    *("auroc", "accuracy", "study_kappa"),
    *("pcam/hit", "pcam/pixel_ap", "fcn/hit", "fcn/pixel_ap"),
)


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    name: str
    runs: list[Evaluation]


class Comparison(NamedTuple):
    """What was compared.

    Attributes:
        text: All of it as Markdown: sentences and a table a section.
        short: What is printed: sentences for the first section only.
        table: All pairs, for a program; ``family`` names the section.
    """

    text: str
    short: str
    table: pd.DataFrame


def compare_runs(runs: Sequence[Evaluation]) -> Comparison:
    """Compare evaluations of the same images.

    Three families, each corrected for its own number of comparisons: the paper's claim, where a
    group of each stage is there; the groups among one another; the maps of each group, its own ones
    among one another and its last one against all that are not the network's.

    Raises:
        RunError: There are fewer than two runs and methods to compare, or runs were judged on
            different images.
    """
    groups = group(runs)
    first = runs[0].table
    seeds = {one.name: [figures_like(run, first) for run in one.runs] for one in groups}
    patients = first["patient"].to_numpy()
    judged = population(first, runs[0].about["split"])
    heading = _heading(groups, judged) + _each_run(groups, seeds)
    blocks, short = [heading], [heading]
    tables: list[pd.DataFrame] = []
    for title, pairs in _families(groups, seeds):
        if not pairs:
            continue
        found = compare(pairs, patient_weights(patients, enough(len(pairs))))
        said = [text.removeprefix("On these, ") for text in sentences(found, "On these")]
        listed = [f"- {text[0].upper()}{text[1:]}" for text in said]
        blocks.append("\n".join([f"## {title}", "", *listed, "", markdown(found)]))
        short.append(blocks[-1] if not tables else f"## {title}\n\n{markdown(found)}")
        tables.append(found.assign(family=title))
    if not tables:
        raise RunError("there is nothing to compare: name at least two runs, or one with maps")
    table = pd.concat(tables, ignore_index=True)
    return Comparison("\n\n".join(blocks) + "\n", "\n\n".join(short) + "\n", table)


def write_comparison(found: Comparison, path: Path) -> list[Path]:
    """Write the text beside the table, ``.md`` and ``.csv``; returns both paths.

    Args:
        found: The comparison.
        path: Where, with either suffix or with none.

    Raises:
        RunError: They cannot be written.
    """
    paths = comparison_paths(path)
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(found.text, encoding="utf-8")
        found.table.to_csv(paths[1], index=False)
    except OSError as error:
        raise RunError(
            f"{paths[0]} cannot be written ({error.strerror}); give --out a path that can"
        ) from error
    return paths


def comparison_paths(path: Path) -> list[Path]:
    """The files of a comparison that is written to ``path``.

    Raises:
        RunError: The path has no name of its own, such as ".".
    """
    if path.name in ("", ".."):
        raise RunError(
            f"--out {path} names no file for the comparison; add a name: {path / 'comparison'}"
        )
    stem = path.with_suffix("") if path.suffix in (".md", ".csv") else path
    return [stem.with_name(stem.name + suffix) for suffix in (".md", ".csv")]


def group(runs: Sequence[Evaluation]) -> list[Group]:
    """Join the runs that differ in nothing but seed and name, in the order of the paper's stages.

    Raises:
        RunError: A run is given twice, or two runs of a group have the same seed.
    """
    found: list[list[Evaluation]] = []
    for run in sorted(runs, key=lambda one: str(one.about["stage"])):
        for known in found:
            if _alike(known[0], run):
                known.append(run)
                break
        else:
            found.append([run])
    for known in found:
        numbers = [run.config.seed for run in known]
        if len(set(numbers)) < len(numbers):
            folders = ", ".join(str(run.folder) for run in known)
            raise RunError(f"of one configuration and seed there are two runs: {folders}; name one")
    stages = [str(known[0].about["stage"]) for known in found]
    names = [
        _words(stage) if stages.count(stage) == 1 else f"{_words(stage)} ({_short(known)})"
        for stage, known in zip(stages, found, strict=True)
    ]
    return [
        Group(name if names.count(name) == 1 else str(known[0].folder), known)
        for name, known in zip(names, found, strict=True)
    ]


def _families(
    groups: Sequence[Group], seeds: Mapping[str, list[dict[str, Figure]]]
) -> list[tuple[str, list[Pair]]]:
    families = []
    by_stage = _by_stage(groups)
    # With several groups of a stage nobody can say which of them the paper means.
    if len(by_stage) == 3 and all(len(names) == 1 for names in by_stage.values()):
        name = {stage: names[0] for stage, names in by_stage.items()}
        steps = [((name[a], one), (name[b], other)) for (a, one), (b, other) in CLAIM]
        claim = pairs_of_maps(seeds, steps, MAP_FIGURES)
        families.append(("The paper's claim: better maps at every step", claim))
    families.append(("Runs", pairs_of_runs(seeds, RUN_FIGURES)))
    for one in groups:
        own = own_maps(one.runs[0])
        others = [name for name in one.runs[0].maps if name not in own]
        pairs = pairs_of_methods(one.name, seeds[one.name], own, MAP_FIGURES)
        against = [((one.name, own[-1]), (one.name, other)) for other in others if own]
        pairs += pairs_of_maps(seeds, against, MAP_FIGURES)
        families.append((f"Maps of {one.name}", pairs))
    return families


def _by_stage(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Names of each stage's groups, of those that were taught to classify."""
    found: dict[str, list[str]] = {}
    for one in groups:
        if one.runs[0].fitted is not None:
            found.setdefault(str(one.runs[0].about["stage"]), []).append(one.name)
    return found


def _heading(groups: Sequence[Group], judged: str) -> str:
    lines = [
        "# Comparison",
        "",
        f"{judged}. Differences are paired on the same images, intervals are 95 % over patients, "
        "p-values are corrected (Holm) within each section; thresholds and scales come from val. "
        "Runs of several seeds are joined by the mean of their figures.",
        "",
    ]
    lines += [f"- {one.name}: {', '.join(str(run.folder) for run in one.runs)}" for one in groups]
    lines += [
        f"- NOTE on {run.folder}: {note}"
        for one in groups
        for run in one.runs
        for note in run.notes
    ]
    counts = {stage: len(names) for stage, names in _by_stage(groups).items()}
    if any(count > 1 for count in counts.values()):
        several = ", ".join(f"{count} of {_words(stage)}" for stage, count in counts.items())
        lines.append(
            f"- The paper's claim is not among the sections: it takes one configuration of each "
            f"stage, and there are {several}."
        )
    return "\n".join(lines)


def _each_run(groups: Sequence[Group], seeds: Mapping[str, list[dict[str, Figure]]]) -> str:
    """A table of all runs: intervals are over patients, and do not hold the spread over seeds."""
    ones = np.ones((1, len(groups[0].runs[0].table)))
    wanted = [name for name in RUN_FIGURES if "/" not in name]
    methods = {name: None for one in groups for name in own_maps(one.runs[0])}
    wanted += [f"{method}/{name}" for method in methods for name in MAP_FIGURES]
    lines = [f"| run | seed | {' | '.join(wanted)} |", "|---" * (len(wanted) + 2) + "|"]
    for one in groups:
        for run, found in zip(one.runs, seeds[one.name], strict=True):
            values = [f"{found[name](ones)[0]:.3f}" if name in found else "" for name in wanted]
            lines.append(f"| {one.name} | {run.config.seed} | {' | '.join(values)} |")
    return "\n\n## Each run\n\n" + "\n".join(lines)


def figures_like(run: Evaluation, first: pd.DataFrame) -> dict[str, Figure]:
    """The figures of a run, of its images in the order of ``first``."""
    try:
        order = same_images(run.table, first)
    except ValueError as error:
        raise RunError(f"{run.folder}: {error}") from error
    maps = {name: rows.take(order) for name, rows in run.maps.items()}
    return figures(run.table.iloc[order].reset_index(drop=True), maps, run.fitted)


def own_maps(run: Evaluation) -> list[str]:
    """The methods that are the network's own: all others brought no scale and got one from val."""
    return [name for name in run.maps if name not in run.scales]


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


def _short(runs: Sequence[Evaluation]) -> str:
    """What is left of a run's name without its seed."""
    name = runs[0].folder.name
    return re.sub(rf"[-_]?seed{runs[0].config.seed}\b", "", name) or name


def _words(stage: str) -> str:
    return stage.replace("stage", "stage ")
