"""Predicting on one's own images: what is written, refused, and done by the same command again."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from datamodules.phantom.drawing import draw
from experiments import evaluate
from experiments import predict as command
from experiments.evaluation.store import read_images
from experiments.prediction.folder import read_rows, studies
from experiments.prediction.network import load_trained
from tests.dicoms import SECRET, content, radiograph
from tests.lesion_files import put
from tests.untrained import FITTED, judge, make_run

NO_IMAGE = b"no image"


@pytest.fixture(scope="module")
def untrained_run(tmp_path_factory):
    """A stage 3 whose batches hold five images."""
    return judge(make_run(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def drawings():
    return [draw(0, number).image for number in range(6)]


@pytest.fixture
def predict(untrained_run, capsys):
    """Runs the command on words; returns its status, its rows and what it printed."""

    def predict(*words, out, run=untrained_run):
        capsys.readouterr()
        status = command.main([str(word) for word in (run, *words, "--out", out)])
        rows = {name: row._replace(file="") for name, row in read_rows(out).items()}
        return status, rows, "".join(capsys.readouterr())

    return predict


def files_of(folder, pattern="*"):
    """Content and time of each file below a folder."""
    files = [path for path in folder.rglob(pattern) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_folder_gives_rows_maps_and_overlays(predict, drawings, tmp_path):
    scans, out = tmp_path / "meine Bilder", tmp_path / "aus gabe"
    names = ['größe 腕/Röntgen 1 (ü), "a".png', "größe 腕/b.JPEG"]
    put(scans, {names[0]: drawings[0], names[1]: drawings[1], "n.txt": NO_IMAGE, "._b.png": b""})
    status, rows, printed = predict(scans, out=out)
    assert (status, list(rows)) == (0, names)
    header = "path,probability_abnormal,predicted_abnormal,map_peak_x,map_peak_y,error\n"
    assert (out / "predictions.csv").read_text().startswith(header)
    for name, row in rows.items():
        image = cv2.imread(scans / name, cv2.IMREAD_GRAYSCALE)
        maps = {m: cv2.imread(out / f"maps/{name}.{m}.png", -1) for m in ("cam", "pcam", "fcn")}
        assert {(each.shape, str(each.dtype)) for each in maps.values()} == {(image.shape, "uint8")}
        assert (row.probability_abnormal > FITTED["threshold"]) == row.predicted_abnormal
        assert maps["fcn"][row.map_peak_y, row.map_peak_x] >= maps["fcn"].max() - 1
        assert (out / "overlays" / f"{name}.fcn.png").is_file()
    assert "abnormal above 0.400, a study above 0.450" in printed
    assert "NO MAP THRESHOLD" in printed
    assert "left out   2: hidden 1, .txt 1\n" in printed
    assert not {"studies.csv", "dicom"} & {path.name for path in out.iterdir()}
    # Only some maps: the peak stays that of the best one.
    assert predict(scans, "--methods", "pcam", out=scans / "one")[:2] == (0, rows)
    written = [path.name for path in (scans / "one" / "maps").rglob("*.png")]
    assert [name.split(".")[-2] for name in written] == ["pcam", "pcam"]


def test_what_cannot_be_read_is_named_and_the_others_are_done(predict, drawings, tmp_path):
    expected = {
        "empty.jpg": (b"", "the file is empty"),
        "good.png": (drawings[0], ""),
        "lost.png": (b"", "cannot be read (No such file or directory)"),
        "one.png": (np.zeros((1, 1), np.uint8), "is 1 x 1 pixels: expected 32 or more a side"),
        "text.png": (NO_IMAGE, "expected a PNG, JPEG or DICOM file"),
    }
    put(tmp_path / "in", {name: image for name, (image, _) in expected.items()})
    (tmp_path / "in/lost.png").unlink()
    (tmp_path / "in/lost.png").symlink_to(tmp_path / "nowhere.png")
    status, rows, printed = predict(tmp_path / "in", out=tmp_path / "out")
    assert (status, list(rows)) == (1, list(expected))
    for name, row in rows.items():
        assert expected[name][1] in row.error
        assert bool(row.error) == bool(expected[name][1])
        assert str(tmp_path) not in row.error
    assert "; 4 failed; 5 of them now" in printed
    assert "failed     4 of 5:\n  empty.jpg: the file is empty" in printed


def test_what_cannot_be_carried_out_is_refused(predict, drawings, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.prediction.predicting.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    put(tmp_path, dict.fromkeys(("a.png", "full/a.png", "x/full/a.png"), drawings[0]))
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for words, out, message in (
        ("a.png nowhere.png", "out", "nowhere.png: there is no such file or folder"),
        ("empty", "out", "empty: no PNG, JPEG or DICOM file in this folder"),
        ("full x/full", "out", "two inputs are called full/a.png. Fix: an --out of its own"),
        ("a.png", "a.png", "a.png: File exists"),
        ("a.png", "full", "full is not empty. Fix: a new folder with --out"),
        ("a.png --methods fcm", "out", "expected maps of cam, pcam, fcn, got fcm"),
        ("a.png --dicom", "out", "pip install 'decision-basis[dicom]'"),
    ):
        status, _, printed = predict(*words.split(), out=tmp_path / out)
        assert (status, message in printed) == (2, True), printed
    assert "empty is no run directory" in predict("a.png", out=tmp_path / "out", run="empty")[2]
    assert sorted(tmp_path.rglob("*")) == before


def test_studies_are_joined_by_the_mean_and_a_note_is_no_failure(predict, drawings, tmp_path):
    plain = drawings[0].astype(np.uint16) * 16
    marked = plain.copy()
    marked[:20, :20] = 65535
    one, two = "XR_HAND/patient1/study1_positive", "XR_HAND/patient2/study1_negative"
    names = [f"{study}/image{number}.png" for study in (one, two) for number in (1, 2)]
    views = [plain, marked, drawings[2], NO_IMAGE]
    put(tmp_path / "valid", dict(zip(names, views, strict=True)))
    status, rows, printed = predict(tmp_path / "valid", out=tmp_path / "out")
    assert (status, "; 1 failed; " in printed) == (1, True)
    errors = [row.error for row in rows.values()]
    assert errors[0] == ""
    assert re.match(r"note: \d\.\d% of its pixels stand far from all others", errors[1])
    views = [row.probability_abnormal for row in rows.values()]
    means = [(views[0] + views[1]) / 2, views[2]]
    called = [int(mean > FITTED["study_threshold"]) for mean in means]
    assert list(csv.reader((tmp_path / "out" / "studies.csv").read_text().splitlines())) == [
        ["study", "views", "probability_abnormal", "predicted_abnormal", "failed_views"],
        [one, "2", str(means[0]), str(called[0]), "0"],
        [two, "1", str(means[1]), str(called[1]), "1"],
    ]
    # A folder above the films' own, called as a study is, is none.
    named = [f"/home/study1/{patient}/a.png" for patient in "ab"]
    assert studies(pd.DataFrame({"file": named, "probability_abnormal": 0.5}), 0.5).empty


def test_dicom_inputs_get_secondary_captures_and_no_name_is_told(predict, drawings, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    odd = {"IM1": {}, "f.dcm": {"NumberOfFrames": 2}, "s.dcm": {"StudyInstanceUID": None}}
    dicoms = {name: content(radiograph(drawings[0], **odd[name])) for name in odd}
    put(folder, {"a.png": drawings[0], **dicoms, "DICOMDIR": dicoms["IM1"]})
    status, rows, printed = predict(folder, "--dicom", out=out)
    assert (status, sorted(rows)) == (1, ["IM1", "a.png", "f.dcm", "s.dcm"])
    assert len({rows[name].probability_abnormal for name in ("IM1", "a.png", "s.dcm")}) == 1
    assert "holds 2 frames" in rows["f.dcm"].error
    assert "no Secondary Capture can be made" in rows["s.dcm"].error
    assert [path.name for path in (out / "dicom").iterdir()] == ["IM1.fcn.dcm"]
    assert str(pydicom.dcmread(out / "dicom" / "IM1.fcn.dcm").PatientName) == f"{SECRET}^Eva"
    assert SECRET not in "".join([printed, *map(str, out.rglob("*"))])
    others = [data for path, (data, _) in files_of(out).items() if path.suffix != ".dcm"]
    assert not any(SECRET.encode() in data for data in others)


def test_networks_of_masks_alone_and_without_an_evaluation(predict, drawings, tmp_path):
    put(tmp_path / "in", {"a.png": drawings[0]})
    words = ["loss.classification=false", "checkpoint.every_steps=null"]
    run = judge(make_run(tmp_path, words=words))
    _, rows, printed = predict(tmp_path / "in", out=tmp_path / "masks", run=run)
    assert [value is None for value in rows["a.png"][1:5]] == [True, True, False, False]
    assert "none: this network was taught lesion masks alone" in printed
    run = make_run(tmp_path, "stage1")
    assert "NO THRESHOLD" in predict(tmp_path / "in", out=tmp_path / "one", run=run)[2]
    about = json.loads((tmp_path / "one" / "about.json").read_text())
    assert (about["threshold"], about["best_map"]) == (0.5, "pcam")


def test_a_network_has_the_thresholds_of_its_own_evaluation(tmp_path):
    run = make_run(tmp_path)
    trained = load_trained(judge(run))
    assert trained.fitted == (0.4, 0.45, 1.5)
    assert trained.map_thresholds == {"cam": 0.2, "pcam": 0.3, "fcn": 0.5}  # val's of fcn is null
    assert trained.notes == ("NO MAP THRESHOLD: val holds no lesion mask; 0.5 stands in for fcn",)
    for key, other in {"epoch": 3, "seed": 1, "checkpoint_hash": "?", "checkpoint": "?"}.items():
        stranger = load_trained(judge(run, **{key: other}))
        assert stranger.fitted.threshold == 0.5
        assert "has not been judged" in stranger.notes[0]
    (run / "evaluation" / "test" / "summary.json").write_text("{")
    assert load_trained(run).fitted.threshold == 0.5


@pytest.mark.slow
def test_predictions_are_those_of_an_evaluation(predict, trained, tmp_path):
    """Judged by predict itself, then by evaluate: the same numbers; and then without data."""
    run, data = trained.copy("stage3", tmp_path), trained.root.parent / "phantom"
    _, rows, _ = predict(data / "MURA-v1.1" / "valid", out=tmp_path / "out", run=run)
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert "judged now" in about["decided_by"]
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    fitted = json.loads((run / "evaluation" / "test" / "summary.json").read_text())["fitted"]
    for name in ("threshold", "study_threshold", "temperature"):
        assert about[name] == fitted[name]
    for judged in read_images(run / "evaluation" / "test" / "images.csv").itertuples():
        row = rows[judged.path.removeprefix("MURA-v1.1/valid/")]
        assert row.probability_abnormal == pytest.approx(judged.probability, abs=1e-6)
        assert (row.map_peak_x, row.map_peak_y) == (judged.fcn_peak_x, judged.fcn_peak_y)
    shutil.copytree(data / "MURA-v1.1" / "valid", tmp_path / "elsewhere")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(data), str(tmp_path / "nowhere")))
    again = predict(tmp_path / "elsewhere", out=tmp_path / "again", run=run)[1]
    assert [row[:6] for row in again.values()] == [row[:6] for row in rows.values()]


def test_the_same_command_resumes_after_a_kill_and_overwrites_nothing(predict, drawings, tmp_path):
    folder, out, whole = tmp_path / "in", tmp_path / "out", tmp_path / "whole"
    put(folder, {f"{number}.png": image for number, image in enumerate(drawings)})
    assert predict(folder, out=whole)[0] == 0
    shutil.copytree(whole, out)
    rows, table = out / "rows.jsonl", out / "predictions.csv"
    lines = rows.read_text().splitlines(keepends=True)
    table.unlink()  # as a kill in the middle of a line leaves it
    rows.write_text("".join(lines[:2]) + lines[2][:9])
    all_of_it = predict(tmp_path, out=tmp_path / "all")  # what was written is no input
    assert list(all_of_it[1]) == [f"in/{number}.png" for number in range(6)]
    assert "left out   2: earlier predictions 2" in all_of_it[2]
    assert "2 of them done before" in predict(folder, out=out)[2]
    assert table.read_bytes() == (whole / "predictions.csv").read_bytes()
    written = files_of(out, "*.png")
    assert "nothing to do" in predict(folder, out=out)[2]
    assert files_of(out, "*.png") == written
    status, _, printed = predict(folder, "--methods", "cam", out=out)
    assert (status, "another request (methods)" in printed) == (2, True)
    # An answer does not depend on what else is asked: above were a batch and a half.
    alone = predict(folder / "4.png", out=tmp_path / "one")[1]
    assert alone == {"4.png": predict(folder, out=whole)[1]["4.png"]}


def test_what_changed_is_predicted_again_and_no_stale_answer_stays(predict, drawings, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    odd = os.fsdecode(b"latin\xe9.png")  # no UTF-8
    files = {"a.png": drawings[0], "b.png": drawings[1], "c.png": NO_IMAGE, "d.png": b""}
    put(folder, {**files, odd: drawings[4]})
    predict(folder, out=out)
    assert r"latin\udce9.png,0." in (out / "predictions.csv").read_text()
    status, pictures = (folder / "a.png").stat(), files_of(out, "b.png.*")
    put(folder, {"a.png": drawings[2], "c.png": drawings[3]})
    os.utime(folder / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(folder / "b.png", ns=(0, 0))  # the same content, whatever its time says
    (folder / "d.png").unlink()
    _, rows, printed = predict(folder, out=out)
    assert "; 2 of them now" in printed
    anew = predict(folder, out=tmp_path / "new")
    assert (anew[0], sorted(anew[1].items())) == (0, sorted(rows.items()))
    assert files_of(out, "b.png.*") == pictures
    for path, (data, _) in files_of(out / "maps").items():
        assert data == (tmp_path / "new" / "maps" / path.name).read_bytes()
    put(folder, {"a.png": NO_IMAGE})
    assert predict(folder, out=out)[0] == 1
    assert not files_of(out, "a.png.*")
    # The row of an image that has gone is kept; one that failed is not.
    for name in ("a.png", odd):
        (folder / name).unlink()
    status, rows, _ = predict(folder, out=out)
    assert (status, sorted(rows)) == (0, ["b.png", "c.png", odd])
