"""Files and folders as tools leave them: masks, DICOM, names of classes, which format it is."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from datamodules.annotations.marks import draw
from datamodules.annotations.recognition import READERS, recognise
from datamodules.index import DataError
from tests import annotation_samples as samples
from tests.annotation_samples import FILES, HEIGHT, WIDTH, png, segmentation, square
from tests.lesion_files import put
from tests.real import real_data

NOISE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), np.uint8)


def palette(mask):
    image = Image.fromarray(mask, "P")
    image.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9])
    return image


def classes(one, other):
    mask = np.zeros((HEIGHT, WIDTH, *np.shape(one)), np.uint8)
    mask[4:9, 6:9], mask[4:9, 9:11] = one, other
    return mask


@pytest.mark.parametrize(
    ("suffix", "pixels"),
    [
        ("", square()),
        ("_mask", square() // 255),
        ("-mask", square() > 0),
        ("_mask_1", square()),
        ("", np.stack([square()] * 3, -1)),
        ("", classes((128, 0, 0), (128, 0, 0))),
        ("", square().astype(np.uint16) * 257),
        ("", classes(1, 2)),
        ("_mask", palette(classes(1, 2))),
    ],
)
def test_masks_are_read(tmp_path, suffix, pixels):
    put(tmp_path, {f"hand/a{suffix}.png": pixels})
    ((image,), mistakes) = READERS["masks"](tmp_path)
    assert (image.name, image.size, mistakes) == ("hand/a", (HEIGHT, WIDTH), [])
    np.testing.assert_array_equal(draw(image.marks, HEIGHT, WIDTH), square())
    assert recognise(tmp_path) == "masks"


def test_numbers_are_classes_where_a_label_map_names_them(tmp_path):
    put(tmp_path, {"a.png": classes(1, 2)})
    ((image,), _) = READERS["masks"](tmp_path)
    assert [mark.labels for mark in image.marks] == [()]
    assert "its numbers 1, 2 are joined; if they are classes, name them" in image.note
    put(tmp_path, {"labelmap.txt": "bone:1,1,1::\nfracture:2,2,2::\n"})
    ((image,), _) = READERS["masks"](tmp_path)
    assert [(*mark.labels, draw([mark], HEIGHT, WIDTH).sum() // 255) for mark in image.marks] == [
        ("bone", 15),
        ("fracture", 10),
    ]
    assert image.note == ""
    # In VOC's palette a blue is as large a number as a grey is bright.
    colours = "metal:0,0,128::\ngrey:128,128,128::\nred:128,0,0::\n"
    put(tmp_path, {"a.png": classes((0, 0, 128), (128, 0, 0)), "labelmap.txt": colours})
    ((image,), _) = READERS["masks"](tmp_path)
    assert [mark.labels for mark in image.marks] == [("metal",), ("red",)]


SMOOTH = Image.fromarray(square()).resize((60, 40), Image.Resampling.BILINEAR)


def test_a_wrong_mask_is_named_and_the_others_are_read(tmp_path):
    wrong = {
        "a.png": (SMOOTH, "holds grey in between, such as"),
        "b.png": (np.dstack([square()] * 4), "is see-through in places"),
        "c.png": (png(square())[:-20], "damaged image"),
    }
    put(tmp_path, {**{name: content for name, (content, _) in wrong.items()}, "d.png": NOISE * 0})
    ((image,), mistakes) = READERS["masks"](tmp_path)
    assert image[:3] == ("d", (HEIGHT, WIDTH), [])  # black: an image without marks
    for mistake, (name, (_, what)) in zip(mistakes, wrong.items(), strict=True):
        assert mistake.where == str(tmp_path / name)
        assert what in mistake.what


def test_a_lesion_folder_is_a_source(tmp_path):
    rows = "image,mask,lesion_type\nhand/a.png,masks/hand/a.png,fracture+metal\n"
    put(tmp_path, {"masks/hand/a.png": square(), "lesions.csv": rows, "sheet.png": NOISE})
    assert recognise(tmp_path) == "masks"
    ((image,), mistakes) = READERS["masks"](tmp_path)
    assert (image.name, mistakes) == ("hand/a", [])
    assert [mark.labels for mark in image.marks] == [("fracture", "metal")]


def frames(*masks):
    return np.stack(masks, axis=-1)[None]


@pytest.mark.parametrize(("kind", "high"), [("BINARY", 1), ("FRACTIONAL", 0.6)])
def test_a_dicom_segmentation_is_read(tmp_path, kind, high):
    corner = np.zeros((HEIGHT, WIDTH))
    corner[0, :3] = high
    low = np.full((HEIGHT, WIDTH), 0.4 if kind == "FRACTIONAL" else 0)
    mask = frames(np.maximum(square() / 255 * high, low), corner)
    mask = mask.astype(np.uint8 if kind == "BINARY" else np.float32)
    ((image,), mistakes) = READERS["dicom-seg"](segmentation(tmp_path / "s.dcm", mask, kind))
    assert (image.name, image.size, mistakes) == ("1.2.3.4", (HEIGHT, WIDTH), [])
    assert [mark.labels for mark in image.marks] == [("fracture",), ("metal",)]
    np.testing.assert_array_equal(draw(image.marks[:1], HEIGHT, WIDTH), square())
    assert draw(image.marks[1:], HEIGHT, WIDTH).sum() == 3 * 255
    assert recognise(tmp_path) == recognise(tmp_path / "s.dcm") == "dicom-seg"


def test_a_wrong_segmentation_is_named_with_its_image(tmp_path):
    path = segmentation(tmp_path / "s.dcm", frames(square() // 255))
    data = pydicom.dcmread(path)
    data.Rows = 40
    data.save_as(path)
    images, (mistake,) = READERS["dicom-seg"](path)
    assert images == []
    assert mistake.where == str(path)
    assert "damaged or compressed DICOM (ValueError); export it again" in mistake.what
    assert "1.2.3.4" in mistake.images


def test_other_files_beside_voc_are_mistakes(tmp_path):
    put(tmp_path, {"a.xml": samples.VOC, "b.xml": "<annotation/>", "c.xml": "<a", "d.xml": "<b/>"})
    (_, empty), mistakes = READERS["voc"](tmp_path)
    assert empty[:3] == ("b", None, [])
    assert [mistake.where for mistake in mistakes] == [str(tmp_path / f"{n}.xml") for n in "cd"]
    assert "no XML (" in mistakes[0].what
    assert "no Pascal VOC file" in mistakes[1].what


@pytest.mark.parametrize("kind", ["labelme", "voc"])
def test_equal_names_in_folders_stay_apart(tmp_path, kind):
    name, content = FILES[kind]
    content = content.replace("hand/a.png", "a.png").replace("hand\\\\a.png", "a.png")
    put(tmp_path, {f"films/{folder}/{name}": content for folder in ("p1", "p2")})
    images, mistakes = READERS[kind](tmp_path)
    assert [image.name for image in images] == ["films/p1/a.png", "films/p2/a.png"]
    assert mistakes == []


def test_images_of_one_name_stay_apart_in_csv_of_via(tmp_path):
    rows = pd.concat([samples.ROWS, samples.ROWS.assign(file_size=99)], ignore_index=True)
    rows.loc[0, "region_attributes"] = "{'label':"
    images, (mistake, *_) = READERS["via"](put(tmp_path, {"via.csv": rows.to_csv(index=False)}))
    assert [len(image.marks) for image in images] == [4, 5]
    assert mistake.where == f"{tmp_path / 'via.csv'}: row 2"


@pytest.mark.parametrize(
    ("name", "content"),
    [("classes.txt", "fracture\nmetal\n"), ("data.yaml", "names:\n  0: fracture\n  1: metal")],
)
def test_classes_of_yolo_have_names(tmp_path, name, content):
    lines = f"{samples.YOLO}\n1{samples.YOLO[1:]}\n7{samples.YOLO[1:]}"
    labels = {"labels/train/a.txt": lines, "labels/train/b.txt": ""}
    put(tmp_path, {**labels, name: content, "README.roboflow.txt": "bones\nExported at noon"})
    for source in (tmp_path, tmp_path / "labels" / "train"):  # beside, or above labels
        ((first, second), (mistake, *_)) = READERS["yolo"](source)
        assert first.name in ("train/a", "a")
        assert second.marks == []
        labels = [label for mark in first.marks for label in mark.labels]
        assert labels == ["fracture"] * 2 + ["metal"] + ["fracture"] * 2
        assert mistake.what == "its class is 7, but 2 have names; add it to them"
    put(tmp_path, {"data.yaml": "names: [fracture"})
    with pytest.raises(DataError, match=r"data\.yaml: names of classes cannot be read"):
        READERS["yolo"](tmp_path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"a.json": samples.COCO, "images/a.png": NOISE}, "coco"),
        ({"a.json": samples.LABELME, "a.png": NOISE}, "labelme"),
        ({"a.json": samples.LABELME, "a.txt": samples.YOLO}, r"labelme \(a\.json\), yolo \(a\.txt"),
        ({"a.json": {}}, r"in no format that is known .masks, coco, cvat"),
    ],
)
def test_a_folder_is_of_one_format_or_refused(tmp_path, contents, message):
    put(tmp_path, contents)
    if message in READERS:
        assert recognise(tmp_path) == message
        return
    with pytest.raises(DataError, match=message):
        recognise(tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    put(tmp_path, {"latin.json": b'{"\xe9": 1}', "b.json": samples.COCO})
    for reader in (*READERS.values(), recognise):
        for name in ("missing", "latin"):
            with pytest.raises(DataError, match=f"{name}.json"):
                reader(tmp_path / f"{name}.json")
    with pytest.raises(DataError, match=r"2 files \.json \(b\.json, latin\.json\); give the one"):
        READERS["coco"](tmp_path)


def test_four_formats_hold_the_same_lesions(tmp_path):
    folder = real_data("fracatlas_fixture")
    for file in (folder / "Annotations" / "PASCAL VOC").glob("*.xml"):
        shutil.copy(file, tmp_path)
    sources = {
        "coco": folder / "Annotations" / "COCO JSON" / "COCO_fracture_masks.json",
        "via": folder / "Annotations" / "VGG JSON" / "VGG_fracture_masks.json",
        "voc": tmp_path,
        "yolo": folder / "Annotations" / "YOLO",
    }
    of = {}
    for kind, source in sources.items():
        assert recognise(source) == kind
        images, mistakes = READERS[kind](source)
        assert mistakes == []
        of[kind] = {one.name.partition(".")[0]: one for one in images if one.marks}
        marks = [mark for image in of[kind].values() for mark in image.marks]
        assert (len(of[kind]), len(marks)) == (35, 56)
        assert {mark.labels for mark in marks} == {("fractured",)}
    for name, image in of["coco"].items():
        masks = [draw(of[kind][name].marks, *image.size) for kind in ("coco", "via")]
        np.testing.assert_array_equal(*masks)
