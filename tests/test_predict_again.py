"""The same prediction again: what is kept, done anew, and found again."""

from __future__ import annotations

import os

import pytest

from tests.predictions import NO_IMAGE, files_of, save


def test_the_same_command_resumes_after_a_kill_and_overwrites_nothing(predict, drawings, tmp_path):
    folder, out, whole = tmp_path / "in", tmp_path / "out", tmp_path / "whole"
    save(folder, {f"{number}.png": image for number, image in enumerate(drawings)})
    for each in (whole, out):
        assert predict(folder, out=each)[0] == 0
    table = out / "predictions.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.unlink()  # as a kill in the middle of a line leaves it
    table.with_suffix(".csv.partial").write_text("".join(lines[:3]) + lines[3][:9])
    assert "2 of them done before" in predict(folder, out=out)[2]
    assert table.read_bytes() == (whole / "predictions.csv").read_bytes()
    written = files_of(out, "*.png")
    assert "nothing to do" in predict(folder, out=out)[2]
    assert files_of(out, "*.png") == written
    save(folder, {"new.png": drawings[0]})
    assert len(predict(folder, out=out)[1]) == len(drawings) + 1
    status, _, printed = predict(folder, "--methods", "cam", out=out)
    assert status == 2
    assert "another request (methods differ)" in printed


@pytest.mark.parametrize("killed_in", ["folder.PredictionFolder.finish", "stream.Predictor.run"])
def test_what_a_killed_prediction_wrote_is_no_input(
    predict, drawings, tmp_path, monkeypatch, killed_in
):
    def killed(*words):
        raise KeyboardInterrupt

    names = [*(f"{number}.png" for number in range(6)), "about/b.png"]
    save(tmp_path, dict(zip(names, [*drawings, drawings[0]], strict=True)))
    save(tmp_path, {"about/about.json": b'{"checkpoint_hash": "not ours"}'})
    with monkeypatch.context() as patch:
        patch.setattr(f"experiments.prediction.{killed_in}", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(tmp_path, out=tmp_path / "out1")
    assert not (tmp_path / "out1" / "predictions.csv").exists()
    save(tmp_path, {"out1/maps/0.png.fcn.png": drawings[0]})  # maps may be there without a row
    _, rows, printed = predict(tmp_path, out=tmp_path / "out2")
    assert list(rows) == names
    assert "earlier predictions 1" in printed


def test_what_changed_is_predicted_again_and_no_stale_answer_stays(predict, drawings, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder, {"a.png": drawings[0], "b.png": drawings[1], "c.png": NO_IMAGE, "d.png": b""})
    _, first, _ = predict(folder, out=out)
    status, pictures = (folder / "a.png").stat(), files_of(out, "b.png.*")
    save(folder, {"a.png": drawings[2], "c.png": drawings[3]})
    os.utime(folder / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(folder / "b.png", ns=(0, 0))  # the same content, whatever its time says
    (folder / "d.png").unlink()
    _, rows, printed = predict(folder, out=out)
    assert "changed    1 " in printed
    assert "; 2 of them now" in printed
    assert predict(folder, out=tmp_path / "new")[:2] == (0, rows)
    assert rows["a.png"].probability_abnormal != first["a.png"].probability_abnormal
    assert files_of(out, "b.png.*") == pictures
    for path, (data, _) in files_of(out / "maps").items():
        assert data == (tmp_path / "new" / "maps" / path.name).read_bytes()
    save(folder, {"a.png": NO_IMAGE})
    assert predict(folder, out=out)[0] == 1
    assert not files_of(out, "a.png.*")


def test_a_name_that_is_not_utf_8_is_escaped_and_found_again(predict, drawings, tmp_path):
    folder, out = tmp_path / "in", tmp_path / os.fsdecode(b"out\xe9")
    study = os.fsdecode(b"h\xe4nde/study1/")
    files = [os.fsdecode(name) for name in (b"latin\xe9.png", rb"latin\xe9.png", b"plain.png")]
    save(folder, {study + name: drawings[number] for number, name in enumerate(files)})
    save(folder, {os.fsdecode(b"notes.t\xe9t"): NO_IMAGE, os.fsdecode(b"lost\xe9.png"): b""})
    names = [rf"h\xe4nde/study1/{n}" for n in (r"latin\xe9.png", r"latin\xe9-2.png", "plain.png")]
    status, rows, printed = predict(folder, out=out)
    assert (status, list(rows)) == (1, [r"lost\xe9.png", *names])
    assert r"lost\xe9.png: the file is empty" in printed
    assert r".t\xe9t 1" in printed
    assert (out / "maps" / f"{names[0]}.fcn.png").is_file()
    tables = {path.name: path.read_text("utf-8") for path in out.glob("*.[cj]s*")}
    assert set(tables) == {"predictions.csv", "studies.csv", "inputs.csv", "about.json"}
    assert r"in/h\xe4nde/study1,3," in tables["studies.csv"]
    assert "nothing to do" in predict(folder, out=out)[2]
    # The row of an image that has gone is kept, also in its study; one that failed is not.
    (folder / study / "plain.png").unlink()
    (folder / os.fsdecode(b"lost\xe9.png")).unlink()
    status, rows, printed = predict(folder, out=out)
    assert (status, list(rows)) == (0, names)
    assert "done       3 images" in printed
    assert "gone       1 of these images are no longer there; their rows are kept" in printed
    assert (out / "studies.csv").read_text("utf-8") == tables["studies.csv"]
