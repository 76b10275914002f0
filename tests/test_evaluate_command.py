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

from experiments import evaluate, report, train
from experiments.evaluation.figures import Fitted, all_figures, iou_curves
from experiments.evaluation.run import REPLACED
from experiments.evaluation.store import load_maps, read_images
from experiments.prediction.network import load_trained
from lightning_modules import STAGES

OWN = {"stage1": ["cam", "pcam"], "stage2": ["cam", "pcam"], "stage3": ["cam", "pcam", "fcn"]}
TRIVIAL = ["centre", "mean_mask", "edges", "noise"]


@pytest.fixture(scope="module")
def judged(trained, tmp_path_factory):
    """A run of each stage, and a second seed of the first; judged and compared on test."""
    root = tmp_path_factory.mktemp("runs")
    runs = {name: trained.copy(name, root) for name in (*STAGES, "second")}
    assert evaluate.main([*map(str, runs.values()), "--compare"]) == 0
    return runs


@pytest.fixture
def run(trained, tmp_path):
    """A run of stage 1, to change."""
    return trained.copy("stage1", tmp_path)


def results(run, split="test"):
    folder = run / "evaluation" / split
    table = read_images(folder / "images.csv")
    summary = json.loads((folder / "summary.json").read_text())
    return table, load_maps(folder / "maps.npz", table), summary


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_all_figures_follow_from_the_written_rows(judged, stage):
    table, maps, summary = results(judged[stage])
    assert table["path"].is_unique
    assert set(maps) == {*OWN[stage], *TRIVIAL}
    assert summary["images"] == len(table)
    assert summary["lesions"] == table["lesion_area"].notna().sum() == table["label"].sum()
    fitted = Fitted(*(summary["fitted"][name] for name in Fitted._fields))
    found = all_figures(table, {name: maps[name] for name in summary["fitted"]["maps"]}, fitted)
    assert list(found) == list(summary["intervals"])
    for name, figure in found.items():
        value = figure(np.ones((1, len(table))))[0]
        assert (None if np.isnan(value) else pytest.approx(value)) == summary[name], name
        low, high = summary["intervals"][name]
        if low is not None and not name.startswith("ece"):  # which resamples make larger
            assert low <= value <= high, name
    for name, rows in maps.items():
        level = round(summary["fitted"]["maps"][name]["threshold"] * 255)
        curves = iou_curves(rows)[:, level]
        assert table[f"{name}_iou"].to_numpy() == pytest.approx(curves, nan_ok=True)
    curve = pd.read_csv(judged[stage] / "evaluation" / "test" / "reliability.csv")
    assert curve["images"].sum() == len(table)


@pytest.mark.slow
def test_what_is_tuned_comes_from_val(judged, capsys):
    assert evaluate.main([str(judged["stage3"]), "--split", "val"]) == 0
    assert "NOTE val is judged by its own decisions" in capsys.readouterr().out
    _, maps, summary = results(judged["stage3"], "val")
    fitted = summary["fitted"]
    assert fitted == results(judged["stage3"])[2]["fitted"]
    for name, rows in maps.items():
        best = 1 + int(np.nanmean(iou_curves(rows), axis=0)[1:].argmax())
        assert fitted["maps"][name]["threshold"] == pytest.approx(best / 255)
        assert summary[f"{name}/iou"] == pytest.approx(summary[f"{name}/iou_bound"])
    assert fitted["maps"]["edges"]["scale"] > 0
    assert "scale" not in fitted["maps"]["pcam"]


@pytest.mark.slow
def test_baselines_are_the_same_for_all_runs_and_can_be_left_out(judged):
    first, other = results(judged["stage1"])[0], results(judged["stage3"])[0]
    columns = [name for name in first if name.rsplit("_", 1)[0] in TRIVIAL]
    assert len(columns) > 20
    pd.testing.assert_frame_equal(first[columns], other[columns])
    before = results(judged["second"])[0]
    assert evaluate.main([str(judged["second"]), "--no-baselines"]) == 0
    table, maps, _ = results(judged["second"])
    assert list(maps) == ["cam", "pcam"]
    pd.testing.assert_frame_equal(table, before[table.columns])


@pytest.mark.slow
def test_a_person_reads_figures_with_intervals(judged, capsys):
    assert evaluate.main([str(judged["stage3"])]) == 0
    said = capsys.readouterr().out
    for words in (
        r"images  0\.\d{3} \(0\.\d{3}-\d\.\d{3}\) 0\.\d\d \(",
        r"fcn       \d\.\d\d \(0\.\d\d-\d\.\d\d\) 0\.\d{3} \(0\.\d{3}-\d\.\d{3}\) 0\.\d\d \(",
        r"masked accuracy \d\.\d\d.*under the other class's map",
        r"at val's operating points, above 0\.\d\d of images",
    ):
        assert re.search(words, said), words
    short = [line for line in said.splitlines() if str(judged["stage3"]) not in line]
    assert max(map(len, short)) <= 100


