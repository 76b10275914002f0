"""The first screen of a report: one sentence, and the few figures that a reader takes home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import pandas as pd

from experiments.evaluation.compare import LEVEL
from experiments.evaluation.groups import Group
from experiments.evaluation.names import TRIVIAL_METHODS, method_name
from experiments.evaluation.statistics import Estimate


class Tile(NamedTuple):
    """A figure of the first screen."""

    value: str
    interval: str
    words: str


def best_map(groups: Sequence[Group]) -> tuple[Group, str]:
    """The group and the map that the report is about: the last of the first run of the last stage.

    By a rule that knows no figure: to choose the best one by test would flatter it.
    """
    last = max(group.stage for group in groups)
    chosen = next(group for group in groups if group.stage == last)
    return chosen, chosen.methods[-1] if chosen.methods else ""


def claim(groups: Sequence[Group], split: str) -> str:
    """The one sentence: what the map is worth, with its interval."""
    chosen, method = best_map(groups)
    table = chosen.runs[0].table
    hit = chosen.estimate(f"{method}/hit")
    if known(hit):
        lesions = int(table["lesion_area"].notna().sum())
        seeds = len(chosen.runs)
        if seeds == 1:
            hits = int(table[f"{method}_hit"].sum())
            return (
                f"In {hits} of {lesions} {split} images with a drawn lesion, the brightest point "
                f"of {method_name(method).phrase}’s map lies inside the lesion: "
                f"{percent(hit)} ({interval(hit)})."
            )
        return (
            f"In {percent(hit)} of {lesions} {split} images with a drawn lesion, the brightest "
            f"point of {method_name(method).phrase}’s map lies inside the lesion "
            f"({interval(hit)}; mean of {seeds} trainings)."
        )
    auroc = chosen.estimate("auroc")
    unknown = f"no {split} image has a lesion mask, so that nobody can say whether its maps show it"
    if known(auroc):
        return (
            f"The network tells abnormal from normal {split} images with an AUROC of "
            f"{auroc.value:.3f} ({interval(auroc, share=False)}); {unknown}."
        )
    return f"Nothing can be said of this network: {unknown}."


def tiles(groups: Sequence[Group]) -> list[Tile]:
    """The figures beside the claim, those that are known."""
    chosen, method = best_map(groups)
    table = chosen.runs[0].table
    found = []
    of_map = method_name(method).phrase
    hit = chosen.estimate(f"{method}/hit")
    if known(hit):
        words = f"of lesions: {of_map}’s map is brightest inside the lesion"
        found.append(Tile(percent(hit), interval(hit), words))
    other = groups[0]
    own = other.estimate("pcam/hit")
    if known(own) and (other is not chosen or method != "pcam"):
        words = f"of lesions: the same for the classifier’s own PCAM, {other.name}"
        found.append(Tile(percent(own), interval(own), words))
    shown = chosen.estimate(f"{method}/shown_normal")
    if known(shown):
        words = (
            f"of {int((table['label'] == 0).sum())} normal images: {of_map}’s map shows a lesion "
            "that is not there"
        )
        found.append(Tile(percent(shown), interval(shown), words))
    auroc = chosen.estimate("auroc")
    if known(auroc):
        words = f"AUROC: how well {chosen.name} tells abnormal from normal images (0.5 is chance)"
        found.append(Tile(f"{auroc.value:.3f}", interval(auroc, share=False), words))
    return found


def beside_trivial(groups: Sequence[Group], compared: pd.DataFrame) -> str:
    """Whether the map is better than one that knows nothing of the image; "" where none was judged.

    Args:
        groups: All of them.
        compared: All pairs, of :func:`comparison.compare_runs`.
    """
    chosen, method = best_map(groups)
    hit = chosen.estimate(f"{method}/hit")
    # The same for all runs on the same data, but not every run was judged beside them.
    source = next((one for one in (chosen, *groups) if judged_trivial(one)), None)
    if source is None or not known(hit):
        return ""
    rates = {name: source.estimate(f"{name}/hit") for name in judged_trivial(source)}
    name, rate = max(
        ((name, rate) for name, rate in rates.items() if known(rate)),
        key=lambda one: one[1].value,
    )
    words = method_name(name).phrase
    text = f"The best map that knows nothing of the image, {words}, reaches {percent(rate)}"
    pair = compared[
        (compared["figure"] == "hit")
        & compared["first"].str.startswith(f"{method_name(method).phrase} of {chosen.name}")
        & compared["second"].str.startswith(f"{method_name(name).phrase} of {chosen.name}")
    ]
    if not len(pair):
        return f"{text}."
    row = pair.iloc[0]
    if row["p_holm"] < LEVEL and row["difference"] > 0:
        return f"{text}: the difference is shown (p = {row['p_holm']:.3f})."
    return f"{text}: that {method_name(method).phrase}’s is better is not shown."


def judged_trivial(group: Group) -> list[str]:
    """The trivial maps that a run was judged beside."""
    return [name for name in TRIVIAL_METHODS if known(group.estimate(f"{name}/hit"))]


def known(result: Estimate | None) -> TypeGuard[Estimate]:
    """Whether a figure is defined on these images."""
    return result is not None and result.value == result.value


def percent(result: Estimate) -> str:
    r"""A share for people.

    Example:
        >>> percent(Estimate(0.973, 0.95, 0.99, 0.0))
        '97\xa0%'
    """
    return f"{_percent(result.value)}\u00a0%"


def interval(result: Estimate, share: bool = True) -> str:
    r"""The interval of a figure for people.

    Example:
        >>> interval(Estimate(0.973, 0.95, 0.998, 0.0))
        '95\xa0% interval 95 to 99.8\xa0%'
        >>> interval(Estimate(0.973, float("nan"), float("nan"), 0.0))
        'no interval'
    """
    if result.low != result.low:
        return "no interval"
    if result.low == result.high:
        return "all patients alike, so that no interval can be told"
    if share:
        low, high = _percent(result.low), _percent(result.high)
        return f"95\u00a0% interval {low} to {high}\u00a0%"
    return f"95\u00a0% interval {result.low:.3f} to {result.high:.3f}"


def _percent(value: float) -> str:
    """0 and 100 are said where it is so, and not where it nearly is."""
    near = 0 < value < 0.01 or 0.99 < value < 1
    return f"{100 * value:.{1 if near else 0}f}"
