"""COCO files: what is drawn, and every mistake by its annotation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as rle

from datamodules.annotations.coco import read_coco
from datamodules.index import DataError
from tests.test_lesions import HEIGHT, WIDTH, square

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def coco(tmp_path, *segmentations, size=(HEIGHT, WIDTH), **image):
    content = {
        "images": [{"id": 0, "file_name": "a.png", "height": size[0], "width": size[1], **image}],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": 0, "segmentation": segmentation}
            for number, segmentation in enumerate(segmentations)
        ],
        "categories": [{"id": 0, "name": "fractured"}],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    return path


def test_polygons_and_both_run_length_encodings_draw_the_same(tmp_path):
    expected = square(4, 6, 5)
    encoded = rle.encode(np.asfortranarray(expected // 255))
    columns = expected.T.ravel() // 255
    runs = [len(run) for run in np.split(columns, np.flatnonzero(np.diff(columns)) + 1)]
    for segmentation in (
        [[6, 4, 10, 4, 10, 8, 6, 8]],
        {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()},
        {"size": [HEIGHT, WIDTH], "counts": runs},
    ):
        (image,) = read_coco(coco(tmp_path, segmentation))
        assert image.categories == ["fractured"]
        np.testing.assert_array_equal(image.mask(), expected)


def test_regions_of_an_image_add_up_and_are_clipped(tmp_path):
    (image,) = read_coco(
        coco(tmp_path, [[1, 1, 3, 1, 3, 3, 1, 3]], [[28, 18, 90, 18, 90, 90, 28, 90]])
    )
    expected = square(1, 1, 3)
    expected[18:, 28:] = 255
    np.testing.assert_array_equal(image.mask(), expected)


def test_a_hairline_is_not_lost(tmp_path):
    (image,) = read_coco(coco(tmp_path, [[5.1, 5.1, 15.1, 5.2, 15.1, 5.3]]))
    assert image.mask().any()


def test_images_without_annotation_are_left_out(tmp_path):
    assert read_coco(coco(tmp_path)) == []


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 2, 2]], r"annotation 0 on a\.png: a polygon is x, y"),
        ([[1, 1, 2, 2, 3, 3, 4]], r"a polygon is x, y"),
        ([[1, 1, 2, 2, 3, None]], r"is no number"),
        ([[1, 1, 2, 2, 3, float("nan")]], r"is no number"),
        ([[1, 1, 2, 2, 3, 1e300]], r"far outside the image"),
        ([[50, 50, 60, 50, 60, 60]], r"nothing is marked on a\.png"),
        ([], r"has no segmentation .a box alone"),
        (None, r"has no segmentation"),
        ({"size": [WIDTH, HEIGHT], "counts": [600]}, r"RLE is of size \[30, 20\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 5]}, r"RLE covers 15 pixels, the image has 600"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, -5]}, r"RLE counts cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": "0O"}, r"RLE (covers|counts cannot be read)"),
        ({"size": [HEIGHT, WIDTH], "counts": "ééé"}, r"RLE counts cannot be read"),
        ({"size": [HEIGHT, WIDTH]}, r"RLE counts cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": [600]}, r"nothing is marked"),
        ({"size": [HEIGHT, WIDTH], "counts": [0, 600]}, r"the whole of a\.png is marked; outline"),
    ],
)
def test_a_wrong_segmentation_is_named(tmp_path, segmentation, message):
    (image,) = read_coco(coco(tmp_path, segmentation))
    with pytest.raises(DataError, match=message):
        image.mask()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "lacks the list 'images'"),
        ('{"images": []}', "lacks the list 'annotations'"),
        ('{"images": [], "annotations": [1]}', "annotation number 0 lacks 'image_id'"),
        ('{"images": [], "annotations": [{"image_id": [1]}]}', "has the image_id"),
        ('{"images": [], "annotations": [{"id": 7, "image_id": 3}]}', "annotation 7 is of image 3"),
        ('{"images": [{"id": 3}], "annotations": [{"image_id": 3}]}', "lacks 'file_name'"),
    ],
)
def test_a_file_that_is_no_coco_is_refused(tmp_path, content, message):
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path / "coco.json")


@pytest.mark.parametrize("size", [(0, 5), (-1, 5), (1 << 20, 1 << 20), ("3", 5)])
def test_an_impossible_size_is_refused(tmp_path, size):
    with pytest.raises(DataError, match=r"a\.png has the size"):
        read_coco(coco(tmp_path, [[1, 1, 2, 2, 3, 3]], size=size))


def test_a_missing_coco_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"coco\.json is missing"):
        read_coco(tmp_path / "coco.json")


def test_two_files_of_one_id_are_named(tmp_path):
    path = coco(tmp_path, [[1, 1, 2, 2, 3, 3]])
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "file_name": "b.png"})
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"coco\.json: a\.png and b\.png share the id 0"):
        read_coco(path)
