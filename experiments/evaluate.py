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

import pandas as pd
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from tqdm import tqdm

from experiments.config import ConfigError, differences, load_config, to_plain
from lightning_modules.attention import peak
from lightning_modules.metrics import Agreement, HitRate, PixelAveragePrecision
from lightning_modules.metrics.localisation import hit

# Equal steps of a map in [0, 1] when pixels are ranked: as fine as a 16-bit image.
MAP_LEVELS = 2**16


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


def judge(module: Any, data: Any, split: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Run the network over a split: the table of per-image rows and the figures.

    Maps are judged on the abnormal images with a lesion mask, at the images' original size. From
    stage 2 on, ``masked_accuracy`` is the accuracy under the mask of the training and
    ``swapped_masked_accuracy`` that under the other class's map, with ``swapped_masked_abnormal``,
    the share of images then called abnormal: a network that reads the class off the mask's shape
    falls to 0 or sticks to one class.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = module.to(device).eval()
    classifies = bool(module.hparams.get("classification", True))
    # A network trained on the masks alone has an FC layer that nobody taught: only its FCN counts.
    methods = module.map_methods if classifies else ("fcn",)
    looks_twice = classifies and hasattr(module, "masked_logits")
    agreement = Agreement(body_parts=data.body_parts)
    localisation = {
        name: MetricCollection(
            {"hit": HitRate(), "pixel_ap": PixelAveragePrecision(levels=MAP_LEVELS)}
        )
        for name in methods
    }
    rows: list[dict[str, Any]] = []
    loader = data.evaluation_dataloader(split)
    with torch.inference_mode():
        for batch in tqdm(loader, desc=f"{split} images", unit=" batches", leave=False):
            on_device = {name: value.to(device) for name, value in batch.items()}
            image = data.on_after_batch_transfer(on_device, 0)["image"]
            probability, maps = module.explain(image)
            seen: dict[str, Tensor] = {}
            if classifies:
                seen["probability"] = probability
                agreement.update(
                    probability.cpu(),
                    batch["label"],
                    batch["index"],
                    batch["study"],
                    batch["body_part"],
                )
            if looks_twice:
                label = on_device["label"]
                for name in ("masked", "swapped_masked"):
                    scores = getattr(module, f"{name}_logits")(image, label)
                    seen[f"{name}_probability"] = scores.softmax(1)[:, 1]
            for place, number in enumerate(batch["index"]):
                row = {name: float(values[place]) for name, values in seen.items()}
                mask = data.original_mask(int(number)) if batch["has_lesion"][place] else None
                for name in methods:
                    square = maps[name][place, 0].cpu().numpy()
                    shown = torch.from_numpy(data.to_original(square, int(number)))[None, None]
                    x, y = peak(shown)[0].tolist()
                    row |= {f"{name}_peak_x": int(x), f"{name}_peak_y": int(y)}
                    if mask is not None:
                        lesion = torch.from_numpy(mask / 255.0)[None, None]
                        row[f"{name}_hit"] = int(hit(shown, lesion))
                        localisation[name].update(
                            shown, lesion, number.view(1), torch.tensor([True])
                        )
                rows.append({"row": int(number), **row})
    found = pd.DataFrame(rows).set_index("row")
    hits = [name for name in found if name.endswith("_hit")]
    found[hits] = found[hits].astype("Int64")  # empty where there is no lesion, not 1.0
    columns = ["path", "patient", "study", "body_part", "label", "lesion_type", "hardware"]
    table = data.table.loc[found.index, columns].join(found)
    figures: dict[str, float] = {"images": len(table), "studies": int(table["study"].nunique())}
    if classifies:
        figures |= {name: float(value) for name, value in agreement.compute().items()}
    if looks_twice:
        for name in ("masked", "swapped_masked"):
            called = table[f"{name}_probability"] > 0.5
            figures[f"{name}_accuracy"] = float((called == (table["label"] == 1)).mean())
        figures["swapped_masked_abnormal"] = float(called.mean())
    figures["lesions"] = int(table[hits[0]].notna().sum()) if hits else 0
    for name in methods if hits else ():
        for figure, value in localisation[name].compute().items():
            figures[f"{name}/{figure}"] = float(value)
    return table, figures


def describe(run: Path, split: str, summary: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    main_names = ["accuracy", "balanced_accuracy", "auroc", "kappa", "study_kappa"]
    lines = [f"{run}: {split}, {summary['images']} images of {summary['studies']} studies"]
    if "accuracy" in summary:
        lines.append("  " + "  ".join(f"{name} {summary[name]:.3f}" for name in main_names))
    parts = {name: value for name, value in summary.items() if name.startswith("study_kappa/")}
    if parts:
        shown = "  ".join(
            f"{name.split('/')[1]} {value:.2f}"
            if value == value
            else f"{name.split('/')[1]} one class only"
            for name, value in parts.items()
        )
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
    sys.exit(main())
