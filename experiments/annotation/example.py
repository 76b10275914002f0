"""An annotation file to try an import with: a data set's own lesions, as a tool exports them."""

from __future__ import annotations

import json
from pathlib import Path

from datamodules.annotations.marks import encode
from datamodules.decode import decode
from datamodules.index import DataError
from datamodules.lesions import choose_lesions
from experiments.build import build_data
from experiments.config import Config


def write_example(config: Config, count: int, out: Path) -> str:
    """Write ``count`` lesions of all splits as COCO run-length encoding; return a line about it.

    They are drawn by ``data.seed``, one image a patient before any patient's second, body parts in
    turn. Folders are flattened as tools do it: ``/`` becomes ``_``.
    """
    if count < 1:
        raise DataError(f"--example {count}: one or more lesions are needed")
    data = build_data(config)
    data.prepare_source()
    table = data.checked_index()
    chosen = table.iloc[choose_lesions(table.assign(split="train"), count, config.data.seed)]
    if not len(chosen):
        raise DataError(
            f"data.name={config.data.name} has no lesion masks of its own; try the phantom: "
            "data.name=phantom"
        )
    types = sorted(set(chosen["lesion_type"]))
    images, annotations = [], []
    for number, row in enumerate(chosen.itertuples(), 1):
        runs = encode(decode(Path(row.lesion_mask)))
        height, width = runs["size"]
        name = row.path.replace("/", "_")
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": types.index(row.lesion_type) + 1,
                "segmentation": {**runs, "counts": runs["counts"].decode("ascii")},
                "iscrowd": 1,  # COCO's word for a mask in runs
            }
        )
    categories = [{"id": number, "name": name or "lesion"} for number, name in enumerate(types, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with out.open("x", encoding="utf-8") as file:  # command.answered names what forbids it
        json.dump(content, file)
    return f"{len(chosen)} lesions of {chosen['patient'].nunique()} patients in {out}"
