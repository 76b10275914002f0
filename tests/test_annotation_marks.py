"""Marks as such: placed to the pixel, in little memory, equal in all formats, no traceback."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from datamodules.annotations.marks import MAX_COORDINATE, MAX_PIXELS, Mark, draw, encode
from datamodules.annotations.recognition import READERS, recognise
from datamodules.annotations.shapes import placed, placed_runs
from datamodules.index import DataError
from tests import annotation_samples as samples
from tests.annotation_samples import png, runs, segmentation, square
from tests.real import real_data
from tests.test_annotations import FILES


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_masks_are_placed_to_the_pixel(data):
    height, width = (data.draw(st.integers(1, 7)) for _ in range(2))
    bits = st.lists(st.integers(0, 1), min_size=height * width, max_size=height * width)
    mask = np.array(data.draw(bits), np.uint8).reshape(height, width)
    above, below, left, right = (data.draw(st.integers(0, 3)) for _ in range(4))
    whole = np.pad(mask, ((above, below), (left, right)))
    if mask.any():
        by_runs = placed_runs(runs(mask), mask.shape, left, above, whole.shape)
        for encoded in (placed(mask, left, above, whole.shape), by_runs):
            np.testing.assert_array_equal(rle.decode(encoded), whole)


def test_thousands_of_strokes_take_the_memory_of_one():
    marks = [Mark("stroke", runs=encode(np.eye(256, dtype=np.uint8)))] * 2000
    tracemalloc.start()
    drawn = draw(marks, 256, 256)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(drawn, np.eye(256, dtype=np.uint8) * 255)
    assert peak < 20 * drawn.nbytes


# Real files ---------------------------------------------------------------------------------------


def test_grazpedwri_is_read_or_refused_clearly():
    folder = real_data("grazpedwri_sample")
    (image,) = READERS["voc"](folder).images
    assert image.name == "0003_0662359226_01_WRI-R1_M011.png"
    assert [mark.labels for mark in image.marks] == [("text",), ("fracture",), ("fracture",)]
    assert image.marks[1].outline[::2] == ((210, 661), (335, 731))
    with pytest.raises(DataError, match=r"F009\.txt: line 1: .* is in pixels"):
        READERS["yolo"](folder / "5791_0288377040_02_WRI-R1_F009.txt")


@pytest.fixture(scope="module")
def four_ways(tmp_path_factory):
    """FracAtlas's lesions by format and image."""
    root = real_data("fracatlas_fixture") / "Annotations"
    voc = tmp_path_factory.mktemp("voc")
    for file in (root / "PASCAL VOC").glob("*.xml"):
        shutil.copy(file, voc)
    sources = {
        "coco": root / "COCO JSON" / "COCO_fracture_masks.json",
        "via": root / "VGG JSON" / "VGG_fracture_masks.json",
        "voc": voc,
        "yolo": root / "YOLO",
    }
    images = {}
    for kind, source in sources.items():
        assert recognise(source) == kind
        marking = READERS[kind](source)
        assert marking.mistakes == []
        images[kind] = {one.name.partition(".")[0]: one for one in marking.images if one.marks}
    return images


def test_four_formats_hold_the_same_lesions(four_ways):
    folder = real_data("fracatlas_fixture") / "masks"
    assert len(four_ways["coco"]) == 35
    for kind, images in four_ways.items():
        marks = [mark for image in images.values() for mark in image.marks]
        assert sorted(images) == sorted(four_ways["coco"])
        assert len(marks) == 56
        assert {mark.labels for mark in marks} == {("fractured",)}
        assert {mark.is_box for mark in marks} == {kind in ("voc", "yolo")}
    for name, image in four_ways["coco"].items():
        masks = [draw(four_ways[kind][name].marks, *image.size) for kind in ("coco", "via")]
        np.testing.assert_array_equal(*masks)
        np.testing.assert_array_equal(masks[0], np.array(Image.open(folder / f"{name}.png")))
        boxes = {}
        for kind, scale in (("coco", 1), ("voc", 1), ("yolo", np.array(image.size[::-1]))):
            corners = [np.array(mark.outline) * scale for mark in four_ways[kind][name].marks]
            boxes[kind] = np.array(sorted([*c.min(0), *c.max(0)] for c in corners))
        assert four_ways["voc"][name].size == image.size
        # VOC holds whole pixels, YOLO four decimals: of the largest image 0.3 pixels.
        assert np.abs(np.floor(boxes["coco"]) - boxes["voc"]).max() <= 1, name
        assert np.abs(boxes["coco"] - boxes["yolo"]).max() <= 1, name


