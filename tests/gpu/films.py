"""``python tests/gpu/films.py FOLDER KEY=VALUE ...``: films as a network sees them, to travel.

JPEG squares of ``data.image_size``, PNG masks and a ``table.csv`` for ``DATA=table``.
"""

import sys
from itertools import chain
from pathlib import Path

import cv2
import pandas as pd

from experiments.build import build_data
from experiments.config import load_config


def write(folder, words):
    (folder / "masks").mkdir(parents=True)
    config = load_config("experiments/fractures.yaml", [*words, "lesions.count=1000000"])
    rows, data = [], build_data(config)
    data.prepare_data()
    data.setup()
    for batch in chain(*map(data.evaluation_dataloader, ("train", "val", "test"))):
        batch = {name: values.numpy() for name, values in batch.items()}
        for place, row in enumerate(batch["index"]):
            old, masked = data.table.loc[row], batch["has_lesion"][place]
            name = old["path"].rpartition(".")[0].replace("/", "_")
            new = {"path": f"{name}.jpg", "mask": f"masks/{name}.png" if masked else ""}
            cv2.imwrite(str(folder / new["path"]), batch["image"][place, 0], [1, 90])  # its quality
            if masked:
                lesion = batch["lesion_mask"][place, 0] >= 0.5
                cv2.imwrite(str(folder / new["mask"]), 255 * lesion.astype("uint8"))
            rows.append({**old, **new})
    pd.DataFrame(rows).drop(columns="lesion_mask").to_csv(folder / "table.csv", index=False)


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2:])
