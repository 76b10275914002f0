"""Choosing what to annotate: which images, and the package that annotation tools open."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from datamodules.annotations.recognition import READERS, recognise
from datamodules.decode import decode
from datamodules.index import DataError
from datamodules.lesions import Lesion, write_lesions
from datamodules.phantom.source import PhantomDataModule
from experiments import import_lesions, select_lesions
from experiments.annotation.choosing import look_at, maps_of
from experiments.annotation.matching import ImageFinder, read_mapping
from experiments.annotation.package import (
    COLUMNS, Picture, _filled, flat_names, label_studio_tasks, labelme_content, write_package
)
from experiments.build import Run
from experiments.config import load_config
from lightning_modules.stage1 import Stage1Classifier
from tests.stages import settled
from tests.test_fracatlas import Archive
from tests.test_mura import build

# pycocotools calls NumPy in the way of before 2.0.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PARTS = ("HAND", "WRIST", "ELBOW", "SHOULDER")


# Files --------------------------------------------------------------------------------------------

TRIANGLE = [(10.5, 20.0), (30.0, 20.0), (20.0, 40.0)]
PICTURES = [Picture("b.png", 80, 100, [TRIANGLE], 0.75), Picture("a.png", 50, 60, [], 0.5)]


def test_cvat_numbers_images_by_name_as_its_tasks_do():
    root = ElementTree.fromstring(_filled("cvat.xml", PICTURES).encode())
    assert root.findtext("version") == "1.1"
    images = root.findall("image")
    assert [(image.get("id"), image.get("name")) for image in images] == [
        ("0", "a.png"),
        ("1", "b.png"),
    ]
    assert (images[1].get("width"), images[1].get("height")) == ("100", "80")
    (polygon,) = images[1]
    assert polygon.tag == "polygon"
    assert polygon.get("label") == root.findtext(".//label/name") == "lesion"
    assert polygon.get("points") == "10.50,20.00;30.00,20.00;20.00,40.00"
    assert (polygon.get("occluded"), polygon.get("source")) == ("0", "auto")


def test_label_studio_has_predictions_in_percent():
    one, other = label_studio_tasks(PICTURES, "stage1 pcam")
    assert one["data"] == {"image": "/data/local-files/?d=images/b.png"}
    assert other == {"data": {"image": "/data/local-files/?d=images/a.png"}}
    (prediction,) = one["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("stage1 pcam", 0.75)
    (result,) = prediction["result"]
    assert (result["original_width"], result["original_height"]) == (100, 80)
    assert result["value"]["points"] == [[10.5, 25.0], [30.0, 25.0], [20.0, 50.0]]
    assert result["value"]["polygonlabels"] == ["lesion"]


def test_labelme_names_the_image_and_holds_no_copy():
    found = labelme_content(PICTURES[0], "stage1 pcam")
    assert (found["imagePath"], found["imageData"]) == ("b.png", None)
    assert (found["imageHeight"], found["imageWidth"]) == (80, 100)
    (shape,) = found["shapes"]
    assert shape["points"] == [list(point) for point in TRIANGLE]
    assert "stage1 pcam, not by a person" in shape["description"]


def test_names_are_flat_plain_and_unlike():
    names = flat_names(
        ["a/b.png", "a/b.jpg", "A/B.png", "xü/c d.png", ".x/e.png", "a" * 300 + "/1.png"]
    )
    assert names[:5] == ["a__b.png", "a__b-2.png", "A__B-3.png", "x-__c-d.png", "x__e.png"]
    assert len({name.lower() for name in names}) == 6
    assert all(len(name) < 200 and name.isascii() and "/" not in name for name in names)


def test_what_is_outlined_is_read_back_point_by_point(tmp_path):
    """As each tool hands it back: CVAT's XML, LabelMe's files, a task with its prediction taken."""
    images = ["MURA-v1.1/train/a/image1.png", "MURA-v1.1/train/b/image1.png", "c d.jpg"]
    generator = np.random.default_rng(0)
    for image in images:
        (tmp_path / "data" / image).parent.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (37, 53), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "data" / image)
    outlines = [[TRIANGLE, [(1.5, 2.5), (3.5, 2.5), (3.5, 9.5)]], [], [TRIANGLE]]
    chosen = pd.DataFrame(dict.fromkeys(COLUMNS, "x"), index=range(3))
    chosen = chosen.assign(image=images, probability_abnormal=0.5)
    package = tmp_path / "package"
    write_package(package, tmp_path / "data", chosen, outlines, "stage1 pcam")
    tasks = json.loads((package / "label_studio.json").read_text())
    for task in tasks:
        taken = task.pop("predictions", [{"result": []}])
        task["annotations"] = [{"completed_by": 7, "result": taken[0]["result"]}]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    finder = ImageFinder(images, tmp_path / "data", read_mapping(package / "mapping.csv"))
    for format, source in (
        ("cvat", package / "cvat.xml"),
        ("labelme", package / "images"),
        ("label-studio", tmp_path / "export.json"),
    ):
        assert recognise(source) == format
        marking = READERS[format](source)
        assert marking.mistakes == []
        found = {}
        for image in marking.images:
            (path,) = finder.find(image.name)
            found[path] = [mark.outline for mark in image.marks]
            assert image.size in ((37, 53), None)
            assert {mark.labels for mark in image.marks} <= {("lesion",)}
        assert found.keys() == set(images)
        for image, polygons in zip(images, outlines, strict=True):
            assert len(found[image]) == len(polygons)
            for points, polygon in zip(found[image], polygons, strict=True):
                assert np.array(points) == pytest.approx(np.array(polygon))
    # Nobody has looked at a prediction yet: it is no mask.
    untouched = READERS["label-studio"](package / "label_studio.json")
    assert [image.marks for image in untouched.images] == [[], [], []]


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def mura(tmp_path):
    """16 patients of 4 body parts in train, 4 in valid; two images a study."""
    studies = {
        (split, PARTS[number % 4], first + number, 1, label): 2
        for split, first, count in (("train", 0, 32), ("valid", 100, 8))
        for number in range(count)
        for label in ("positive" if number // 4 % 2 else "negative",)
    }
    return build(tmp_path, studies)


def run(root, out, *words, name="mura"):
    if "--select" in words:
        words = [word.replace("--select", "--count") for word in words]
    command = select_lesions if "--count" in words else import_lesions
    return command.main(
        [f"data.name={name}", f"data.root={root}", "--out", str(out), *words]
    )


def test_a_package_holds_what_the_tools_open_and_nothing_half_written(mura, tmp_path, capsys):
    assert run(mura, tmp_path / "out", "--select", "8") == 0
    said = capsys.readouterr().out
    assert "chosen   8 of" in said
    assert "of 8 patients and 8 studies; " in said
    assert "these will train stage 3" in said
    assert f"--mapping {tmp_path}/out/mapping.csv data.name=mura data.root={mura}" in said
    assert {path.name for path in tmp_path.iterdir()} == {mura.name, "out"}
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "README.txt",
        "cvat_labels.json",
        "images",
        "label_studio.json",
        "label_studio_config.xml",
        "labels.txt",
        "mapping.csv",
        "selected.csv",
    }
    selected = pd.read_csv(out / "selected.csv")
    assert selected["order"].tolist() == list(range(1, 9))
    assert selected["split"].eq("train").all()
    assert selected["reason"].eq("random").all()
    assert selected["body_part"].value_counts().eq(2).all()
    mapping = pd.read_csv(out / "mapping.csv")
    assert mapping["image"].tolist() == selected["image"].tolist()
    assert sorted(mapping["name"]) == sorted(path.name for path in (out / "images").iterdir())
    assert mapping["name"][0] == mapping["image"][0].replace("/", "__")
    assert all((mura / image).is_file() for image in mapping["image"])
    ElementTree.parse(out / "label_studio_config.xml")
    assert json.loads((out / "cvat_labels.json").read_text())[0]["name"] == "lesion"
    assert "network" not in (out / "README.txt").read_text()
    assert str(tmp_path) not in "".join(
        path.read_text() for path in out.iterdir() if path.is_file()
    )
    before = (out / "selected.csv").read_text()
    assert run(mura, out, "--select", "8") == 2
    assert "already exists; remove it first" in capsys.readouterr().err
    assert (out / "selected.csv").read_text() == before


def test_what_is_drawn_on_a_package_is_imported(mura, tmp_path):
    out = tmp_path / "out"
    assert run(mura, out, "--select", "6", "--split", "all") == 0
    mapping = pd.read_csv(out / "mapping.csv")
    for name in mapping["name"][:4]:
        drawn = Picture(name, 10, 12, [[(2.5, 3.5), (6.5, 3.5), (6.5, 7.5), (2.5, 7.5)]])
        (out / "images" / name).with_suffix(".json").write_text(json.dumps(labelme_content(drawn, "anna")))
    # Images that are black look like masks, too.
    words = ("--format", "labelme", str(out / "images"), "--mapping", str(out / "mapping.csv"))
    assert run(mura, tmp_path / "lesions", *words) == 0
    lesions = pd.read_csv(tmp_path / "lesions" / "lesions.csv")
    assert sorted(lesions["image"]) == sorted(mapping["image"][:4])
    for mask in lesions["mask"]:
        pixels = decode(tmp_path / "lesions" / mask)
        assert np.argwhere(pixels).min(axis=0).tolist() == [3, 2]
        assert np.argwhere(pixels).max(axis=0).tolist() == [7, 6]
        assert (pixels > 0).sum() == 25


def test_images_are_upright_and_hold_no_text_of_patients(mura, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "Jane Doe"
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", "Jane Doe")
    for path in mura.rglob("*positive/*.png"):
        Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).save(
            path, exif=exif, pnginfo=text
        )
    assert run(mura, tmp_path / "out", "--select", "3") == 0
    for row in pd.read_csv(tmp_path / "out" / "mapping.csv").itertuples():
        data = (tmp_path / "out" / "images" / row.name).read_bytes()
        assert chunks(data) == {b"IHDR", b"IDAT", b"IEND"}
        with Image.open(tmp_path / "out" / "images" / row.name) as image:
            assert (image.mode, image.size) == ("L", (10, 12))
            assert (np.array(image) == decode(mura / row.image)).all()


def chunks(data):
    place, kinds = 8, set()
    while place < len(data):
        kinds.add(data[place + 4 : place + 8])
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return kinds


def test_all_splits_and_what_is_masked(mura, tmp_path, capsys):
    assert run(mura, tmp_path / "all", "--select", "1000", "--split", "all") == 0
    said = capsys.readouterr().out
    assert "there are no 1,000: these are all" in said
    assert "these will train" not in said
    everything = pd.read_csv(tmp_path / "all" / "selected.csv")
    assert set(everything["split"]) == {"train", "val", "test"}
    masks = everything["image"][:5]
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 3:6] = 255
    write_lesions(tmp_path / "lesions", [Lesion(image, mask) for image in masks])
    words = ("--select", "1000", "--split", "all", f"lesions.path={tmp_path / 'lesions'}")
    assert run(mura, tmp_path / "rest", *words) == 0
    rest = pd.read_csv(tmp_path / "rest" / "selected.csv")
    assert set(rest["image"]) == set(everything["image"]) - set(masks)
    assert run(mura, tmp_path / "again", *words, "--masked") == 0
    again = pd.read_csv(tmp_path / "again" / "selected.csv")
    assert again["image"].tolist() == everything["image"].tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--select", "0"), "--select 0: choose one image or more"),
        (("--select", "3", "--outlines"), "add --run RUN_DIR"),
        (("--select", "3", "else.xml"), "--select imports nothing: leave else.xml out"),
        (("--select", "3", "--run", "nowhere"), "nowhere is no run directory"),
        (("--select", "3", "data.rot=x"), "data.rot"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(mura, tmp_path, capsys, words, message):
    assert run(mura, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [mura.name]


def test_an_unreadable_image_is_an_error_or_another_is_chosen(mura, tmp_path, capsys):
    assert run(mura, tmp_path / "out", "--select", "2") == 0
    first = pd.read_csv(tmp_path / "out" / "selected.csv")
    (mura / first["image"][0]).write_bytes(b"")
    assert run(mura, tmp_path / "again", "--select", "2") == 2
    assert f"{mura / first['image'][0]}" in capsys.readouterr().err
    assert not list(tmp_path.glob(".again*"))
    assert run(mura, tmp_path / "again", "--select", "2", "data.unreadable=skip") == 0
    again = pd.read_csv(tmp_path / "again" / "selected.csv")
    assert len(again) == 2
    assert first["image"][0] not in set(again["image"])


def test_where_all_have_masks_it_says_what_helps(tmp_path, capsys):
    archive = Archive(tmp_path / "FracAtlas")
    for block in range(10):
        for place in range(4):
            archive.add(block * 20 + place, place % 2)
    archive.write()
    words = ("--select", "3", f"run.root={tmp_path}/runs")
    assert run(archive.root, tmp_path / "out", *words, name="fracatlas") == 2
    assert "have a lesion mask already; another --split" in capsys.readouterr().err
    assert (
        run(archive.root, tmp_path / "out", "--select", "3", "--masked", *words, name="fracatlas")
        == 0
    )
    names = [path.name for path in (tmp_path / "out" / "images").iterdir()]
    assert len(names) == 3
    assert all(name.startswith("images__Fractured__IMG") for name in names)


def test_a_disk_that_is_full_leaves_nothing(mura, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert run(mura, tmp_path / "out", "--select", "2") == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [mura.name]


# A run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    data = PhantomDataModule(
        root=str(root / "phantom"), cache_dir=str(root / "cache"), count=80, image_size=64
    )
    data.prepare_data()
    data.setup()
    return data


def test_what_a_network_sees_does_not_depend_on_its_company(phantom):
    module = settled(Stage1Classifier(width=0.25)).eval()
    rows = np.flatnonzero(phantom.table["label"] == 1)
    look = look_at(module, phantom, rows)
    assert look.features.shape == (len(rows), 128)
    alone = look_at(module, phantom, rows[3:4])
    np.testing.assert_allclose(alone.features[0], look.features[3], rtol=1e-4, atol=1e-5)
    odds = np.log(look.probability / (1 - look.probability))
    np.testing.assert_allclose(np.abs(odds), look.margin, rtol=1e-3, atol=1e-5)
    for row, shown in zip(rows[:3], maps_of(module, phantom, "pcam", rows[:3]), strict=True):
        assert shown.shape == phantom.original_size(row)
        assert 0 <= shown.min() <= shown.max() <= 1


def test_the_decisions_are_those_of_this_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    best, last = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    best.write_bytes(b"weights")
    last.write_bytes(b"others")
    config = load_config("stage1", [])
    opened = Run(tmp_path, best, config, {"epoch": 3})
    folder = tmp_path / "evaluation" / "test"
    folder.mkdir(parents=True)
    fitted = {"maps": {"pcam": {"threshold": 0.25}}}
    (folder / "summary.json").write_text(json.dumps({**opened.identity, "fitted": fitted}))
    assert opened.decisions()[0]["fitted"] == fitted
    assert Run(tmp_path, best, config, {"epoch": 4}).decisions() is None
    assert Run(tmp_path, last, config, {"epoch": 3}).decisions() is None
    (folder / "summary.json").write_text("{")
    assert opened.decisions() is None


def test_write_package_takes_no_folder_that_exists(tmp_path):
    with pytest.raises(DataError, match="already exists"):
        write_package(tmp_path, tmp_path, pd.DataFrame({"image": []}))