@pytest.mark.slow
def test_the_comparison_lies_beside_the_stages(judged, tmp_path, capsys):
    beside = judged["stage1"].parents[1]
    table = pd.read_csv(beside / "comparison-test.csv")
    claim = table[table.family.str.startswith("The paper")]
    assert len(claim) == 8
    assert claim["second"].iloc[0] == "CAM of stage 1 (mean of 2 seeds)"
    hits = [results(judged[name])[2]["pcam/hit"] for name in ("stage1", "second")]
    assert claim.first_value.iloc[0] == pytest.approx(np.mean(hits))
    assert "## Each run" in (beside / "comparison-test.md").read_text()
    two = [str(judged["stage1"]), str(judged["stage2"]), "--no-baselines", "--compare"]
    assert evaluate.main([*two, "--out", str(tmp_path / "mine.md")]) == 0
    assert (tmp_path / "mine.md").is_file()
    assert "## Runs" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert evaluate.main([*two, "--out", str(tmp_path / "file" / "mine")]) == 2
    assert f"error: {tmp_path / 'file'}: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_half_finished_run_is_judged_and_said(run, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 5
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    assert "NOTE half finished: 3 of 5 epochs are trained" in capsys.readouterr().out
    (run / "checkpoints" / "last.ckpt").unlink()
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    assert "last.ckpt is lost or damaged: whether training had ended" in capsys.readouterr().out
    assert "last.ckpt is lost" in results(run)[2]["notes"][0]


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(run, capsys):
    assert evaluate.main([str(run), "data.name=mura"]) == 2
    assert "data.name: phantom -> mura" in capsys.readouterr().err
    best = run / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    content["MuraDataModule"] = content.pop("PhantomDataModule")
    torch.save(content, best)
    assert evaluate.main([str(run)]) == 2
    assert "best.ckpt was not trained on data.name=phantom" in capsys.readouterr().err
    best.unlink()
    (run / "checkpoints" / "last.ckpt").unlink()
    assert evaluate.main([str(run)]) == 2
    assert "best.ckpt does not exist" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "told", "refused"),
    [
        ("lesions", "NOTE labels or lesion masks changed since the training", "the lesion masks"),
        ("MURA-v1.1", f"NOTE {REPLACED}", "the images"),
    ],
)
def test_a_run_is_said_to_be_judged_on_what_was_replaced(
    run, tmp_path, capsys, where, told, refused
):
    root = yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]
    copy = shutil.copytree(root, tmp_path / "copy")
    path = next((copy / where).rglob("*.png"))
    cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert evaluate.main([str(run), "--no-baselines", f"data.root={copy}"]) == 0
    assert told in capsys.readouterr().out
    assert evaluate.main([str(run), f"data.root={copy}", "--split", "left_out"]) == 2
    assert f"{copy}: {refused} changed since this run" in capsys.readouterr().err
    if where != "lesions":
        assert load_trained(run).notes == (REPLACED,)  # as predict says
        assert report.main([str(run), f"data.root={root}"]) == 2  # drawn would be other images
        assert "was judged on other data than phantom is today" in capsys.readouterr().err


@pytest.mark.slow
def test_mura_without_masks_gives_null_until_masks_are_added(trained, tmp_path, capsys):
    """The phantom's tree is MURA's: read as MURA it has no masks, and stands beside others."""
    words = [*trained.words, f"run.root={tmp_path}", "data.name=mura", "lesions.per_batch=0"]
    assert train.main(["stage1", *words, "trainer.max_epochs=1"]) == 0
    run = tmp_path / "mura" / "stage1" / "seed0"
    capsys.readouterr()
    assert evaluate.main([str(run)]) == 0
    said = capsys.readouterr().out
    assert "NOTE no lesion mask in test: maps are not judged, their figures are null" in said
    assert "github.com/ilias-ant/x-ray-abnormality-detection" in said
    line = next(line for line in said.splitlines() if line.startswith("  overall"))
    assert line.split()[-4:] == ["0.63", "0.65", "0.62", "0.39"]  # two digits, as the others
    summary = results(run)[2]
    assert summary["lesions"] == 0
    assert {summary[name] for name in ("pcam/hit", "pcam/iou", "noise/pixel_ap")} == {None}
    assert summary["intervals"]["pcam/hit"] == [None, None]
    assert "docs/evaluation.md" in summary["null"]
    root = yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]
    assert evaluate.main([str(run), f"lesions.path={root}/lesions"]) == 0
    assert "NOTE labels or lesion masks changed" in capsys.readouterr().out
    assert results(run)[2]["pcam/pixel_ap"] is not None


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["run", "run", "--compare"], "run and run are of one run; name one of them"),
        (["run", "run/checkpoints/last.ckpt", "--audit"], "run/checkpoints/last.ckpt are of one"),
        (["run", "--compare", "--out", ""], "--out . names no file for the comparison; add a name"),
        (["runs/lambda=1"], "runs/lambda=1 is no run directory (no config.yaml)"),
        (["lambda=1"], "name a run directory, such as runs/phantom/stage1/seed0\n"),
        ([], "name a run directory, such as runs/phantom/stage1/seed0\n"),
        (["run", "--out", "x"], "--out is where --compare or --maps writes"),
        (["run", "--audit-images", "9"], "--audit-images needs --audit"),
        (["run", "--audit", "--audit-images", "1"], "two or more"),
        (["run", "--peers", "gradcat"], "gradcat: no peer method"),
        (["--maps", "x", "--split", "left_out"], "--maps judges a folder of maps"),
        (["--maps", "x", "run"], "--maps judges a folder of maps"),
        (["--maps", "x", "--compare"], "--maps judges a folder of maps"),
        (["--maps", "x", "--audit-images", "9"], "--maps judges a folder of maps"),
        (["--maps", "x", "--no-baselines"], "--maps judges a folder of maps"),
        (["--maps", "x", "data.nmae=phantom"], "data.nmae"),
        (["--maps", "x", "data.name=phantom"], "--maps x is no folder"),
        (["--maps", "run", "data.root=run"], "--maps run is data.root, whose images are no maps"),
    ],
)
def test_what_cannot_be_done_is_told_before_judging(tmp_path, monkeypatch, capsys, words, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        (tmp_path / "run" / name).touch()  # nothing of them is read
    with contextlib.suppress(SystemExit):  # argparse's own way out, with status 2
        assert evaluate.main(words) == 2
    assert error in capsys.readouterr().err
