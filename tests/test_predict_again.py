"""The same command again: what is gone on with, looked at again, refused, and kept."""

from __future__ import annotations

import os

import pytest

from datamodules.phantom.drawing import draw as draw_phantom
from tests.predictions import rows_of, save, told
from tests.untrained import judge, make_run

TABLES = "predictions.csv", "studies.csv", "inputs.csv", "about.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return judge(make_run(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def phantoms():
    return [draw_phantom(0, number).image for number in range(6)]


def test_the_same_command_goes_on_after_a_kill_and_overwrites_nothing(
    run, phantoms, tmp_path, capsys
):
    for number, image in enumerate(phantoms):
        save(tmp_path / "in" / f"{number}.png", image)
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = run, tmp_path / "in", "--out"
    assert told(*command, whole) == 0
    assert told(*command, out) == 0
    table = out / "predictions.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.unlink()  # as a kill in the middle of a line leaves it
    table.with_suffix(".csv.partial").write_text("".join(lines[:3]) + lines[3][:9])
    capsys.readouterr()
    assert told(*command, out) == 0
    assert "2 of them done before" in capsys.readouterr().out
    assert table.read_bytes() == (whole / "predictions.csv").read_bytes()
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert told(*command, out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == written
    save(tmp_path / "in" / "new.png", phantoms[0])
    assert told(*command, out) == 0
    assert len(rows_of(out)) == len(phantoms) + 1
    assert told(*command, out, "--methods", "cam") == 2
    assert "another request (methods differ)" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["a batch", "nothing"])
def test_what_a_killed_prediction_wrote_is_no_input(
    run, phantoms, tmp_path, monkeypatch, capsys, first
):
    def killed(*words):
        raise KeyboardInterrupt

    nest = tmp_path / "nest"
    for number, image in enumerate(phantoms):  # a batch of five, and one more
        save(nest / f"{number}.png", image)
    save(nest / "about" / "b.png", phantoms[0])
    (nest / "about" / "about.json").write_text('{"checkpoint_hash": "not ours"}')
    with monkeypatch.context() as patch:
        patch.setattr("experiments.prediction.folder.PredictionFolder.finish", killed)
        if first == "nothing":
            patch.setattr("experiments.prediction.stream.Predictor.run", killed)
        with pytest.raises(KeyboardInterrupt):
            told(run, nest, "--out", nest / "out1")
    assert not (nest / "out1" / "predictions.csv").exists()
    assert (nest / "out1" / "maps").is_dir() == (first == "a batch")
    if first == "nothing":  # as a later kill may leave it: maps, and no row
        save(nest / "out1" / "maps" / "0.png.fcn.png", phantoms[0])
    capsys.readouterr()
    assert told(run, nest, "--out", nest / "out2") == 0
    assert list(rows_of(nest / "out2")) == [
        *(f"{number}.png" for number in range(len(phantoms))),
        "about/b.png",
    ]
    assert "earlier predictions 1" in capsys.readouterr().out


def test_an_image_that_changed_gets_no_stale_answer(run, phantoms, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "a.png", phantoms[0])
    save(folder / "b.png", phantoms[1])
    assert told(run, folder, "--out", out) == 0
    status = (folder / "a.png").stat()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    save(folder / "a.png", phantoms[2])
    os.utime(folder / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    assert told(run, folder, "--out", out) == 2
    said = capsys.readouterr().err
    assert "answers for other images: 1 have changed since" in said
    assert f"name another folder with --out:\n  {folder / 'a.png'}\n" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    save(folder / "a.png", phantoms[0])
    os.utime(folder / "a.png", ns=(0, 0))
    assert told(run, folder, "--out", out) == 0  # the same content, whatever its time says


def test_a_name_that_is_not_utf_8_is_escaped_and_found_again(run, phantoms, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / os.fsdecode(b"out\xe9")
    study = folder / os.fsdecode(b"h\xe4nde") / "study1"
    for number, name in enumerate((b"latin\xe9.png", rb"latin\xe9.png", b"plain.png")):
        save(study / os.fsdecode(name), phantoms[number])
    (folder / os.fsdecode(b"notes.t\xe9t")).write_text("no image")
    lost = folder / os.fsdecode(b"lost\xe9.png")
    lost.touch()
    below = r"h\xe4nde/study1"
    expected = [
        r"lost\xe9.png",
        rf"{below}/latin\xe9.png",
        rf"{below}/latin\xe9-2.png",
        f"{below}/plain.png",
    ]
    assert told(run, folder, "--out", out) == 1
    said = capsys.readouterr()
    assert r"lost\xe9.png: the file is empty" in said.err
    assert r".t\xe9t 1" in said.out
    assert list(rows_of(out)) == expected
    assert (out / "maps" / f"{expected[1]}.fcn.png").is_file()
    tables = {name: (out / name).read_text("utf-8") for name in TABLES}
    assert r"in/h\xe4nde/study1,3," in tables["studies.csv"]
    assert told(run, folder, "--out", out) == 1
    assert "nothing to do" in capsys.readouterr().out.encode().decode("utf-8")
    (study / "plain.png").unlink()
    lost.unlink()
    assert told(run, folder, "--out", out) == 0
    assert list(rows_of(out)) == expected[1:]
    assert (out / "studies.csv").read_text("utf-8") == tables["studies.csv"]
    save(study / os.fsdecode(b"latin\xe9.png"), phantoms[4])
    assert told(run, folder, "--out", out) == 2
    assert rf"{below}/latin\xe9.png" in capsys.readouterr().err


def test_what_failed_and_is_mended_is_looked_at_again(run, phantoms, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "a.png", phantoms[0])
    (folder / "b.png").write_text("no image")
    (folder / "c.png").touch()
    assert told(run, folder, "--out", out) == 1
    save(folder / "b.png", phantoms[1])
    (folder / "c.png").unlink()
    capsys.readouterr()
    assert told(run, folder, "--out", out) == 0
    assert "1 of them now" in capsys.readouterr().out
    assert list(rows_of(out)) == ["a.png", "b.png"]
    assert (out / "maps" / "b.png.fcn.png").is_file()


def test_the_row_of_an_image_that_has_gone_is_kept_and_counted(run, phantoms, tmp_path, capsys):
    study, out = tmp_path / "in" / "study1_positive", tmp_path / "out"
    for number in range(2):
        save(study / f"image{number}.png", phantoms[number])
    assert told(run, tmp_path / "in", "--out", out) == 0
    before = {name: (out / name).read_bytes() for name in ("predictions.csv", "studies.csv")}
    (study / "image0.png").unlink()
    capsys.readouterr()
    assert told(run, tmp_path / "in", "--out", out) == 0
    said = capsys.readouterr().out
    assert "done       2 images" in said
    assert "gone       1 of these images are no longer there; their rows are kept" in said
    assert {name: (out / name).read_bytes() for name in before} == before
