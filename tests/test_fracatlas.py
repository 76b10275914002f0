"""FracAtlas: a made-up archive with upstream's traps, near-duplicates, and real images."""

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules import fracatlas
from datamodules.fracatlas import read_fracatlas_tree
from datamodules.index import DataError, check_index, check_patients_apart
from datamodules.lesions import Lesion, write_lesions
from datamodules.options import Data, Lesions
from tests.archives import HEIGHT, WIDTH, Archive, picture
from tests.real import real_data

SQUARE = np.zeros((HEIGHT, WIDTH), np.uint8)
SQUARE[20:30, 10:20] = 255  # as the outlines of Archive


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
    return fracatlas.FracAtlasDataModule(data, Lesions(path=lesions_path))


def test_columns_become_label_block_body_part_and_hardware(archive, caplog):
    archive.add(19, 0, leg=1, hip=1, hand=0)
    archive.add(20, 1, shoulder=1, hardware=1)
    archive.add(3298, 1, hand=0, fractured=0, fracture_count=1)  # the folder and the count decide
    table = read_fracatlas_tree(archive.write())
    columns = ["path", "label", "patient", "study", "body_part", "hardware"]
    no, yes = "images/Non_fractured/", "images/Fractured/"
    assert table[columns].to_numpy().tolist() == [
        [no + "IMG0000019.jpg", 0, "block0000", "IMG0000019", "leg+hip", 0],
        [yes + "IMG0000020.jpg", 1, "block0001", "IMG0000020", "hand+shoulder", 1],
        [yes + "IMG0003298.jpg", 1, "block0164", "IMG0003298", "unknown", 0],
    ]
    what = "row 4: IMG0003298.jpg has fractured=0 and fracture_count=1 but is in images/Fractured"
    assert f"{what}; taken as Fractured" in caplog.text


@pytest.mark.parametrize(
    ("fields", "moved", "message"),
    [
        ({}, ("", "../elsewhere"), "expected images/Fractured and .* Fix: give the unpacked"),
        ({}, ("Fractured/IMG0000002.jpg", "Non_fractured/IMG0000002.jpg"), "row 3: .* but is in"),
        ({}, ("Fractured/IMG0000002.jpg", "Fractured/._2.jpg"), r"1 of 2 .* row 3: IMG0000002"),
        ({"fractured": 2}, None, r"row 3: IMG0000002\.jpg: expected 0 or 1 in hand, .*, fractured"),
        ({"fracture_count": -1}, None, "row 3: .*: expected .*, and a whole fracture_count"),
        ({"image_id": "wrist.jpg"}, None, r"row 3: wrist\.jpg: expected a number in the name"),
        ({"image_id": "IMG0000001.jpg"}, None, r"row 3: IMG0000001\.jpg is listed twice"),
    ],
)
def test_what_contradicts_itself_is_named(archive, fields, moved, message):
    archive.add(1, 0)
    archive.add(2, 1, **fields)
    images = archive.write() / "images"
    if moved:
        (images / moved[0]).rename(images / moved[1])
    with pytest.raises(DataError, match=message):
        read_fracatlas_tree(archive.root)


@pytest.mark.parametrize(
    "alter",
    [
        lambda pixels: cv2.resize(pixels, None, fx=2.0, fy=2.0),
        lambda pixels: np.clip(pixels * 0.8 + 40, 0, 255).astype(np.uint8),
        lambda pixels: np.where(np.arange(HEIGHT)[:, None] < 72, pixels, np.uint8(9)),
    ],
)
def test_near_duplicates_are_those_that_show_the_same(tmp_path, alter):
    """Not the empty or unreadable ones."""
    empty = np.zeros((HEIGHT, WIDTH), np.uint8)
    images = [picture(1), picture(500), picture(2), alter(picture(500)), picture(3)]
    paths = [tmp_path / f"{place}.jpg" for place in range(9)]
    for path, pixels in zip(paths, [*images, empty, empty, empty, empty], strict=True):
        Image.fromarray(pixels).save(path, quality=40)
    for path in paths[-2:]:
        path.write_bytes(path.read_bytes()[:300])
    assert fracatlas.near_duplicates(paths) == [(1, 3)]


def test_real_near_duplicates_that_upstream_numbers_hide():
    paths = {path.stem: path for path in real_data("fracatlas_pool").glob("images/*/*.jpg")}
    numbers = [2646, 4072, 2647, 4071, 2652, 4067, 2735, 2737, 453, 455]  # the last two: alike only
    pairs = fracatlas.near_duplicates([paths[f"IMG{number:07d}"] for number in numbers])
    assert pairs == [(0, 1), (2, 3), (4, 5)]


def test_duplicates_join_their_blocks_or_are_left_out_where_labels_contradict(filled, caplog):
    filled.add(400, 1, picture(61))  # block 20 shows what block 3 shows
    filled.add(401, 0)
    filled.add(500, 0, picture(401))  # block 25 shows what block 20 shows
    filled.add(600, 0, picture(63))  # 63 is fractured
    for number in fracatlas.CONTRADICTIONS:  # whatever they look like
        filled.add(number, number % 2)
    root = filled.write()
    table = fracatlas.group_duplicates(read_fracatlas_tree(root), root).set_index("study")
    joined = {f"IMG{number:07d}" for number in (60, 61, 62, 400, 401, 500)}
    assert set(table.index[table["patient"] == "block0003"]) == joined
    assert len(table) == 43 - 1
    assert table["patient"].nunique() == 10
    assert "11 near-identical images carry both labels and are left out" in caplog.text


