"""What a trained network says of a split: a row an image, and what is kept of each map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.evaluation.map_rows import MapRecorder, RecordedMaps, one_thread
from experiments.evaluation.methods import MapMethod, fit_scale, raw_map, shown_map

IDS = ["path", "patient", "study", "body_part", "label", "lesion_type", "hardware"]
Batch = dict[str, Tensor]


class Judged(NamedTuple):
    """A split as a network and some map methods see it.

    Attributes:
        table: A row an image: ids, ``lesion_area``, and of a network that classifies
            ``probability``, from stage 2 on ``masked_probability`` (under the mask of the training)
            and ``swapped_masked_probability`` (under the other class's map).
        maps: Of each method, in the order of the table.
        scales: Of each method that was asked for beside the network's own.
    """

    table: pd.DataFrame
    maps: dict[str, RecordedMaps]
    scales: dict[str, float]


def judge(
    module: Any,
    data: Any,
    split: str,
    methods: Sequence[MapMethod] = (),
    scales: Mapping[str, float] | None = None,
    tuning: bool = False,
) -> Judged:
    """Run the network over a split, each image once; maps are judged at the original size.

    Args:
        module: The network; None judges ``methods`` that need none.
        data: The data module, set up.
        split: Which of its images.
        methods: Map methods beside the network's own.
        scales: What becomes 1 in the maps of each of ``methods``, as val fitted it; None fits it on
            this very split, which is val then.
        tuning: The split only decides on thresholds, see :class:`map_rows.MapRecorder`.

    Raises:
        ValueError: A method broke its contract, see :class:`map_methods.MapMethod`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if module is not None:
        module = module.to(device).eval()
    names = [*own_methods(module), *(method.name for method in methods)]
    if len(set(names)) < len(names):
        raise ValueError(f"two map methods have one name: {', '.join(sorted(names))}")
    recorders = {name: MapRecorder(name, tuning) for name in names}
    # Raw maps of val, until their scale is known.
    kept: list[tuple[int, bool, dict[str, Tensor]]] = []
    seen: list[dict[str, Any]] = []
    for batch in _batches(data, split, device):
        outputs, own = _look(module, batch)
        drawn = {method.name: raw_map(method, module, batch["image"], batch) for method in methods}
        with one_thread():
            for place, number in enumerate(batch["index"].tolist()):
                mask = lesion_of(data, number) if batch["has_lesion"][place] else None
                row = {name: float(values[place]) for name, values in outputs.items()}
                seen.append({"row": number, "lesion_area": lesion_area(mask), **row})
                for name, maps in own.items():
                    recorders[name].add(_original(data, maps[place], number), mask)
                raw = {name: maps[place : place + 1].cpu() for name, maps in drawn.items()}
                if scales is None:
                    kept.append((number, mask is not None, raw))
                else:
                    _record(recorders, data, number, mask, raw, scales, batch["image"].shape[-2:])
    found = pd.DataFrame(seen).set_index("row")
    table = data.table.loc[found.index, IDS].join(found)
    if scales is None:
        peaks = {m.name: [float(raw[m.name].max()) for *_, raw in kept] for m in methods}
        scales = {name: fit_scale(values) for name, values in peaks.items()}
        with one_thread():
            for number, masked, raw in kept if methods else ():
                mask = lesion_of(data, number) if masked else None
                _record(recorders, data, number, mask, raw, scales, batch["image"].shape[-2:])
    return Judged(table, {name: r.finish() for name, r in recorders.items()}, dict(scales))


def lesion_of(data: Any, number: int) -> Tensor | None:
    """The lesion mask of an index row at the original size, bool ``(1, 1, H, W)``; None without."""
    mask = data.original_mask(number)
    return None if mask is None else torch.from_numpy(mask > 127)[None, None]


def lesion_area(lesion: Tensor | None) -> float:
    """The share of the image that the lesion covers; NaN without a mask."""
    return float("nan") if lesion is None else float(lesion.double().mean())


def own_methods(module: Any) -> tuple[str, ...]:
    """The maps that a network has of its own."""
    return () if module is None else tuple(module.judged_maps)


def classifies(module: Any) -> bool:
    """Whether anybody taught the network normal and abnormal."""
    return module is not None and module.classifies


def _look(module: Any, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Columns of the table, each ``(B,)``, and the network's own maps, ``(B, 1, S, S)``."""
    if module is None:
        return {}, {}
    with torch.inference_mode():
        probability, maps = module.explain(batch["image"])
        outputs: dict[str, Tensor] = {}
        if classifies(module):
            outputs["probability"] = probability
            if hasattr(module, "masked_logits"):
                for name in ("masked", "swapped_masked"):
                    scores = getattr(module, f"{name}_logits")(batch["image"], batch["label"])
                    outputs[f"{name}_probability"] = scores.softmax(1)[:, 1]
    return outputs, {name: maps[name] for name in own_methods(module)}


def _batches(data: Any, split: str, device: torch.device) -> Iterator[Batch]:
    loader = data.evaluation_dataloader(split)
    for batch in tqdm(loader, desc=f"{split} images", unit=" batches", leave=False, disable=None):
        on_device = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        yield data.on_after_batch_transfer(on_device, 0)


def _record(
    recorders: dict[str, MapRecorder],
    data: Any,
    number: int,
    mask: Tensor | None,
    raw: Mapping[str, Tensor],
    scales: Mapping[str, float],
    size: torch.Size,
) -> None:
    for name, values in raw.items():
        shown = shown_map(values, scales[name], size)[0]
        recorders[name].add(_original(data, shown, number), mask)


def _original(data: Any, square: Tensor, number: int) -> Tensor:
    """A map ``(1, S, S)`` at the original size, ``(1, 1, H, W)`` on the CPU."""
    full = data.to_original(square[0].cpu().numpy(), number)
    # Interpolation may round a 1 up.
    return torch.from_numpy(full)[None, None].clamp(0, 1)
