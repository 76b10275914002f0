"""Predicting on one's own images: what is written, what is refused, and nothing overwritten."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import struct
import zlib

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from datamodules.decode import PNG
from datamodules.phantom.drawing import draw as draw_phantom
from experiments import evaluate, train
from experiments.evaluation.store import read_images
from experiments.prediction.network import load_trained
from tests.dicoms import SECRET, content, radiograph
from tests.predictions import rows_of, save, told
from tests.runs import run_folder, tiny_words
from tests.test_decode import ORIENTATION, UNDO, chunk
from tests.untrained import FITTED, judge, make_run

HEADER = "path,probability_abnormal,predicted_abnormal,map_peak_x,map_peak_y,error"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return judge(make_run(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def phantoms():
    return [draw_phantom(0, number).image for number in range(6)]


@pytest.fixture
def scans(tmp_path, phantoms):
    """A folder with two images below another, named as people name things."""
    folder = tmp_path / "meine Bilder" / "größe 腕"
    folder.mkdir(parents=True)
    for name, image in zip(('Röntgen 1 (ü), "a".png', "b.JPEG"), phantoms, strict=False):
        (folder / name).write_bytes(cv2.imencode(os.path.splitext(name)[1], image)[1].tobytes())
    return folder.parent


def bomb(width, height):
    """A PNG of a hundred bytes whose header claims more."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_a_folder_gives_rows_maps_and_overlays(run, scans, tmp_path, capsys):
    (scans / "notes.txt").write_text("no image")
    (scans / "._b.png").write_bytes(b"\0")
    out = tmp_path / "aus gabe"
    assert told(run, scans, "--out", out) == 0
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == HEADER
    rows = rows_of(out)
    assert list(rows) == ['größe 腕/Röntgen 1 (ü), "a".png', "größe 腕/b.JPEG"]
    for name, row in rows.items():
        image = cv2.imdecode(np.fromfile(scans / name, np.uint8), cv2.IMREAD_GRAYSCALE)
        maps = {}
        for method in ("cam", "pcam", "fcn"):
            stored = np.fromfile(out / "maps" / f"{name}.{method}.png", np.uint8)
            maps[method] = cv2.imdecode(stored, cv2.IMREAD_UNCHANGED)
            assert (maps[method].shape, maps[method].dtype) == (image.shape, np.uint8)
        assert (row.probability_abnormal > FITTED["threshold"]) == row.predicted_abnormal
        assert maps["fcn"][row.map_peak_y, row.map_peak_x] >= maps["fcn"].max() - 1
        assert (out / "overlays" / f"{name}.fcn.png").is_file()
    printed = capsys.readouterr().out
    assert "abnormal above 0.400, a study above 0.450" in printed
    assert "NO MAP THRESHOLD: val holds no lesion mask" in printed
    assert json.loads((out / "about.json").read_text())["undecided_maps"] == ["fcn"]
    assert "left out   2: .txt 1, hidden 1\n" in printed
    assert "captures" not in printed
    assert not (out / "studies.csv").exists()


def test_maps_may_be_chosen_and_the_peak_stays_that_of_the_best(run, scans, tmp_path):
    assert told(run, scans, "--out", tmp_path / "all") == 0
    assert told(run, scans, "--out", tmp_path / "one", "--methods", "pcam") == 0
    assert rows_of(tmp_path / "all") == rows_of(tmp_path / "one")
    names = {path.name for path in (tmp_path / "one" / "maps").rglob("*.png")}
    assert {name.split(".")[-2] for name in names} == {"pcam"}


@pytest.mark.parametrize("turn", [1, 3, 5, 6, 8])
def test_a_turned_jpeg_has_the_map_of_the_upright_image(run, phantoms, tmp_path, turn):
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    turned = tmp_path / "in" / "turned.jpg"
    turned.parent.mkdir()
    Image.fromarray(phantoms[0]).save(turned, exif=exif, quality=95)
    with Image.open(turned) as stored:
        upright = np.ascontiguousarray(UNDO[turn](np.array(stored)))
    save(turned.with_name("upright.png"), upright)
    out = tmp_path / "out"
    assert told(run, turned.parent, "--out", out) == 0
    rows = rows_of(out)
    peaks = {(row.map_peak_x, row.map_peak_y) for row in rows.values()}
    assert len({row.probability_abnormal for row in rows.values()}) == len(peaks) == 1
    maps = [cv2.imread(str(out / "maps" / f"{name}.fcn.png"), 0) for name in rows]
    assert maps[0].shape == upright.shape
    np.testing.assert_array_equal(*maps)


