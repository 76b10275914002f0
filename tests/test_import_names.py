"""Which image a name in an annotation file means: the one that is certain, or none."""

from __future__ import annotations

import re

import pytest

from experiments.annotation.matching import ImageFinder, other_folder
from tests.lesion_files import BOX, ONE, PIXELS, coco_of, image, voc

DIGITS = "0123456789abcdef0123456789abcdef"
SETS = {
    "mura": [f"p{n}/study1/image{view}.png" for n, view in ((1, 1), (2, 1), (2, 14))],
    "names that tell": ["images/A/IMG07.jpg", "images/B/IMG08.jpg"],
    "one ends like another": ["a/x.png", "b/a/x.png", "b/a/x.jpg"],
    "flat alike": ["a/b_c.png", "a_b/c.png"],
    "numbered": ["films/hand_1.png", "films/wrist-left.png"],
    "roboflow": ["a/b/image1.png", "a/c/image1.png", "a/c/image2_png.rf.01.png"],
}
FOUR = image(4)


@pytest.mark.parametrize(
    ("kind", "name", "places"),
    [
        ("mura", "p3/study1/image14.png", []),  # another patient's path
        ("mura", "image14.png", [2]),
        ("names that tell", "some/where/IMG08.png", [1]),
        ("names that tell", "scan_IMG08.png", []),
        ("numbered", "1.png", []),
        ("numbered", "left.png", []),
        ("numbered", "hand 1.png", [0]),
        ("one ends like another", "a/x.png", [0]),
        ("one ends like another", "other/b/a/x.png", [1]),
        ("one ends like another", "b/a/x", [1, 2]),
        ("flat alike", "a_b_c.png", [0, 1]),
        ("roboflow", f"a_b_image1_png.rf.{DIGITS}.jpg", [0]),
        ("roboflow", "a/c/image2_png.rf.01.png", [2]),
    ],
)
def test_the_strictest_rule_that_fits_decides(tmp_path, kind, name, places):
    assert ImageFinder(SETS[kind], tmp_path).find(name) == [SETS[kind][n] for n in places]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("batch2/1.png", "batch2"),
        ("x/batch1/1.png", ""),
        ("train/1.png", ""),
        ("1.png", ""),
        ("batch1_1.png", ""),
    ],
)
def test_a_folder_that_differs_in_a_number_is_told(name, folder):
    assert other_folder(name, "films/batch1/1.png") == folder


def test_an_image_at_the_top_takes_no_other_folders_name(tmp_path):
    finder = ImageFinder(["1.png", "b/1.png", "2.png"], tmp_path, {"x": "1.png"})
    assert finder.find("1.png") == ["1.png", "b/1.png"]
    assert (finder.find("b/1.png"), finder.find("other/1.png")) == (["b/1.png"], [])
    assert (finder.find("other/2.png"), finder.find("x")) == (["2.png"], ["1.png"])


def test_a_mapping_and_a_data_set_that_disagree_are_not_certain(tmp_path):
    images = ["a/IMG07.jpg", "a/IMG08.jpg"]
    finder = ImageFinder(images, tmp_path, {"IMG08.jpg": "a/IMG07.jpg", "x/y.png": "a/IMG08.jpg"})
    assert finder.find("IMG08.jpg") == ["a/IMG07.jpg"]
    assert finder.find("images/IMG08.jpg") == images
    assert finder.find("a/IMG08.jpg") == ["a/IMG08.jpg"]
    for name in ("x_y.jpg", "data/upload/3/1a2b3c4d-x__y.png", "images/x/y"):
        assert finder.find(name) == ["a/IMG08.jpg"]
    assert finder.find("other/x/y.png") == []


