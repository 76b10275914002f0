"""The stopwatch and the table of ``make bench``: turns, ratios, lines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

WARM_UP = 2  # turns that are not counted: memory and kernels are chosen in them
WIDTHS = (46, 22, 48, 22)
HEADER = ("row", "ours", "beside", "ratio (low to high)", "to reach")


class Spread(NamedTuple):
    """Median, lowest and highest of repetitions."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as ``2.80 (2.71 to 2.90)``; ``2.80`` where nothing was repeated."""
        if self.low == self.high:
            return f"{self.middle:.2f}"
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


class Line(NamedTuple):
    """A line of the table.

    Attributes:
        what: What is measured.
        ours: Our figure, with its unit.
        peer: What it is compared with, and its figure.
        ratio: Round by round; None where nothing stands beside.
        wanted: Such as ``>= 4``, of the ratio's median; "" where it is only stated.
    """

    what: str
    ours: str
    peer: str = ""
    ratio: Spread | None = None
    wanted: str = ""


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        overrides: ``key=value`` words of the configuration.
        rounds: Turns that count.
        quick: Few turns on little: to see that all works, not to quote.
        folder: Where what is drawn and trained for the table may lie.
        clock: Seconds, of the wall or of the processor.
    """

    overrides: list[str] = field(default_factory=list)
    rounds: int = 9
    quick: bool = False
    folder: Path = Path("runs/bench")
    clock: Callable[[], float] = time.perf_counter


def take_turns(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each step in each round: a busy machine then slows all of them alike.

    Example:
        >>> ticks = iter(range(100))
        >>> take_turns({"a": lambda: None, "b": lambda: next(ticks)}, 2, lambda: next(ticks))
        {'a': [1, 1], 'b': [2, 2]}
    """
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begun = clock()
            step()
            seconds[name].append(clock() - begun)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float], factor: float = 1.0) -> Spread:
    """Ratio of two series taken by turns, each divided within its round.

    Example:
        >>> ratios([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])
        Spread(middle=3.0, low=2.0, high=4.0)
    """
    each = [factor * one / other for one, other in zip(above, below, strict=True)]
    return Spread(statistics.median(each), min(each), max(each))


def median(values: Sequence[float]) -> float:
    """The middle one, or the mean of both."""
    return float(statistics.median(values))


def verdict(line: Line) -> str:
    """Whether the ratio's median is as wanted.

    Example:
        >>> verdict(Line("a step", "1 s", "2 s", Spread(2.0, 1.9, 2.1), ">= 1.5"))
        '>= 1.5: reached'
    """
    if line.ratio is None or not line.wanted:
        return line.wanted
    sign, value = line.wanted.split()
    reached = (
        line.ratio.middle >= float(value) if sign == ">=" else line.ratio.middle <= float(value)
    )
    return f"{line.wanted}: {'reached' if reached else 'missed'}"


def show(line: Line) -> str:
    """The line as it is printed."""
    return cells(line.what, line.ours, line.peer, str(line.ratio or ""), verdict(line))


def cells(*values: str) -> str:
    """Texts in the columns of the table; one that is too long moves those behind it.

    Example:
        >>> cells("row", "ours").index("ours") == WIDTHS[0] + 1
        True
    """
    *fixed, last = values
    padded = [f"{value:<{width}}" for value, width in zip(fixed, WIDTHS, strict=False)]
    return " ".join([*padded, last]).rstrip()
