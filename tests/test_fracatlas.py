"""FracAtlas: a made-up archive with upstream's traps, and the real fixture where there is one."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules.fracatlas import FracAtlasDataModule, group_duplicates, read_fracatlas_tree
from datamodules.index import DataError, check_index, check_patients_apart
from datamodules.lesions import write_lesions
from datamodules.options import Data, Lesions
from tests.real import real_data
from tests.test_duplicates import HEIGHT, WIDTH, picture

HEADER = (
    "image_id,hand,leg,hip,shoulder,mixed,hardware,multiscan,fractured,fracture_count,"
    "frontal,lateral,oblique"
)


class Archive:
    """Writes images, rows and outlines into FracAtlas's own tree."""

    def __init__(self, root):
        self.root = root
        self.rows = []
        categories = [{"id": 0, "name": "fractured"}]
        self.coco = {"images": [], "annotations": [], "categories": categories}
        for folder in ("Fractured", "Non_fractured"):
            (root / "images" / folder).mkdir(parents=True)
        (root / "Annotations" / "COCO JSON").mkdir(parents=True)

    def add(self, number, fractured, /, pixels=None, orientation=1, **fields):
        name = f"IMG{number:07d}.jpg"
        values = dict.fromkeys(HEADER.split(","), 0)
        values |= {"image_id": name, "hand": 1, "fractured": fractured, "fracture_count": fractured}
        self.rows.append(",".join(str(value) for value in (values | fields).values()))
        exif = Image.Exif()
        exif[0x0112] = orientation
        folder = "Fractured" if fractured else "Non_fractured"
        path = self.root / "images" / folder / name
        pixels = picture(number) if pixels is None else pixels
        Image.fromarray(pixels).save(path, quality=95, exif=exif)
        if fractured:
            height, width = pixels.shape if orientation == 1 else pixels.shape[::-1]
            entry = {"id": number, "file_name": name, "height": height, "width": width}
            self.coco["images"].append(entry)
            self.coco["annotations"].append(
                {
                    "id": len(self.coco["annotations"]),
                    "image_id": number,
                    "category_id": 0,
                    "segmentation": [[10, 20, 19, 20, 19, 29, 10, 29]],
                }
            )
        return path

    def write(self):
        (self.root / "dataset.csv").write_text("\n".join([HEADER, *self.rows]) + "\n")
        path = self.root / "Annotations" / "COCO JSON" / "COCO_fracture_masks.json"
        path.write_text(json.dumps(self.coco))
        return self.root


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path / "FracAtlas")


@pytest.fixture
def filled(archive):
    """Forty images in ten blocks, both classes in each."""
    for block in range(10):
        for place in range(4):
            archive.add(block * 20 + place, place % 2)
    return archive


def module(root, tmp_path, lesions_path=None, **options):
    data = Data(root=str(root), cache_dir=str(tmp_path / "cache"), **options)
    return FracAtlasDataModule(data, Lesions(path=lesions_path))


# The tree -----------------------------------------------------------------------------------------


def test_columns_become_label_block_body_part_and_hardware(archive):
    archive.add(19, 0, leg=1, hip=1, hand=0)
    archive.add(20, 1, shoulder=1, hardware=1)
    archive.add(39, 0, hand=0)
    table = read_fracatlas_tree(archive.write()).set_index("study")
    assert table["path"].tolist() == [
        "images/Non_fractured/IMG0000019.jpg",
        "images/Fractured/IMG0000020.jpg",
        "images/Non_fractured/IMG0000039.jpg",
    ]
    assert table["label"].tolist() == [0, 1, 0]
    assert table["patient"].tolist() == ["block0000", "block0001", "block0001"]
    assert table["body_part"].tolist() == ["leg+hip", "hand+shoulder", "unknown"]
    assert table["hardware"].tolist() == [0, 1, 0]


def test_a_contradictory_row_follows_folder_and_count_with_a_notice(archive, caplog):
    archive.add(3298, 1, fractured=0, fracture_count=1)  # fractured=0 in the row only
    archive.add(1, 0)
    assert ",0,1,0,0,0" in archive.rows[0]
    table = read_fracatlas_tree(archive.write())
    assert table["label"].tolist() == [1, 0]
    assert "row 2: IMG0003298.jpg has fractured=0 and fracture_count=1 but lies in" in caplog.text
    assert "taken as Fractured" in caplog.text


