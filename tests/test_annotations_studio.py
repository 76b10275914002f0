"""Label Studio: raters, answers, shapes that are not read, and names behind addresses."""

from __future__ import annotations

import numpy as np
import pytest

from tests import annotation_samples as samples
from tests.annotation_samples import HEIGHT, WIDTH, result
from tests.test_annotations import read


def task(*annotations, image="a.png"):
    return [{"id": 1, "data": {"image": image}, "annotations": annotations}]


def test_rectangles_turn_about_their_upper_left_corner(tmp_path):
    turned = task({"result": [result("rectangle", rotation=90, **samples.RECTANGLE)]})
    (image,) = read(tmp_path, "label-studio", turned).images
    expected = [(6, 4), (6, 8), (2, 8), (2, 4)]
    np.testing.assert_allclose(image.marks[0].outline, expected, atol=1e-9)


def test_raters_of_label_studio_are_numbers(tmp_path):
    (image,) = read(tmp_path, "label-studio").images
    assert [mark.rater for mark in image.marks] == ["rater 1"] * 4 + ["rater 2"]
    assert "somebody" not in repr(image)
    rows = samples.LABEL_STUDIO_MIN  # rows of one task belong together
    (image,) = read(tmp_path, "label-studio", [*rows, {**rows[0], "annotator": "b@x.org"}]).images
    assert [mark.rater for mark in image.marks] == ["rater 1"] * 4 + ["rater 2"] * 4


APART = {**result("rectangle", **samples.RECTANGLE), "type": "rectangle"}
APART["value"] = samples.RECTANGLE
LABELS = {**APART, "type": "labels", "value": {"labels": ["metal"]}}
LINK = {"from_id": "r1", "to_id": "r2", "type": "relation", "direction": "right"}
CHOICE = {"type": "choices", "value": {"choices": ["good"]}}
BITMASK = result("bitmask", "r9", imageDataURL="data:image/png;base64,")


@pytest.mark.parametrize(
    ("results", "labels", "what"),
    [
        ([APART, LABELS, CHOICE, LINK], [("metal",)], None),  # answers and links draw nothing
        ([BITMASK], [], "result 'r9': 'bitmask' is not read; draw it as polygon, ellipse, brush"),
        ([{"id": "r9", "type": "cube", "value": {}}], [], "'cube' is not read"),
        ([{"id": "r9", "type": "polygon", "value": 3}], [], "'polygon' is not read"),
    ],
)
def test_what_label_studio_draws_is_read_or_a_mistake(tmp_path, results, labels, what):
    ((image,), mistakes) = read(tmp_path, "label-studio", task({"result": results}))
    assert [mark.labels for mark in image.marks] == labels
    assert len(mistakes) == (what is not None)
    assert all(what in f"{one.where}: {one.what}" for one in mistakes)
    assert all(one.images == ("a.png",) for one in mistakes)


SIZE = {"original_width": WIDTH, "original_height": HEIGHT}


@pytest.mark.parametrize(
    ("drawn", "what"),
    [
        ({"x": 1, "y": 1, "width": 0.3, "keypointlabels": ["x"]}, "'keypoint' marks no area; outl"),
        ({**SIZE, "imageDataURL": "data:", "bitmasklabels": ["x"]}, "'bitmask' is not read"),
    ],
)
def test_json_min_names_no_type_but_what_is_drawn_is_told_apart(tmp_path, drawn, what):
    row = {"id": 1, "image": "a.png", "tag": [drawn], "history": [{"read": "twice"}]}
    ((image,), (mistake,)) = read(tmp_path, "label-studio", [row])
    assert image.marks == []
    assert what in mistake.what
    assert mistake.labels == ("x",) or "key" in what


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://example.org/x%20y/a.png?sign=%2F", "x y/a.png"),
        ("s3://bucket/hand/a.png", "hand/a.png"),
        ("/data/local-files/?d=hand%2Fp1%2Fa.png", "hand/p1/a.png"),
        ("/data/upload/3/0a1b2c3d-a.png", "0a1b2c3d-a.png"),
        ("http://localhost:8080/data/upload/3/0a1b2c3d-a.png", "0a1b2c3d-a.png"),
        ("C:\\films\\hand\\a.png", "films/hand/a.png"),
        ("../../etc/a.png", "etc/a.png"),
    ],
)
def test_names_of_images(tmp_path, address, name):
    data = {"note": "x", "film": address} if "local" in address else {"image": address}
    ((image,), mistakes) = read(tmp_path, "label-studio", [{"data": data, "annotations": []}])
    assert (image.name, mistakes) == (name, [])
