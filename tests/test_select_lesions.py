"""Choosing what to annotate: which images are worth it, what is written, what a run adds."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from datamodules.annotations.marks import Mark, draw
from datamodules.decode import decode
from datamodules.lesions import Lesion, write_lesions
from experiments import import_lesions, select_lesions
from experiments.annotation.checks import check_mark
from experiments.annotation.choosing import Look, choose_images, look_at, maps_of
from experiments.annotation.package import outline
from experiments.build import open_run
from tests.lesion_files import box, build


@pytest.fixture
def table():
    """20 patients of 3 body parts, unevenly; each with 2 studies of 2 images."""
    rows = [
        (f"{patient}/{study}/{view}.png", f"p{patient}", f"p{patient}s{study}", part, False)
        for patient, part in enumerate(["hand"] * 12 + ["wrist"] * 5 + ["elbow"] * 3)
        for study in range(2)
        for view in range(2)
    ]
    return pd.DataFrame(rows, columns=["path", "patient", "study", "body_part", "masked"])


@pytest.fixture(params=["random", "run"])
def look(request, table):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(len(table), 4)).astype(np.float32)
    margin = generator.exponential(size=len(table)).astype(np.float32)
    return Look(features, margin) if request.param == "run" else None


def paths(table, count, look=None, seed=0):
    return table["path"].iloc[choose_images(table, count, seed, look)[0]].tolist()


def test_fewer_are_the_beginning_of_more_in_any_order_of_the_table(table, look):
    wanted = paths(table, 30, look)
    assert len(set(wanted)) == 30
    assert paths(table, 11, look) == wanted[:11]
    order = np.random.default_rng(1).permutation(len(table))
    again = look and Look(*(values[order] for values in look))
    assert paths(table.iloc[order], 30, again) == wanted
    assert len(paths(table, 1000, look)) == len(table)
    assert look or paths(table, 30, seed=1) != wanted


def test_patients_first_body_parts_in_turn_then_other_studies(table, look):
    chosen = table.iloc[choose_images(table, 60, 0, look)[0]]
    assert chosen["patient"][:20].is_unique
    assert chosen["body_part"][:9].value_counts().eq(3).all()
    assert chosen["patient"][20:40].is_unique
    assert chosen["study"][:40].is_unique


def test_what_is_masked_is_not_chosen_but_counts_for_its_patient_and_part(table, look):
    masked = ["p12", "p13", "p14"]
    table["masked"] = table["patient"].isin(masked) & table["path"].str.endswith("0/0.png")
    chosen = table.iloc[choose_images(table, 17, 0, look)[0]]
    assert not chosen["masked"].any()
    assert not set(chosen["patient"]) & {*masked}
    # The wrist has three already: hand and elbow catch up first.
    assert set(chosen["body_part"][:6]) == {"hand", "elbow"}


def test_a_run_is_asked_for_the_unsure_half_and_then_for_what_is_far():
    table = pd.DataFrame({"path": [f"{number}.png" for number in range(8)]})
    table = table.assign(patient=table["path"], study=table["path"], body_part="", masked=False)
    features = np.array([[0], [1], [10], [4], [100], [200], [300], [400]], np.float32)
    margin = np.array([2, 1, 3, 4, 5, 6, 7, 8], np.float32)
    look = Look(features, margin)
    places, unsure = choose_images(table, 5, 0, look)
    # The least sure; then the farthest of the less sure half; then the rest, the farthest first.
    assert places.tolist() == [1, 2, 3, 0, 7]
    assert unsure.tolist() == [True, True, True, True, False]
    table.loc[2, "masked"] = True  # then what lies near it is covered already
    assert choose_images(table, 3, 0, look)[0].tolist() == [4, 0, 3]


@pytest.fixture
def mura(tmp_path):
    return build(tmp_path)


@pytest.fixture
def run(mura, tmp_path):
    """Choose, and write ``out`` in the temporary folder: the status, and the rows of the choice."""

    def run(out, *words):
        given = ["data.name=mura", f"data.root={mura}", "--out", str(tmp_path / out)]
        status = select_lesions.main([*given, *words])
        selected = tmp_path / out / "selected.csv"
        return status, pd.read_csv(selected) if selected.is_file() else None

    return run


FILES = {"README.txt", "cvat_labels.json", "images", "label_studio.json", "labels.txt"}
FILES |= {"label_studio_config.xml", "mapping.csv", "selected.csv"}


def test_a_package_holds_what_the_tools_open_and_nothing_half_written(mura, run, tmp_path, capsys):
    status, selected = run("out", "--count", "8")
    assert status == 0
    printed, out = capsys.readouterr().out, tmp_path / "out"
    assert "of 8 patients and 8 studies; " in printed
    assert f"--mapping {out}/mapping.csv data.name=mura data.root={mura}" in printed
    assert {path.name for path in tmp_path.iterdir()} == {mura.name, "out"}
    assert {path.name for path in out.iterdir()} == FILES
    assert selected["order"].tolist() == list(range(1, 9))
    assert set(selected["split"] + selected["reason"]) == {"trainrandom"}
    mapping = pd.read_csv(out / "mapping.csv")
    assert mapping.equals(selected[["name", "image"]])
    assert sorted(mapping["name"]) == sorted(path.name for path in (out / "images").iterdir())
    assert mapping["name"][0] == mapping["image"][0].replace("/", "__")
    texts = {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
    assert "network" not in texts["README.txt"]
    assert str(tmp_path) not in "".join(texts.values())
    assert run("out", "--count", "8")[0] == 2
    assert "already exists. Fix: remove it" in capsys.readouterr().err
    assert (out / "selected.csv").read_text() == texts["selected.csv"]


def test_images_are_upright_and_hold_no_text_of_patients(mura, run, tmp_path):
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010E] = 6, "Jane Doe"
    text.add_text("PatientName", "Jane Doe")
    for path in mura.rglob("*positive/*.png"):
        pixels = Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12))
        pixels.save(path, exif=exif, pnginfo=text)
    for row in run("out", "--count", "3")[1].itertuples():
        with Image.open(tmp_path / "out" / "images" / row.name) as image:
            assert (image.mode, image.size, image.info) == ("L", (10, 12), {})  # no chunk more
            assert (np.array(image) == decode(mura / row.image)).all()


def test_all_splits_and_what_is_masked(run, tmp_path, capsys):
    words = ("--count", "1000", "--split", "all")
    _, everything = run("all", *words)
    printed = capsys.readouterr().out
    assert "there are no 1,000: these are all" in printed
    assert set(everything["split"]) == {"train", "val", "test"}
    for name, count in (("lesions", 5), ("full", len(everything))):
        masked = everything["image"][:count]
        write_lesions(tmp_path / name, [Lesion(image, box()) for image in masked])
    words = (*words, f"lesions.path={tmp_path / 'lesions'}")
    assert set(run("rest", *words)[1]["image"]) == set(everything["image"][5:])
    assert run("again", *words, "--masked")[1]["image"].tolist() == everything["image"].tolist()
    assert run("none", *words[:-1], f"lesions.path={tmp_path / 'full'}")[0] == 2
    assert "have a lesion mask already. Fix: another --split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--count", "0"), "--count 0: choose one image or more"),
        (("--count", "3", "--outlines"), "add --run RUN_DIR"),
        (("--count", "3", "--run", "nowhere"), "nowhere is no run directory"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(run, tmp_path, capsys, words, message):
    assert run("out", *words)[0] == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["MURA-v1.1"]


def test_an_unreadable_image_is_an_error_or_another_is_chosen(mura, run, tmp_path, capsys):
    first = run("out", "--count", "2")[1]["image"][0]
    (mura / first).write_bytes(b"")
    assert run("again", "--count", "2")[0] == 2
    assert str(mura / first) in capsys.readouterr().err
    _, again = run("again", "--count", "2", "data.unreadable=skip")
    assert len(again) == 2
    assert first not in set(again["image"])


def test_select_is_an_alias(mura, tmp_path, monkeypatch, capsys):
    words = ["--select", "3", "--out", str(tmp_path / "out"), "data.name=mura", f"data.root={mura}"]
    monkeypatch.setattr(sys, "argv", ["import_lesions", *words])
    monkeypatch.delitem(sys.modules, "experiments.select_lesions")  # as in a process of its own
    with pytest.raises(SystemExit, match="0"):
        import_lesions.main()
    assert "chosen   3 of" in capsys.readouterr().out


def test_a_run_chooses_and_outlines(trained, tmp_path, capsys):
    out, words = tmp_path / "out", ["--masked", "--outlines", "--split", "all"]
    command = ["--count", "5", "--run", str(trained.stage1), "--out", str(out), *words]
    assert select_lesions.main(command) == 0
    printed = capsys.readouterr().out
    assert f"by {trained.stage1}: 5 of the half that it is less sure of" in printed
    assert "images, where pcam reaches 0." in printed
    assert "CAUTION  The outlines are the network's and bias whoever draws" in printed
    rows = pd.read_csv(out / "selected.csv")
    assert set(rows["reason"]) == {"uncertain"}
    assert not {"patient", "study"} & {*rows}  # they are nobody's business who draws
    assert rows["probability_abnormal"].between(0, 1).all()
    polygons = ElementTree.parse(out / "cvat.xml").findall("image/polygon")
    assert len(polygons) == rows["outlines"].sum() > 0
    assert "A NETWORK'S (stage1 pcam)" in (out / "README.txt").read_text()


def test_what_a_network_sees_does_not_depend_on_its_company(trained):
    opened = open_run(trained.stage1)
    module, data = opened.module, opened.data
    rows = np.flatnonzero(data.table["label"] == 1)
    look, alone = look_at(module, data, rows), look_at(module, data, rows[3:4])
    np.testing.assert_allclose(alone.features[0], look.features[3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone.odds[0], look.odds[3], rtol=1e-3, atol=1e-4)
    (shown,) = maps_of(module, data, "pcam", rows[:1])
    assert shown.shape == data.original_size(rows[0])
    assert 0 <= shown.min() <= shown.max() <= 1


def test_outlined_squares_are_drawn_back_to_the_pixel_the_larger_first_and_holes_filled():
    shown = np.zeros((40, 60), np.float32)
    shown[2:7, 5:10], shown[10:20, 30:50] = 0.8, 0.7
    wanted = shown > 0
    shown[14, 40] = 0.1
    polygons = outline(shown, 0.7)
    assert sorted(polygons[0]) == [(30.5, 10.5), (30.5, 19.5), (49.5, 10.5), (49.5, 19.5)]
    marks = [Mark("", tuple(polygon)) for polygon in polygons]
    assert [check_mark(mark, shown.shape) for mark in marks] == ["", ""]
    assert (draw(marks, 40, 60) > 0).tolist() == wanted.tolist()
    assert outline(shown, 0.81) == []
    assert outline(np.zeros((40, 60)), 0.0) == []