def test_a_row_that_nothing_supports_is_an_error(archive):
    archive.add(1, 0)
    path = archive.add(2, 1)
    path.rename(archive.root / "images" / "Non_fractured" / path.name)
    with pytest.raises(
        DataError, match=r"row 3: IMG0000002\.jpg has fractured=1 and fracture_count=1"
    ):
        read_fracatlas_tree(archive.write())


@pytest.mark.parametrize(
    ("deeper", "message"),
    [
        ("images/Fractured", r"too deep; did you mean data\.root=.*FracAtlas\?"),
        ("..", r"too high; did you mean data\.root=.*FracAtlas\?"),
        ("../..", r"too high; did you mean data\.root=.*FracAtlas\?"),
        ("nowhere", r"is no folder; give FracAtlas's own"),
        ("../empty", r"dataset\.csv is missing; data\.root is the unpacked folder FracAtlas"),
    ],
)
def test_a_wrong_root_is_explained(tmp_path, deeper, message):
    archive = Archive(tmp_path / "a" / "FracAtlas")
    (tmp_path / "a" / "empty").mkdir()
    archive.add(1, 0)
    with pytest.raises(DataError, match=message):
        read_fracatlas_tree((archive.write() / deeper).resolve())


def test_a_missing_folder_is_named(filled):
    root = filled.write()
    (root / "images" / "Fractured").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"images/Fractured cannot be listed"):
        read_fracatlas_tree(root)


def test_rows_without_file_are_counted(filled):
    root = filled.write()
    for number in (0, 2, 20, 22):
        (root / "images" / "Non_fractured" / f"IMG{number:07d}.jpg").unlink()
    with pytest.raises(DataError, match=r"4 of 40 .* row 2: IMG0000000\.jpg, row 4: IMG0000002"):
        read_fracatlas_tree(root)


def test_an_image_in_both_folders_is_named(archive):
    path = archive.add(1, 0)
    (archive.root / "images" / "Fractured" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"IMG0000001\.jpg lies in images/Fractured and in"):
        read_fracatlas_tree(archive.write())


def test_surplus_images_are_announced_and_hidden_files_are_not(filled, caplog):
    root = filled.write()
    (root / "images" / "Fractured" / "._IMG0000001.jpg").write_bytes(b"x")
    read_fracatlas_tree(root)
    assert caplog.text == ""
    (root / "images" / "Fractured" / "IMG0000009.jpg").write_bytes(b"x")
    assert len(read_fracatlas_tree(root)) == 40
    assert "1 images stand in no row and are not used, such as IMG0000009.jpg" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fractured": 2}, r"row 3: fractured of IMG0000002\.jpg is '2'; use 0 or 1"),
        ({"hardware": "yes"}, r"row 3: hardware of IMG0000002\.jpg is 'yes'; use 0 or 1"),
        ({"fracture_count": -1}, r"row 3: fracture_count of .* is '-1'; use a whole number"),
        ({"image_id": "../x.jpg"}, r"row 3: image_id of .* use a file name"),
        ({"image_id": "IMG0000001.jpg"}, r"row 3: IMG0000001\.jpg is listed twice"),
    ],
)
def test_a_wrong_row_is_named(archive, fields, message):
    archive.add(1, 0)
    archive.add(2, 0, **fields)
    with pytest.raises(DataError, match=message):
        read_fracatlas_tree(archive.write())


def test_an_image_without_number_is_named(archive):
    archive.add(1, 0)
    path = archive.add(2, 0, image_id="wrist.jpg")
    path.rename(path.with_name("wrist.jpg"))
    with pytest.raises(DataError, match=r"row 3: wrist\.jpg has no number"):
        read_fracatlas_tree(archive.write())


@pytest.mark.parametrize(
    ("encoding", "row", "message"),
    [
        ("utf-8", "", "lacks the column 'leg'"),
        ("utf-8", "a,1,", "its rows have more fields than the header"),
        ("utf-16-le", "", "is no UTF-8 text .*; save it as UTF-8"),
    ],
)
def test_a_csv_of_another_form_is_named(archive, encoding, row, message):
    (archive.write() / "dataset.csv").write_text(f"image_id,hand\n{row}", encoding=encoding)
    with pytest.raises(DataError, match=rf"dataset\.csv: {message}"):
        read_fracatlas_tree(archive.root)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_windows_line_ends_blank_lines_and_spreadsheets(filled, separator):
    wanted = read_fracatlas_tree(filled.write())
    text = (filled.root / "dataset.csv").read_text().replace(",", separator)
    if separator != ",":  # a column of numbers with decimal commas
        text = text.replace("\n", f"{separator}1,5\n").replace("1,5", "age", 1)
    data = b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode()
    (filled.root / "dataset.csv").write_bytes(data)
    pd.testing.assert_frame_equal(read_fracatlas_tree(filled.root), wanted)


