"""FracAtlas's outlines find their images, or it is said that they do not."""

from __future__ import annotations

import pytest

from datamodules.index import DataError
from tests.archives import Archive
from tests.test_duplicates import WIDTH
from tests.test_fracatlas import module


@pytest.fixture
def archive(tmp_path):
    archive = Archive(tmp_path / "FracAtlas")
    for number in range(40):
        archive.add(number // 4 * 20 + number % 4, number % 2)
    return archive


@pytest.mark.parametrize("folder", ["images/Fractured/", "C:\\data\\Fractured\\"])
def test_folders_in_front_of_a_name_do_not_matter(archive, tmp_path, folder, caplog):
    for image in archive.coco["images"]:
        image["file_name"] = folder + image["file_name"]
    table = module(archive.write(), tmp_path).build_index()
    assert ((table["lesion_mask"] != "") == (table["label"] == 1)).all()
    assert caplog.text == ""


def test_outlines_of_unknown_files_are_counted(archive, tmp_path, caplog):
    archive.coco["images"][0]["file_name"] = "IMG0009999.jpg"
    table = module(archive.write(), tmp_path).build_index()
    assert (table["lesion_mask"] != "").sum() == 19
    assert "1 of 20 outlined images are not in" in caplog.text
    assert "such as IMG0009999.jpg" in caplog.text


@pytest.mark.parametrize(
    ("places", "key", "value", "message"),
    [
        (
            range(20),
            "file_name",
            "scan_{}",
            "20 of 20 outlined .* such as scan_IMG0000001.jpg. Fix",
        ),
        ([1], "file_name", "Fractured/IMG0000001.jpg", "IMG0000001.jpg is outlined under two"),
        ([0], "width", WIDTH + 1, "IMG0000001.jpg is 81x96 px: expected 80x96 px"),
        ([0], "file_name", "IMG0000000.jpg", "IMG0000000.jpg is labelled normal but has a lesion"),
        ([], "", "", "COCO_fracture_masks.json is missing"),
    ],
)
def test_outlines_that_cannot_be_theirs_are_an_error(
    archive, tmp_path, places, key, value, message
):
    for image in (archive.coco["images"][place] for place in places):
        image[key] = value.format(image["file_name"]) if isinstance(value, str) else value
    root = archive.write()
    if not places:
        (root / "Annotations/COCO JSON/COCO_fracture_masks.json").unlink()
    with pytest.raises(DataError, match=message):
        module(root, tmp_path).build_index()