def test_the_index_is_complete_and_masks_are_drawn_once_upright(filled, tmp_path):
    """Whatever folder an export of the outlines puts before a name."""
    filled.add(300, 1, orientation=6)  # outlines count in the upright frame
    for image in filled.coco["images"]:
        image["file_name"] = "C:\\data\\Fractured\\" + image["file_name"]
    root = filled.write()

    def masks():
        paths = set(module(root, tmp_path).build_index()["lesion_mask"]) - {""}
        return {path: (tmp_path / path).stat().st_mtime_ns for path in paths}

    table = check_index(module(root, tmp_path).build_index(), "fracatlas")
    check_patients_apart(table, "fracatlas")
    assert table["split"].value_counts().to_dict() == {"train": 28, "test": 8, "val": 5}
    abnormal = table["label"] == 1
    assert ((table["lesion_mask"] != "") == abnormal).all()
    assert (table["lesion_type"] == np.where(abnormal, "fracture", "")).all()
    by_study = table[abnormal].set_index("study")["lesion_mask"]
    mask, turned = (cv2.imread(by_study[f"IMG0000{n}"], cv2.IMREAD_UNCHANGED) for n in ("001", 300))
    np.testing.assert_array_equal(mask, SQUARE)
    assert (turned.shape, turned[20:30, 10:20].min(), turned.sum()) == ((80, 96), 255, mask.sum())
    first = masks()
    assert masks() == first
    filled.coco["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9, 1, 9]]
    filled.write()
    assert not first.keys() & masks().keys()
    # Turned: the outlines are of another frame now.
    Image.fromarray(picture(300)).save(root / "images" / "Fractured" / "IMG0000300.jpg")
    with pytest.raises(DataError, match=r"IMG0000300.jpg.png is 96x80 px: expected 80x96 px"):
        masks()


def test_outlines_that_cannot_be_theirs_are_an_error(filled, tmp_path):
    coco = filled.write() / "Annotations/COCO JSON/COCO_fracture_masks.json"
    strangers = coco.read_text().replace("IMG0", "scan_IMG0")
    for text, message in ((strangers, "outlines none of the images. Fix: give"), ("[", "")):
        coco.write_text(text)
        with pytest.raises(DataError, match=f"COCO_fracture_masks.json: {message}"):
            module(filled.root, tmp_path).build_index()


def test_two_processes_may_draw_the_masks_at_once(filled, tmp_path, monkeypatch):
    def overtaken(folder, lesions):
        for _ in range(2):  # by the other process, then by this one
            write_lesions(folder, [Lesion("images/Fractured/IMG0000001.jpg", SQUARE)])

    monkeypatch.setattr("datamodules.fracatlas.write_lesions", overtaken)
    assert (module(filled.write(), tmp_path).build_index()["lesion_mask"] != "").sum() == 1


def test_a_lesion_folder_of_the_user_replaces_the_outlines(filled, tmp_path):
    write_lesions(tmp_path / "m", [Lesion("images/Fractured/IMG0000001.jpg", SQUARE, "lytic")])
    data = module(filled.write(), tmp_path, lesions_path=str(tmp_path / "m"))
    table = data.build_index().set_index("study")
    assert (table["lesion_mask"] != "").sum() == 1
    assert table["lesion_type"][["IMG0000001", "IMG0000003"]].tolist() == ["lytic", "fracture"]
    assert [path.name for path in data.fingerprint()] == ["dataset.csv"]


def test_truncated_radiographs_are_left_out(filled, tmp_path, caplog):
    path = filled.write() / "images" / "Fractured/IMG0000001.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    data = module(filled.root, tmp_path, image_size=32)
    data.prepare_data()
    data.setup()
    assert (len(data.table), (data.table["lesion_mask"] != "").sum()) == (39, 19)
    assert f"{path}: damaged image (the JPEG is cut short" in caplog.text
    with pytest.raises(DataError, match=rf"{path.name}: damaged image"):
        module(filled.root, tmp_path, image_size=32, unreadable="error").prepare_data()


def test_real_index_and_masks_agree_with_the_derived_ones(tmp_path):
    root = real_data("fracatlas_fixture")
    table = module(root, tmp_path).build_index().set_index("path").sort_index()
    manifest = pd.read_csv(root / "manifest.csv").set_index("image").sort_index()
    columns = ["label", "hardware", "body_part"]
    assert table[columns].to_dict() == manifest[columns].to_dict()
    marked = table[table["lesion_mask"] != ""]
    assert len(marked) == 35
    for row in marked.itertuples():
        ours = cv2.imread(row.lesion_mask, cv2.IMREAD_UNCHANGED) > 0
        theirs = cv2.imread(str(root / "masks" / f"{row.study}.png"), cv2.IMREAD_UNCHANGED) > 0
        assert ours.shape == theirs.shape
        assert (ours & theirs).sum() / (ours | theirs).sum() >= 0.99, row.study
