"""Reading a run's ``metrics.csv``, without the weight of torch: a sweep waits for hours."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from callbacks.options import DECIMALS

log = logging.getLogger(__name__)


def best_row(folder: Path, monitor: str) -> dict[str, float]:
    """The row of ``metrics.csv`` that the best checkpoint stands for; empty without figures."""
    table = read_metrics(folder)
    if monitor not in table or table[monitor].isna().all():
        return {}
    scores = table[monitor].round(DECIMALS)
    best = table[scores == scores.max()].iloc[-1]
    return {str(name): float(value) for name, value in best.items()}


def by_epoch(folder: Path, name: str = "epoch") -> dict[int, float]:
    """The figure ``name`` of each epoch that has it."""
    table = read_metrics(folder)
    if name not in table:
        return {}
    rows = table.dropna(subset=[name])
    return {
        int(epoch): float(value) for epoch, value in zip(rows["epoch"], rows[name], strict=True)
    }


def read_metrics(folder: Path) -> pd.DataFrame:
    """``metrics.csv`` of a run directory; an empty table where there is none or it is damaged.

    A power cut may leave it empty. Training knows the last epoch's figures from its checkpoint.
    """
    path, empty = folder / "metrics.csv", pd.DataFrame(columns=["epoch"])
    if not path.is_file():
        return empty
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeError):
        table = pd.DataFrame()
    if "epoch" in table:
        return table
    log.warning("%s is damaged: the figures of earlier epochs are lost", path)
    return empty
