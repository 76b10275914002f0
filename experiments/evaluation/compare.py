"""Runs compared on the same images: seeds joined, the paper's claim first; sentences and tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from datamodules.files import write_text
from experiments.evaluation.groups import Group, group, stage_words
from experiments.evaluation.names import method_name, phrase
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Figure, difference, enough, holm, patient_weights
from experiments.runs import RunError

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
MAP_FIGURES = ("hit", "pixel_ap")
CLASS_FIGURES = ("auroc", "accuracy", "study_kappa")
RUN_FIGURES = (*CLASS_FIGURES, "pcam/hit", "pcam/pixel_ap", "fcn/hit", "fcn/pixel_ap")
COLUMNS = (
    *("figure", "first", "second", "first_value", "second_value"),
    *("difference", "low", "high", "undefined", "p"),
)

Side = tuple[Group, str]
"""What is compared: a group and the name of one of its maps, or "": all of it."""


class Comparison(NamedTuple):
    """What was compared, for people and for a program."""

    text: str  # all of it as Markdown: sentences and a table a section
    short: str  # what is printed: sentences for the first section only
    table: pd.DataFrame  # of `compare`, with the name of the section as `family`


class Pair(NamedTuple):
    """A figure of two sides in words, and as a function of the same images' weights."""

    figure: str
    first: str
    second: str
    one: Figure
    other: Figure


def compare_runs(runs: Sequence[Evaluation]) -> Comparison:
    """Compare runs on the same images, in families with p-values corrected within each."""
    groups = group(runs)
    patients = groups[0].first["patient"].to_numpy()
    tables = [
        compare(pairs, patient_weights(patients, enough(len(pairs)))).assign(family=title)
        for title, pairs in _families(groups)
        if pairs
    ]
    if not tables:
        raise RunError("there is nothing to compare: name at least two runs, or one with maps")
    table = pd.concat(tables, ignore_index=True)
    text, short = (_markdown(groups, table, short) for short in (False, True))
    return Comparison(text, short, table)


def comparison_paths(path: Path) -> list[Path]:
    """The two files of a comparison that is written to ``path``, with either suffix or none."""
    if path.name in ("", ".."):
        raise RunError(
            f"--out {path} names no file for the comparison; add a name: {path / 'comparison'}"
        )
    stem = path.with_suffix("") if path.suffix in (".md", ".csv") else path
    return [stem.with_name(stem.name + suffix) for suffix in (".md", ".csv")]


def write_comparison(comparison: Comparison, path: Path) -> list[Path]:
    """Write the text beside the table, ``.md`` and ``.csv``; returns both paths."""
    text, table = comparison_paths(path)
    write_text(text, comparison.text)
    comparison.table.to_csv(table, index=False)
    return [text, table]


def pairs_of(sides: Iterable[tuple[Side, Side]], names: Sequence[str]) -> list[Pair]:
    """Each pair of sides in each figure that both have."""
    pairs = []
    for name, both in itertools.product(names, sides):
        one, other = (side.figure(f"{method}/{name}" if method else name) for side, method in both)
        if one and other:
            pairs.append(Pair(name, _label(*both[0]), _label(*both[1]), one, other))
    return pairs


def compare(pairs: Sequence[Pair], weights: np.ndarray) -> pd.DataFrame:
    """A row a pair, first less second: :data:`COLUMNS`, and p corrected for their number.

    The correction is for exactly these pairs, so choose them before looking.
    """
    ones = np.ones((1, weights.shape[1]))
    rows: list[dict[str, Any]] = []
    for name, first, second, one, other in pairs:
        row: dict[str, Any] = {"figure": name, "first": first, "second": second}
        row |= {"first_value": float(one(ones)[0]), "second_value": float(other(ones)[0])}
        result = difference(one, other, weights)
        rows.append({**row, "difference": result.value, **result._asdict()})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.assign(p_holm=holm(table["p"].to_numpy(dtype=np.float64)))


