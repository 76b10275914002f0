"""The same real lesions, imported four ways: masks and boxes agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments import import_lesions
from tests.real import real_data

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SOURCES = {
    "masks": "masks",
    "coco": "Annotations/COCO JSON/COCO_fracture_masks.json",
    "via": "Annotations/VGG JSON/VGG_fracture_masks.json",
    "voc": "Annotations/PASCAL VOC",
    "yolo": "Annotations/YOLO",
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The lesion folder of each format."""
    root, folder = real_data("fracatlas_fixture"), tmp_path_factory.mktemp("imported")
    for name, source in SOURCES.items():
        words = [str(root / source), "--out", str(folder / name)]
        words += ["data.name=fracatlas", f"data.root={root}"]
        assert import_lesions.main(words) == 0, name
    return folder


def masks_of(folder):
    rows = pd.read_csv(folder / "lesions.csv")
    return {
        image: np.array(Image.open(folder / mask))
        for image, mask in zip(rows["image"], rows["mask"], strict=True)
    }


def test_masks_and_outlines_agree_to_the_pixel(imported):
    masks = masks_of(imported / "masks")
    assert len(masks) == 35
    for name in ("coco", "via"):
        found = masks_of(imported / name)
        assert found.keys() == masks.keys()
        for image, mask in masks.items():
            np.testing.assert_array_equal(found[image], mask, f"{name}: {image}")


def test_boxes_agree_to_a_pixel_and_are_weak(imported):
    outlines, voc, yolo = (masks_of(imported / name) for name in ("coco", "voc", "yolo"))
    assert outlines.keys() == voc.keys() == yolo.keys()
    for image, mask in outlines.items():
        for found in (voc[image], yolo[image]):
            assert _ends(found) == pytest.approx(_ends(mask), abs=1.01), image
    for name in SOURCES:
        weak = pd.read_csv(imported / name / "import.csv")["weak"]
        assert set(weak) == {int(name in ("voc", "yolo"))}


def _ends(mask):
    rows, columns = np.nonzero(mask)
    return [rows.min(), rows.max(), columns.min(), columns.max()]
