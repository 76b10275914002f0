"""The files of an evaluation, written and read back; what is stale is judged again."""

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from datamodules.files import write_text
from experiments.build import Run, open_run
from experiments.evaluation.figures import Fitted, MapRows, reliability
from experiments.evaluation.judge import judged_on
from experiments.evaluation.run import Baselines, Evaluation, evaluate
from experiments.evaluation.statistics import Difference, Estimate

NAMES = ("path", "patient", "study", "body_part", "lesion_type")  # text, also 007


def write(evaluation: Evaluation) -> None:
    """Write all files of an evaluation into its folder."""
    target, table = evaluation.target, evaluation.table
    summary, audit = target / "summary.json", target / "audit.json"
    target.mkdir(parents=True, exist_ok=True)
    # Written last, so that a summary never lies beside older rows.
    summary.unlink(missing_ok=True)
    with contextlib.suppress(OSError, ValueError):  # of another network, or other images or masks
        audited = json.loads(audit.read_text(encoding="utf-8"))
        now = plain(evaluation.about)
        if any(audited.get(key) != now.get(key) for key in ("checkpoint_hash", "judged_on")):
            audit.unlink()
    table.to_csv(target / "images.csv", index=False)
    save_maps(target / "maps.npz", table, evaluation.maps)
    if "probability" in table:
        curve = reliability(table["probability"], table["label"])
        curve.to_csv(target / "reliability.csv", index=False)
    write_text(summary, json.dumps(plain(summarise(evaluation)), indent=2) + "\n")


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """The content of ``summary.json``: figures, then their intervals and what val fitted."""
    table, figures = evaluation.table, evaluation.estimates
    fitted: dict[str, Any] = evaluation.fitted._asdict() if evaluation.fitted else {}
    fitted["maps"] = {name: {"threshold": at} for name, at in evaluation.thresholds.items()}
    for name, scale in evaluation.scales.items():
        fitted["maps"][name]["scale"] = scale
    return {
        **evaluation.about,
        "notes": evaluation.notes,
        "images": len(table),
        "studies": int(table["study"].nunique()),
        "patients": int(table["patient"].nunique()),
        "lesions": int(table["lesion_area"].notna().sum()),
        **{name: result.value for name, result in figures.items()},
        "intervals": {name: [result.low, result.high] for name, result in figures.items()},
        # The share of resamples in which a figure was not defined, where there were any.
        "undefined": {name: one.undefined for name, one in figures.items() if one.undefined},
        "null": "not defined on these images, see docs/evaluation.md",
        "fitted": fitted,
    }


def plain(value: Any) -> Any:
    """Results as JSON holds them: figures as their fields, NaN, which it does not know, as null."""
    if isinstance(value, (Estimate, Difference)):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and value != value else value


def read_evaluation(opened: Run, split: str) -> Evaluation | None:
    """The evaluation of this very checkpoint on a split; None: it must be judged (again)."""
    target, summary = opened.results(split), opened.summary(split)
    if summary is None:
        return None
    try:
        # A copy in one piece: pandas would warn of a fragmented table at each use.
        table = read_images(target / "images.csv").copy()
        fitted, of_maps = summary["fitted"], summary["fitted"]["maps"]
        of_images = [fitted.get(name) for name in Fitted._fields]
        undefined = summary["undefined"]
        return Evaluation(
            folder=opened.folder,
            target=target,
            config=opened.config,
            about=dict(itertools.takewhile(lambda item: item[0] != "notes", summary.items())),
            table=table,
            maps=load_maps(target / "maps.npz", table),
            fitted=None if None in of_images else Fitted(*of_images),
            thresholds={name: _number(one["threshold"]) for name, one in of_maps.items()},
            scales={name: one["scale"] for name, one in of_maps.items() if "scale" in one},
            notes=summary["notes"],
            estimates={
                name: Estimate(*map(_number, (summary[name], low, high, undefined.get(name, 0.0))))
                for name, (low, high) in summary["intervals"].items()
            },
        )
    except (KeyError, ValueError, OSError, EOFError, BadZipFile):  # damaged
        return None


def judged(
    runs: Sequence[Path], split: str, overrides: Sequence[str], compare_data: bool
) -> list[Evaluation]:
    """Evaluations of runs on one data set; what is missing or stale is judged now, and written.

    Without ``compare_data`` the data need not be here: theirs may have changed since.
    """
    trivial = Baselines()
    evaluations = []
    for run in runs:
        opened = open_run(run, overrides)
        evaluation = read_evaluation(opened, split)
        if evaluation and compare_data:
            same = evaluation.about.get("judged_on") == judged_on(opened.data, split)
            evaluation = evaluation if same else None
        if evaluation is None:
            why = f"no evaluation of this checkpoint on {split} as the data are today"
            print(f"judging {run}: {why}", flush=True)
            evaluation = evaluate(opened, split, trivial=trivial)
            write(evaluation)
            print(f"  written  {evaluation.target}", flush=True)
        evaluations.append(evaluation)
    return evaluations


def read_images(path: Path) -> pd.DataFrame:
    """Read an ``images.csv``."""
    # Only an empty field is missing: a patient may be called NA.
    table = pd.read_csv(
        path, dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=[""]
    )
    return table.fillna({"lesion_type": ""})


def save_maps(path: Path, table: pd.DataFrame, methods: Mapping[str, MapRows]) -> None:
    """Write what is kept of the maps of all methods to one compressed ``.npz``."""
    arrays = {
        f"{method}/{name}": values
        for method, rows in methods.items()
        for name, values in rows._asdict().items()
    }
    np.savez_compressed(path, path=table["path"].to_numpy(dtype=str), **arrays)


def load_maps(path: Path, table: pd.DataFrame) -> dict[str, MapRows]:
    """Read what :func:`save_maps` wrote; ValueError: it is of other images than the table."""
    with np.load(path, allow_pickle=False) as saved:
        if saved["path"].tolist() != table["path"].tolist():
            raise ValueError(f"{path} is of other images than the table")
        methods = dict.fromkeys(name.split("/")[0] for name in saved.files if "/" in name)
        return {
            method: MapRows(*(saved[f"{method}/{name}"] for name in MapRows._fields))
            for method in methods
        }


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
