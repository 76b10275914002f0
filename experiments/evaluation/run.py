"""A run, judged: val decides, another split is judged, each image of both is seen once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.cache import LEAKS
from datamodules.lesions import LEFT_OUT
from datamodules.radiographs import RadiographDataModule
from experiments.build import Run, build_module
from experiments.config import Config
from experiments.evaluation.figures import Fitted, MapRows, all_figures, fit
from experiments.evaluation.judge import Judged, judge, judged_on
from experiments.evaluation.methods import MapMethod, baselines
from experiments.evaluation.statistics import Estimate, estimate, patient_weights
from experiments.runs import RunError, check_network
from lightning_modules.stage1 import Stage1Classifier

TRAINED_ON = ("index_hash", "image_hash", "mask_hash")  # with the seed, what tells runs apart
REPLACED = "images were replaced since the training: today's are tuned on and judged"
FEW = 10  # lesion masks of val
CHANGED = "labels or lesion masks changed since the training: figures are by today's"


@dataclass(kw_only=True)
class Evaluation:
    """A run, or a folder of maps, on a split."""

    folder: Path  # the run directory, or the folder of maps
    target: Path  # where the results are written
    config: Config  # as it was trained
    about: dict[str, Any]  # what run, checkpoint and split this is, for the summary
    table: pd.DataFrame  # a row an image, all columns of images.csv
    maps: dict[str, MapRows]  # of each method, in the order of the table
    fitted: Fitted | None  # what val decided; None for a network that does not classify
    thresholds: dict[str, float]  # what val decided for each map method; NaN where it could not
    scales: dict[str, float]  # what becomes 1 in the maps of methods beside the network's own
    notes: list[str]  # what a reader must know before believing a figure, a sentence each
    # Every figure by its name in summary.json; computed unless given.
    estimates: dict[str, Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give every figure its interval."""
        if not self.estimates:
            weights = patient_weights(self.table["patient"].to_numpy())
            figures = all_figures(self.table, self.maps, self.fitted)
            self.estimates = {name: estimate(one, weights) for name, one in figures.items()}


class Baselines:
    """The trivial maps, judged once for all runs on the same data."""

    def __init__(self) -> None:
        self._judged: dict[Any, tuple[Judged, Judged]] = {}

    def judge(self, data: RadiographDataModule, split: str) -> tuple[Judged, Judged]:
        """Of val and of the split."""
        key = (data.cache_folder, data.index_hash, tuple(data.lesion_rows), split)
        if key not in self._judged:
            self._judged[key] = _val_and_split(None, data, split, baselines(data))
        return self._judged[key]


def evaluate(
    opened: Run, split: str, methods: Sequence[MapMethod] = (), trivial: Baselines | None = None
) -> Evaluation:
    """Judge a run on test, val or left_out, with what val decides.

    ``methods`` explain the classifier beside its own maps, ``trivial`` maps stand beside them.
    """
    folder, data, module = opened.folder, opened.data, opened.module
    notes = [*_changes(opened, split), *opened.unfinished]
    if methods and not module.classifies:
        notes.append("trained on the lesion masks alone: there is no class for --peers to explain")
        methods = ()
    check_network(build_module(opened.config, data), opened.content, opened.checkpoint)
    if not len(data.rows_of(split)):
        raise RunError(
            f"{folder} left no image out. Fix: train with lesions.folds=5 lesions.fold=0"
        )
    about = {
        "run": str(folder),
        **opened.identity,
        "epochs": int(opened.config.trainer["max_epochs"]),
        "split": split,
        **{name: opened.trained_on[name] for name in TRAINED_ON},
        "judged_on": judged_on(data, split),
    }
    val, judged = _val_and_split(module, data, split, methods)
    if trivial:
        for one, more in zip((val, judged), trivial.judge(data, split), strict=True):
            one.beside(more)
    if leaks := data.pixels.leaks((data.table["split"] == "train").to_numpy()):
        notes.append(LEAKS % (leaks, "some named when the cache was built"))
    return assemble((folder, opened.results(split)), opened.config, about, val, judged, notes)


def assemble(
    places: tuple[Path, Path],
    config: Config,
    about: dict[str, Any],
    val: Judged,
    judged: Judged,
    notes: list[str],
) -> Evaluation:
    """The evaluation of a split by what val decides; ``places`` as Evaluation's folder, target."""
    thresholds = val.thresholds()
    return Evaluation(
        folder=places[0],
        target=places[1],
        config=config,
        about=about | ({"leaks": "split by image"} if config.data.split == "image" else {}),
        table=judged.whole_table(thresholds),
        maps=judged.maps,
        fitted=fit(val.table) if "probability" in val.table else None,
        thresholds=thresholds,
        scales=judged.scales,
        notes=notes + missing(val.table, judged.table, about["split"]),
    )


def missing(val: pd.DataFrame, table: pd.DataFrame, split: str) -> list[str]:
    """Notes on what is missing in the images, and what follows for the figures."""
    unmasked, val_unmasked = (images["lesion_area"].isna().all() for images in (table, val))
    few = val["lesion_area"].count()
    one_class = "probability" in table and table["label"].nunique() < 2
    notes = {
        "val is judged by its own decisions: results are optimistic": split == "val",
        f"no lesion mask in {split}: maps are not judged, their figures are null (lesions.path "
        "adds masks)": unmasked,
        "no map of a lesion in val: no threshold of a map can be tuned; IoU, Dice, area and what "
        "is shown are null": val_unmasked and not unmasked,
        f"val has {few} lesion masks: thresholds of maps, and what rests on them, are rough": (
            0 < few < FEW and not unmasked
        ),
        # Val and test always hold both; what was left out of training may not.
        f"{split} holds images of one class only: AUROC, kappa and a recall are null": one_class,
        f"{split} is of one patient: no figure has an interval": table["patient"].nunique() < 2,
    }
    return [note for note, holds in notes.items() if holds]


def _changes(opened: Run, split: str) -> list[str]:
    """Notes on what changed in the data since the training; DataError: it may not have."""
    data, trained_on = opened.data, opened.trained_on
    # Folds are dealt by the masks: there only the very same data leaves out the same images.
    if split == LEFT_OUT or not data.judges_as(trained_on):
        data.check_same_data(trained_on)
        return []
    labels = trained_on["index_hash"], trained_on["mask_hash"]
    notes = [CHANGED] if labels != (data.index_hash, data.mask_hash) else []
    return notes + ([REPLACED] if trained_on["image_hash"] != data.image_hash else [])


def _val_and_split(
    module: Stage1Classifier | None,
    data: RadiographDataModule,
    split: str,
    methods: Sequence[MapMethod],
) -> tuple[Judged, Judged]:
    val = judge(module, data, "val", methods, tuning=split != "val")
    return val, val if split == "val" else judge(module, data, split, methods, val.scales)
