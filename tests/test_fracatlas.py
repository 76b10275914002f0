"""FracAtlas: a made-up archive with upstream's traps, near-duplicates, and real images."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules.fracatlas import (
    CONTRADICTIONS,
    FracAtlasDataModule,
    components,
    group_duplicates,
    near_duplicates,
    read_fracatlas_tree,
)
from datamodules.index import DataError, check_index, check_patients_apart
from datamodules.lesions import Lesion, write_lesions
from datamodules.options import Data, Lesions
from tests.archives import HEIGHT, WIDTH, Archive, picture
from tests.real import real_data


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


def test_columns_become_label_block_body_part_and_hardware(archive, caplog):
    """A row that contradicts itself follows folder and count, with a notice."""
    archive.add(19, 0, leg=1, hip=1, hand=0)
    archive.add(20, 1, shoulder=1, hardware=1)
    archive.add(3298, 1, hand=0, fractured=0, fracture_count=1)
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
    ("old", "new", "message"),
    [
        ("", "../elsewhere", "expected images/Fractured and .* Fix: give the unpacked FracAtlas"),
        ("Fractured/IMG0000021.jpg", "Non_fractured/IMG0000021.jpg", "row 7: .* but is in images/"),
        ("Fractured/IMG0000003.jpg", "Fractured/._gone.jpg", r"1 of 40 .* row 5: IMG0000003"),
    ],
)
def test_files_that_contradict_the_csv_are_named(filled, old, new, message):
    images = filled.write() / "images"
    (images / old).rename(images / new)
    with pytest.raises(DataError, match=message):
        read_fracatlas_tree(filled.root)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fractured": 2}, r"IMG0000002\.jpg: expected 0 or 1 in hand, .*, hardware, fractured"),
        ({"fracture_count": -1}, "IMG0000002.jpg: expected .*, and a whole fracture_count"),
        ({"image_id": "wrist.jpg"}, r"wrist\.jpg: expected a number in the name"),
        ({"image_id": "IMG0000001.jpg"}, r"IMG0000001\.jpg is listed twice"),
    ],
)
def test_a_wrong_row_is_named(archive, fields, message):
    archive.add(1, 0)
    archive.add(2, 0, **fields)
    with pytest.raises(DataError, match=rf"row 3: {message}"):
        read_fracatlas_tree(archive.write())


ALTERED = {
    "identical": lambda pixels: pixels,
    "resized": lambda pixels: cv2.resize(pixels, None, fx=2.0, fy=2.0),
    "brighter": lambda pixels: np.clip(pixels * 0.8 + 40, 0, 255).astype(np.uint8),
    "bottom lost": lambda pixels: np.where(np.arange(HEIGHT)[:, None] < 72, pixels, np.uint8(9)),
}


@pytest.mark.parametrize("quality", [95, 40])
@pytest.mark.parametrize("kind", ALTERED)
def test_near_duplicates_are_those_that_show_the_same(tmp_path, kind, quality):
    """Not the empty or unreadable ones."""
    empty = np.zeros((HEIGHT, WIDTH), np.uint8)
    images = [picture(1), picture(500), picture(2), ALTERED[kind](picture(500)), picture(3)]
    paths = [tmp_path / f"{place}.jpg" for place in range(9)]
    for path, pixels in zip(paths, [*images, empty, empty, empty, empty], strict=True):
        Image.fromarray(pixels).save(path, quality=quality)
    for path in paths[-2:]:
        path.write_bytes(path.read_bytes()[:300])
    assert near_duplicates(paths) == [(1, 3)]


def test_components_against_a_slow_reference():
    rng = np.random.default_rng(0)
    assert components(3, []).tolist() == [0, 1, 2]
    for _ in range(20):
        pairs = [(int(a), int(b)) for a, b in rng.integers(0, 30, (15, 2))]
        reach = np.eye(30, dtype=int)
        for a, b in pairs:
            reach[a, b] = reach[b, a] = 1
        for _ in range(5):
            reach = (reach @ reach).clip(0, 1)
        np.testing.assert_array_equal(components(30, pairs), reach.argmax(axis=1))


def test_real_near_duplicates_that_upstream_numbers_hide():
    paths = {path.stem: path for path in real_data("fracatlas_pool").glob("images/*/*.jpg")}
    numbers = [2646, 4072, 2647, 4071, 2652, 4067, 2735, 2737, 453, 455]  # the last two: alike only
    pairs = near_duplicates([paths[f"IMG{number:07d}"] for number in numbers])
    assert pairs == [(0, 1), (2, 3), (4, 5)]


def test_duplicates_join_their_blocks_or_are_left_out_where_labels_contradict(filled, caplog):
    filled.add(400, 1, picture(61))  # block 20 shows what block 3 shows
    filled.add(401, 0)
    filled.add(500, 0, picture(401))  # block 25 shows what block 20 shows
    filled.add(600, 0, picture(63))  # 63 is fractured
    for number in CONTRADICTIONS:  # whatever they look like
        filled.add(number, number % 2)
    root = filled.write()
    table = group_duplicates(read_fracatlas_tree(root), root).set_index("study")
    joined = {f"IMG{number:07d}" for number in (60, 61, 62, 400, 401, 500)}
    assert set(table.index[table["patient"] == "block0003"]) == joined
    assert len(table) == 43 - 1
    assert table["patient"].nunique() == 10
    assert "11 near-identical images carry both labels and are left out" in caplog.text


@pytest.mark.parametrize("folder", ["", "C:\\data\\Fractured\\"])
def test_the_index_is_complete_and_masks_are_drawn_once_upright(filled, tmp_path, folder):
    """Whatever folder an export of the outlines puts before a name."""
    filled.add(300, 1, orientation=6)  # outlines count in the upright frame
    for image in filled.coco["images"]:
        image["file_name"] = folder + image["file_name"]
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
    for study, shape in {"IMG0000001": (HEIGHT, WIDTH), "IMG0000300": (WIDTH, HEIGHT)}.items():
        expected = np.zeros(shape, np.uint8)
        expected[20:30, 10:20] = 255
        np.testing.assert_array_equal(cv2.imread(by_study[study], cv2.IMREAD_UNCHANGED), expected)
    first = masks()
    assert masks() == first
    filled.coco["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9, 1, 9]]
    filled.write()
    assert not first.keys() & masks().keys()
    # Turned: the outlines are of another frame now.
    Image.fromarray(picture(300)).save(root / "images" / "Fractured" / "IMG0000300.jpg")
    with pytest.raises(DataError, match=r"IMG0000300.jpg is 96x80 px: expected 80x96 px"):
        masks()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("IMG0", "scan_IMG0", "masks.json: outlines none of the images. Fix: give"),
        ("IMG0000001", "IMG0000000", "is labelled normal but has"),
        ('{"images"', "", "COCO_fracture_masks.json: "),
    ],
)
def test_outlines_that_cannot_be_theirs_are_an_error(filled, tmp_path, old, new, message):
    coco = filled.write() / "Annotations/COCO JSON/COCO_fracture_masks.json"
    coco.write_text(coco.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        module(filled.root, tmp_path).build_index()


def test_two_processes_may_draw_the_masks_at_once(filled, tmp_path, monkeypatch):
    slower, faster = (module(filled.write(), tmp_path) for _ in range(2))
    table = read_fracatlas_tree(slower.root)

    def overtaken(folder, lesions):
        monkeypatch.undo()
        faster._draw_lesions(table)
        return write_lesions(folder, lesions)

    monkeypatch.setattr("datamodules.fracatlas.write_lesions", overtaken)
    assert (slower._draw_lesions(table) / "lesions.csv").is_file()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_lesion_folder_of_the_user_replaces_the_outlines(filled, tmp_path):
    mask = np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 255
    write_lesions(tmp_path / "m", [Lesion("images/Fractured/IMG0000001.jpg", mask, "lytic")])
    data = module(filled.write(), tmp_path, lesions_path=str(tmp_path / "m"))
    table = data.build_index().set_index("study")
    assert (table["lesion_mask"] != "").sum() == 1
    assert table["lesion_type"][["IMG0000001", "IMG0000003"]].tolist() == ["lytic", "fracture"]
    assert [path.name for path in data.fingerprint()] == ["dataset.csv"]


@pytest.mark.parametrize(
    ("name", "kept", "masks", "notice"),
    [
        ("Non_fractured/IMG0000002.jpg", -200, 20, "damaged image (the JPEG is cut short"),
        ("Fractured/IMG0000001.jpg", 20, 19, "an outlined image is unreadable, no mask: "),
    ],
)
def test_truncated_radiographs_are_left_out(filled, tmp_path, caplog, name, kept, masks, notice):
    path = filled.write() / "images" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    data = module(filled.root, tmp_path, image_size=32)
    data.prepare_data()
    data.setup()
    assert (len(data.table), (data.table["lesion_mask"] != "").sum()) == (39, masks)
    assert notice in caplog.text
    with pytest.raises(DataError, match=rf"{path.name}: damaged image"):
        module(filled.root, tmp_path, image_size=32, unreadable="error").prepare_data()
    path.write_bytes(whole)  # fetched again, it gets its mask
    assert (module(filled.root, tmp_path).build_index()["lesion_mask"] != "").sum() == 20


def test_real_index_and_masks_agree_with_the_derived_ones(tmp_path):
    root = real_data("fracatlas_fixture")
    table = check_index(module(root, tmp_path).build_index(), "fracatlas").set_index("path")
    manifest = pd.read_csv(root / "manifest.csv", keep_default_na=False).set_index("image")
    assert sorted(table.index) == sorted(manifest.index)
    manifest = manifest.loc[table.index]
    blocks = "block" + manifest["id_block"].astype(str).str.zfill(4)
    columns = ["label", "hardware", "body_part", "patient"]
    assert (table[columns] == manifest.assign(patient=blocks)[columns]).all(axis=None)
    marked = table[table["lesion_mask"] != ""]
    assert len(marked) == 35
    for row in marked.itertuples():
        ours = cv2.imread(row.lesion_mask, cv2.IMREAD_UNCHANGED) > 0
        theirs = cv2.imread(str(root / "masks" / f"{row.study}.png"), cv2.IMREAD_UNCHANGED) > 0
        assert ours.shape == theirs.shape
        assert (ours & theirs).sum() / (ours | theirs).sum() >= 0.99, row.study
