"""Judge runs: ``python -m experiments.evaluate RUN_DIR... [--split SPLIT] [key=value ...]``.

SPLIT is test (unless told), val, or left_out: what cross-fitting kept out of training.

Each image of the split is seen once, by the best checkpoint, in float32, in one process. Writes
``evaluation/<split>/images.csv`` (a row an image) and ``summary.json`` into the run directory and
prints the figures. Exit status: 0 done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from experiments.command import run as run_command


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate", description="Judge runs on val or test."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run directories or checkpoints")
    parser.add_argument("--split", choices=["test", "val", "left_out"], default="test")
    arguments = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from datamodules import DataError
    from experiments.config import ConfigError
    from experiments.runs import RunError

    # A run's name may hold "=": what exists is a run.
    overrides = [word for word in arguments.runs if "=" in word and not Path(word).exists()]
    runs = [Path(word) for word in arguments.runs if word not in overrides]
    try:
        if not runs:
            raise RunError("name a run directory, such as runs/phantom/stage1/seed0")
        for run in runs:
            summary = evaluate(run, arguments.split, overrides)
            print(describe(run, arguments.split, summary))
    except (ConfigError, DataError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def evaluate(run: Path, split: str, overrides: list[str]) -> dict[str, Any]:
    """Judge the best checkpoint of ``run`` on ``split``; write and return the summary.

    Raises:
        RunError: there is no run or checkpoint, or it belongs to another stage.
    """
    from experiments.build import build_data
    from experiments.config import differences, load_config, to_plain
    from experiments.judge import judge
    from experiments.runs import RunError, find_checkpoint, load_module

    folder, checkpoint = find_checkpoint(run)
    saved = str(folder / "config.yaml")
    config = load_config(saved, overrides)
    changed = [
        line
        # As resolved today: a run of before a key existed has that key's default.
        for line in differences(to_plain(load_config(saved, [])), to_plain(config))
        if not line.startswith("data.batch_size")
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise RunError(
            f"{folder} was trained otherwise:\n  {listed}\nEvaluate it as it was trained (only "
            "paths, workers and the batch size may change), or train a run of its own"
        )
    data = build_data(config)
    data.prepare_data()
    data.setup()
    module, content = load_module(config.stage, checkpoint)
    data.check_index_hash(content[type(data).__qualname__]["index_hash"])
    if not len(data.rows_of(split)):
        raise RunError(
            f"{folder} left no image out of training; train with lesions.folds=5 lesions.fold=0"
        )
    table, summary = judge(module, data, split)
    summary = {
        "run": str(folder),
        "checkpoint": checkpoint.name,
        "epoch": int(content["epoch"]) + 1,
        "epochs": int(config.trainer["max_epochs"]),
        "stage": config.stage,
        "data": config.data.name,
        "seed": config.seed,
        "split": split,
        **({"leaks": "split by image"} if config.data.split == "image" else {}),
        **summary,
    }
    # Only the best checkpoint's figures are the run's.
    name = split if checkpoint.stem == "best" else f"{split}-{checkpoint.stem}"
    target = folder / "evaluation" / name
    # JSON knows no NaN: what cannot be computed is null.
    plain = {key: None if value != value else value for key, value in summary.items()}
    try:
        target.mkdir(parents=True, exist_ok=True)
        table.to_csv(target / "images.csv", index=False)
        (target / "summary.json").write_text(json.dumps(plain, indent=2) + "\n")
    except OSError as error:
        # The figures cost minutes: shown all the same.
        print(describe(run, split, {**summary, "written": "nowhere"}))
        raise RunError(
            f"{target} cannot be written ({error.strerror}); make it writable, or copy the run "
            "directory to where you may write"
        ) from error
    return {**summary, "written": str(target)}


def describe(run: Path, split: str, summary: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    main_names = ["accuracy", "balanced_accuracy", "auroc", "kappa", "study_kappa"]
    lines = [
        f"{run}: {split}, {summary['images']} images of {summary['studies']} studies, epoch "
        f"{summary['epoch']} of {summary['epochs']}"
    ]
    if "accuracy" in summary:
        lines.append("  " + "  ".join(f"{name} {summary[name]:.3f}" for name in main_names))
    parts = {name: value for name, value in summary.items() if name.startswith("study_kappa/")}
    if parts:
        known = [f"{name.split('/')[1]} {v:.2f}" for name, v in parts.items() if v == v]
        alone = [name.split("/")[1] for name, value in parts.items() if value != value]
        shown = "  ".join([*known, *([f"(one class only: {', '.join(alone)})"] if alone else [])])
        lines.append(f"  study kappa by body part:  {shown}")
    if "masked_accuracy" in summary:
        lines.append(
            f"  masked accuracy {summary['masked_accuracy']:.3f}, under the other class's map "
            f"{summary['swapped_masked_accuracy']:.3f} "
            f"({summary['swapped_masked_abnormal']:.0%} called abnormal)"
        )
    methods = [name.split("/")[0] for name in summary if name.endswith("/hit")]
    for name in methods:
        lines.append(
            f"  {name:5} hit {summary[f'{name}/hit']:.3f}  "
            f"pixel AP {summary[f'{name}/pixel_ap']:.3f}"
        )
    lines.append(
        f"  maps judged on {summary['lesions']} lesion masks at original size"
        if methods
        else f"  no lesion mask in {split}: maps are not judged"
    )
    lines.append(f"  written: {summary['written']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
