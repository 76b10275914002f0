"""FracAtlas's outlines find their images, or it is said that they do not."""

from __future__ import annotations

import pytest

from datamodules.fracatlas import read_outlines
from datamodules.index import DataError
from tests.archives import Archive
from tests.test_duplicates import WIDTH
from tests.test_fracatlas import module


@pytest.fixture
def archive(tmp_path):
    archive = Archive(tmp_path / "FracAtlas")
    for block in range(10):
        for place in range(4):
            archive.add(block * 20 + place, place % 2)
    return archive


def rename(archive, change):
    for image in archive.coco["images"]:
        image["file_name"] = change(image["file_name"])
    return archive.write()


@pytest.mark.parametrize("folder", ["Fractured/", "images/Fractured/", "C:\\data\\Fractured\\"])
def test_folders_in_front_of_a_name_do_not_matter(archive, tmp_path, folder, caplog):
    root = rename(archive, lambda name: folder + name)
    table = module(root, tmp_path).build_index()
    assert ((table["lesion_mask"] != "") == (table["label"] == 1)).all()
    assert caplog.text == ""


def test_outlines_of_unknown_files_are_counted(archive, caplog):
    root = rename(archive, lambda name: name.replace("0000001", "0009999"))
    assert len(read_outlines(root)) == 20
    assert "1 of 20 outlined images are not in" in caplog.text
    assert "such as IMG0009999.jpg" in caplog.text


def test_outlines_of_other_images_altogether_are_refused(archive, tmp_path):
    root = rename(archive, lambda name: f"scan_{name}")
    message = (
        r"COCO_fracture_masks\.json: 20 of 20 outlined .* such as scan_IMG0000001\.jpg\. Fix: give"
    )
    with pytest.raises(DataError, match=message):
        module(root, tmp_path).build_index()


def test_a_file_under_two_ids_is_named(archive, tmp_path):
    archive.coco["images"][1]["file_name"] = "Fractured/IMG0000001.jpg"
    message = r"COCO_fracture_masks\.json: Fractured/IMG0000001\.jpg is outlined under two ids"
    with pytest.raises(DataError, match=message):
        module(archive.write(), tmp_path).build_index()
    assert not list(tmp_path.glob("cache/*"))


def test_outlines_of_another_size_are_an_error(archive, tmp_path):
    archive.coco["images"][0]["width"] = WIDTH + 1
    with pytest.raises(DataError, match=r"IMG0000001\.jpg is 81x96 px: expected 80x96 px"):
        module(archive.write(), tmp_path).build_index()
    assert not list(tmp_path.glob("cache/*"))


def test_outlines_on_a_normal_image_are_an_error(archive, tmp_path):
    archive.coco["images"][0]["file_name"] = "IMG0000000.jpg"
    with pytest.raises(
        DataError, match=r"IMG0000000\.jpg is labelled normal but has a lesion mask"
    ):
        module(archive.write(), tmp_path).build_index()


def test_a_missing_coco_file_is_named(archive, tmp_path):
    root = archive.write()
    (root / "Annotations/COCO JSON/COCO_fracture_masks.json").unlink()
    with pytest.raises(DataError, match=r"COCO_fracture_masks\.json is missing"):
        module(root, tmp_path).build_index()
