"""Which image a name in an annotation file means: one that is certain, or none."""

from __future__ import annotations

import re
from functools import partial

import pandas as pd
import pytest

from experiments.annotation.matching import ImageFinder
from tests.lesion_files import BOX, build, image, run_import, write_coco

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "lesions"


@pytest.fixture
def run(tmp_path, out):
    """Run the command on the small tree; its exit status."""
    return partial(run_import, build(tmp_path), out)


def test_another_patients_path_never_matches(tmp_path):
    known = [(1, 1), (2, 1), (2, 14)]
    matcher = ImageFinder([f"train/patient{n}/study1/image{view}.png" for n, view in known], tmp_path)
    for name in ("train/patient3/study1/image14.png", "patient3_study1_image14.png"):
        assert matcher.find(name) == []
    assert matcher.find("image14.png") == ["train/patient2/study1/image14.png"]


def test_file_names_that_tell_images_apart_are_enough(tmp_path):
    finder = ImageFinder(["images/A/IMG07.jpg", "images/B/IMG08.jpg"], tmp_path)
    assert finder.find("some/where/IMG08.png") == ["images/B/IMG08.jpg"]
    assert finder.find("scan_IMG08.png") == []


def test_a_path_that_is_there_wins_over_one_that_ends_like_it(tmp_path):
    matcher = ImageFinder(["a/x.png", "b/a/x.png", "b/a/x.jpg"], tmp_path)
    assert matcher.find("a/x.png") == ["a/x.png"]
    assert matcher.find("other/b/a/x.png") == ["b/a/x.png"]
    assert matcher.find("b/a/x") == ["b/a/x.png", "b/a/x.jpg"]


def test_flattened_names_that_two_paths_share_are_not_certain(tmp_path):
    matcher = ImageFinder(["a/b_c.png", "a_b/c.png"], tmp_path)
    assert matcher.find("a_b_c.png") == ["a/b_c.png", "a_b/c.png"]


@pytest.mark.parametrize(
    "name",
    [
        "MURA-v1.1/" + image(4),
        "/home/anna/MURA-v1.1/" + image(4),
        "C:\\data\\" + image(4).replace("/", "\\"),
        "patient00004/study1_positive/image1.png",
        image(4).replace(".png", ".jpg"),
        image(4).replace("/", "_"),
        image(4).replace("/", "__"),
        image(4).replace("/", "-"),
        image(4).replace("/", ""),
        "MURA-v1.1_" + image(4).replace("/", "_"),
        "1a2b3c4d-" + image(4).replace("/", "_"),
        image(4).replace("/", "%2F"),
        "../../" + image(4),
    ],
)
def test_names_as_tools_write_them_are_matched(run, out, tmp_path, name):
    assert run(write_coco(tmp_path / "a.json", (name, [BOX]))) == 0
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(4)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image1.png", r"image1.png may be any of 38 images \(train/XR_HAND/.*, \.\.\.\); settle"),
        ("study1_positive/image1.png", "may be any of 19 images"),
        ("patient00099/study1_positive/image2.png", r"is no image of .* \(one is called train/"),
        ("../../etc/x.png", "etc/x.png is no image of"),
        ("/etc/passwd", "etc/passwd is no image of"),
    ],
)
def test_a_name_that_is_not_certain_is_left_out(run, out, tmp_path, capsys, name, message):
    source = write_coco(tmp_path / "a.json", (image(2), [BOX]), (name, [BOX]))
    before = sorted(tmp_path.rglob("*"))
    assert run(source, "--strict") == 2
    assert "nothing is written (--strict): 1 mistake, listed above" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert run(source) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "left out: 1 mistake, listed above; written: 1 image" in error
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(2)]


def test_a_mapping_settles_names(run, out, tmp_path):
    mapping = tmp_path / "mapping.csv"
    mapping.write_text(f"name,image\nimage1.png,{image(4)}\n0007.png,MURA-v1.1/{image(6)}\n")
    source = write_coco(
        tmp_path / "a.json", ("image1.png", [BOX]), ("images/1a2b3c4d-0007.png", [BOX])
    )
    assert run(source, "--mapping", mapping) == 0
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(4), image(6)]


def test_a_short_name_of_a_mapping_takes_no_other_patients_image(run, out, tmp_path):
    mapping = tmp_path / "mapping.csv"
    mapping.write_text(f"name,image\nimage1.png,{image(4)}\nstudy1_positive/x.png,{image(6)}\n")
    names = ["MURA-v1.1/" + image(8), "patient99/image1.png", "patient00008/study1_positive/x.png"]
    source = write_coco(tmp_path / "a.json", *((name, [BOX]) for name in names))
    assert run(source, "--mapping", mapping) == 1
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(8)]


def test_a_mapping_and_a_data_set_that_disagree_are_not_certain(tmp_path):
    images = ["a/IMG07.jpg", "a/IMG08.jpg"]
    finder = ImageFinder(images, tmp_path, {"IMG08.jpg": "a/IMG07.jpg", "x/y.png": "a/IMG08.jpg"})
    assert finder.find("IMG08.jpg") == ["a/IMG07.jpg"]
    assert finder.find("images/IMG08.jpg") == images
    assert finder.find("a/IMG08.jpg") == ["a/IMG08.jpg"]
    for name in ("x_y.jpg", "data/upload/3/1a2b3c4d-x__y.png", "images/x/y"):
        assert finder.find(name) == ["a/IMG08.jpg"]
    assert finder.find("other/x/y.png") == []


@pytest.mark.parametrize(("sign", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-16")])
def test_a_mapping_may_come_from_a_spreadsheet(run, out, tmp_path, sign, encoding):
    mapping = tmp_path / "mapping.csv"
    path = image(4).replace("/", "\\")
    mapping.write_text(f"name{sign}image\r\n0007.png{sign}{path}\r\n", encoding=encoding)
    source = write_coco(tmp_path / "a.json", ("0007.png", [BOX]))
    assert run(source, "--mapping", mapping) == 0
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,path\na,b\n", "lacks the column 'image'; the header is name,image"),
        ("name,image\na.png,\n", "row 2: no image is given"),
        (f"name,image\na.png,{image(2)}\na.png,{image(4)}\n", "row 3: a.png is .* in another row"),
        ("name,image\na.png,b.png\n", "names 1 images that .* does not have"),
    ],
)
def test_a_wrong_mapping_is_refused(run, out, tmp_path, capsys, text, message):
    mapping = tmp_path / "mapping.csv"
    mapping.write_text(text)
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX])), "--mapping", mapping) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not out.exists()
