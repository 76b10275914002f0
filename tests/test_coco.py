"""COCO files: what is drawn, and every mistake by its annotation."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from pycocotools import mask as rle

from datamodules.annotations.coco import read_coco
from datamodules.annotations.marks import draw
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


def drawn(path):
    """The mask of the only image of a file, which holds no mistake."""
    ((image,), mistakes) = read_coco(path)
    assert mistakes == []
    return draw(image.marks, *image.size)


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
        path = coco(tmp_path, segmentation)
        assert [mark.labels for mark in read_coco(path).images[0].marks] == [("fractured",)]
        np.testing.assert_array_equal(drawn(path), expected)


def test_regions_of_an_image_add_up_and_are_clipped(tmp_path):
    expected = square(1, 1, 3)
    expected[18:, 28:] = 255
    path = coco(tmp_path, [[1, 1, 3, 1, 3, 3, 1, 3]], [[28, 18, 90, 18, 90, 90, 28, 90]])
    np.testing.assert_array_equal(drawn(path), expected)


def test_a_hairline_is_not_lost(tmp_path):
    assert drawn(coco(tmp_path, [[5.1, 5.1, 15.1, 5.2, 15.1, 5.3]])).any()


def test_a_polygon_of_several_parts_is_one_annotation(tmp_path):
    (image,) = read_coco(coco(tmp_path, [[1, 1, 3, 1, 3, 3], [5, 5, 9, 5, 9, 9]])).images
    assert [mark.entry for mark in image.marks] == ["annotation 0", "annotation 0"]


def test_a_box_alone_is_a_weak_mark(tmp_path):
    path = coco(tmp_path, [])
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [6, 4, 4, 4]
    path.write_text(json.dumps(content))
    assert read_coco(path).images[0].marks[0].is_box
    np.testing.assert_array_equal(drawn(path), square(4, 6, 5))


def test_images_without_annotation_are_listed(tmp_path):
    ((image,), mistakes) = read_coco(coco(tmp_path))
    assert (image.name, image.size, image.marks, mistakes) == ("a.png", (HEIGHT, WIDTH), [], [])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 2, 2]], r"annotation 0 on a\.png: a polygon is x, y"),
        ([[1, 1, 2, 2, 3, 3, 4]], r"a polygon is x, y"),
        ([[1, 1, 2, 2, 3, None]], r"y is None, no number"),
        ([[1, 1, 2, 2, 3, True]], r"y is True, no number"),
        ([[1, 1, 2, 2, 3, float("nan")]], r"y is nan, far outside the image"),
        ([[1, 1, 2, 2, 3, 1e300]], r"far outside the image"),
        ([[1, 1, 2, 2, 3, 10**400]], r"no number"),
        ([[1, 1, 2, 2, 3, 3]], r"all its points lie on one line"),
        ([], r"has no segmentation and no box"),
        (None, r"has no segmentation"),
        ({"size": [WIDTH, HEIGHT], "counts": [600]}, r"RLE is of size \[30, 20\], the image of"),
        ({"size": [1 << 20, 1 << 20], "counts": [600]}, r"has the size 1048576 x"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 5]}, r"RLE covers 15 pixels, it has 600"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, -5]}, r"RLE counts cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": [1 << 70]}, r"RLE covers 11805\d+ pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": "0O"}, r"RLE (covers|counts cannot be read)"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 99}, r"RLE counts cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": "ééé"}, r"RLE counts cannot be read"),
        ({"size": [HEIGHT, WIDTH]}, r"RLE counts cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": [600]}, r"nothing is marked"),
    ],
)
def test_a_wrong_segmentation_is_named_and_the_others_are_read(tmp_path, segmentation, message):
    right = [[6, 4, 10, 4, 10, 8, 6, 8]]
    ((image,), mistakes) = read_coco(coco(tmp_path, segmentation, right))
    assert [mark.entry for mark in image.marks] == ["annotation 1"]
    ((where, what, *_),) = mistakes
    assert re.search(message, f"{where}: {what}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("[" * 100_000, "no JSON .nested too deeply"),
        ("1" * 5000, "no JSON"),
        ("[]", "lacks the list 'images'"),
        ('{"images": []}', "lacks the list 'annotations'"),
    ],
)
def test_a_file_that_is_no_coco_is_refused(tmp_path, content, message):
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path / "coco.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [], "annotations": [1]}', "annotation number 0: lacks 'image_id'"),
        ('{"images": [], "annotations": [{"image_id": [1]}]}', "has the image_id .1.; export"),
        (
            '{"images": [], "annotations": [{"id": 7, "image_id": 3}]}',
            "annotation 7: is of image 3",
        ),
        ('{"images": [{"id": 3}], "annotations": [{"image_id": 3}]}', "lacks 'file_name'"),
        ('{"images": [{"id": [3]}], "annotations": []}', "image number 0: has the id .3."),
    ],
)
def test_a_wrong_entry_is_listed_once(tmp_path, content, message):
    (tmp_path / "coco.json").write_text(content)
    images, ((where, what, *_),) = read_coco(tmp_path / "coco.json")
    assert images == []
    assert re.search(message, f"{where}: {what}")


@pytest.mark.parametrize("size", [(0, 5), (-1, 5), (1 << 20, 1 << 20), ("x", 5), (2.5, 5)])
def test_an_impossible_size_is_a_mistake(tmp_path, size):
    images, ((where, what, *_),) = read_coco(coco(tmp_path, [[1, 1, 2, 2, 3, 3]], size=size))
    assert images == []
    assert where.endswith("image number 0")
    assert what == f"has the size {size[1]!r} x {size[0]!r}; export it again"


def test_a_missing_coco_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"coco\.json is missing"):
        read_coco(tmp_path / "coco.json")


def test_two_files_of_one_id_are_named(tmp_path):
    path = coco(tmp_path, [[1, 1, 2, 2, 3, 4]])
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "file_name": "b.png"})
    path.write_text(json.dumps(content))
    images, (mistake,) = read_coco(path)
    assert images == []
    assert "a.png and b.png share the id 0" in mistake.what
