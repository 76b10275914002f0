"""An evaluation as ``experiments.evaluate`` left it in the run directory, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.build import open_run
from experiments.config import Config
from experiments.evaluation.figures import Fitted, read_images
from experiments.evaluation.map_figures import load_maps
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Estimate
from experiments.runs import RunError

FILES = ("images.csv", "maps.npz", "summary.json")
# What run, checkpoint and split it is of; a summary of before may lack some.
ABOUT = ("run", "checkpoint", "epoch", "epochs", "stage", "data", "seed", "split")
LATER = ("image_hash", "judged_image_hash", "mask_hash", "leaks")
NAN = float("nan")


def read_evaluation(run: Path, split: str, overrides: list[str]) -> Evaluation | str:
    """The evaluation of a run on a split, or why it must be judged (again).

    Args:
        run: Run directory or checkpoint.
        split: test, val or left_out.
        overrides: ``key=value`` words that change no result.

    Raises:
        RunError: There is no run or checkpoint, or it was trained otherwise.
    """
    opened = open_run(run, overrides)
    folder, checkpoint, config = opened.folder, opened.checkpoint, opened.config
    target = opened.results(split)
    absent = [name for name in FILES if not (target / name).is_file()]
    if absent:
        return f"{target} lacks {absent[0]}"
    summary = target / "summary.json"
    if summary.stat().st_mtime < checkpoint.stat().st_mtime:
        return f"{summary} is older than {checkpoint.name}"
    try:
        return _read(folder, target, config, json.loads(summary.read_text(encoding="utf-8")))
    except KeyError as error:
        return f"{summary} is of another version of this project (it lacks {error})"
    except (ValueError, OSError) as error:
        return str(error)


def _read(folder: Path, target: Path, config: Config, summary: dict[str, Any]) -> Evaluation:
    # As a copy: what pandas read lies in as many pieces as columns, and it warns of each use.
    table = read_images(target / "images.csv").copy()
    rows = load_maps(target / "maps.npz", table)
    fitted = summary["fitted"]
    kept = fitted["maps"]
    if set(kept) != set(rows):
        raise ValueError(f"{target}: summary.json and maps.npz are of different maps")
    undefined = summary["undefined"]
    # In JSON null stands for what is not defined.
    return Evaluation(
        folder,
        target,
        config,
        {name: summary[name] for name in ABOUT}
        | {name: summary[name] for name in LATER if name in summary},
        table,
        {name: rows[name] for name in kept},
        Fitted(fitted["threshold"], fitted["study_threshold"], fitted["temperature"])
        if "threshold" in fitted
        else None,
        {name: _number(kept[name]["threshold"]) for name in kept},
        {name: kept[name]["scale"] for name in kept if "scale" in kept[name]},
        list(summary["notes"]),
        {
            name: Estimate(
                _number(summary[name]), _number(low), _number(high), undefined.get(name, 0.0)
            )
            for name, (low, high) in summary["intervals"].items()
        },
    )


def _number(value: float | None) -> float:
    return NAN if value is None else value


def judged(runs: list[Path], split: str, overrides: list[str]) -> list[Evaluation]:
    """Evaluations of all runs; what is missing or stale is judged now, and written.

    Raises:
        RunError: As :func:`read_evaluation` and :func:`evaluation.evaluate`.
        DataError: The data is not that of the run.
    """
    from experiments.evaluation.run import Shared, evaluate
    from experiments.evaluation.store import write

    shared: Shared = {}
    found = []
    for run in runs:
        known = read_evaluation(run, split, overrides)
        if isinstance(known, str):
            print(f"judging {run}: {known}", flush=True)
            known = evaluate(run, split, overrides, shared=shared)
            write(known)
            print(f"  written  {known.target}", flush=True)
        found.append(known)
    return found


def check_one_data_set(runs: list[Evaluation]) -> None:
    """Raise a RunError if the runs are of several data sets: their figures do not compare."""
    names = {run.about["data"]: run.folder for run in runs}
    if len(names) > 1:
        listed = ", ".join(f"{folder} of {name}" for name, folder in names.items())
        raise RunError(f"a report is of one data set: {listed}; write one for each")
