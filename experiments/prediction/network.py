"""A trained network with all that new images need, from its run directory alone.

The data set need not be there. What val decided (thresholds, temperature) is read from what
``experiments.evaluate`` wrote of this very checkpoint; where it never judged it, val is judged
now if its images are still in the cache, else 0.5 stands in, and a note says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from datamodules import SOURCES, DataError, cache
from datamodules.cache import Recipe
from datamodules.geometry import Geometry
from datamodules.radiographs import to_model_input
from experiments.build import build_data
from experiments.config import Config, ConfigError, load_config
from experiments.evaluation.figures import Fitted
from experiments.evaluation.run import EVEN, REPLACED, evaluate
from experiments.evaluation.store import plain, summarise, write
from experiments.runs import RunError, file_hash, find_checkpoint, load_module
from lightning_modules import Stage1Classifier

CLASSES = ("normal", "abnormal")


@dataclass(frozen=True)
class Trained:
    """A network and what it takes to use it.

    Attributes:
        folder: The run directory.
        checkpoint: The file of the weights.
        config: As it was trained.
        module: The network: float32, evaluation mode, channels_last, on the GPU if there is one.
        stage: stage1, stage2 or stage3.
        data: Name of the data set it was trained on.
        classes: What class 0 and class 1 are.
        recipe: What turns an upright uint8 image into the network's square.
        map_methods: Its own maps that training taught something, such as ("cam", "pcam").
        best_map: The one to look at: ``fcn`` where there is one, else ``pcam``.
        map_scales: What became 1 in each map, in units of the raw map.
        fitted: What val decided on classification; None for a network that does not classify.
        map_thresholds: Of each map, from val's lesion masks; 0.5 where val could not tell.
        undecided_maps: Those whose threshold val could not tell, having no lesion mask.
        decided_by: Where the other thresholds come from, a phrase for people.
        notes: What a reader must know before believing a decision, a sentence each.
        identity: What an evaluation of this very checkpoint says of it.
        hashes: ``checkpoint`` (SHA-256 of the file), ``index`` and ``masks`` of the training data.
    """

    folder: Path
    checkpoint: Path
    config: Config
    module: Stage1Classifier
    stage: str
    data: str
    classes: tuple[str, str]
    recipe: Recipe
    map_methods: tuple[str, ...]
    best_map: str
    map_scales: dict[str, float]
    fitted: Fitted | None
    map_thresholds: dict[str, float]
    undecided_maps: tuple[str, ...]
    decided_by: str
    notes: tuple[str, ...]
    identity: dict[str, str | int]
    hashes: dict[str, str]

    def to_square(self, image: np.ndarray) -> tuple[np.ndarray, Geometry]:
        """An upright uint8 image ``(H, W)`` as the network sees it, and how it came there.

        The very function that fills the cache of a training: crop, scale, letterbox, contrast.
        """
        return self.recipe.apply(image)

    def explain(self, squares: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What the network says of a batch, from the unmasked pass.

        A short batch is filled up with black: how the arithmetic is cut depends on the number of
        images, and the last digits of an answer must not depend on what else is asked.

        Args:
            squares: uint8 ``(B, S, S)`` of :meth:`to_square`.

        Returns:
            Probability of abnormal ``(B,)`` (meaningless where ``fitted`` is None), and each of
            ``map_methods`` as ``(B, S, S)`` in [0, 1]; all float32.
        """
        count, missing = len(squares), max(0, self.config.data.batch_size - len(squares))
        image = torch.from_numpy(np.pad(squares, ((0, missing), (0, 0), (0, 0))))[:, None]
        with torch.inference_mode():
            probability, maps = self.module.explain(to_model_input(image.to(self.module.device)))
        return (
            _array(probability[:count]),
            {name: _array(maps[name][:count, 0]) for name in self.map_methods},
        )


