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


def scanned(archive):
    for image in archive.coco["images"]:
        image["file_name"] = f"scan_{image['file_name']}"


NAMED = "COCO_fracture_masks.json: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scanned, f"{NAMED}20 of 20 outlined .* such as scan_IMG0000001.jpg. Fix: give"),
        ((1, "file_name", "Fractured/IMG0000001.jpg"), "IMG0000001.jpg is outlined under two ids"),
        ((0, "width", WIDTH + 1), "IMG0000001.jpg is 81x96 px: expected 80x96 px"),
        ((0, "file_name", "IMG0000000.jpg"), "IMG0000000.jpg is labelled normal but has a lesion"),
        (None, "COCO_fracture_masks.json is missing"),
    ],
)
def test_outlines_that_cannot_be_theirs_are_an_error(archive, tmp_path, change, message):
    if callable(change):
        change(archive)
    elif change:
        place, key, value = change
        archive.coco["images"][place][key] = value
    root = archive.write()
    if change is None:
        (root / "Annotations/COCO JSON/COCO_fracture_masks.json").unlink()
    with pytest.raises(DataError, match=message):
        module(root, tmp_path).build_index()
    assert "normal" in message or not list(tmp_path.glob("cache/*"))
