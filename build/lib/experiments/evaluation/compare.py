"""What differs between runs, stages and map methods: paired on the same images, in sentences.

A run is given as its figures (:func:`figures.classification`, :func:`map_figures.localisation`), a
dict for each seed, all of the same images in the same order (:func:`same_images`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.evaluation.statistics import Figure, difference, holm, mean_of

# Below it a corrected p-value lets a difference be claimed.
CLAIM = 0.05
WORDS = {
    "hit": "hit rate",
    "hit_near": "hit rate within 2.5 % of the diagonal",
    "iou": "mean IoU at val's threshold",
    "iou_otsu": "mean IoU at Otsu's threshold",
    "iou_bound": "mean IoU at the best threshold (an upper bound)",
    "dice": "mean Dice coefficient at val's threshold",
    "energy": "mean energy in the lesion",
    "pixel_ap": "pixel AP",
    "box_bound": "MaxBoxAccV2 (an upper bound)",
    "shown_normal": "share of normal images on which a lesion is shown",
    "shown_abnormal": "share of abnormal images on which a lesion is shown",
    "auroc": "AUROC",
    "ece": "expected calibration error",
    "ece_scaled": "expected calibration error at val's temperature",
}
METHODS = {
    "cam": "CAM",
    "pcam": "PCAM",
    "fcn": "the FCN",
    "centre": "the centre prior",
    "mean_mask": "the mean mask",
    "edges": "the edge map",
    "noise": "noise",
}
COLUMNS = (
    *("figure", "first", "second", "first_value", "second_value"),
    *("difference", "low", "high", "undefined", "p"),
)


class Pair(NamedTuple):
    """Two figures of the same kind, to be compared on the same images."""

    figure: str
    first: str
    second: str
    first_figure: Figure
    second_figure: Figure


Seeds = Sequence[Mapping[str, Figure]]
# Name of a run and a map method of it.
Map = tuple[str, str]


def same_images(table: pd.DataFrame, like: pd.DataFrame) -> np.ndarray:
    """Positions that put the images of ``table`` into the order of ``like``.

    Raises:
        ValueError: If they hold different images, or know other patients or labels of them.

    Example:
        >>> import pandas as pd
        >>> one = pd.DataFrame({"path": ["a", "b"], "patient": ["1", "2"], "label": [0, 1]})
        >>> same_images(one[::-1], one)
        array([1, 0])
    """
    place = pd.Index(table["path"]).get_indexer(pd.Index(like["path"]))
    if len(table) != len(like) or (place < 0).any():
        lone = sorted(set(table["path"]) ^ set(like["path"]))
        raise ValueError(
            f"the runs were judged on different images ({len(table)} and {len(like)}; only in one: "
            f"{', '.join(lone[:3])}): evaluate them on the same data and split"
        )
    for name, what in (("patient", "patient"), ("label", "label"), ("lesion_area", "lesion mask")):
        if name not in table or name not in like:
            continue
        ours, theirs = table[name].to_numpy()[place], like[name].to_numpy()
        # Masks that only one of them has say nothing against the other.
        differs = (ours != theirs) & ~(pd.isna(ours) | pd.isna(theirs))
        if differs.any():
            path = like["path"].to_numpy()[differs][0]
            raise ValueError(f"the runs know another {what} of {path}: they are of different data")
    return place


def pairs_of_runs(runs: Mapping[str, Seeds], figures: Sequence[str]) -> list[Pair]:
    """Every later run against every earlier one, in each figure that both have.

    Args:
        runs: Name of a run (or stage) -> the figures of its seeds. Seeds are joined by their mean;
            the numbers of seeds may differ.
        figures: Names such as ``auroc`` or ``pcam/hit``.
    """
    return [
        Pair(
            name,
            _named(later, runs[later]),
            _named(earlier, runs[earlier]),
            _joined(runs[later], name),
            _joined(runs[earlier], name),
        )
        for name in figures
        for earlier, later in itertools.combinations(runs, 2)
        if _has(runs[later], name) and _has(runs[earlier], name)
    ]


def pairs_of_methods(
    run: str, seeds: Seeds, methods: Sequence[str], figures: Sequence[str]
) -> list[Pair]:
    """Every later map method against every earlier one, of one run.

    Args:
        run: Name of the run.
        seeds: The figures of its seeds.
        methods: Such as ``cam``, ``pcam``.
        figures: Of a map, such as ``hit``.
    """
    steps = itertools.combinations(methods, 2)
    both = [((run, later), (run, earlier)) for earlier, later in steps]
    return pairs_of_maps({run: seeds}, both, figures)


def pairs_of_maps(
    runs: Mapping[str, Seeds], steps: Sequence[tuple[Map, Map]], figures: Sequence[str]
) -> list[Pair]:
    """Chosen maps against chosen others, in each figure that both have.

    Args:
        runs: As in :func:`pairs_of_runs`.
        steps: Run and method of the first and of the second map.
        figures: Of a map, such as ``hit``.
    """
    return [
        Pair(
            name,
            _of(first, runs),
            _of(second, runs),
            _joined(runs[first[0]], f"{first[1]}/{name}"),
            _joined(runs[second[0]], f"{second[1]}/{name}"),
        )
        for name in figures
        for first, second in steps
        if all(_has(runs[run], f"{map}/{name}") for run, map in (first, second))
    ]


def compare(pairs: Sequence[Pair], weights: np.ndarray) -> pd.DataFrame:
    """Compare all pairs on the same resamples, p-values corrected for their number.

    Args:
        pairs: What is to be compared; the correction is for exactly these, so choose them before
            looking.
        weights: Of ``statistics.patient_weights``.

    Returns:
        A row a pair: ``figure``, ``first``, ``second``, ``first_value``, ``second_value``,
        ``difference`` (first less second), ``low``, ``high`` (95 %), ``undefined``, ``p``,
        ``p_holm``.
    """
    ones = np.ones((1, weights.shape[1]))
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        found = difference(pair.first_figure, pair.second_figure, weights)
        rows.append(
            {
                "figure": pair.figure,
                "first": pair.first,
                "second": pair.second,
                "first_value": float(pair.first_figure(ones)[0]),
                "second_value": float(pair.second_figure(ones)[0]),
                "difference": found.value,
                **{name: value for name, value in found._asdict().items() if name != "value"},
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.assign(p_holm=holm(table["p"].to_numpy(dtype=np.float64)))


def population(table: pd.DataFrame, split: str) -> str:
    """The images that were judged, as a sentence begins."""
    text = f"On {len(table)} {split} images of {table['patient'].nunique()} patients"
    if "lesion_area" not in table.columns:
        return text
    masks = table["lesion_area"].notna()
    return (
        f"{text} ({masks.sum()} with a lesion mask, {table['patient'][masks].nunique()} patients)"
    )


def sentences(compared: pd.DataFrame, judged: str) -> list[str]:
    """What the comparison says, a sentence a pair.

    Args:
        compared: Of :func:`compare`.
        judged: Of :func:`population`.
    """
    count = int(compared["p"].notna().sum())
    return [f"{judged}, {_sentence(row, count)}" for row in compared.to_dict("records")]


def markdown(compared: pd.DataFrame) -> str:
    """The comparison as a table for a report."""
    lines = [
        "| figure | first | second | difference (95 % interval) | p | p, Holm |",
        "|---|---|---|---|---|---|",
    ]
    for row in compared.to_dict("records"):
        lines.append(
            f"| {row['figure']} | {row['first']}: {row['first_value']:.3f} "
            f"| {row['second']}: {row['second_value']:.3f} "
            f"| {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}) "
            f"| {row['p']:.3f} | {row['p_holm']:.3f} |"
        )
    return "\n".join(lines)


def _sentence(row: Mapping[Any, Any], count: int) -> str:
    what = say(row["figure"])
    values = f"{row['first_value']:.3f} against {row['second_value']:.3f}"
    if row["p"] != row["p"]:
        defined = row["difference"] == row["difference"]
        why = ", by images of one patient" if defined else ""
        return f"{what} cannot be compared: {row['first']} and {row['second']} have {values}{why}."
    details = (
        f"{values}; 95 % interval of the difference {row['low']:+.3f} to {row['high']:+.3f}, "
        f"p = {row['p_holm']:.3f}"
    )
    if count > 1:
        details += f", Holm-corrected for {count} comparisons"
    if row["undefined"] > 0:
        details += f"; undefined in {row['undefined']:.1%} of the resamples, which are left out"
    if row["p_holm"] >= CLAIM:
        both = f"{row['first']} and {row['second']}"
        return f"no difference in {what} is shown between {both} ({details})."
    direction = "higher" if row["difference"] > 0 else "lower"
    size = f"{abs(row['difference']):.3f} {direction}"
    return f"{what} is {size} for {row['first']} than for {row['second']} ({details})."


def say(figure: str) -> str:
    """A figure's name in words.

    Example:
        >>> say("pcam/hit/hand"), say("study_kappa"), say("auroc/no_hardware")
        ("PCAM's hit rate (hand)", 'study kappa', 'AUROC (no hardware)')
    """
    parts = figure.split("/")
    place = next((i for i, part in enumerate(parts) if part in WORDS), None)
    if place is None:
        known, words = 0, parts[0].replace("_", " ")
    else:
        known, words = place, WORDS[parts[place]]
    method = f"{METHODS.get(parts[0], parts[0])}'s " if known else ""
    group = " ".join(parts[known + 1 :]).replace("_", " ")
    return method + words + (f" ({group})" if group else "")


def _has(seeds: Seeds, name: str) -> bool:
    return bool(seeds) and all(name in figures for figures in seeds)


def _named(run: str, seeds: Seeds) -> str:
    return f"{run} (mean of {len(seeds)} seeds)" if len(seeds) > 1 else run


def _of(map: Map, runs: Mapping[str, Seeds]) -> str:
    run, method = map
    return f"{METHODS.get(method, method)} of {_named(run, runs[run])}"


def _joined(seeds: Seeds, name: str) -> Figure:
    return mean_of([figures[name] for figures in seeds])
