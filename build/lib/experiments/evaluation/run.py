"""A run, judged: val decides, another split is judged, each image of both is seen once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from callbacks.checkpoints import load_checkpoint
from datamodules import DataError
from datamodules.lesions import LEFT_OUT
from datamodules.radiographs import RadiographDataModule
from experiments.build import build_module, open_run
from experiments.config import Config
from experiments.evaluation.baselines import baselines
from experiments.evaluation.figures import HOTTEST, Fitted, classification, fit
from experiments.evaluation.judge import Judged, classifies, judge
from experiments.evaluation.map_figures import MapRows, localisation
from experiments.evaluation.methods import MapMethod
from experiments.evaluation.statistics import Estimate, Figure, estimates, patient_weights
from experiments.evaluation.weighted import mean
from experiments.runs import RunError, check_network, epochs_done

# What a probability means without any val: abnormal is what is likelier than not.
EVEN = 0.5
REPLACED = "images were replaced since this run was trained: judged, and tuned on, are today's"


@dataclass
class Evaluation:
    """A run on a split.

    Attributes:
        folder: The run directory.
        target: Where the results are written.
        config: As it was trained.
        about: What run, checkpoint and split this is, for the summary.
        table: A row an image, all columns.
        maps: What is kept of each map, of each method, in the order of the table.
        fitted: What val decided on classification; None for a network that does not classify.
        thresholds: What val decided for each map method; NaN where it could not.
        scales: What becomes 1 in the maps of methods that are not the network's own.
        notes: What a reader must know before believing a figure, a sentence each.
        estimates: Every figure with its 95 % interval; computed unless they are given.
    """

    folder: Path
    target: Path
    config: Config
    about: dict[str, Any]
    table: pd.DataFrame
    maps: dict[str, MapRows]
    fitted: Fitted | None
    thresholds: dict[str, float]
    scales: dict[str, float]
    notes: list[str]
    estimates: dict[str, Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give every figure its interval."""
        if not self.estimates:
            weights = patient_weights(self.table["patient"].to_numpy())
            self.estimates = estimates(figures(self.table, self.maps, self.fitted), weights)


# Judged baselines of val and of the split, by the data that they were judged on.
Shared = dict[Any, tuple[Judged, Judged]]


def evaluate(
    run: Path,
    split: str,
    overrides: list[str],
    trivial: bool = True,
    shared: Shared | None = None,
    methods: Sequence[MapMethod] = (),
) -> Evaluation:
    """Judge the best checkpoint of ``run`` on ``split``, with what val decides.

    Args:
        run: Run directory or checkpoint.
        split: test, val or left_out.
        overrides: ``key=value`` words that change no result: paths, workers, the batch size.
        trivial: Whether trivial baselines are judged, too.
        shared: Keeps the baselines for further runs on the same data.
        methods: Map methods that explain the classifier, beside its own maps.

    Raises:
        RunError: There is no run or checkpoint, it belongs to another stage, was trained otherwise,
            or its network diverged.
        DataError: The data is not that of the run.
    """
    opened = open_run(run, overrides)
    folder, config, data, module = opened.folder, opened.config, opened.data, opened.module
    trained_on = opened.trained_on
    said = []
    if methods and not classifies(module):
        said.append("trained on the lesion masks alone: there is no class for --peers to explain")
    # Folds are dealt by the masks: there only the very same data leaves out the same images.
    if split != LEFT_OUT and data.judges_as(trained_on):
        masks = trained_on.get("mask_hash") != data.mask_hash
        if masks or trained_on["index_hash"] != data.index_hash:
            said.append(
                "labels or lesion masks are not those that this run was trained with: judged is by "
                "today's"
            )
        if trained_on.get("image_hash", data.image_hash) != data.image_hash:
            said.append(REPLACED)
    else:
        data.check_same_data(trained_on)
    check_network(build_module(config, data), opened.content, opened.checkpoint)
    if not len(data.rows_of(split)):
        raise RunError(
            f"{folder} left no image out of training; train with lesions.folds=5 lesions.fold=0"
        )
    try:
        val, judged = _val_and_split(module, data, split, methods if classifies(module) else ())
        if trivial:
            known = {} if shared is None else shared
            key = (data.cache_folder, data.index_hash, tuple(data.lesion_rows), split)
            if key not in known:
                known[key] = _val_and_split(None, data, split, baselines(data))
            val, judged = (
                _joined(own, more) for own, more in zip((val, judged), known[key], strict=True)
            )
        fitted = fit(val.table) if "probability" in val.table else None
    except DataError:
        raise
    except ValueError as error:
        raise RunError(f"{folder}: {error}") from error
    thresholds = {name: maps.best_threshold() for name, maps in val.maps.items()}
    table, rows = with_thresholds(judged, thresholds)
    about = {
        "run": str(folder),
        **opened.identity,
        "epochs": int(config.trainer["max_epochs"]),
        "split": split,
        "image_hash": trained_on.get("image_hash", data.image_hash),
        "judged_image_hash": data.image_hash,
        "mask_hash": trained_on.get("mask_hash", data.mask_hash),
        **({"leaks": "split by image"} if config.data.split == "image" else {}),
    }
    return Evaluation(
        folder,
        opened.results(split),
        config,
        about,
        table,
        rows,
        fitted,
        thresholds,
        judged.scales,
        [*said, *_unfinished(folder, config), *notes(val.table, judged.table, split, fitted)],
    )


