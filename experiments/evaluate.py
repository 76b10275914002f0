"""Judge runs: ``python -m experiments.evaluate RUN_DIR... [--split test|val] [key=value ...]``.

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

from experiments.config import ConfigError, differences, load_config, read_plain, to_plain


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate", description="Judge runs on val or test."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run directories or checkpoints")
    parser.add_argument("--split", choices=["test", "val"], default="test")
    arguments = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from datamodules import DataError
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
    from experiments.runs import RunError, find_checkpoint, load_module

    folder, checkpoint = find_checkpoint(run)
    saved = read_plain(folder / "config.yaml")
    config = load_config(str(folder / "config.yaml"), overrides)
    changed = [
        line
        for line in differences(saved, to_plain(config))
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
    table, summary = judge(module, data, split)
    summary = {
        "run": str(folder),
        "checkpoint": checkpoint.name,
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
    target.mkdir(parents=True, exist_ok=True)
    table.to_csv(target / "images.csv", index=False)
    # JSON knows no NaN: what cannot be computed is null.
    plain = {key: None if value != value else value for key, value in summary.items()}
    (target / "summary.json").write_text(json.dumps(plain, indent=2) + "\n")
    return {**summary, "written": str(target)}


def judge(module: Any, data: Any, split: str) -> tuple[Any, dict[str, Any]]:
    """Run the network over a split: the table of per-image rows and the figures."""
    import torch
    from tqdm import tqdm

    from lightning_modules.metrics import Agreement

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = module.to(device).eval()
    agreement = Agreement(body_parts=data.body_parts)
    probabilities, rows = [], []
    loader = data.evaluation_dataloader(split)
    with torch.inference_mode():
        for batch in tqdm(loader, desc=f"{split} images", unit=" batches", leave=False):
            on_device = {name: value.to(device) for name, value in batch.items()}
            image = data.on_after_batch_transfer(on_device, 0)["image"]
            probability = module(image).softmax(1)[:, 1].cpu()
            agreement.update(
                probability, batch["label"], batch["index"], batch["study"], batch["body_part"]
            )
            probabilities.append(probability)
            rows.append(batch["index"])
    order = torch.cat(rows).numpy()
    columns = ["path", "patient", "study", "body_part", "label", "lesion_type", "hardware"]
    table = data.table.iloc[order][columns].assign(probability=torch.cat(probabilities).numpy())
    figures = {name: float(value) for name, value in agreement.compute().items()}
    return table, {"images": len(table), "studies": int(table["study"].nunique()), **figures}


def describe(run: Path, split: str, summary: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    main_names = ["accuracy", "balanced_accuracy", "auroc", "kappa", "study_kappa"]
    lines = [
        f"{run}: {split}, {summary['images']} images of {summary['studies']} studies",
        "  " + "  ".join(f"{name} {summary[name]:.3f}" for name in main_names),
    ]
    parts = {name: value for name, value in summary.items() if name.startswith("study_kappa/")}
    if parts:
        shown = "  ".join(
            f"{name.split('/')[1]} {value:.2f}"
            if value == value
            else f"{name.split('/')[1]} one class only"
            for name, value in parts.items()
        )
        lines.append(f"  study kappa by body part:  {shown}")
    lines.append(f"  written: {summary['written']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
