"""What is said of a trained network on a split: a row an image, and the figures."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from tqdm import tqdm

from lightning_modules.attention import peak
from lightning_modules.metrics import Agreement, HitRate, PixelAveragePrecision
from lightning_modules.metrics.localisation import hit

# Equal steps of a map in [0, 1] when pixels are ranked: as fine as a 16-bit image.
MAP_LEVELS = 2**16


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
        for batch in tqdm(
            loader, desc=f"{split} images", unit=" batches", leave=False, disable=None
        ):
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
