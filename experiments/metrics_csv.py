"""Reading a run's ``metrics.csv``, without the weight of torch: a sweep waits for hours."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

DECIMALS = 3  # of the score that makes a checkpoint best; a test holds callbacks.checkpoints to it


def best_row(folder: Path, monitor: str) -> dict[str, float]:
    """The row of ``metrics.csv`` that the best checkpoint stands for; empty without figures."""
    table = _read(folder)
    if monitor not in table or table[monitor].isna().all():
        return {}
    scores = table[monitor].round(DECIMALS)
    best = table[scores == scores.max()].iloc[-1]
    return {str(name): float(value) for name, value in best.items()}


def by_epoch(folder: Path, name: str = "epoch") -> dict[int, float]:
    """The figure ``name`` of each epoch that has it."""
    table = _read(folder)
    if name not in table:
        return {}
    known = table.dropna(subset=[name])
    return {int(epoch): float(v) for epoch, v in zip(known["epoch"], known[name], strict=True)}


def _read(folder: Path) -> pd.DataFrame:
    path = folder / "metrics.csv"
    return pd.read_csv(path) if path.is_file() else pd.DataFrame()