def test_an_answer_does_not_depend_on_what_else_is_asked(run, phantoms, tmp_path):
    for number, image in enumerate(phantoms):  # a batch and a half
        save(tmp_path / "in" / f"{number}.png", image)
    assert told(run, tmp_path / "in", "--out", tmp_path / "all") == 0
    assert told(run, tmp_path / "in" / "4.png", "--out", tmp_path / "one") == 0
    assert rows_of(tmp_path / "one") == {"4.png": rows_of(tmp_path / "all")["4.png"]}


def test_what_cannot_be_read_is_named_and_the_others_are_done(run, phantoms, tmp_path, capsys):
    folder = tmp_path / "in"
    save(folder / "good.png", phantoms[0])
    save(folder / "one.png", np.zeros((1, 1), np.uint8))
    (folder / "text.png").write_text("no image")
    (folder / "empty.jpg").touch()
    (folder / "bomb.png").write_bytes(bomb(60000, 60000))
    (folder / "cut.jpg").write_bytes(cv2.imencode(".jpg", phantoms[1])[1].tobytes()[:-900])
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    out = tmp_path / "out"
    assert told(run, folder, tmp_path / "missing.png", "--out", out) == 1
    found = {name: row.error for name, row in rows_of(out).items()}
    expected = {
        "in/bomb.png": "its header claims 60,000 x 60,000 pixels",
        "in/cut.jpg": "the JPEG is cut short",
        "in/empty.jpg": "the file is empty",
        "in/good.png": "",
        "in/lost.png": "cannot be read (No such file or directory)",
        "in/one.png": "is 1 x 1 pixels, and no side may be below 32",
        "in/text.png": "neither a PNG nor a JPEG file nor DICOM",
        f"{tmp_path.name}/missing.png": "there is no such file or folder",
    }
    assert list(found) == list(expected)
    assert all(expected[name] in found[name] for name in expected)
    assert str(folder) not in "".join(found.values())
    captured = capsys.readouterr()
    assert "normal; 7 unreadable; 8 of them now" in captured.out
    assert "failed     7 of 8" in captured.err
    assert "and 2 more, see the table" in captured.err