def test_names_as_tools_write_them_are_matched(importing):
    names = {path: path for path in (image(number) for number in range(4, 24, 2))}
    one, *paths = names
    names[one] = f"/home/anna/MURA-v1.1/{one}"
    names[paths[0]] = "C:\\data\\" + paths[0].replace("/", "\\")
    names[paths[1]] = paths[1].partition("XR_HAND/")[2]
    names[paths[2]] = paths[2].replace(".png", ".jpg")
    for path, sign in zip(paths[3:7], ("_", "__", "-", "%2F"), strict=True):
        names[path] = path.replace("/", sign)
    names[paths[7]] = "MURA-v1.1_" + paths[7].replace("/", "_")
    names[paths[8]] = "1a2b3c4d-" + paths[8].replace("/", "_")
    assert importing.run(coco_of(*((name, [BOX]) for name in names.values()))) == 0
    assert importing.pixels() == dict.fromkeys(names, PIXELS)


def test_a_name_that_is_not_certain_is_left_out(importing, tmp_path):
    names = {
        "image1.png": r"image1.png may be any of 38 images \(train/XR_HAND/.*, \.\.\.\); settle",
        "patient00099/study1_positive/image2.png": r"is no image of .* \(one is called train/",
    }
    source = importing.put({"a.json": coco_of(*((name, [BOX]) for name in (ONE, *names)))})
    before = sorted(tmp_path.rglob("*"))
    assert importing.run(source, "--strict") == 2
    assert "nothing is written: 2 mistakes, listed above (--strict)" in importing.printed()
    assert sorted(tmp_path.rglob("*")) == before
    assert importing.run(source) == 1
    printed = importing.printed()
    for message in names.values():
        assert re.search(message, printed), printed
    assert "left out: 2 mistakes, listed above; images written: 1" in printed
    assert importing.pixels() == {ONE: PIXELS}


LONG = f"name,image\nimage1.png,{FOUR}\n0007.png,MURA-v1.1/{image(6)}\n"
SHORT = f"name,image\nimage1.png,{FOUR}\nstudy1_positive/x.png,{image(6)}\n"
TWICE = f"name,image\na.png,{ONE}\na.png,{FOUR}\n"


@pytest.mark.parametrize(
    ("mapping", "names", "images"),
    [
        (LONG, ["image1.png", "images/1a2b3c4d-0007.png"], [FOUR, image(6)]),
        # A short name takes no other patient's image.
        (SHORT, [f"MURA/{image(8)}", "p99/image1.png", "p8/study1_positive/x.png"], [image(8)]),
        # From a spreadsheet, as Excel's "Unicode text" or with semicolons.
        ("name;image\r\n0007.png;" + FOUR.replace("/", "\\"), ["0007.png"], [FOUR]),
        ("\ufeffname\timage\r\n0007.png\t" + FOUR, ["0007.png"], [FOUR]),
        # What is refused.
        ("name,path\na,b\n", [], "lacks the column 'image': expected the header name,image"),
        ("name,image\na.png,\n", [], "row 2: expected a name and an image"),
        (TWICE, [], "row 3: a.png has another image above"),
        ("name,image\na.png,b.png\n", [], "the mapping's image b.png means 0 images of "),
    ],
)
def test_a_mapping_settles_names(importing, tmp_path, mapping, names, images):
    file = tmp_path / "mapping.csv"
    file.write_text(mapping, encoding="utf-16-le" if "\t" in mapping else "utf-8")
    status = importing.run(coco_of(*((name, [BOX]) for name in names)), "--mapping", file)
    assert list(importing.pixels()) == (images if names else [])
    assert names or (status == 2 and images in importing.printed())


@pytest.mark.parametrize("path", [f"/home/anna/MURA-v1.1/{FOUR}", image(2, 2)])
def test_the_path_in_voc_settles_a_name_that_may_be_several(importing, path):
    text = voc(name="image1.png", more=f"<path>{path}</path>")
    assert importing.run(text) == (0 if FOUR in path else 2)
    assert importing.pixels() == ({FOUR: PIXELS} if FOUR in path else {})
    assert FOUR in path or "image1.png may be any of 3" in importing.printed()
