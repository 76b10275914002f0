"""The first screen of a report: one sentence, and the few figures that a reader takes home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import pandas as pd

from experiments.evaluation.compare import CLAIM, METHODS
from experiments.evaluation.comparison import Group, figures_like, own_maps
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Estimate, estimate, mean_of, patient_weights

# Maps that know nothing of the image's class, of experiments.evaluation.baselines.
TRIVIAL = ("centre", "mean_mask", "edges", "noise")


class Joined:
    """Runs that differ in their seed alone, and their figures.

    Args:
        group: The runs.
        first: The run whose order of images all follow.
    """

    def __init__(self, group: Group, first: Evaluation) -> None:
        self.name = group.name
        # By seed, so that what stands for all does not hang on the order in which they were named.
        self.runs = sorted(group.runs, key=lambda run: run.config.seed)
        self._first = first
        # Also checks that the images are the same.
        self._seeds = [figures_like(run, first.table) for run in self.runs]
        self._known: dict[str, Estimate | None] = {}

    @property
    def stage(self) -> str:
        """Of all the runs."""
        return str(self.runs[0].about["stage"])

    @property
    def methods(self) -> list[str]:
        """The network's own maps, the last one the stage's best."""
        return own_maps(self.runs[0])

    @property
    def classifies(self) -> bool:
        """Whether the network was taught normal and abnormal."""
        return self.runs[0].fitted is not None

    def estimate(self, figure: str) -> Estimate | None:
        """A figure with its interval, of several seeds their mean; None if there is no such one."""
        if len(self.runs) == 1:
            return self.runs[0].estimates.get(figure)
        if figure not in self._known:
            there = [seed[figure] for seed in self._seeds if figure in seed]
            weights = patient_weights(self._first.table["patient"].to_numpy())
            complete = len(there) == len(self.runs)
            self._known[figure] = estimate(mean_of(there), weights) if complete else None
        return self._known[figure]


class Tile(NamedTuple):
    """A figure of the first screen."""

    value: str
    interval: str
    words: str


def best_map(groups: Sequence[Joined]) -> tuple[Joined, str]:
    """The group and the map that the report is about: the last of the first run of the last stage.

    By a rule that knows no figure: to choose the best one by test would flatter it.
    """
    last = max(group.stage for group in groups)
    chosen = next(group for group in groups if group.stage == last)
    return chosen, chosen.methods[-1] if chosen.methods else ""


def claim(groups: Sequence[Joined], split: str) -> str:
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
                f"of {METHODS.get(method, method)}’s map lies inside the lesion: "
                f"{percent(hit)} ({interval(hit)})."
            )
        return (
            f"In {percent(hit)} of {lesions} {split} images with a drawn lesion, the brightest "
            f"point of {METHODS.get(method, method)}’s map lies inside the lesion "
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


def tiles(groups: Sequence[Joined]) -> list[Tile]:
    """The figures beside the claim, those that are known."""
    chosen, method = best_map(groups)
    table = chosen.runs[0].table
    found = []
    of_map = METHODS.get(method, method)
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


def beside_trivial(groups: Sequence[Joined], compared: pd.DataFrame) -> str:
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
    text = f"The best map that knows nothing of the image, {METHODS[name]}, reaches {percent(rate)}"
    pair = compared[
        (compared["figure"] == "hit")
        & compared["first"].str.startswith(f"{METHODS.get(method, method)} of {chosen.name}")
        & compared["second"].str.startswith(f"{METHODS[name]} of {chosen.name}")
    ]
    if not len(pair):
        return f"{text}."
    row = pair.iloc[0]
    if row["p_holm"] < CLAIM and row["difference"] > 0:
        return f"{text}: the difference is shown (p = {row['p_holm']:.3f})."
    return f"{text}: that {METHODS.get(method, method)}’s is better is not shown."


def judged_trivial(group: Joined) -> list[str]:
    """The trivial maps that a run was judged beside."""
    return [name for name in TRIVIAL if known(group.estimate(f"{name}/hit"))]


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
