"""A trained network with all that new images need, from its run directory alone.

The data set need not be there. What val decided (thresholds, temperature) is read from what
``experiments.evaluate`` wrote of this very checkpoint; where it never judged it, val is judged
now if its images are still in the cache, else 0.5 stands in, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules import SOURCES, DataError, cache
from datamodules.cache import Recipe
from datamodules.geometry import Geometry
from datamodules.radiographs import to_model_input
from experiments.build import Run, build_data, open_run
from experiments.config import Config, ConfigError
from experiments.evaluation.figures import EVEN, Fitted
from experiments.evaluation.run import REPLACED, evaluate
from experiments.evaluation.store import plain, summarise, write
from experiments.runs import RunError
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
        run: The run itself, whose summaries are of this very checkpoint.
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
    run: Run
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
    opened = open_run(run)
    folder, checkpoint, config = opened.folder, opened.checkpoint, opened.config
    source, module, trained_on = SOURCES[config.data.name], opened.module, opened.trained_on
    hashes = {
        "checkpoint": str(opened.identity["checkpoint_hash"]),
        "index": str(trained_on["index_hash"]),
        "masks": str(trained_on["mask_hash"]),
    }
    summary, decided_by, notes = _decisions(opened, run, judge_val)
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
        run=opened,
        hashes=hashes,
    )


def _decisions(
    opened: Run, run: Path, judge_val: bool
) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """The summary that says what val decided, where that is known from, and notes."""
    if known := opened.decisions():
        return known[0], f"val, as {known[1]} says", ()
    why = "this checkpoint has not been judged"
    if judge_val:
        try:
            data = build_data(opened.config)
            if data.root.is_dir() and cache.is_whole(data.cache_folder):
                found = evaluate(run, "val")
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


def _fitted(decided: Mapping[str, Any]) -> Fitted:
    return Fitted(
        threshold=float(decided.get("threshold", EVEN)),
        study_threshold=float(decided.get("study_threshold", EVEN)),
        temperature=float(decided.get("temperature", 1.0)),
    )


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