def _families(groups: Sequence[Group]) -> list[tuple[str, list[Pair]]]:
    """The paper's claim, the groups among one another, the maps of each group."""
    families = []
    stages = _by_stage(groups)
    # With several groups of a stage nobody can say which of them the paper means.
    if len(stages) == 3 and all(len(of_stage) == 1 for of_stage in stages.values()):
        steps = [((stages[a][0], one), (stages[b][0], other)) for (a, one), (b, other) in CLAIM]
        claim = pairs_of(steps, MAP_FIGURES)
        families.append(("The paper's claim: better maps at every step", claim))
    later = [((two, ""), (one, "")) for one, two in itertools.combinations(groups, 2)]
    families.append(("Runs", pairs_of(later, RUN_FIGURES)))
    for one in groups:
        own = [(one, method) for method in one.methods]
        others = [(one, method) for method in one.runs[0].maps if method not in one.methods]
        among = [(late, early) for early, late in itertools.combinations(own, 2)]
        against = [(own[-1], other) for other in others if own]
        pairs = pairs_of(among, MAP_FIGURES) + pairs_of(against, MAP_FIGURES)
        families.append((f"Maps of {one.name}", pairs))
    return families


def _by_stage(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Each stage's groups, of those that were taught to classify."""
    stages: dict[str, list[Group]] = {}
    for one in groups:
        if one.classifies:
            stages.setdefault(one.stage, []).append(one)
    return stages


def _label(side: Group, method: str) -> str:
    return f"{method_name(method).phrase} of {side.label}" if method else side.label


def population(table: pd.DataFrame, split: str) -> str:
    """The images that were judged, as a sentence begins."""
    masks = table["lesion_area"].notna()
    return (
        f"On {len(table)} {split} images of {table['patient'].nunique()} patients ({masks.sum()} "
        f"with a lesion mask, {table['patient'][masks].nunique()} patients)"
    )


def sentences(compared: pd.DataFrame) -> list[str]:
    """What a table of :func:`compare` shows, a sentence a pair."""
    count = int(compared["p"].notna().sum())
    return [_sentence(row, count) for row in compared.to_dict("records")]


def _sentence(row: Mapping[Any, Any], count: int) -> str:
    what, first, second = phrase(row["figure"]), row["first"], row["second"]
    values = f"{row['first_value']:.3f} against {row['second_value']:.3f}"
    if row["p"] != row["p"]:
        why = ", by images of one patient" if row["difference"] == row["difference"] else ""
        return f"{what} cannot be compared: {first} and {second} have {values}{why}."
    details = (
        f"{values}; 95 % interval of the difference {row['low']:+.3f} to {row['high']:+.3f}, "
        f"p = {row['p_holm']:.3f}"
    )
    if count > 1:
        details += f", Holm-corrected for {count} comparisons"
    if row["undefined"] > 0:
        details += f"; undefined in {row['undefined']:.1%} of the resamples, which are left out"
    if row["p_holm"] >= LEVEL:
        return f"no difference in {what} is shown between {first} and {second} ({details})."
    size = f"{abs(row['difference']):.3f} {'higher' if row['difference'] > 0 else 'lower'}"
    return f"{what} is {size} for {first} than for {second} ({details})."


def _markdown(groups: Sequence[Group], table: pd.DataFrame, short: bool) -> str:
    """The comparison in words; ``short`` leaves the sentences of all but the first section out."""
    methods = dict.fromkeys(name for one in groups for name in one.methods)
    counts = {stage: len(of_stage) for stage, of_stage in _by_stage(groups).items()}
    several = ", ".join(f"{count} of {stage_words(stage)}" for stage, count in counts.items())
    families = table.groupby("family", sort=False)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("comparison.md.j2")
    return template.render(
        judged=population(groups[0].first, groups[0].runs[0].about["split"]),
        groups=groups,
        several=several if any(count > 1 for count in counts.values()) else "",
        keys=[*CLASS_FIGURES, *(f"{method}/{name}" for method in methods for name in MAP_FIGURES)],
        families=[
            (family, rows.assign(sentence=sentences(rows)).to_dict("records"))
            for family, rows in families
        ],
        short=short,
    )