def test_masks_of_an_image_that_was_replaced_are_not_those_of_before(filled, tmp_path):
    filled.add(300, 1, orientation=6)
    data = module(filled.write(), tmp_path, image_size=32)
    data.prepare_data()
    path = filled.root / "images" / "Fractured" / "IMG0000300.jpg"
    Image.fromarray(picture(300)).save(path)  # turned: the outlines are of another frame now
    with pytest.raises(DataError, match="IMG0000300.jpg is .* there, the upright image .* px"):
        module(data.root, tmp_path, image_size=32).prepare_data()


# Near-duplicates ----------------------------------------------------------------------------------


def test_duplicates_of_one_label_join_their_blocks(filled, caplog):
    filled.add(400, 1, picture(61))  # block 20 shows what block 3 shows
    filled.add(401, 0)
    filled.add(500, 0, picture(401))  # block 25 shows what block 20 shows
    root = filled.write()
    table = group_duplicates(read_fracatlas_tree(root), root).set_index("study")
    joined = {"IMG0000060", "IMG0000061", "IMG0000062", "IMG0000063"}
    joined |= {"IMG0000400", "IMG0000401", "IMG0000500"}
    assert set(table.index[table["patient"] == "block0003"]) == joined
    assert table["patient"].nunique() == 10
    assert "2 pairs of images show the same" in caplog.text


def test_duplicates_with_both_labels_are_left_out(filled, caplog):
    filled.add(400, 0, picture(61))  # 61 is fractured
    filled.add(401, 1, picture(402))
    filled.add(402, 1)  # the same label twice: both stay
    root = filled.write()
    table = group_duplicates(read_fracatlas_tree(root), root)
    assert len(table) == 43 - 2
    assert not {"IMG0000061", "IMG0000400"} & set(table["study"])
    assert "2 near-identical images carry both labels and are left out" in caplog.text
    assert "IMG0000061, IMG0000400" in caplog.text


@pytest.mark.parametrize("numbers", [(2886, 4243), (2998, 4280), (3034, 4314, 4341), (2952, 4262)])
def test_known_contradictions_are_left_out_whatever_they_look_like(filled, numbers):
    for number in numbers:
        filled.add(number, number % 2)
    root = filled.write()
    assert len(group_duplicates(read_fracatlas_tree(root), root)) == 40


# The data module ----------------------------------------------------------------------------------


def test_the_index_is_complete_and_keeps_blocks_apart(filled, tmp_path):
    table = check_index(module(filled.write(), tmp_path).build_index(), "fracatlas")
    check_patients_apart(table, "fracatlas")
    assert table["split"].value_counts().to_dict() == {"train": 28, "test": 8, "val": 4}
    abnormal = table["label"] == 1
    assert ((table["lesion_mask"] != "") == abnormal).all()
    assert (table.loc[abnormal, "lesion_type"] == "fracture").all()
    assert (table.loc[~abnormal, "lesion_type"] == "").all()
    mask = cv2.imread(table.loc[abnormal, "lesion_mask"].iloc[0], cv2.IMREAD_UNCHANGED)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[20:30, 10:20] = 255
    np.testing.assert_array_equal(mask, expected)


