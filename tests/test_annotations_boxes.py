"""Boxes and shares: untidy files, and one set of lesions in four formats that agree."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from datamodules.annotations.recognition import READERS, recognise
from datamodules.annotations.marks import draw
from datamodules.annotations.shapes import placed, placed_runs
from datamodules.index import DataError
from tests.annotation_samples import VOC, YOLO, runs
from tests.real import real_data

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

UNTIDY = """<?xml version="1.0" encoding="utf-8"?>
<annotation>
 <filename>
  a.png
 </filename>
 <size/>
 <object>
  <bndbox>
   <xmax>
    690
   </xmax>
   <xmin>645</xmin> <ymax>152</ymax> <ymin> 86.5 </ymin>
  </bndbox>
  <name>
   text
  </name>
 </object>
</annotation>"""


def test_an_untidy_voc_file_is_read(tmp_path):
    (tmp_path / "a.xml").write_text(UNTIDY)
    ((image,), mistakes) = READERS["voc"](tmp_path)
    assert (image.name, image.size, mistakes) == ("a.png", None, [])
    (mark,) = image.marks
    assert (mark.labels, mark.is_box) == (("text",), True)
    assert mark.outline == ((645, 86.5), (690, 86.5), (690, 152), (645, 152))


def test_a_voc_file_without_objects_is_an_image_without_marks(tmp_path):
    (tmp_path / "b.xml").write_text("<annotation/>")
    assert READERS["voc"](tmp_path).images[0][:3] == ("b", None, [])


def test_a_file_among_others_that_cannot_be_read_is_a_mistake(tmp_path):
    (tmp_path / "a.xml").write_text(VOC)
    (tmp_path / "b.xml").write_text("<annotation>")
    (tmp_path / "c.xml").write_text("<html/>")
    images, mistakes = READERS["voc"](tmp_path)
    assert [image.name for image in images] == ["hand/a.png"]
    assert [mistake.where for mistake in mistakes] == [str(tmp_path / f"{n}.xml") for n in "bc"]
    assert "no XML (no element found" in mistakes[0].what
    assert "no Pascal VOC file" in mistakes[1].what


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "fracture\nmetal\n"),
        ("data.yaml", "names: [fracture, metal]\nnc: 2"),
        ("data.yaml", "names:\n  0: fracture\n  1: metal"),
    ],
)
def test_classes_of_yolo_have_names(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text(f"{YOLO}\n1{YOLO[1:]}\n7{YOLO[1:]}")
    (tmp_path / "labels" / "train" / "b.txt").write_text("")
    ((first, second), (mistake, *_)) = READERS["yolo"](tmp_path)
    assert (first.name, second.name, second.marks) == ("train/a", "train/b", [])
    labels = [label for mark in first.marks for label in mark.labels]
    assert labels == ["fracture"] * 2 + ["metal"] + ["fracture"] * 2
    assert mistake.what == "its class is 7, but 2 have names; add it to them"


def test_yaml_that_is_no_list_of_names_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(YOLO)
    (tmp_path / "data.yaml").write_text("names: [" * 5000)
    with pytest.raises(DataError, match=r"data\.yaml: names of classes cannot be read"):
        READERS["yolo"](tmp_path)


@pytest.mark.parametrize("line", ["0 184 386 330 448", "fracture 184 386 330 448"])
def test_corners_in_pixels_are_no_yolo(tmp_path, line):
    (tmp_path / "a.txt").write_text(line)
    message = r"a\.txt: line 1: .* is in pixels .* class xmin ymin xmax ymax; YOLO's values are sh"
    with pytest.raises(DataError, match=message):
        READERS["yolo"](tmp_path)


def test_grazpedwri_is_read_or_refused_clearly():
    folder = real_data("grazpedwri_sample")
    (image,) = READERS["voc"](folder).images
    assert image.name == "0003_0662359226_01_WRI-R1_M011.png"
    assert [mark.labels for mark in image.marks] == [("text",), ("fracture",), ("fracture",)]
    assert image.marks[1].outline[::2] == ((210, 661), (335, 731))
    with pytest.raises(DataError, match=r"F009\.txt: line 1: .* is in pixels"):
        READERS["yolo"](folder / "5791_0288377040_02_WRI-R1_F009.txt")
    assert recognise(folder / "0003_0662359226_01_WRI-R1_M011.xml") == "voc"


@pytest.fixture(scope="module")
def four_ways(tmp_path_factory):
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
    found = {}
    for kind, source in sources.items():
        assert recognise(source) == kind
        images, mistakes = READERS[kind](source)
        assert mistakes == []
        found[kind] = {image.name.partition(".")[0]: image for image in images if image.marks}
    return found


def test_four_formats_hold_the_same_lesions(four_ways):
    names = {kind: sorted(images) for kind, images in four_ways.items()}
    assert len(names["coco"]) == 35
    assert names == dict.fromkeys(names, names["coco"])
    counts = {
        kind: sum(len(i.marks) for i in images.values()) for kind, images in four_ways.items()
    }
    assert counts == dict.fromkeys(counts, 56)
    labels = {
        mark.labels for images in four_ways.values() for i in images.values() for mark in i.marks
    }
    assert labels == {("fractured",)}


def test_outlines_of_coco_and_via_draw_the_same_masks(four_ways):
    folder = real_data("fracatlas_fixture") / "masks"
    for name, image in four_ways["coco"].items():
        masks = [draw(four_ways[kind][name].marks, *image.size) for kind in ("coco", "via")]
        np.testing.assert_array_equal(*masks)
        np.testing.assert_array_equal(masks[0], np.array(Image.open(folder / f"{name}.png")))


def test_boxes_agree_to_a_pixel(four_ways):
    for name, image in four_ways["coco"].items():
        height, width = image.size
        boxes = {}
        for kind, scale in (("coco", 1), ("voc", 1), ("yolo", np.array([width, height]))):
            corners = [np.array(m.outline) * scale for m in four_ways[kind][name].marks]
            boxes[kind] = np.array(sorted([*c.min(0), *c.max(0)] for c in corners))
        assert four_ways["voc"][name].size == image.size
        # VOC holds whole pixels, YOLO four decimals: of the largest image 0.3 pixels.
        assert np.abs(np.floor(boxes["coco"]) - boxes["voc"]).max() <= 1, name
        assert np.abs(boxes["coco"] - boxes["yolo"]).max() <= 1, name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_masks_are_placed_to_the_pixel(data):
    height, width = (data.draw(st.integers(1, 7)) for _ in range(2))
    bits = st.lists(st.integers(0, 1), min_size=height * width, max_size=height * width)
    mask = np.array(data.draw(bits), np.uint8).reshape(height, width)
    above, below, left, right = (data.draw(st.integers(0, 3)) for _ in range(4))
    whole = np.pad(mask, ((above, below), (left, right)))
    if not mask.any():
        return
    for encoded in (
        placed(mask, left, above, whole.shape),
        placed_runs(runs(mask), mask.shape, left, above, whole.shape),
    ):
        np.testing.assert_array_equal(rle.decode(encoded), whole)
