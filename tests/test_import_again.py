"""Several raters, packages that were drawn on, and imports that are interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from experiments import command, select_lesions
from tests.lesion_files import BOX, ONE, OTHER, box, coco_of, rated, save
from tests.test_import_lesions import RIGHT, assert_matches

# Raters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "how", "columns"),
    [
        ((10, 14), "union", (10, 23)),
        ((10, 14), "majority", (14, 19)),
        ((10, 14), "intersection", (14, 19)),
        ((10, 14, 18), "majority", (14, 23)),
    ],
)
def test_raters_are_joined_and_compared(importing, boxes, how, columns):
    own = {f"rater{n}@clinic.org": (left, 5, 9, 7) for n, left in enumerate(boxes)}
    assert importing.run(rated(ONE, **own), "--raters", how) == 0
    np.testing.assert_array_equal(importing.mask(), box(columns[0], 5, columns[1], 12))
    printed, about = importing.printed(), importing.table("import.csv")
    assert f"several raters marked 1 image; joined by {how}" in printed
    # 6 of 14 columns are shared; each rater has 10.
    assert_matches(printed, r"rater 1 and rater 2 +1 +0\.429 +0\.600")
    if len(boxes) == 2:
        figures = about[["raters", "rater_iou", "rater_dice"]].to_numpy().tolist()
        assert figures == [[2, 0.4286, 0.6]]
    assert "clinic" not in printed + about.to_csv()


def test_several_sources_are_several_raters(importing):
    one = importing.put({"anna.json": coco_of((ONE, [BOX]), (OTHER, [BOX]))})
    other = importing.put({"ben.json": RIGHT})
    assert importing.run(one, other, "--raters", "intersection") == 0
    assert_matches(importing.printed(), r"anna.json and .*ben.json +1 +1\.000 +1\.000")
    assert len(importing.table()) == 2


def test_raters_who_share_nothing_are_named(importing):
    apart = rated(ONE, a=(2, 5, 5, 5), b=(20, 5, 5, 5))
    assert importing.run(apart, "--raters", "majority") == 2
    assert "no pixel is left by the majority of 2 raters" in importing.printed()


# Packages, and being interrupted ------------------------------------------------------------------


def test_an_import_compares_images_and_splits_with_the_package(importing, tmp_path):
    package = tmp_path / "package"
    data = ["data.name=mura", f"data.root={importing.root}", "data.seed=3"]
    words = ["--count", "12", "--split", "all", "--out", str(package), "data.unreadable=skip"]
    assert select_lesions.main([*words, *data]) == 0
    said = f"data.root={importing.root} data.seed=3 data.unreadable=skip\n"
    assert importing.printed().endswith(said)
    kept = "        data.name=mura data.seed=3 data.unreadable=skip data.root=/path/to/the/data\n"
    assert kept in (package / "README.txt").read_text()
    rows = pd.read_csv(package / "selected.csv")
    source = importing.put({"a.json": coco_of(*((name, [BOX]) for name in rows["name"]))})
    mapping = ["--mapping", package / "mapping.csv"]
    assert importing.run(source, *mapping, "data.seed=3") == 0
    assert "of another split" not in importing.printed()
    assert importing.run(source, *mapping, out=tmp_path / "other") == 0
    assert "NOTE of another split than when chosen (selected.csv): " in importing.printed()
    # What was drawn on an image is not taken for another under its name.
    save(importing.root / rows["image"][0], seed=99)
    assert importing.run(source, *mapping, out=tmp_path / "third") == 2
    replaced = f"1 image replaced since chosen, such as {importing.root / rows['image'][0]}; choose"
    assert replaced in importing.printed()
    assert not (tmp_path / "third").exists()


def test_select_is_an_alias(importing, tmp_path):
    words = ["--select", "3", "--out", str(tmp_path / "package")]
    words += ["data.name=mura", f"data.root={importing.root}"]
    line = [sys.executable, "-m", "experiments.import_lesions", *words]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "chosen   3 of" in done.stdout
    assert len(pd.read_csv(tmp_path / "package" / "selected.csv")) == 3


@pytest.mark.parametrize("name", ["DRAFT.0123456789abcdef.part", "DRAFT.123.partial"])
def test_a_folder_that_a_killed_import_left_is_named(importing, name):
    draft = importing.out.with_name(name.replace("DRAFT", f".{importing.out.name}"))
    draft.mkdir()
    importing.out.with_name(f"{name.replace('DRAFT', f'.{importing.out.name}2')}").mkdir()
    assert importing.run(RIGHT) == 0
    error = importing.printed()
    assert error.count("is left of a command") == 1
    assert f"NOTE {draft} is left of a command that was killed, or of one that is at work" in error
    assert draft.is_dir()


@pytest.mark.parametrize("how", ["full disk", "SIGTERM"])
def test_nothing_is_left_half_written(importing, tmp_path, monkeypatch, how):
    def interrupt(draft, _):
        assert (draft / "lesions.csv").is_file()
        if how == "full disk":
            raise OSError(28, "No space left on device", "sheet.png")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("experiments.annotation.importing.write_sheets", interrupt)
    source = importing.put({"a.json": RIGHT})
    before, usual = sorted(tmp_path.iterdir()), signal.getsignal(signal.SIGTERM)
    try:
        if how == "full disk":
            assert importing.run(source) == 2
        else:
            command.end_by_sigterm()
            with pytest.raises(SystemExit, match="143"):
                importing.run(source)
    finally:
        signal.signal(signal.SIGTERM, usual)
    said = "No space left on device" if how == "full disk" else "nothing is left half written"
    assert said in importing.printed()
    assert sorted(tmp_path.iterdir()) == before