def test_masks_are_drawn_once_and_anew_when_the_outlines_change(filled, tmp_path):
    root = filled.write()
    first = set(module(root, tmp_path).build_index()["lesion_mask"]) - {""}
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in first}
    assert set(module(root, tmp_path).build_index()["lesion_mask"]) - {""} == first
    assert times == {path: (tmp_path / path).stat().st_mtime_ns for path in first}
    filled.coco["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9, 1, 9]]
    filled.write()
    assert not first & (set(module(root, tmp_path).build_index()["lesion_mask"]) - {""})


def test_two_processes_may_draw_the_masks_at_once(filled, tmp_path, monkeypatch):
    slower, faster = (module(filled.write(), tmp_path) for _ in range(2))
    table = group_duplicates(read_fracatlas_tree(slower.root), slower.root)

    def overtaken(folder, drawn):
        monkeypatch.undo()
        faster._draw_lesions(table)
        return write_lesions(folder, drawn)

    monkeypatch.setattr("datamodules.fracatlas.write_lesions", overtaken)
    assert (slower._draw_lesions(table) / "lesions.csv").is_file()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_outlines_count_in_the_upright_frame(filled, tmp_path):
    filled.add(300, 1, orientation=6)
    table = module(filled.write(), tmp_path).build_index().set_index("study")
    mask = cv2.imread(table.loc["IMG0000300", "lesion_mask"], cv2.IMREAD_UNCHANGED)
    assert mask.shape == (WIDTH, HEIGHT)
    assert mask[20:30, 10:20].all()
    assert mask.sum() == 255 * 100


def test_a_lesion_folder_of_the_user_replaces_the_outlines(filled, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "lesions.csv").write_text(
        "image,mask,lesion_type\nimages/Fractured/IMG0000001.jpg,m.png,lytic\n"
    )
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 255).save(folder / "m.png")
    data = module(filled.write(), tmp_path, lesions_path=str(folder))
    table = data.build_index().set_index("study")
    assert (table["lesion_mask"] != "").sum() == 1
    assert table.loc["IMG0000001", "lesion_type"] == "lytic"
    assert table.loc["IMG0000003", "lesion_type"] == "fracture"
    assert [path.name for path in data.fingerprint()] == ["dataset.csv"]


def test_truncated_radiographs_are_left_out_of_the_cache(filled, tmp_path, caplog):
    path = filled.root / "images" / "Non_fractured" / "IMG0000002.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    data = module(filled.write(), tmp_path, image_size=32)
    data.prepare_data()
    data.setup()
    assert len(data.table) == 39
    assert "IMG0000002.jpg: damaged image (the JPEG is cut short" in caplog.text
    strict = module(data.root, tmp_path, image_size=32, unreadable="error")
    with pytest.raises(DataError, match=r"IMG0000002\.jpg: damaged image"):
        strict.prepare_data()


def test_an_outlined_image_without_header_is_left_to_the_cache(filled, tmp_path, caplog):
    path = filled.root / "images" / "Fractured" / "IMG0000001.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    data = module(filled.write(), tmp_path, image_size=32)
    data.prepare_data()
    data.setup()
    assert len(data.table) == 39
    assert (data.table["lesion_mask"] != "").sum() == 19
    assert "1 outlined images are unreadable, their masks are left out: IMG0000001" in caplog.text
    with pytest.raises(DataError, match=r"IMG0000001\.jpg: damaged image"):
        module(data.root, tmp_path, image_size=32, unreadable="error").prepare_data()
    path.write_bytes(whole)  # fetched again, it gets its mask
    assert (module(data.root, tmp_path).build_index()["lesion_mask"] != "").sum() == 20


# Real radiographs ---------------------------------------------------------------------------------


def test_real_index_and_masks_agree_with_the_derived_ones(tmp_path):
    root = real_data("fracatlas_fixture")
    table = check_index(module(root, tmp_path).build_index(), "fracatlas").set_index("path")
    manifest = pd.read_csv(root / "manifest.csv", keep_default_na=False).set_index("image")
    assert sorted(table.index) == sorted(manifest.index)
    manifest = manifest.loc[table.index]
    assert (table["label"] == manifest["label"]).all()
    assert (table["hardware"] == manifest["hardware"]).all()
    assert (table["body_part"] == manifest["body_part"]).all()
    blocks = "block" + manifest["id_block"].astype(str).str.zfill(4)
    assert (table["patient"] == blocks).all()
    marked = table[table["lesion_mask"] != ""]
    assert len(marked) == 35
    for row in marked.itertuples():
        ours = cv2.imread(row.lesion_mask, cv2.IMREAD_UNCHANGED) > 0
        theirs = cv2.imread(str(root / "masks" / f"{row.study}.png"), cv2.IMREAD_UNCHANGED) > 0
        assert ours.shape == theirs.shape
        assert (ours & theirs).sum() / (ours | theirs).sum() >= 0.99, row.study


def test_real_contradictory_row_is_settled(caplog):
    table = read_fracatlas_tree(real_data("fracatlas_pool")).set_index("study")
    assert table.loc["IMG0003298", "label"] == 1
    assert "IMG0003298.jpg has fractured=0 and fracture_count=1" in caplog.text
    assert table["label"].sum() == 344
