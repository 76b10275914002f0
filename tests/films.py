"""Radiographs of ten made-up patients, as a table and as two folders."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from datamodules.options import Data
from datamodules.table import TableDataModule
from tests.archives import HEIGHT, WIDTH, picture

HEADER = "path,label,patient,mask,study,body_part,split,lesion_type,hardware"
SPLITS = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[20:30, 10:20] = 255


@pytest.fixture
def films(tmp_path):
    """Ten patients with a normal and an abnormal image each, and the CSV's text."""
    lines = [HEADER]
    for number in range(20):
        patient, label = divmod(number, 2)
        path, mask = f"p{patient}/{number}.png", f"masks/{number}.png" * label
        write_png(tmp_path / "films" / path, picture(number))
        if mask:
            write_png(tmp_path / "films" / mask, MASK)
        lines.append(f"{path},{label},Doe{patient},{mask},,hand,{SPLITS[patient]},,")
    (tmp_path / "films" / "table.csv").write_text("\n".join(lines))
    return tmp_path / "films"


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def change(root, old, new):
    text = (root / "table.csv").read_text()
    assert old in text
    (root / "table.csv").write_text(text.replace(old, new))


def module(root, lesions=None, augmentation=None, **options):
    options = {
        "cache_dir": str(root.parent / "cache"),
        "image_size": 32,
        "num_workers": 0,
    } | options
    return TableDataModule(Data("table", str(root), **options), lesions, augmentation)


def opened(data):
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def folders(films):
    """The same images in folders: normal/p0/0.png, abnormal/p0/1.png, masks/p0/1.png."""
    (films / "table.csv").unlink()
    for path in sorted(films.glob("p*/*.png")):
        number, within = int(path.stem), path.relative_to(films)
        to = films / ("normal", "abnormal")[number % 2] / within
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
        if number % 2 and number < 18:
            mask = films / "masks" / within
            mask.parent.mkdir(exist_ok=True)
            (films / "masks" / path.name).rename(mask)
    for unused in (films / "masks").glob("*.png"):
        unused.unlink()
    (films / "normal" / ".DS_Store").write_text("no image")
    return films
