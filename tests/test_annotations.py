"""What is drawn in one format is drawn in all, and a wrong entry stops no other."""

from __future__ import annotations

import base64
import json
import random
import re
from contextlib import suppress

import numpy as np
import pytest
from pycocotools import mask as rle

from datamodules.annotations.marks import Mark, draw
from datamodules.annotations.recognition import READERS, recognise
from datamodules.index import DataError
from tests import annotation_samples as samples
from tests.annotation_samples import FILES, HEIGHT, SQUARE, WIDTH, png, result, runs, square

NO_SIZE = ("via", "via project", "via csv", "yolo")


def read(tmp_path, kind, content=None):
    """The marking of a file; of YOLO's that of its folder."""
    reader = kind.partition(" ")[0]
    name, sample = FILES[kind]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    text = sample if content is None else content
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return READERS[reader](tmp_path if kind == "yolo" else path)


def pixels(marks, in_shares=False):
    if in_shares:
        scaled = [np.round(np.array(mark.outline) * [WIDTH, HEIGHT], 6) for mark in marks]
        marks = [Mark("", tuple(map(tuple, outline))) for outline in scaled]
    return draw(marks, HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", FILES)
def test_the_square_is_drawn_to_the_pixel(tmp_path, kind):
    ((image,), mistakes) = read(tmp_path, kind)
    assert mistakes == []
    assert image.name == ("hand/a" if kind == "yolo" else "hand/a.png")
    assert image.size == (None if kind in NO_SIZE else (20, 30))
    assert image.in_shares == (kind == "yolo")
    labels = {label for mark in image.marks for label in mark.labels}
    assert labels == {"0" if kind == "yolo" else "fracture"}
    assert sum(mark.is_box for mark in image.marks) == 1
    # Polygons, masks and boxes each are the square, ellipses and triangles lie within it.
    np.testing.assert_array_equal(pixels(image.marks, image.in_shares), square())
    for mark in image.marks:
        drawn = pixels([mark], image.in_shares)
        if len(mark.outline) in (0, 4) and mark.outline[-1:] != mark.outline[:1]:
            np.testing.assert_array_equal(drawn, square())
        assert drawn.any()
        assert not (drawn & ~square()).any()
    for source in (tmp_path / FILES[kind][0], tmp_path):
        assert recognise(source) == kind.partition(" ")[0]


def test_shapes_turn_about_their_own_points(tmp_path):
    for kind in ("cvat", "via"):  # half axes 1.5 across and 1 down, a quarter turn on
        (image,) = read(tmp_path, kind).images
        outline = [mark.outline for mark in image.marks if len(mark.outline) > 99][-1]
        assert np.ptp(np.array(outline), axis=0) == pytest.approx([2, 3], abs=1e-3)
    content = studio(result("rectangle", rotation=90, **samples.RECTANGLE))
    (image,) = read(tmp_path, *content).images  # about its upper left corner
    expected = [(6, 4), (6, 8), (2, 8), (2, 4)]
    np.testing.assert_allclose(image.marks[0].outline, expected, atol=1e-9)


def test_all_encodings_of_coco_draw_the_same_and_regions_add_up(tmp_path):
    encoded = rle.encode(np.asfortranarray(square() // 255))["counts"].decode()
    plain = runs(square().T)
    for segmentation in (SQUARE, *({"size": [20, 30], "counts": c} for c in (encoded, plain))):
        (image,) = read(tmp_path, *coco(segmentation)).images
        np.testing.assert_array_equal(pixels(image.marks), square())
    (image,) = read(tmp_path, *coco([*SQUARE, [28, 18, 90, 18, 90, 90, 28, 90]])).images
    assert [mark.entry for mark in image.marks] == ["annotation 0", "annotation 0"]
    clipped = square()
    clipped[18:, 28:] = 255  # what lies outside is cut off
    np.testing.assert_array_equal(pixels(image.marks), clipped)


def coco(*segmentations):
    about = {"image_id": 1, "category_id": 0}
    entries = [{"id": n, **about, "segmentation": one} for n, one in enumerate(segmentations)]
    return "coco", {**samples.COCO, "annotations": entries}


def studio(*results, **task):
    task = {"id": 1, "data": {"image": "hand/a.png"}, "annotations": [{"result": results}], **task}
    return "label-studio", [task]


LINE = samples.YOLO.splitlines()[0]
OTHER_MASK = base64.b64encode(png(square())).decode()


@pytest.mark.parametrize(
    ("kind", "old", "new", "what"),
    [
        ("labelme", '"polygon"', '"point"', "shape number 0: 'point' marks no area; outline"),
        ("labelme", "[10, 8], [6, 8]]", "[8, 4], [6, 4]]", "all its points lie on one line"),
        ("labelme", "[6, 8]]", '[5, "x"]]', "y is no number; export it again"),
        ("labelme", samples.MASK, OTHER_MASK, "its mask and its two points are of different"),
        ("label-studio", '"polygonlabels"', '"keypointlabels"', "'r1': 'keypoint' is not read"),
        ("label-studio", '"image_rotation": 0', '"image_rotation": 90', "the image was turned"),
        ("label-studio", '"closed": true', '"closed": false', "the polygon is not closed"),
        ("label-studio", '"rle": [0, 0', '"rle": [1, 0', "its brush strokes end too early"),
        ("via", "[4, 4, 8, 4]", "[4, 4, 8, 5]", "a polyline that does not end where it began"),
        ("cvat", "</image>", '<points points="1,2"/></image>', "points number 4: 'points' marks"),
        ("cvat", 'rle="8, 5', 'rle="7, 5', "covers 41 pixels, it has 42"),
        ("cvat", 'left="5"', 'left="25"', "juts out of"),
        ("yolo", LINE, "0 .5 .5 .1", "line 1: holds 3 values behind the class"),
        ("yolo", LINE, "0 184 386 330 448", "is in pixels; YOLO's values are shares"),
        ("yolo", LINE, "bone .5 .5 .1 .1", "its class is no number"),
        ("coco", '"bbox": [6, 4, 4, 4]', '"bbox": [6, 4]', "has no segmentation and no box"),
        ("coco", '"size": [20, 30]', '"size": [30, 20]', "RLE is of size [30, 20], the image of"),
        ("coco", '"counts": [124', '"counts": [12', "RLE covers 488 pixels, it has 600"),
    ],
)
def test_a_wrong_entry_is_named_and_the_others_are_read(tmp_path, kind, old, new, what):
    text = FILES[kind][1].replace(old, new, 1)
    ((image,), (mistake,)) = read(tmp_path, kind, text)
    assert what in f"{mistake.where}: {mistake.what}"
    assert mistake.where.startswith(str(tmp_path / FILES[kind][0]))
    assert mistake.images[-1:] == (image.name,)
    np.testing.assert_array_equal(pixels(image.marks, image.in_shares), square())


IMAGE = {"id": 3, "file_name": "a", "height": 9, "width": 9}


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([], [{"id": 7, "image_id": 3}], "annotation 7: is of image 3, which is not listed"),
        ([IMAGE, {**IMAGE, "file_name": "b"}], [], "number 1: shares its id 3 with another image"),
        ([{**IMAGE, "height": 2.5}], [], "has the size 9 x 2.5; export it again"),
    ],
)
def test_a_wrong_image_of_coco_is_listed_once(tmp_path, images, annotations, message):
    marking = read(tmp_path, "coco", {"images": images, "annotations": annotations})
    ((where, what, *_),) = marking.mistakes
    assert marking.images == []
    assert message in f"{where}: {what}"


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("cvat", "<annotations><track/></annotations>", "no CVAT file of images"),
        ("voc", "<annotation><obj", "no XML"),
        ("coco", "[]", "lacks the list 'images'"),
        ("labelme", "{}", "lacks the list 'shapes'"),
        ("label-studio", '[{"id": 1}]', "no export of Label Studio"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, kind, content, message):
    with pytest.raises(DataError, match=f"{re.escape(FILES[kind][0])}: .*{message}"):
        read(tmp_path, kind, content)


NASTY = [None, -1, 1e308, 10**400, "", "\ud800", "../x", [], {}, [[1, 2], [3, "4"]]]


def places(tree):
    """Every place in a tree of JSON: its parent and its key."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from places(tree[key])


@pytest.mark.parametrize("kind", [kind for kind in FILES if FILES[kind][0].endswith(".json")])
def test_a_spoiled_file_is_no_more_than_a_mistake(tmp_path, kind):
    """One place of it replaced, as a script leaves it."""
    rng = random.Random(0)
    for _ in range(60):
        content = json.loads(FILES[kind][1])
        parent, key = rng.choice([*places(content)])
        parent[key] = rng.choice(NASTY)
        with suppress(DataError):
            assert all(FILES[kind][0] in one.where for one in read(tmp_path, kind, content)[1])
            recognise(tmp_path / FILES[kind][0])


def test_raters_of_label_studio_are_numbers(tmp_path):
    (image,) = read(tmp_path, "label-studio").images
    assert [mark.rater for mark in image.marks] == ["rater 1"] * 4 + ["rater 2"]
    assert "somebody" not in repr(image)
    twice = FILES["label-studio"][1].replace('{"id": 9', '7, "x": {"id": 9')
    assert "annotated twice by one person" in read(tmp_path, "label-studio", twice)[1][0].what
    rows = samples.LABEL_STUDIO_MIN  # rows of one task belong together
    (image,) = read(tmp_path, "label-studio", [*rows, {**rows[0], "annotator": "b@x.org"}]).images
    assert [mark.rater for mark in image.marks] == ["rater 1"] * 4 + ["rater 2"] * 4


APART = {**result("rectangle"), "type": "rectangle", "value": samples.RECTANGLE}
LABELS = {**APART, "type": "labels", "value": {"labels": ["metal"]}}
LINK = {"from_id": "r1", "to_id": "r2", "type": "relation", "direction": "right"}
CHOICE = {"type": "choices", "value": {"choices": ["good"]}}
KEYPOINT = {"x": 1, "y": 1, "width": 0.3, "keypointlabels": ["x"]}
BITMASK = {**samples.SIZE, "imageDataURL": "data:", "bitmasklabels": ["x"]}


@pytest.mark.parametrize(
    ("content", "labels", "what"),
    [
        # Answers and links draw nothing; labels may stand apart from their rectangle.
        (studio(APART, LABELS, CHOICE, LINK), [("metal",)], None),
        (studio({"id": "r9", "type": "bitmasklabels", "value": {}}), [], "'bitmask' is not read"),
        # JSON-MIN names no type.
        (("", [{"image": "a.png", "tag": [KEYPOINT], "log": [{}]}]), [], "'keypoint' is not read"),
        (("", [{"image": "a.png", "tag": [BITMASK]}]), [], "'bitmask' is not read"),
    ],
)
def test_what_label_studio_draws_is_read_or_a_mistake(tmp_path, content, labels, what):
    ((image,), mistakes) = read(tmp_path, "label-studio", content[1])
    assert [mark.labels for mark in image.marks] == labels
    assert len(mistakes) == (what is not None)
    assert all(what in one.what and one.images == (image.name,) for one in mistakes)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://example.org/x%20y/a.png?sign=%2F", "x y/a.png"),
        ("/data/local-files/?d=hand%2Fp1%2Fa.png", "hand/p1/a.png"),
        ("http://localhost:8080/data/upload/3/0a1b2c3d-a.png", "0a1b2c3d-a.png"),
        ("C:\\films\\hand\\a.png", "films/hand/a.png"),
    ],
)
def test_names_of_images(tmp_path, address, name):
    data = {"note": "x", "film": address} if "local" in address else {"image": address}
    ((image,), mistakes) = read(tmp_path, *studio(data=data))
    assert (image.name, mistakes) == (name, [])
