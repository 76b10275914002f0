"""Choosing what to annotate: which images, and the package that annotation tools open."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from datamodules.decode import decode
from datamodules.lesions import Lesion, write_lesions
from datamodules.options import Data
from datamodules.phantom.source import PhantomDataModule
from experiments import import_lesions, select_lesions
from experiments.annotation.choosing import look_at, maps_of
from experiments.annotation.package import Picture
from experiments.build import Run
from experiments.config import load_config
from tests.archives import Archive
from tests.stages import network, settled
from tests.test_mura import build
from tests.test_package import labelme

PARTS = ("HAND", "WRIST", "ELBOW", "SHOULDER")


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


@pytest.fixture
def run(mura, tmp_path):
    """Choose, and write ``out`` in the temporary folder: the status, and the rows of the choice."""

    def run(out, *words, name="mura", root=mura, command=select_lesions):
        given = [f"data.name={name}", f"data.root={root}", "--out", str(tmp_path / out)]
        status = command.main([*given, *map(str, words)])
        selected = tmp_path / out / "selected.csv"
        return status, pd.read_csv(selected) if selected.is_file() else None

    return run


FILES = {"README.txt", "cvat_labels.json", "images", "label_studio.json", "labels.txt"}
FILES |= {"label_studio_config.xml", "mapping.csv", "selected.csv"}


def test_a_package_holds_what_the_tools_open_and_nothing_half_written(mura, run, tmp_path, capsys):
    status, selected = run("out", "--count", "8")
    assert status == 0
    printed = capsys.readouterr().out
    assert "chosen   8 of" in printed
    assert "of 8 patients and 8 studies; " in printed
    assert "these will train stage 3" in printed
    assert f"--mapping {tmp_path}/out/mapping.csv data.name=mura data.root={mura}" in printed
    assert {path.name for path in tmp_path.iterdir()} == {mura.name, "out"}
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == FILES
    assert selected["order"].tolist() == list(range(1, 9))
    assert set(selected["split"]) == {"train"}
    assert set(selected["reason"]) == {"random"}
    assert selected["body_part"].value_counts().eq(2).all()
    mapping = pd.read_csv(out / "mapping.csv")
    assert mapping["image"].tolist() == selected["image"].tolist()
    assert sorted(mapping["name"]) == sorted(path.name for path in (out / "images").iterdir())
    assert mapping["name"][0] == mapping["image"][0].replace("/", "__")
    assert all((mura / image).is_file() for image in mapping["image"])
    ElementTree.parse(out / "label_studio_config.xml")
    assert json.loads((out / "cvat_labels.json").read_text())[0]["name"] == "lesion"
    texts = {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
    assert "network" not in texts["README.txt"]
    assert str(tmp_path) not in "".join(texts.values())
    assert run("out", "--count", "8")[0] == 2
    assert "already exists; remove it first" in capsys.readouterr().err
    assert (out / "selected.csv").read_text() == texts["selected.csv"]


def test_what_is_drawn_on_a_package_is_imported(run, tmp_path):
    _, mapping = run("out", "--count", "6", "--split", "all")
    out = tmp_path / "out"
    for name in mapping["name"][:4]:
        drawn = Picture(name, 10, 12, [[(2.5, 3.5), (6.5, 3.5), (6.5, 7.5), (2.5, 7.5)]])
        (out / "images" / name).with_suffix(".json").write_text(labelme(drawn, "anna"))
    # Images that are black look like masks, too.
    words = ("--format", "labelme", out / "images", "--mapping", out / "mapping.csv")
    assert run("lesions", *words, command=import_lesions)[0] == 0
    lesions = pd.read_csv(tmp_path / "lesions" / "lesions.csv")
    assert sorted(lesions["image"]) == sorted(mapping["image"][:4])
    for mask in lesions["mask"]:
        pixels = decode(tmp_path / "lesions" / mask)
        assert np.argwhere(pixels).min(axis=0).tolist() == [3, 2]
        assert np.argwhere(pixels).max(axis=0).tolist() == [7, 6]
        assert (pixels > 0).sum() == 25


def test_images_are_upright_and_hold_no_text_of_patients(mura, run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "Jane Doe"
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", "Jane Doe")
    for path in mura.rglob("*positive/*.png"):
        Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).save(
            path, exif=exif, pnginfo=text
        )
    for row in run("out", "--count", "3")[1].itertuples():
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


def test_all_splits_and_what_is_masked(run, tmp_path, capsys):
    words = ("--count", "1000", "--split", "all")
    _, everything = run("all", *words)
    printed = capsys.readouterr().out
    assert "there are no 1,000: these are all" in printed
    assert "these will train" not in printed
    assert set(everything["split"]) == {"train", "val", "test"}
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 3:6] = 255
    masked = everything["image"][:5]
    write_lesions(tmp_path / "lesions", [Lesion(image, mask) for image in masked])
    words = (*words, f"lesions.path={tmp_path / 'lesions'}")
    assert set(run("rest", *words)[1]["image"]) == set(everything["image"]) - set(masked)
    assert run("again", *words, "--masked")[1]["image"].tolist() == everything["image"].tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--count", "0"), "--count 0: choose one image or more"),
        (("--count", "3", "--outlines"), "add --run RUN_DIR"),
        (("--count", "3", "--run", "nowhere"), "nowhere is no run directory"),
        (("--count", "3", "data.rot=x"), "data.rot"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(mura, run, tmp_path, capsys, words, message):
    assert run("out", *words)[0] == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [mura.name]


def test_an_unreadable_image_is_an_error_or_another_is_chosen(mura, run, tmp_path, capsys):
    first = run("out", "--count", "2")[1]["image"][0]
    (mura / first).write_bytes(b"")
    assert run("again", "--count", "2")[0] == 2
    assert str(mura / first) in capsys.readouterr().err
    assert not list(tmp_path.glob(".again*"))
    _, again = run("again", "--count", "2", "data.unreadable=skip")
    assert len(again) == 2
    assert first not in set(again["image"])


def test_where_all_have_masks_it_says_what_helps(run, tmp_path, capsys):
    archive = Archive(tmp_path / "FracAtlas")
    for number in range(40):
        archive.add(number // 4 * 20 + number % 4, number % 2)
    archive.write()
    words = ("--count", "3", f"run.root={tmp_path}/runs")
    assert run("out", *words, name="fracatlas", root=archive.root)[0] == 2
    assert "have a lesion mask already; another --split" in capsys.readouterr().err
    _, rows = run("out", *words, "--masked", name="fracatlas", root=archive.root)
    assert rows["name"].str.startswith("images__Fractured__IMG").sum() == 3


def test_a_disk_that_is_full_leaves_nothing(mura, run, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert run("out", "--count", "2")[0] == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [mura.name]


# A run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    data = PhantomDataModule(
        Data(root=str(root / "phantom"), cache_dir=str(root / "cache"), count=80, image_size=64)
    )
    data.prepare_data()
    data.setup()
    return data


def test_what_a_network_sees_does_not_depend_on_its_company(phantom):
    module = settled(network()).eval()
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