def load_trained(run: Path, judge_val: bool = True) -> Trained:
    """Load the best network of a run directory, or that of a checkpoint in one.

    Args:
        run: Run directory or checkpoint.
        judge_val: Whether val may be judged now where nobody has; what is found is kept in the run
            directory, where that can be written.

    Raises:
        RunError: There is no run or checkpoint, or it is damaged or of another version.
        ConfigError: The run's ``config.yaml`` cannot be understood.
    """
    folder, checkpoint = find_checkpoint(run)
    config = load_config(str(folder / "config.yaml"), [])
    loaded, content = load_module(config.stage, checkpoint)
    source = SOURCES.get(config.data.name)
    if source is None or source.__qualname__ not in content:
        raise RunError(
            f"{checkpoint} was not trained on data.name={config.data.name}, as "
            f"{folder / 'config.yaml'} says: one of them is another run's; put this run's own back"
        )
    trained_on = content[source.__qualname__]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = cast(Stage1Classifier, loaded.to(device).eval())
    hashes = {"checkpoint": file_hash(checkpoint), "index": str(trained_on["index_hash"])}
    if "mask_hash" in trained_on:  # checkpoints of before the masks were hashed know nothing
        hashes["masks"] = str(trained_on["mask_hash"])
    identity: dict[str, str | int] = {
        "stage": config.stage,
        "data": config.data.name,
        "seed": config.seed,
        "checkpoint": checkpoint.name,
        "epoch": int(content["epoch"]) + 1,
        "checkpoint_hash": hashes["checkpoint"],
    }
    summary, decided_by, notes = _decisions(run, folder, checkpoint, config, identity, judge_val)
    decided = summary.get("fitted", {})
    notes += tuple(note for note in summary.get("notes", []) if note == REPLACED)
    methods = tuple(module.judged_maps)
    known = {name: decided.get("maps", {}).get(name, {}).get("threshold") for name in methods}
    undecided = tuple(name for name in methods if known[name] is None)
    if undecided and decided:
        notes += (
            f"NO MAP THRESHOLD: val holds no lesion mask; 0.5 stands in for {', '.join(undecided)}",
        )
    return Trained(
        folder=folder,
        checkpoint=checkpoint,
        config=config,
        module=module,
        stage=config.stage,
        data=config.data.name,
        classes=CLASSES,
        recipe=Recipe(
            config.data.image_size or source.default_image_size,
            config.data.crop or source.default_crop,
            config.data.contrast or source.default_contrast,
        ),
        map_methods=methods,
        best_map="fcn" if "fcn" in methods else "pcam",
        map_scales=dict(zip(module.map_methods, module.map_scale.tolist(), strict=True)),
        fitted=_fitted(decided) if module.classifies else None,
        map_thresholds={
            name: EVEN if known[name] is None else float(known[name]) for name in methods
        },
        undecided_maps=undecided,
        decided_by=decided_by,
        notes=notes,
        identity=identity,
        hashes=hashes,
    )


def read_summary(trained: Trained, split: str) -> dict[str, Any] | None:
    """The ``summary.json`` of an evaluation of this very checkpoint; None where there is none."""
    path = _summary_path(trained.folder, trained.checkpoint, split)
    return _summary(path, trained.identity)


def _decisions(
    run: Path,
    folder: Path,
    checkpoint: Path,
    config: Config,
    identity: Mapping[str, str | int],
    judge_val: bool,
) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """The summary that says what val decided, where that is known from, and notes."""
    for split in ("val", "test", "left_out"):
        path = _summary_path(folder, checkpoint, split)
        summary = _summary(path, identity)
        if summary is not None and isinstance(summary.get("fitted"), dict):
            return summary, f"val, as {path} says", ()
    why = "this checkpoint has not been judged"
    if judge_val:
        try:
            data = build_data(config)
            if data.root.is_dir() and cache.is_whole(data.cache_folder):
                found = evaluate(run, "val", [], trivial=False)
                try:
                    write(found)
                except RunError:  # a read-only run: val is judged again next time
                    return plain(summarise(found)), "val, judged just now", ()
                return plain(summarise(found)), f"val, judged now: {found.target}", ()
            why += ", and there is no cache of its val images here"
        except (ConfigError, DataError, RunError) as error:
            why += f", and on val it cannot be ({str(error).splitlines()[0]})"
    note = (
        f"NO THRESHOLD: {why}; 0.5 stands in for all thresholds. Where its data is: python -m "
        f"experiments.evaluate {run} --split val"
    )
    return {}, "nobody: 0.5 stands in", (note,)


def _summary_path(folder: Path, checkpoint: Path, split: str) -> Path:
    name = split if checkpoint.stem == "best" else f"{split}-{checkpoint.stem}"
    return folder / "evaluation" / name / "summary.json"


def _summary(path: Path, identity: Mapping[str, str | int]) -> dict[str, Any] | None:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        # Evaluations of before the file was hashed are known by what else they say of it.
        said = {"checkpoint_hash": identity["checkpoint_hash"], **summary}
        return summary if all(said[name] == value for name, value in identity.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fitted(decided: Mapping[str, Any]) -> Fitted:
    return Fitted(
        threshold=float(decided.get("threshold", EVEN)),
        study_threshold=float(decided.get("study_threshold", EVEN)),
        temperature=float(decided.get("temperature", 1.0)),
    )


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
