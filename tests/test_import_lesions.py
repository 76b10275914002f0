"""Importing lesions: what is written, how names are matched, raters, and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments import import_lesions
from experiments.build import build_data
from experiments.config import load_config
from tests.lesion_files import (
    BOX,
    HEIGHT,
    WIDTH,
    build,
    image,
    save,
    write_coco,
    write_label_studio,
)
from tests.test_decode import XMP_APP, app, jpeg_with

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "lesions"


@pytest.fixture
def run(root, out):
    """Run the command on the small tree; its exit status."""

    def run(*words, to=out):
        words = [str(word) for word in words]
        return import_lesions.main(
            [*words, "--out", str(to), "data.name=mura", f"data.root={root}"]
        )

    return run


def mask_of(out, name):
    return np.array(Image.open(out / "masks" / f"{name}.png"))


def drawn(left=10, top=5, right=19, bottom=12):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : bottom + 1, left : right + 1] = 255
    return mask


def assert_matches(text, pattern):
    assert re.search(pattern, text), text


# What is written ----------------------------------------------------------------------------------


def test_masks_table_and_sheet_are_written_and_the_data_set_takes_them(
    run, root, out, tmp_path, capsys
):
    names = [image(2), image(4), image(102, split="valid")]
    source = write_coco(tmp_path / "a.json", *((name, [BOX]) for name in names))
    assert run(source) == 0
    rows = pd.read_csv(out / "lesions.csv")
    assert rows["image"].tolist() == names
    assert set(rows["lesion_type"]) == {"fracture"}
    assert sorted(path.name for path in out.iterdir()) == [
        "import.csv",
        "lesions.csv",
        "masks",
        "sheet.png",
    ]
    for name in names:
        np.testing.assert_array_equal(mask_of(out, name), drawn())
    about = pd.read_csv(out / "import.csv")
    assert about["share"].tolist() == [round(80 / 1200, 6)] * 3
    assert about["weak"].tolist() == [1, 1, 1]  # a polygon, but of a box's four corners
    assert about["split"].iloc[2] == "test"
    printed = capsys.readouterr().out
    assert "3 listed, 0 of them without a mark; 3 matched, 0 of them left out" in printed
    assert f'make stage3 DATA=mura ROOT={root} RUN=lesions ARGS="lesions.path={out}"' in printed
    words = ["data.name=mura", f"data.root={root}", f"lesions.path={out}"]
    table = build_data(load_config("stage3", words)).checked_index()
    assert table["path"][table["lesion_mask"] != ""].tolist() == names


def test_nothing_is_left_where_writing_fails(run, out, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device", "sheet.png")

    monkeypatch.setattr("experiments.annotation.importing.write_sheets", fail)
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]))) == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert [*out.parent.iterdir()] == []


def test_several_sheets_are_numbered(run, out, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.annotation.sheet.ROWS", 1)
    monkeypatch.setattr("experiments.annotation.sheet.COLUMNS", 2)
    entries = [(image(patient), [BOX]) for patient in (2, 4, 6)]
    assert run(write_coco(tmp_path / "a.json", *entries)) == 0
    assert "import.csv, sheet-1.png to sheet-2.png" in capsys.readouterr().out
    assert (out / "sheet-2.png").is_file()


def test_the_outline_is_on_the_sheet_in_the_lesions_place(run, out, tmp_path):
    assert run(write_coco(tmp_path / "a.json", (image(2), [[*BOX, 10, 8, 11, 8]]))) == 0
    sheet = np.array(Image.open(out / "sheet.png")).astype(int)
    green = (sheet[..., 1] - sheet[..., 0] > 60) & (sheet[..., 1] - sheet[..., 2] > 60)
    rows, columns = np.nonzero(green)
    scale, left, top = 220 / WIDTH, 8, 8 + (220 - 220 * HEIGHT / WIDTH) / 2
    assert columns.min() == pytest.approx(left + 10 * scale, abs=4)
    assert columns.max() == pytest.approx(left + 20 * scale, abs=4)
    assert rows.min() == pytest.approx(top + 5 * scale, abs=4)
    assert rows.max() == pytest.approx(top + 13 * scale, abs=4)


def test_masks_of_train_alone_are_cross_fitted(run, root, out, tmp_path, capsys):
    words = ["data.name=mura", f"data.root={root}"]
    table = build_data(load_config("stage3", words)).checked_index()
    train = table["path"][(table["split"] == "train") & (table["label"] == 1)].tolist()
    assert run(write_coco(tmp_path / "a.json", *((name, [BOX]) for name in train))) == 0
    printed = capsys.readouterr().out
    assert "all masks lie in train: no map can be judged" in printed
    assert f'RUN=lesions-fold0 ARGS="lesions.path={out} lesions.folds=5 lesions.fold=0"' in printed


def test_an_example_comes_back_as_the_phantoms_own_masks(tmp_path, capsys):
    words = [f"data.root={tmp_path / 'phantom'}", "data.count=80"]
    example, out = tmp_path / "example.json", tmp_path / "lesions"
    assert import_lesions.main(["--example", "12", "--out", str(example), *words]) == 0
    assert "12 lesions of 12 patients" in capsys.readouterr().out
    assert import_lesions.main([str(example), "--out", str(out), *words]) == 0
    own = tmp_path / "phantom" / "lesions"
    rows = pd.read_csv(out / "lesions.csv")
    assert len(rows) == 12
    types = pd.read_csv(own / "lesions.csv").set_index("image")["lesion_type"]
    for name, kind in zip(rows["image"], rows["lesion_type"], strict=True):
        np.testing.assert_array_equal(mask_of(out, name), mask_of(own, name))
        assert kind == types[name]
    # The folder of masks itself is a source, too.
    assert import_lesions.main([str(own / "masks"), "--out", str(tmp_path / "all"), *words]) == 0
    assert len(pd.read_csv(tmp_path / "all" / "lesions.csv")) == len(types)


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([[100, 5, 120, 5, 120, 20]], "annotation 2: .*it lies outside the 40x30 px image"),
        ([[30, 5, 90, 5, 90, 20]], "most of it lies outside the 40x30 px image: .*scaled"),
        ([[5, 5, 25, 25, 25, 5, 5, 25]], r"its outline crosses itself near \(15, 15\)"),
        ([[0, 0, 40, 0, 40, 30, 0, 30]], "the whole image is marked: is the mask inverted"),
        ([[5, 5, 9, 9]], "wrong entry: 1, nothing of their images is taken"),
        ([BOX, [5, 5, 9, 9]], "wrong entry: 1, nothing of their images is taken"),
    ],
)
def test_a_wrong_mark_keeps_its_image_out(run, out, tmp_path, capsys, polygons, message):
    source = write_coco(tmp_path / "a.json", (image(2), [BOX]), (image(4), polygons))
    assert run(source) == 1
    assert_matches(capsys.readouterr().err, message)
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(2)]


def test_every_mistake_is_listed(run, out, tmp_path, capsys):
    source = write_coco(
        tmp_path / "a.json",
        (image(1), [BOX]),
        (image(4), [BOX]),
        ("MURA-v1.1/" + image(4), [BOX]),
        (image(6), [[5, 5, 25, 25, 25, 5, 5, 25], [100, 5, 120, 5, 120, 20]]),
        ("nobody.png", [BOX]),
    )
    assert run(source) == 2
    error = capsys.readouterr().err
    assert "unknown image: 1\n" in error
    assert f"{image(1)} is labelled normal but has a lesion marked" in error
    assert f"{image(4)} is listed twice, also in " in error
    assert "wrong mark: 2\n" in error
    assert "nothing is written: 5 mistakes, listed above" in error
    assert not out.exists()


def test_another_size_is_refused(run, tmp_path, capsys):
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]), size=(60, 80))) == 2
    assert "it is 80x60 px in the file, the upright image 40x30 px" in capsys.readouterr().err
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]), size=(WIDTH, HEIGHT))) == 2
    assert "it seems turned by 90 degrees" in capsys.readouterr().err


def test_the_raw_frame_of_a_turned_image_is_told(run, root, out, tmp_path, capsys):
    save(root / image(2), orientation=6)
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]), size=(WIDTH, HEIGHT))) == 2
    assert (
        "it was annotated in the raw frame, 30x40 px: the tool ignored the EXIF orientation 6; as "
        "it is decoded the image is 40x30 px"
    ) in capsys.readouterr().err
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]))) == 0
    assert mask_of(out, image(2)).shape == (HEIGHT, WIDTH)


def test_a_turn_that_is_not_in_exif_is_not_applied(run, root, out, tmp_path, capsys):
    (root / image(2)).write_bytes(jpeg_with(np.zeros((HEIGHT, WIDTH), np.uint8), XMP_APP))
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]), size=(WIDTH, HEIGHT))) == 2
    assert (
        "it was annotated in the turned frame, 30x40 px: the tool applied XMP's orientation 6; as "
        "it is decoded the image is 40x30 px"
    ) in capsys.readouterr().err
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]))) == 0
    assert mask_of(out, image(2)).shape == (HEIGHT, WIDTH)


def test_exif_that_cannot_be_parsed_stops_no_import(run, root, out, tmp_path):
    jpeg = jpeg_with(np.zeros((HEIGHT, WIDTH), np.uint8), app(0xE1, b"Exif\0\0garbage"))
    (root / image(2)).write_bytes(jpeg)
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]))) == 0


def test_a_turn_that_no_size_tells_is_noted(run, root, out, tmp_path, capsys):
    save(root / image(2), orientation=3)
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]))) == 0
    assert "NOTE look at 1 image, import.csv" in capsys.readouterr().out
    assert "XMP or EXIF orientation is 3" in pd.read_csv(out / "import.csv")["notes"][0]


def test_what_stands_out_a_little_is_cut_off_with_a_note(run, out, tmp_path):
    points = [30, 5, 46, 5, 46, 12, 30, 12]
    assert run(write_coco(tmp_path / "a.json", (image(2), [points]))) == 0
    np.testing.assert_array_equal(mask_of(out, image(2)), drawn(30, 5, 39, 12))
    note = pd.read_csv(out / "import.csv")["notes"][0]
    assert note == "annotation 1 cut off at the image's edge, 6 px beyond it"


def test_an_empty_mask_of_an_abnormal_image_is_a_mistake(run, tmp_path, capsys):
    for name, mask in ((image(2), drawn()), (image(4), 0 * drawn()), (image(1), 0 * drawn())):
        path = tmp_path / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    assert run(tmp_path / "masks") == 1
    error = capsys.readouterr().err
    assert "empty, full or inverted mask: 1\n" in error
    assert f"{image(4)}: its mask is empty" in error


def test_an_image_that_the_index_leaves_out_is_told_from_an_unknown_one(
    run, root, tmp_path, capsys
):
    save(root / "train" / "extra.png")
    assert run(write_coco(tmp_path / "a.json", ("train/extra.png", [BOX]))) == 2
    assert "but the index leaves it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.json"], "absent.json does not exist"),
        ([], "name what is to be imported"),
        (["SOURCE", "SOURCE"], "a source is given twice"),
        (["SOURCE", "--format", "dxf"], "--format dxf is none of masks, coco, "),
        (["PLAIN"], r"in no format that is known \(.*; say which, .* \(--format NAME\)"),
        (["SOURCE", "--labels", "fractur"], "--labels 'fractur': .*there are 'fracture' labels"),
        (["SOURCE", "--mapping", "no.csv"], "--mapping no.csv: there is no such file"),
        (["SOURCE", "lesions.path=x"], "lesions.path is what an import makes"),
        (["SOURCE", "data.nam=mura"], "data.nam"),
        (["--example", "5"], "data.name=mura has no lesion masks of its own"),
        (["SOURCE", "--example", "5"], "--example reads no source"),
        (["--example", "5", "--strict"], "--strict is of an import, --example is none"),
        (["--select", "5", "--mapping", "m.csv"], "--mapping is of an import, --select is none"),
        (["--select", "5", "--example", "5"], "--select and --example are two things"),
        (["SOURCE", "--split", "val"], "--split belongs to --select"),
    ],
)
def test_what_cannot_be_carried_out_is_said(run, out, tmp_path, capsys, words, message):
    source = write_coco(tmp_path / "a.json", (image(2), [BOX]))
    (tmp_path / "plain.md").write_text("# no annotations\n")
    files = {"SOURCE": source, "PLAIN": tmp_path / "plain.md"}
    assert run(*(files.get(word, word) for word in words)) == 2
    assert_matches(capsys.readouterr().err, message)
    assert not out.exists()


def test_a_folder_that_is_there_stays_as_it_is(run, out, tmp_path, capsys):
    out.mkdir(parents=True)
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]))) == 2
    assert "already exists; remove it first, or choose another --out" in capsys.readouterr().err
    assert [*out.iterdir()] == []


# Raters and boxes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "columns"), [("union", (10, 23)), ("majority", (14, 19)), ("intersection", (14, 19))]
)
def test_two_raters_are_joined_and_compared(run, out, tmp_path, capsys, how, columns):
    boxes = [("anna@clinic.org", [10, 5, 9, 7]), ("ben@clinic.org", [14, 5, 9, 7])]
    source = write_label_studio(tmp_path / "a.json", image(2), *boxes)
    assert run(source, "--raters", how) == 0
    np.testing.assert_array_equal(mask_of(out, image(2)), drawn(columns[0], 5, columns[1], 12))
    printed = capsys.readouterr().out
    assert f"several raters marked 1 image; joined by {how}" in printed
    # 6 of 14 columns are shared; each rater has 10.
    assert_matches(printed, r"rater 1 and rater 2 +1 +0\.429 +0\.600")
    about = pd.read_csv(out / "import.csv")
    assert about[["raters", "rater_iou", "rater_dice"]].to_numpy().tolist() == [[2, 0.4286, 0.6]]
    assert "clinic" not in printed + (out / "import.csv").read_text()


def test_a_majority_of_three_is_two(run, out, tmp_path):
    boxes = [(str(n), [x, 5, 9, 7]) for n, x in enumerate((10, 14, 18))]
    source = write_label_studio(tmp_path / "a.json", image(2), *boxes)
    assert run(source, "--raters", "majority") == 0
    np.testing.assert_array_equal(mask_of(out, image(2)), drawn(14, 5, 23, 12))


def test_several_sources_are_several_raters(run, out, tmp_path, capsys):
    one = write_coco(tmp_path / "anna.json", (image(2), [BOX]), (image(4), [BOX]))
    other = write_coco(tmp_path / "ben.json", (image(2), [BOX]))
    assert run(one, other, "--raters", "intersection") == 0
    assert_matches(capsys.readouterr().out, r"anna.json and .*ben.json +1 +1\.000 +1\.000")
    assert len(pd.read_csv(out / "lesions.csv")) == 2


def test_raters_who_share_nothing_are_told(run, tmp_path, capsys):
    boxes = [("1", [2, 5, 5, 5]), ("2", [20, 5, 5, 5])]
    source = write_label_studio(tmp_path / "a.json", image(2), *boxes)
    assert run(source, "--raters", "majority") == 2
    assert "no pixel is left by the majority of 2 raters" in capsys.readouterr().err


def test_boxes_are_taken_and_flagged_weak(run, out, tmp_path, capsys):
    content = json.loads(write_coco(tmp_path / "a.json", (image(2), [BOX])).read_text())
    content["annotations"][0] |= {"segmentation": [], "bbox": [10, 5, 9, 7]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert run(tmp_path / "a.json") == 0
    assert "masks    1, 1 of them weak: boxes" in capsys.readouterr().out
    assert pd.read_csv(out / "import.csv")["weak"].tolist() == [1]
    np.testing.assert_array_equal(mask_of(out, image(2)), drawn())


def test_labels_choose_marks(run, out, tmp_path):
    content = json.loads(write_coco(tmp_path / "a.json", (image(2), [BOX, BOX])).read_text())
    content["categories"].append({"id": 2, "name": "text"})
    content["annotations"][1] |= {"category_id": 2, "segmentation": [[1, 1, 5, 1, 5, 3]]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert run(tmp_path / "a.json", "--labels", "fracture") == 0
    np.testing.assert_array_equal(mask_of(out, image(2)), drawn())


def test_what_a_file_says_does_not_move_the_cursor(run, out, tmp_path, capsys):
    content = json.loads(write_coco(tmp_path / "a.json", (image(2), [BOX])).read_text())
    content["categories"][0]["name"] = "frac\x1b[2Jture\ud800"
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert run(tmp_path / "a.json") == 0
    assert "marks    frac?[2Jture? 1" in capsys.readouterr().out
    assert pd.read_csv(out / "lesions.csv")["lesion_type"].tolist() == ["frac?[2Jture?"]


def test_a_wrong_row_of_via_keeps_its_whole_image_out(run, out, tmp_path, capsys):
    good = {"name": "rect", "x": 10, "y": 5, "width": 10, "height": 8}
    rows = pd.DataFrame(
        [(image(2), good), (image(2), good | {"width": "wide"}), (image(4), good)],
        columns=["filename", "region_shape_attributes"],
    )
    rows["region_shape_attributes"] = rows["region_shape_attributes"].map(json.dumps)
    rows.assign(region_attributes="{}").to_csv(tmp_path / "via.csv", index=False)
    assert run(tmp_path / "via.csv") == 1
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(4)]
    assert f"row 3 on {image(2)}: width is 'wide', no number" in capsys.readouterr().err
