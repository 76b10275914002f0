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
    """Write ``count`` lesions of all splits as COCO run-length encoding, and say so.

    They are drawn by ``data.seed``, one image a patient before any patient's second, body parts in
    turn. Folders are flattened as tools do it: ``/`` becomes ``_``.

    Raises:
        DataError: The data set has no lesion masks, the count is none, or the file cannot be
            written.
    """
    if count < 1:
        raise DataError(f"--example {count}: one or more lesions are needed")
    data = build_data(config)
    data.prepare_source()
    table = data.checked_index()
    rows = choose_lesions(table.assign(split="train"), count, config.data.seed)
    if not len(rows):
        raise DataError(
            f"data.name={config.data.name} has no lesion masks of its own; try the phantom: "
            "data.name=phantom"
        )
    chosen = table.iloc[rows]
    types = sorted(set(chosen["lesion_type"].tolist()))
    images, annotations = [], []
    columns = (chosen[name].tolist() for name in ("path", "lesion_mask", "lesion_type"))
    for number, (path, file, kind) in enumerate(zip(*columns, strict=True), 1):
        mask = decode(Path(file))
        height, width = mask.shape
        name = path.replace("/", "_")
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": types.index(kind) + 1,
                "segmentation": {
                    "size": [height, width],
                    "counts": encode(mask)["counts"].decode("ascii"),
                },
                "iscrowd": 1,  # COCO's word for a mask in runs
            }
        )
    categories = [{"id": number, "name": name or "lesion"} for number, name in enumerate(types, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    try:
        with out.open("x", encoding="utf-8") as file:
            json.dump(content, file)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror}); choose another --out"
        ) from error
    return f"{len(rows)} lesions of {chosen['patient'].nunique()} patients in {out}"
