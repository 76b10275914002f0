"""Masks that a run proposes: which images get one, what learns from them, what they never do."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from datamodules.index import DataError
from datamodules.lesions import PROPOSED
from experiments import propose_lesions, train
from experiments.build import build_data, open_run
from experiments.config import load_config
from tests.runs import once, quiet, run_folder, shared


@pytest.fixture(scope="module")
def words(trained):
    return [*trained.words, "lesions.count=6"]


@pytest.fixture(scope="module")
def teacher(trained, words, tmp_path_factory):
    """A run that learned from six masks."""
    root = shared(tmp_path_factory, "teacher")
    once(root, lambda _: quiet(train.main, ["stage3", f"run.root={root}", *words]))
    return run_folder(root, "stage3", "lambda1.0-seed0")


def prepared(words, *more):
    data = build_data(load_config("stage3", [*words, *more]))
    data.prepare_data()
    data.setup()
    return data


def test_abnormal_train_images_without_a_mask_get_one_and_nobody_else(
    teacher, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("experiments.annotation.proposing.LOWEST", 0.0)  # it has learned little
    out = tmp_path / "proposed"
    assert propose_lesions.main([str(teacher), "--out", str(out)]) == 0
    before, after = prepared(words), prepared(words, f"lesions.proposals={out}")
    table, own = after.table, before.lesion_rows
    proposed = np.flatnonzero(table["lesion_type"] == PROPOSED)
    train_rows = np.flatnonzero((table["split"] == "train") & (table["label"] == 1))
    assert len(own) == 6
    assert sorted([*own, *proposed]) == train_rows.tolist() == after.lesion_rows.tolist()
    assert f"proposed  {len(proposed)} of {len(proposed)} abnormal" in capsys.readouterr().out
    kept = np.setdiff1d(np.arange(len(table)), proposed)
    assert table["lesion_mask"].iloc[kept].equals(before.table["lesion_mask"].iloc[kept])
    assert after.judges_as({"judges_hash": before.judges_hash})
    shown = after.original_mask(int(proposed[0]))
    assert cv2.connectedComponents(shown)[0] == 2  # the background, and one blob
    (out / "judges.txt").write_text("of other splits")
    with pytest.raises(DataError, match="may have learned from what is val or test here"):
        prepared(words, f"lesions.proposals={out}")
    with pytest.raises(SystemExit):
        propose_lesions.main(["--out", str(out)])


def test_a_run_learns_from_proposals_and_is_judged_by_real_masks(teacher, words, tmp_path):
    out = tmp_path / "proposed"
    quiet(propose_lesions.main, [str(teacher), "--out", str(out)])
    more = [f"lesions.proposals={out}", f"run.root={tmp_path}", "trainer.max_epochs=1"]
    quiet(train.main, ["stage3", *words, *more])
    opened = open_run(run_folder(tmp_path, "stage3", "lambda1.0-seed0"))
    judged = opened.data.table[opened.data.table["split"] != "train"]
    assert not (judged["lesion_type"] == PROPOSED).any()


def test_who_cannot_propose_is_told_why(trained, tmp_path, capsys):
    for run, said in (trained.stage1, "cannot propose"), (trained.stage3, "each abnormal train"):
        assert propose_lesions.main([str(run), "--out", str(tmp_path / "p")]) == 2
        assert said in capsys.readouterr().err
