"""Predicting on one's own images: what is written, refused, and done by the same command again."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import weakref

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from experiments import evaluate
from experiments.evaluation.store import read_images
from experiments.prediction import stream
from experiments.prediction.network import load_trained
from tests.dicoms import SECRET, content, radiograph
from tests.predictions import NO_IMAGE, files_of, read_grey, save
from tests.test_decode import UNDO
from tests.untrained import FITTED, judge, make_run

HEADER = "path,probability_abnormal,predicted_abnormal,map_peak_x,map_peak_y,error"


def test_a_folder_gives_rows_maps_and_overlays(predict, drawings, tmp_path):
    scans, out = tmp_path / "meine Bilder", tmp_path / "aus gabe"
    names = ['größe 腕/Röntgen 1 (ü), "a".png', "größe 腕/b.JPEG"]
    save(scans, {names[0]: drawings[0], names[1]: drawings[1], "n.txt": NO_IMAGE, "._b.png": b""})
    status, rows, printed = predict(scans, "--dicom", out=out)
    assert (status, list(rows)) == (0, names)
    assert (out / "predictions.csv").read_text().splitlines()[0] == HEADER
    for name, row in rows.items():
        image = cv2.imdecode(np.fromfile(scans / name, np.uint8), cv2.IMREAD_GRAYSCALE)
        maps = {m: read_grey(out / "maps" / f"{name}.{m}.png") for m in ("cam", "pcam", "fcn")}
        assert {(each.shape, str(each.dtype)) for each in maps.values()} == {(image.shape, "uint8")}
        assert (row.probability_abnormal > FITTED["threshold"]) == row.predicted_abnormal
        assert maps["fcn"][row.map_peak_y, row.map_peak_x] >= maps["fcn"].max() - 1
        assert (out / "overlays" / f"{name}.fcn.png").is_file()
    for text in (
        "abnormal above 0.400, a study above 0.450",
        "NO MAP THRESHOLD",
        "left out   2: .txt 1, hidden 1\n",
        "captures   none was made",  # there is no DICOM among them
    ):
        assert text in printed
    assert json.loads((out / "about.json").read_text())["undecided_maps"] == ["fcn"]
    assert not {"studies.csv", "dicom"} & {path.name for path in out.iterdir()}
    # Only some maps: the peak stays that of the best one. And no output is an input.
    for name in ("one", "two"):
        assert predict(scans, "--methods", "pcam", out=scans / name)[:2] == (0, rows)
    written = [path.name for path in (scans / "one" / "maps").rglob("*.png")]
    assert [name.split(".")[-2] for name in written] == ["pcam", "pcam"]


@pytest.mark.parametrize("turn", [1, 3, 5, 6, 8])
def test_a_turned_jpeg_has_the_map_of_the_upright_image(predict, drawings, tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    turned = tmp_path / "in" / "turned.jpg"
    turned.parent.mkdir()
    Image.fromarray(drawings[0]).save(turned, exif=exif, quality=95)
    with Image.open(turned) as stored:
        upright = np.ascontiguousarray(UNDO[turn](np.array(stored)))
    save(turned.parent, {"upright.png": upright})
    _, rows, _ = predict(turned.parent, out=tmp_path / "out")
    assert rows["turned.jpg"][1:6] == rows["upright.png"][1:6]
    maps = [read_grey(tmp_path / "out" / "maps" / f"{name}.fcn.png") for name in rows]
    assert maps[0].shape == upright.shape
    np.testing.assert_array_equal(*maps)


def test_an_answer_does_not_depend_on_what_else_is_asked(predict, drawings, tmp_path):
    save(tmp_path / "in", {f"{number}.png": image for number, image in enumerate(drawings)})
    _, rows, _ = predict(tmp_path / "in", out=tmp_path / "all")  # a batch and a half
    assert predict(tmp_path / "in" / "4.png", out=tmp_path / "one")[1] == {"4.png": rows["4.png"]}


def test_what_cannot_be_read_is_named_and_the_others_are_done(predict, drawings, tmp_path):
    folder, missing = tmp_path / "in", f"{tmp_path.name}/missing.png"
    expected = {
        "in/empty.jpg": (b"", "the file is empty"),
        "in/good.png": (drawings[0], ""),
        "in/lost.png": (b"", "cannot be read (No such file or directory)"),
        "in/one.png": (np.zeros((1, 1), np.uint8), "is 1 x 1 pixels, and no side may be below 32"),
        "in/text.png": (NO_IMAGE, "expected a PNG, JPEG or DICOM file"),
        "in/v1.png": (NO_IMAGE, "expected a PNG"),
        missing: (b"", "there is no such file or folder"),
    }
    save(tmp_path, {name: image for name, (image, _) in expected.items() if name != missing})
    (folder / "lost.png").unlink()
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    status, rows, printed = predict(folder, tmp_path / "missing.png", out=tmp_path / "out")
    assert (status, list(rows)) == (1, list(expected))
    for name, row in rows.items():
        assert expected[name][1] in row.error
        assert bool(row.error) == bool(expected[name][1])
        assert str(folder) not in row.error
    assert "normal; 6 unreadable; 7 of them now" in printed
    assert "failed     6 of 7" in printed
    assert "and 1 more, see the table" in printed


def test_equal_names_are_kept_apart(predict, drawings, tmp_path):
    images = dict(zip(("a/hand/x.png", "b/hand/x.png", "c/x.png"), drawings, strict=False))
    save(tmp_path, images)
    words = [tmp_path / name for name in ("a/hand", "b/hand", "b/hand", "c/x.png")]
    _, rows, _ = predict(*words, out=tmp_path / "out")
    assert list(rows) == ["hand/x.png", "hand-2/x.png", "hand-2/x-2.png", "c/x.png"]
    assert len({row.probability_abnormal for row in rows.values()}) == 3
    assert all((tmp_path / "out" / "maps" / f"{name}.fcn.png").is_file() for name in rows)


@pytest.mark.parametrize(
    ("words", "out", "message"),
    [
        (["nowhere.png"], "out", "nowhere.png: there is no such file or folder"),
        (["empty"], "out", "empty: no PNG, JPEG or DICOM file in this folder"),
        (["a.png"], "a.png", "a.png is a file"),
        (["a.png"], "full", "full is not empty; nothing is overwritten. Fix:"),
        (["a.png"], "a.png/out", "a.png/out: Not a directory"),
        (["a.png", "--methods", "fcm"], "out", "expected maps of cam, pcam, fcn, got fcm"),
        (["a.png", "--dicom"], "out", "pip install 'decision-basis[dicom]'"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(
    predict, drawings, tmp_path, monkeypatch, words, out, message
):
    monkeypatch.setattr("experiments.prediction.predicting.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    save(tmp_path, {"a.png": drawings[0], "full/a.png": drawings[0]})
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for run, error in (({}, message), ({"run": "empty"}, "empty is no run directory")):
        status, _, printed = predict(*words, out=tmp_path / out, **run)
        assert status == 2
        assert error in printed
        assert sorted(tmp_path.rglob("*")) == before


def test_views_of_a_study_are_joined_by_the_mean(predict, drawings, tmp_path):
    one, two = "XR_HAND/patient1/study1_positive", "XR_HAND/patient2/study1_negative"
    names = [f"{study}/image{number}.png" for study in (one, two) for number in (1, 2)]
    save(tmp_path / "valid", dict(zip(names, [*drawings[:3], NO_IMAGE], strict=True)))
    files = [tmp_path / "valid" / name for name in names]
    for number, words in enumerate([[tmp_path / "valid"], files]):
        out = tmp_path / f"out{number}"
        status, rows, _ = predict(*words, out=out)
        views = [row.probability_abnormal for row in rows.values()]
        means = [(views[0] + views[1]) / 2, views[2]]
        called = [int(mean > FITTED["study_threshold"]) for mean in means]
        assert status == 1
        assert list(csv.reader((out / "studies.csv").read_text().splitlines())) == [
            ["study", "views", "probability_abnormal", "predicted_abnormal", "failed_views"],
            [one, "2", str(means[0]), str(called[0]), "0"],
            [two, "1", str(means[1]), str(called[1]), "1"],
        ]


def test_a_note_on_an_image_is_no_failure(predict, drawings, tmp_path):
    plain = drawings[0].astype(np.uint16) * 16
    marked = plain.copy()
    marked[:20, :20] = 65535
    save(tmp_path / "in" / "study1", {"1.png": plain, "2.png": marked})
    for _ in range(2):  # also where all is done before
        status, rows, printed = predict(tmp_path / "in", out=tmp_path / "out")
        assert status == 0
        assert "; 0 failed; 1 with a note in the column error; " in printed
    one, noted = rows.values()
    assert one.error == ""
    assert re.match(r"note: \d\.\d% of its pixels stand far from all others", noted.error)
    assert noted.probability_abnormal == pytest.approx(one.probability_abnormal, abs=0.05)
    assert None not in noted
    assert (tmp_path / "out" / "studies.csv").read_text().endswith(",0\n")  # failed views


def test_dicom_inputs_get_secondary_captures_and_no_name_is_told(predict, drawings, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    odd = {"IM1": {}, "f.dcm": {"NumberOfFrames": 2}, "s.dcm": {"StudyInstanceUID": None}}
    dicoms = {name: content(radiograph(drawings[0], **odd[name])) for name in odd}
    save(folder, {"a.png": drawings[0], **dicoms, "DICOMDIR": dicoms["IM1"]})
    status, rows, printed = predict(folder, "--dicom", out=out)
    assert (status, sorted(rows)) == (1, ["IM1", "a.png", "f.dcm", "s.dcm"])
    assert len({rows[name].probability_abnormal for name in ("IM1", "a.png", "s.dcm")}) == 1
    assert "holds 2 frames" in rows["f.dcm"].error
    assert "no Secondary Capture can be made" in rows["s.dcm"].error
    assert [path.name for path in (out / "dicom").iterdir()] == ["IM1.fcn.dcm"]
    made = pydicom.dcmread(out / "dicom" / "IM1.fcn.dcm")
    assert str(made.PatientName) == f"{SECRET}^Eva"
    assert made.pixel_array.dtype == np.uint8
    assert "; 1 unreadable, 1 without a Secondary Capture; 4 of them now" in printed
    assert "failed     2 of 4" in printed
    assert SECRET not in "".join([printed, *map(str, out.rglob("*"))])
    others = [data for path, (data, _) in files_of(out).items() if path.suffix != ".dcm"]
    assert not any(SECRET.encode() in data for data in others)


@pytest.mark.parametrize("shape", [(2000, 33), (33, 2000), (32, 32), (4000, 32)])
def test_narrow_images_have_overlays_with_words_that_can_be_read(predict, tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    save(tmp_path / "in", {"narrow.png": image})
    predict(tmp_path / "in", out=tmp_path / "out")
    picture = cv2.imread(str(tmp_path / "out" / "overlays" / "narrow.png.fcn.png"))
    assert picture.shape[1] > 250
    assert (picture[-30:] > 128).any(axis=(0, 2)).sum() > 100  # words, not a smear


def test_an_overlay_that_cannot_be_drawn_ends_nothing(predict, drawings, tmp_path, monkeypatch):
    def fails(shown, *words):
        if shown.image.shape == (40, 50):
            raise TypeError("no picture")
        return draw(shown, *words)

    draw = stream.draw
    monkeypatch.setattr(stream, "draw", fails)
    odd = np.zeros((40, 50), np.uint8)
    save(tmp_path / "in", {"a.png": drawings[0], "b.png": odd, "c.png": drawings[1]})
    status, rows, printed = predict(tmp_path / "in", out=tmp_path / "out")
    assert (status, [row.failed for row in rows.values()]) == (1, [False, True, False])
    fault = "no overlay can be drawn of its 50 x 40 pixels (TypeError: no picture)"
    assert fault in rows["b.png"].error
    assert rows["b.png"].answered
    counts = [len(list((tmp_path / "out" / kind).iterdir())) for kind in ("maps", "overlays")]
    assert counts == [9, 2]
    assert "; 1 without an overlay; 3 of them now" in printed


def test_of_large_images_one_map_is_held_at_a_time(predict, drawings, tmp_path, monkeypatch):
    held, most = weakref.WeakSet(), []

    class Tracked(np.ndarray):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

    def counted(*words):
        full = full_map(*words).view(Tracked)
        held.add(full)
        most.append(len(held))
        return full

    full_map = stream.full_map
    monkeypatch.setattr(stream, "LARGE", 0)
    monkeypatch.setattr(stream, "full_map", counted)
    save(tmp_path / "in", {f"{number}.png": image for number, image in enumerate(drawings)})
    predict(tmp_path / "in", out=tmp_path / "out")
    assert (len(most), max(most)) == (3 * len(drawings), 1)


def test_networks_of_masks_alone_and_without_an_evaluation(predict, drawings, tmp_path):
    save(tmp_path / "in", {"a.png": drawings[0]})
    words = ["loss.classification=false", "checkpoint.every_steps=null"]
    run = judge(make_run(tmp_path, words=words))
    _, rows, printed = predict(tmp_path / "in", out=tmp_path / "masks", run=run)
    assert rows["a.png"][1:3] == (None, None)
    assert rows["a.png"].map_peak_x is not None
    assert "none: this network was taught lesion masks alone" in printed
    run = make_run(tmp_path, "stage1")
    assert "NO THRESHOLD" in predict(tmp_path / "in", out=tmp_path / "one", run=run)[2]
    about = json.loads((tmp_path / "one" / "about.json").read_text())
    assert (about["threshold"], about["best_map"]) == (0.5, "pcam")


def test_a_network_has_the_thresholds_of_its_own_evaluation(tmp_path):
    run = make_run(tmp_path)
    trained = load_trained(judge(run))
    assert trained.map_thresholds == {"cam": 0.2, "pcam": 0.3, "fcn": 0.5}
    assert trained.undecided_maps == ("fcn",)  # val's threshold of it is null
    assert trained.notes == ("NO MAP THRESHOLD: val holds no lesion mask; 0.5 stands in for fcn",)
    assert trained.fitted == (0.4, 0.45, 1.5)
    assert (trained.recipe.image_size, trained.recipe.crop) == (64, "none")
    for key, other in {"epoch": 3, "seed": 1, "checkpoint_hash": "?", "checkpoint": "?"}.items():
        stranger = load_trained(judge(run, **{key: other}))
        assert stranger.fitted.threshold == 0.5
        assert "has not been judged" in stranger.notes[0]


@pytest.mark.slow
def test_predictions_are_those_of_an_evaluation(predict, trained, tmp_path):
    """Judged by predict itself, then by evaluate: the same numbers; and then without data."""
    run, data = trained.copy("stage3", tmp_path), trained.root.parent / "phantom"
    _, rows, _ = predict(data / "MURA-v1.1", out=tmp_path / "out", run=run)
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert "judged now" in about["decided_by"]
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    fitted = json.loads((run / "evaluation" / "test" / "summary.json").read_text())["fitted"]
    for name in ("threshold", "study_threshold", "temperature"):
        assert about[name] == fitted[name]
    for judged in read_images(run / "evaluation" / "test" / "images.csv").itertuples():
        row = rows[judged.path.removeprefix("MURA-v1.1/")]
        assert row.probability_abnormal == pytest.approx(judged.probability, abs=1e-6)
        assert (row.map_peak_x, row.map_peak_y) == (judged.fcn_peak_x, judged.fcn_peak_y)
    shutil.copytree(data / "MURA-v1.1", tmp_path / "elsewhere")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(data), str(tmp_path / "nowhere")))
    assert predict(tmp_path / "elsewhere", out=tmp_path / "again", run=run)[1] == rows
