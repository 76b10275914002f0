"""What tools write besides marks: folders with more in them, links, answers, and far too much."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules.annotations.recognition import READERS, recognise
from datamodules.annotations.files import read_bytes
from datamodules.annotations.marks import Mark, draw, encode
from datamodules.index import DataError
from experiments.annotation.describe import describe_faults
from experiments.annotation.joining import Fault
from experiments.annotation.matching import ImageFinder
from tests import annotation_samples as samples
from tests.annotation_samples import HEIGHT, WIDTH, square

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LINK = {"from_id": "r1", "to_id": "r2", "type": "relation", "direction": "right"}
CHOICE = {"id": "r1", "type": "choices", "value": {"choices": ["certain"]}}
BITMASK = samples.result("bitmask", "r9", imageDataURL="data:image/png;base64,")
CUBE = {"id": "r9", "type": "cube", "value": {}}


def write_studio(path, *results):
    task = {**samples.LABEL_STUDIO[0], "annotations": [{"result": [*samples.RESULTS, *results]}]}
    path.write_text(json.dumps([task]))
    return path


@pytest.mark.parametrize("answer", [LINK, CHOICE, {"type": "labels", "value": {"labels": ["x"]}}])
def test_answers_and_links_of_label_studio_draw_nothing(tmp_path, answer):
    ((image,), mistakes) = READERS["label-studio"](write_studio(tmp_path / "a.json", answer))
    assert mistakes == []
    assert len(image.marks) == len(samples.RESULTS)


@pytest.mark.parametrize(
    ("region", "what"),
    [
        (BITMASK, "result 'r9': 'bitmask' is not read; draw it as polygon, ellipse, brush or"),
        (CUBE, "'cube' is not read"),
        ({"id": "r9", "type": "polygon", "value": 3}, "'polygon' is not read"),
    ],
)
def test_what_label_studio_draws_otherwise_is_a_mistake(tmp_path, region, what):
    ((image,), (mistake,)) = READERS["label-studio"](write_studio(tmp_path / "a.json", region))
    assert what in f"{mistake.where}: {mistake.what}"
    assert mistake.images == (image.name,)


def test_bit_masks_of_json_min_are_a_mistake(tmp_path):
    task = json.loads(json.dumps(samples.LABEL_STUDIO_MIN[0]))
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    task["tag"].append({**size, "imageDataURL": "data:", "bitmasklabels": ["fracture"]})
    task["history"] = [{"read": "twice"}]
    (tmp_path / "a.json").write_text(json.dumps([task]))
    (_, (mistake,)) = READERS["label-studio"](tmp_path / "a.json")
    assert "'bitmask' is not read" in mistake.what
    assert mistake.labels == ("fracture",)


def test_a_folder_with_one_coco_file_is_read(tmp_path):
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "a.png")
    (tmp_path / "instances.json").write_text(json.dumps(samples.COCO))
    assert recognise(tmp_path) == "coco"
    assert len(READERS["coco"](tmp_path).images[0].marks) == 3
    (tmp_path / "more.json").write_text(json.dumps(samples.COCO))
    with pytest.raises(
        DataError,
        match=r"holds 2 files \.json \(instances\.json, more\.json\); give the one to read",
    ):
        READERS["coco"](tmp_path)


def test_a_folder_in_place_of_a_file_is_told_once(tmp_path):
    with pytest.raises(DataError, match=r"is no file; give the file itself$"):
        read_bytes(tmp_path)


def test_a_yolo_folder_of_roboflow_is_read(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [fracture]")
    for name in ("README.roboflow.txt", "README.dataset.txt"):
        (tmp_path / name).write_text("bones - v1\nExported at noon\n")
    labels = tmp_path / "train" / "labels"
    labels.mkdir(parents=True)
    (labels / "a_png.rf.0123456789abcdef0123456789abcdef.txt").write_text(samples.YOLO)
    ((image,), mistakes) = READERS["yolo"](tmp_path)
    assert mistakes == []
    assert image.name == "train/a_png.rf.0123456789abcdef0123456789abcdef"
    # The names of classes lie two folders above.
    ((image,), _) = READERS["yolo"](labels)
    assert {mark.labels for mark in image.marks} == {("fracture",)}


def test_names_of_roboflow_are_those_of_the_images(tmp_path):
    known = ["a/b/image1.png", "a/c/image1.png", "a/c/image2_png.rf.01.png"]
    matcher = ImageFinder(known, tmp_path)
    digits = "0123456789abcdef0123456789abcdef"
    assert matcher.find(f"a_b_image1_png.rf.{digits}.jpg") == known[:1]
    assert matcher.find(f"train/a_c_image1_png.rf.{digits}") == known[1:2]
    assert matcher.find(f"image1_png.rf.{digits}.jpg") == known[:2]
    assert matcher.find(known[2]) == known[2:]


def test_names_of_classes_above_other_folders_are_not_these(tmp_path):
    (tmp_path / "labels.txt").write_text("somebody's shopping\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text(samples.YOLO)
    ((image,), _) = READERS["yolo"](tmp_path / "mine")
    assert {mark.labels for mark in image.marks} == {("0",)}


def test_images_of_one_name_stay_apart_in_csv_of_via(tmp_path):
    (tmp_path / "via.csv").write_text(samples.via_csv())
    rows = pd.read_csv(tmp_path / "via.csv")
    pd.concat([rows, rows.assign(file_size=99)]).to_csv(tmp_path / "via.csv", index=False)
    images, mistakes = READERS["via"](tmp_path / "via.csv")
    assert mistakes == []
    assert [(image.name, len(image.marks)) for image in images] == [("hand/a.png", 5)] * 2


def test_a_lesion_folder_is_a_source(tmp_path):
    (tmp_path / "masks" / "hand").mkdir(parents=True)
    Image.fromarray(square()).save(tmp_path / "masks" / "hand" / "a.png")
    rows = "image,mask,lesion_type\nhand/a.png,masks/hand/a.png,fracture+metal\n"
    (tmp_path / "lesions.csv").write_text(rows)
    grey = np.tile(np.arange(256, dtype=np.uint8), (9, 1))
    Image.fromarray(grey).save(tmp_path / "sheet.png")
    assert recognise(tmp_path) == "masks"
    ((image,), mistakes) = READERS["masks"](tmp_path)
    assert (image.name, mistakes) == ("hand/a", [])
    assert [mark.labels for mark in image.marks] == [("fracture", "metal")]


def test_a_folder_of_several_formats_says_where_each_lies(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.json").write_text(json.dumps(samples.LABELME))
    (tmp_path / "annotations.xml").write_text(samples.CVAT)
    message = r"cvat \(annotations\.xml\), labelme \(images/a\.json\); say which, or give the file,"
    with pytest.raises(DataError, match=message):
        recognise(tmp_path)


# Masks --------------------------------------------------------------------------------------------


def two_classes(one, other, shape=()):
    mask = np.zeros((HEIGHT, WIDTH, *shape), np.uint16 if np.max(other) > 255 else np.uint8)
    mask[4:9, 6:9], mask[4:9, 9:11] = one, other
    return mask


def test_classes_in_16_bits_are_read(tmp_path):
    Image.fromarray(two_classes(1, 2).astype(np.uint16)).save(tmp_path / "a.png")
    ((image,), mistakes) = READERS["masks"](tmp_path)
    assert mistakes == []
    np.testing.assert_array_equal(draw(image.marks, HEIGHT, WIDTH), square())


def test_grey_in_16_bits_is_told_in_the_files_own_values(tmp_path):
    Image.fromarray(two_classes(300, 700)).save(tmp_path / "a.png")
    (_, (mistake,)) = READERS["masks"](tmp_path)
    assert "such as 300 and 700" in mistake.what


def test_coloured_classes_are_told_as_such(tmp_path):
    colours = two_classes((128, 0, 0), (0, 128, 0), (3,))
    Image.fromarray(colours).save(tmp_path / "a.png")
    (_, (mistake,)) = READERS["masks"](tmp_path)
    assert "holds #008000 and #800000: of several classes; a labelmap.txt" in mistake.what


def test_one_colour_is_a_mask(tmp_path):
    Image.fromarray(two_classes((128, 0, 0), (128, 0, 0), (3,))).save(tmp_path / "a.png")
    ((image,), mistakes) = READERS["masks"](tmp_path)
    assert mistakes == []
    np.testing.assert_array_equal(draw(image.marks, HEIGHT, WIDTH), square())


# Far too much -------------------------------------------------------------------------------------


def test_thousands_of_strokes_take_the_memory_of_one(tmp_path):
    runs = encode(np.eye(256, dtype=np.uint8))
    marks = [Mark("stroke", runs=runs)] * 2000
    tracemalloc.start()
    drawn = draw(marks, 256, 256)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(drawn, np.eye(256, dtype=np.uint8) * 255)
    assert peak < 20 * drawn.nbytes


def test_of_many_faults_the_first_are_printed_and_the_others_counted():
    faults = [Fault("unknown image", f"a.json: image {n}", "is none") for n in range(1234)]
    lines = describe_faults([*faults, Fault("other size", "b.json", "is another")]).splitlines()
    assert lines[0] == "unknown image: 1,234"
    assert lines[50] == "  a.json: image 49: is none"
    assert lines[51:] == ["  and 1,184 more", "other size: 1", "  b.json: is another"]