def with_thresholds(
    judged: Judged, thresholds: Mapping[str, float]
) -> tuple[pd.DataFrame, dict[str, MapRows]]:
    """The table of images with all columns of all methods, and what is kept of each map.

    Args:
        judged: A split.
        thresholds: Of each of its methods, as val decided.
    """
    columns = [maps.table(thresholds[name]) for name, maps in judged.maps.items()]
    table = pd.concat([judged.table.reset_index(drop=True), *columns], axis=1)
    return table, {name: maps.rows for name, maps in judged.maps.items()}


def figures(
    table: pd.DataFrame, maps: Mapping[str, MapRows], fitted: Fitted | None
) -> dict[str, Figure]:
    """All figures of a run, as functions of the images' weights.

    Those of :func:`figures.classification` at a probability of 0.5 by their own names, at val's
    operating points with ``tuned/`` before; of the masked passes ``masked_accuracy``,
    ``swapped_masked_accuracy`` and ``swapped_masked_abnormal``, the share that is called abnormal;
    and those of :func:`map_figures.localisation` of each method.

    Args:
        table: A row an image, with all columns.
        maps: Rows of the same images in the same order.
        fitted: What val decided; None for a network that does not classify.
    """
    found: dict[str, Figure] = {}
    if fitted is not None:
        found |= classification(table, Fitted(EVEN, EVEN, fitted.temperature))
        for name, figure in classification(table, fitted).items():
            if name.split("/")[0].removeprefix("study_") not in ("auroc", "ece", "ece_scaled"):
                found[f"tuned/{name}"] = figure
    for name in ("masked", "swapped_masked"):
        if f"{name}_probability" in table:
            called = (table[f"{name}_probability"] > EVEN).to_numpy()
            found[f"{name}_accuracy"] = mean(called == (table["label"] == 1).to_numpy())
            if name == "swapped_masked":
                found["swapped_masked_abnormal"] = mean(called)
    for method, rows in maps.items():
        found |= localisation(table, method, rows)
    return found


def notes(val: pd.DataFrame, table: pd.DataFrame, split: str, fitted: Fitted | None) -> list[str]:
    """What is missing in the images, and what follows for the figures; a sentence each."""
    said = []
    if split == "val":
        said.append("val is judged by what val itself decided: figures at its thresholds are kind")
    if table["lesion_area"].isna().all():
        said.append(
            f"no lesion mask in {split}: maps are not judged, their figures are null (lesions.path "
            "adds masks)"
        )
    elif val["lesion_area"].isna().all():
        said.append(
            "no lesion mask in val: no threshold of a map can be tuned; IoU, Dice, area and what "
            "is shown on normal images are null"
        )
    if kind := _only_class(table):
        said.append(
            f"{split} holds {kind} images only: AUROC, kappa and the recall of the other class are "
            "null"
        )
    if kind := _only_class(val):
        said.append(
            f"val holds {kind} images only: operating points are 0.5 and the temperature is 1"
        )
    elif fitted is not None and not 1.01 / HOTTEST < fitted.temperature < HOTTEST / 1.01:
        said.append(
            f"val sets no limit to the temperature: {fitted.temperature:.2f} is where the search "
            "ends"
        )
    if table["patient"].nunique() < 2:
        said.append(f"{split} is of one patient: no figure has an interval")
    return said


def _only_class(table: pd.DataFrame) -> str:
    """The one class of images that a network classified, or ""."""
    if "probability" not in table or table["label"].nunique() > 1:
        return ""
    return "abnormal" if table["label"].iloc[0] == 1 else "normal"


def _val_and_split(
    module: Any, data: RadiographDataModule, split: str, methods: Sequence[Any] = ()
) -> tuple[Judged, Judged]:
    val = judge(module, data, "val", methods, tuning=split != "val")
    return val, val if split == "val" else judge(module, data, split, methods, val.scales)


def _joined(own: Judged, more: Judged) -> Judged:
    return Judged(own.table, own.maps | more.maps, own.scales | more.scales)


def _unfinished(folder: Path, config: Config) -> list[str]:
    """A note where the run has epochs before it, or where nobody can tell."""
    last, wanted = folder / "checkpoints" / "last.ckpt", int(config.trainer["max_epochs"])
    try:
        done = epochs_done(load_checkpoint(last))
    except (OSError, ValueError, KeyError):
        return [f"{last} is lost or damaged: whether training had ended is not known"]
    if done >= wanted:
        return []
    return [f"half finished: {done} of {wanted} epochs are trained; the same command goes on"]
