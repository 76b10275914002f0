"""The command that judges runs, on real ones: what it writes, prints and refuses."""

import contextlib
import json
import re
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from experiments import evaluate
from experiments.build import open_run
from experiments.evaluation.figures import Fitted, all_figures, iou_curves
from experiments.evaluation.run import CHANGED, REPLACED
from experiments.evaluation.store import load_maps, read_images
from experiments.prediction.network import load_trained
from lightning_modules.stages import STAGES

OWN = {"stage1": ["cam", "pcam"], "stage2": ["cam", "pcam"], "stage3": ["cam", "pcam", "fcn"]}
TRIVIAL = ["centre", "mean_mask", "edges", "noise"]


@pytest.fixture
def judged(trained, tmp_path):
    """A run of each stage, judged on test, to change."""
    return {stage: trained.copy(stage, tmp_path, judged=True) for stage in STAGES}


@pytest.fixture
def run(trained, tmp_path):
    """A run of stage 1, to change."""
    return trained.copy("stage1", tmp_path)


def results(run, split="test"):
    folder = run / "evaluation" / split
    table = read_images(folder / "images.csv")
    summary = json.loads((folder / "summary.json").read_text())
    return table, load_maps(folder / "maps.npz", table), summary


def quick(run, *words):
    """Judge the network's own maps on val alone: one pass over few images; the status."""
    return evaluate.main([str(run), "--split", "val", "--no-baselines", *words])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_all_figures_follow_from_the_written_rows(judged, stage):
    table, maps, summary = results(judged[stage])
    assert table["path"].is_unique
    assert list(maps) == list(summary["fitted"]["maps"]) == [*OWN[stage], *TRIVIAL]
    assert summary["images"] == len(table)
    assert summary["lesions"] == table["lesion_area"].notna().sum() == table["label"].sum()
    fitted = Fitted(*(summary["fitted"][name] for name in Fitted._fields))
    figures = all_figures(table, maps, fitted)
    assert list(figures) == list(summary["intervals"])
    for name, figure in figures.items():
        value = figure(np.ones((1, len(table))))[0]
        assert (None if np.isnan(value) else pytest.approx(value)) == summary[name], name
        low, high = summary["intervals"][name]
        if low is not None and not name.startswith("ece"):  # which resamples make larger
            assert low <= value <= high, name
    for name, rows in maps.items():
        level = round(summary["fitted"]["maps"][name]["threshold"] * 255)
        curves = iou_curves(rows)[:, level]
        assert table[f"{name}_iou"].to_numpy() == pytest.approx(curves, nan_ok=True)


@pytest.mark.slow
def test_what_is_tuned_comes_from_val(judged, capsys):
    assert quick(judged["stage3"]) == 0
    assert "NOTE val is judged by its own decisions" in capsys.readouterr().out
    of_val, of_test = (results(judged["stage3"], split)[2]["fitted"] for split in ("val", "test"))
    assert of_test["maps"].pop("edges")["scale"] > 0
    assert of_val == of_test | {"maps": {name: of_test["maps"][name] for name in OWN["stage3"]}}


@pytest.mark.slow
def test_a_person_reads_figures_and_comparison(trained, judged, tmp_path, capsys):
    """Once more without the trivial maps, which are the same for all runs and change nothing."""
    first, before = results(judged["stage1"])[0], results(judged["stage3"])[0]
    columns = [name for name in first if name.rsplit("_", 1)[0] in TRIVIAL]
    assert len(columns) > 20
    pd.testing.assert_frame_equal(first[columns], before[columns])
    beside = pd.read_csv(trained.judged / "phantom" / "comparison-test.csv")
    assert beside["second"].iloc[0] == "CAM of stage 1 (mean of 2 seeds)"
    words = ["--no-baselines", "--compare", "--out", str(tmp_path / "mine")]
    assert evaluate.main([str(judged["stage3"]), *words]) == 0
    table, maps, _ = results(judged["stage3"])
    assert list(maps) == OWN["stage3"]
    pd.testing.assert_frame_equal(table, before[table.columns])
    assert (tmp_path / "mine.md").is_file()
    out = capsys.readouterr().out
    for pattern in (
        r"images  0\.\d{3} \(0\.\d{3}-\d\.\d{3}\) 0\.\d\d \(",
        r"fcn  \d\.\d\d \(0\.\d\d-\d\.\d\d\) 0\.\d{3} \(0\.\d{3}-\d\.\d{3}\) 0\.\d\d \(",
        r"masked accuracy \d\.\d\d.*under the other class's map",
        r"at val's operating points, above 0\.\d\d of images",
        "## Maps of stage 3",
    ):
        assert re.search(pattern, out), pattern
    block = out.partition("  written")[0].splitlines()
    assert max(len(line) for line in block if str(judged["stage3"]) not in line) <= 100


@pytest.mark.slow
def test_half_finished_runs_are_noted_and_checkpoints_of_other_runs_refused(run, capsys):
    config, best = run / "config.yaml", run / "checkpoints" / "best.ckpt"
    config.write_text(config.read_text().replace("max_epochs: 3", "max_epochs: 5"))
    assert quick(run) == 0
    note = "half finished: 3 of 5 epochs are trained"
    assert f"NOTE {note}" in capsys.readouterr().out
    assert note in results(run, "val")[2]["notes"][0]
    assert note in load_trained(run).notes[0]
    config.write_text(config.read_text().replace("max_epochs: 5", "max_epochs: 3"))  # gone on since
    assert note not in str(open_run(run).summary("val")["notes"])
    content = torch.load(best, weights_only=True)
    content["MuraDataModule"] = content.pop("PhantomDataModule")
    torch.save(content, best)
    assert quick(run) == 2
    assert "best.ckpt was not trained on data.name=phantom" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "note", "refused"),
    [("lesions", CHANGED, "the lesion masks"), ("MURA-v1.1", REPLACED, "the images")],
)
def test_a_note_says_that_a_run_is_judged_on_what_was_replaced(
    run, tmp_path, capsys, where, note, refused
):
    root = yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]
    copy = shutil.copytree(root, tmp_path / "copy")
    path = next((copy / where).rglob("*.png"))
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[::-1])
    assert quick(run, f"data.root={copy}") == 0
    assert f"NOTE {note}" in capsys.readouterr().out
    assert evaluate.main([str(run), f"data.root={copy}", "--split", "left_out"]) == 2
    assert f"{copy}: {refused} changed since this run" in capsys.readouterr().err
    if where != "lesions":
        assert load_trained(run).notes == (REPLACED,)  # as predict says


ALONE = "--maps judges a folder of maps"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("run --compare --out .", "--out . names no file. Fix: add a name"),
        ("runs/lambda=1", "runs/lambda=1 is no run directory (no config.yaml)"),
        ("run --out x", "--out is where --compare or --maps writes"),
        ("run --audit-images 9", "--audit-images needs --audit"),
        ("run --audit --audit-images 1", "two or more"),
        *((f"--maps x {more}", ALONE) for more in ("run", "--compare", "--split left_out")),
        ("--maps x data.name=phantom", "--maps x is no folder"),
    ],
)
def test_what_cannot_be_done_is_refused_before_judging(tmp_path, monkeypatch, capsys, words, error):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):  # argparse's own way out, with status 2
        assert evaluate.main(words.split()) == 2
    assert error in capsys.readouterr().err