def test_equal_names_are_kept_apart(run, phantoms, tmp_path):
    for place, image in zip(("a/hand", "b/hand", "c"), phantoms, strict=False):
        save(tmp_path / place / "x.png", image)
    words = [tmp_path / "a/hand", tmp_path / "b/hand", tmp_path / "b/hand", tmp_path / "c/x.png"]
    assert told(run, *words, "--out", tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    assert list(rows) == ["hand/x.png", "hand-2/x.png", "hand-3/x.png", "c/x.png"]
    probabilities = [row.probability_abnormal for row in rows.values()]
    assert probabilities[1] == probabilities[2]
    assert len(set(probabilities)) == 3
    for name in rows:
        assert (tmp_path / "out" / "maps" / f"{name}.fcn.png").is_file()


def test_its_own_outputs_are_no_inputs(run, scans, tmp_path):
    assert told(run, scans, "--out", scans / "one") == 0
    assert told(run, scans, "--out", scans / "two") == 0
    assert rows_of(scans / "one") == rows_of(scans / "two")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png", "--out", "out"], "nowhere.png: there is no such file or folder"),
        (["empty", "--out", "out"], "empty: no PNG, JPEG or DICOM file in this folder"),
        (["a.png", "--out", "a.png"], "is a file; name a folder with --out"),
        (["a.png", "--out", "full"], "is not empty, and nothing there is overwritten"),
        (["a.png", "--out", "a.png/out"], "cannot be written (Not a directory)"),
        (["a.png", "--out", "out", "--methods", "fcm"], "'fcm' is no map of this network"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(
    run, phantoms, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", phantoms[0])
    save(tmp_path / "full" / "a.png", phantoms[0])
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert told(run, *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_word_that_is_no_run_is_refused(tmp_path, capsys):
    assert told(tmp_path, tmp_path, "--out", tmp_path / "out") == 2
    assert "is no run directory" in capsys.readouterr().err


def test_views_of_a_study_are_joined_by_the_mean(run, phantoms, tmp_path):
    root = tmp_path / "MURA-v1.1" / "valid" / "XR_HAND"
    for number in (1, 2):
        save(root / f"patient1/study1_positive/image{number}.png", phantoms[number])
    save(root / "patient2/study1_negative/image1.png", phantoms[3])
    (root / "patient2/study1_negative/image2.png").write_text("no image")
    expected = None
    for number, words in enumerate([[root.parents[2]], sorted(root.rglob("*.png"))]):
        out = tmp_path / f"out{number}"
        assert told(run, *words, "--out", out) == 1
        views = [row.probability_abnormal for row in rows_of(out).values()]
        lines = list(csv.DictReader((out / "studies.csv").read_text().splitlines()))
        assert [line["study"] for line in lines] == [
            "XR_HAND/patient1/study1_positive",
            "XR_HAND/patient2/study1_negative",
        ]
        assert [float(line["probability_abnormal"]) for line in lines] == [
            (views[0] + views[1]) / 2,
            views[2],
        ]
        for line in lines:
            above = float(line["probability_abnormal"]) > FITTED["study_threshold"]
            assert int(line["predicted_abnormal"]) == above
        assert [(line["views"], line["failed_views"]) for line in lines] == [("2", "0"), ("1", "1")]
        assert expected in (None, lines)
        expected = lines


def test_what_to_know_of_an_image_is_noted_in_its_row_and_no_failure(
    run, phantoms, tmp_path, capsys
):
    marked = phantoms[0].astype(np.uint16) * 16
    marked[:20, :20] = 65535
    views = tmp_path / "in" / "patient1" / "study1_positive"
    save(views / "image1.png", phantoms[0].astype(np.uint16) * 16)
    save(views / "image2.png", marked)
    out = tmp_path / "out"
    for _ in range(2):  # also where all is done before
        assert told(run, tmp_path / "in", "--out", out) == 0
        assert "; 0 failed; 1 with a note in the column error; " in capsys.readouterr().out
    plain, noted = rows_of(out).values()
    assert plain.error == ""
    assert re.match(r"note: \d\.\d% of its pixels stand far from all others", noted.error)
    assert noted.probability_abnormal == pytest.approx(plain.probability_abnormal, abs=0.05)
    assert (noted.map_peak_x, noted.predicted_abnormal) != (None, None)
    (study,) = csv.DictReader((out / "studies.csv").read_text().splitlines())
    assert (study["views"], study["failed_views"]) == ("2", "0")


def test_dicom_inputs_get_secondary_captures_and_no_name_is_told(run, phantoms, tmp_path, capfd):
    folder = tmp_path / "in"
    save(folder / "a.png", phantoms[0])
    (folder / "IM0001").write_bytes(content(radiograph(phantoms[0])))
    (folder / "frames.dcm").write_bytes(content(radiograph(phantoms[0], NumberOfFrames=2)))
    (folder / "study.dcm").write_bytes(content(radiograph(phantoms[0], StudyInstanceUID=None)))
    (folder / "DICOMDIR").write_bytes(content(radiograph(phantoms[0])))
    out = tmp_path / "out"
    assert told(run, folder, "--out", out, "--dicom") == 1
    rows = rows_of(out)
    assert sorted(rows) == ["IM0001", "a.png", "frames.dcm", "study.dcm"]
    assert rows["IM0001"].probability_abnormal == rows["a.png"].probability_abnormal
    assert "holds 2 frames" in rows["frames.dcm"].error
    assert rows["study.dcm"].probability_abnormal == rows["a.png"].probability_abnormal
    assert "no Secondary Capture can be made" in rows["study.dcm"].error
    assert [path.name for path in (out / "dicom").iterdir()] == ["IM0001.fcn.dcm"]
    made = pydicom.dcmread(out / "dicom" / "IM0001.fcn.dcm")
    assert str(made.PatientName) == f"{SECRET}^Eva"
    assert made.pixel_array.dtype == np.uint8
    names = "".join(str(path) for path in out.rglob("*"))
    printed = capfd.readouterr()
    assert "; 1 unreadable, 1 without a Secondary Capture; 4 of them now" in printed.out
    assert "failed     2 of 4" in printed.err
    assert SECRET not in "".join([*printed, names])
    others = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    assert not any(SECRET.encode() in path.read_bytes() for path in others)


def test_dicom_without_dicom_inputs_says_that_no_capture_was_made(run, scans, tmp_path, capsys):
    for _ in range(2):  # also where all is done before
        assert told(run, scans, "--out", tmp_path / "out", "--dicom") == 0
        assert "captures   none was made: --dicom makes them of DICOM" in capsys.readouterr().out
    assert not (tmp_path / "out" / "dicom").exists()


def test_dicom_output_needs_its_extra(run, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert told(run, scans, "--out", tmp_path / "out", "--dicom") == 2
    assert "pip install 'decision-basis[dicom]'" in capsys.readouterr().err


def test_a_network_of_masks_alone_has_maps_and_no_probability(scans, tmp_path, capsys):
    words = ["loss.classification=false", "checkpoint.every_steps=null"]
    masks_only = judge(make_run(tmp_path, words=words))
    assert told(masks_only, scans, "--out", tmp_path / "out") == 0
    for row in rows_of(tmp_path / "out").values():
        assert row.probability_abnormal is row.predicted_abnormal is None
        assert row.map_peak_x is not None
    assert "none: this network was taught lesion masks alone" in capsys.readouterr().out


def test_without_an_evaluation_the_stand_in_is_loud(tmp_path, scans, capsys):
    run = make_run(tmp_path, "stage1")
    assert told(run, scans, "--out", tmp_path / "out") == 0
    assert "NO THRESHOLD" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert (about["threshold"], about["best_map"]) == (0.5, "pcam")


@pytest.mark.parametrize(
    "changes",
    [{"epoch": 3}, {"seed": 1}, {"checkpoint_hash": "another"}, {"checkpoint": "last.ckpt"}],
)
def test_thresholds_of_another_network_are_not_taken(tmp_path, changes):
    run = make_run(tmp_path)
    assert load_trained(judge(run)).fitted.threshold == FITTED["threshold"]
    trained = load_trained(judge(run, **changes))
    assert trained.fitted.threshold == 0.5
    assert "has not been judged" in trained.notes[0]


def test_a_trained_network_tells_what_new_images_need(run):
    trained = load_trained(run)
    assert (trained.title, trained.best_map) == ("stage3 on phantom", "fcn")
    assert trained.map_thresholds == {"cam": 0.2, "pcam": 0.3, "fcn": 0.5}
    assert trained.undecided_maps == ("fcn",)  # val's threshold of it is null
    assert trained.notes == ("NO MAP THRESHOLD: val holds no lesion mask; 0.5 stands in for fcn",)
    assert trained.fitted == (0.4, 0.45, 1.5)
    assert (trained.recipe.image_size, trained.recipe.crop) == (64, "none")
    assert not trained.run.module.training


@pytest.mark.slow
def test_predictions_are_those_of_an_evaluation(tmp_path):
    """Trained, judged by predict itself, then by evaluate: the same numbers, and then no data."""
    words = [*tiny_words(tmp_path), "model.width=0.25", "trainer.max_epochs=1"]
    assert train.main(["stage3", f"run.root={tmp_path}", *words]) == 0
    run = run_folder(tmp_path, "stage3", "lambda1.0-seed0")
    root, out = tmp_path / "phantom", tmp_path / "out"
    images = root / "MURA-v1.1"
    assert told(run, images, "--out", out) == 0
    about = json.loads((out / "about.json").read_text())
    assert "judged now" in about["decided_by"]
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    summary = json.loads((run / "evaluation" / "test" / "summary.json").read_text())
    for name in ("threshold", "study_threshold", "temperature"):
        assert about[name] == summary["fitted"][name]
    rows = rows_of(out)
    for judged in read_images(run / "evaluation" / "test" / "images.csv").itertuples():
        row = rows[judged.path.removeprefix("MURA-v1.1/")]
        assert row.probability_abnormal == pytest.approx(judged.probability, abs=1e-6)
        assert (row.map_peak_x, row.map_peak_y) == (judged.fcn_peak_x, judged.fcn_peak_y)
    shutil.move(images, tmp_path / "elsewhere")
    shutil.rmtree(root.parent / "cache")
    assert told(run, tmp_path / "elsewhere", "--out", tmp_path / "again") == 0
    assert rows_of(tmp_path / "again") == rows