# Hostile files ------------------------------------------------------------------------------------

NASTY = [
    *(None, True, -1, 0, 1, 0.5, 7, 29, 1e308, -1e9, math.nan, math.inf, 2**31, 2**63, 10**30),
    *(10**400, MAX_COORDINATE, 16384, 99999, "", " ", "x" * 300, "\ud800", "../../x", "nan", "1e5"),
    *("-3", "a\nb", "\0", "data:image/png;base64,", "http://[", "fracture", "mask", "polygon"),
    *([], {}, [[]], [None], [1, 2, 3], [[1, 2], [3, "4"]], {"a": 1}, [[[[[[[[[[[]]]]]]]]]]]),
]
BYTES = [b"\0", b"\xff", b"<", b"[" * 3000, b"9" * 30, b"&a;", b"\xef\xbb\xbf", b'"', b"-"]


def spoil_tree(random, tree):
    """Put other values, of the tree or nasty ones, into places of a JSON tree."""
    tree = [copy.deepcopy(tree)]
    for _ in range(random.randint(1, 4)):
        places, waiting = [], [tree]
        while waiting:
            parent = waiting.pop()
            for key in parent if isinstance(parent, dict) else range(len(parent)):
                places.append((parent, key))
                waiting += [parent[key]] if isinstance(parent[key], (dict, list)) else []
        (parent, key), (other, its) = random.choice(places), random.choice(places)
        value = random.choice([other[its], *random.sample(NASTY, 3)])
        parent[key] = copy.deepcopy(value)
        if parent is not tree and random.randint(0, 5) == 0:
            del parent[key]
    return tree[0]


def spoil_bytes(random, content):
    content = bytearray(content)
    for _ in range(random.randint(1, 6)):
        place = random.randint(0, max(len(content) - 1, 0))
        end = random.choice([place, place + 1, place + random.randint(1, 20), len(content)])
        content[place:end] = random.choice([b"", random.choice(BYTES), content[:place][-2000:]])
    return bytes(content)


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    mask = np.stack([square() // 255] * 2, axis=-1)[None]
    return segmentation(tmp_path_factory.mktemp("dicom") / "s.dcm", mask).read_bytes()


@pytest.mark.parametrize("kind", [*FILES, "masks", "dicom-seg"])
def test_no_file_is_more_than_a_mistake(tmp_path, kind, dicom):
    """A hundred files a format; DECISION_BASIS_FUZZ=10000 for a long run."""
    others = {"masks": ("a.png", png(square())), "dicom-seg": ("a.dcm", dicom)}
    name, content = (FILES | others)[kind]
    data = content if isinstance(content, bytes) else content.encode()
    file = tmp_path / name.rpartition("/")[2]

    @settings(
        max_examples=int(os.environ.get("DECISION_BASIS_FUZZ", "100")),
        deadline=60_000,  # ms, a hang; most take one, hostile ones some hundred
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(random=st.randoms(use_true_random=False))
    def read(random):
        spoiled = spoil_bytes(random, data)
        if file.suffix == ".json" and random.randint(0, 3):
            spoiled = json.dumps(spoil_tree(random, json.loads(data))).encode()
        file.write_bytes(spoiled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            check_outcome(kind.partition(" ")[0], file)

    read()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def check_outcome(reader, file):
    for function in (recognise, READERS[reader]):
        refusal, images, mistakes = file.name, [], []
        try:
            outcome = function(file)
            if function is not recognise:
                images, mistakes = outcome
        except DataError as error:
            refusal = str(error)
        assert file.name in refusal
        refusal.encode()
    for where, what, *_ in mistakes:
        assert where.startswith(str(file))
        assert 0 < len(f"{what}".encode()) < 400
    for image in images:
        assert image.name
        assert ".." not in image.name.split("/")
        assert not image.name.startswith("/")
        assert image.size is None or 0 < image.size[0] * image.size[1] <= MAX_PIXELS
        for mark in image.marks:
            f"{image.name}{mark.entry}{mark.labels}{mark.rater}".encode()
            assert mark.runs or len(mark.outline) >= 3
            assert all(abs(value) <= MAX_COORDINATE for point in mark.outline for value in point)
            height, width = mark.runs["size"] if mark.runs else (samples.HEIGHT, samples.WIDTH)
            if height * width < 1 << 22:
                draw([mark], height, width)
