"""The command that judges runs, on real ones: what it writes, prints and refuses."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from experiments import evaluate, report, train
from experiments.evaluation.figures import read_images
from experiments.evaluation.map_figures import iou_curves, load_maps
from experiments.evaluation.run import REPLACED
from experiments.prediction.network import load_trained
from lightning_modules import STAGES
from tests.runs import run_folder, tiny_words

NAMES = {"stage1": "seed0", "stage2": "seed0", "stage3": "lambda1.0-seed0"}
OWN = {"stage1": ["cam", "pcam"], "stage2": ["cam", "pcam"], "stage3": ["cam", "pcam", "fcn"]}
TRIVIAL = ["centre", "mean_mask", "edges", "noise"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    words = tiny_words(tmp_path_factory.mktemp("tiny"))
    return [*words, "model.width=0.25", "trainer.max_epochs=1", "lesions.per_batch=2"]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A run of each stage, and a second seed of the first; judged and compared on test."""
    root = tmp_path_factory.mktemp("runs")
    for stage in STAGES:
        assert train.main([stage, f"run.root={root}", *tiny]) == 0
    assert train.main(["stage1", f"run.root={root}", "seed=1", *tiny]) == 0
    found = {stage: run_folder(root, stage, name) for stage, name in NAMES.items()}
    return {**found, "second": run_folder(root, "stage1", "seed1")}


@pytest.fixture(scope="module")
def judged(runs):
    assert evaluate.main([*map(str, runs.values()), "--compare"]) == 0
    return runs


def results(run, split="test"):
    folder = run / "evaluation" / split
    table = read_images(folder / "images.csv")
    return (
        table,
        load_maps(folder / "maps.npz", table),
        json.loads((folder / "summary.json").read_text()),
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_all_figures_follow_from_the_written_rows(judged, stage):
    table, maps, summary = results(judged[stage])
    assert table["path"].is_unique
    assert set(maps) == {*OWN[stage], *TRIVIAL}
    assert summary["images"] == len(table)
    assert summary["lesions"] == table["lesion_area"].notna().sum() == table["label"].sum()
    for name in maps:
        for figure in ("hit", "iou", "iou_otsu", "iou_bound", "dice", "energy"):
            assert summary[f"{name}/{figure}"] == pytest.approx(table[f"{name}_{figure}"].mean())
        normal = table[table["label"] == 0]
        shown = (normal[f"{name}_area"] > 0).mean()
        assert summary[f"{name}/shown_normal"] == pytest.approx(shown)
        assert table[[f"{name}_peak_x", f"{name}_peak_y", f"{name}_area"]].notna().all().all()
        level = round(summary["fitted"]["maps"][name]["threshold"] * 255)
        curves = iou_curves(maps[name])[:, level]
        assert table[f"{name}_iou"].to_numpy() == pytest.approx(curves, nan_ok=True)
    called = table["probability"] > summary["fitted"]["threshold"]
    right = (called == (table["label"] == 1)).mean()
    assert summary["tuned/accuracy"] == pytest.approx(right)
    figures = {name for name in summary["intervals"] if summary[name] is not None}
    part = table["body_part"][0]
    wanted = {"auroc", "study_auroc", "ece_scaled", f"study_kappa/{part}", "pcam/hit/small"}
    assert wanted <= set(summary["intervals"])
    for name in figures:
        low, high = summary["intervals"][name]
        if name.split("/")[0] not in ("ece", "ece_scaled"):  # resamples lie too high, see weighted
            assert low is None or low <= summary[name] <= high, name
    curve = pd.read_csv(judged[stage] / "evaluation" / "test" / "reliability.csv")
    assert curve["images"].sum() == len(table)


@pytest.mark.slow
def test_what_is_tuned_comes_from_val(judged, capsys):
    assert evaluate.main([str(judged["stage3"]), "--split", "val"]) == 0
    said = capsys.readouterr().out
    assert "NOTE val is judged by what val itself decided" in said
    _, maps, summary = results(judged["stage3"], "val")
    assert summary["fitted"] == results(judged["stage3"])[2]["fitted"]
    for name, rows in maps.items():
        best = 1 + int(np.nanmean(iou_curves(rows), axis=0)[1:].argmax())
        assert summary["fitted"]["maps"][name]["threshold"] == pytest.approx(best / 255)
        assert summary[f"{name}/iou"] == pytest.approx(summary[f"{name}/iou_bound"])
    scale = summary["fitted"]["maps"]["edges"]["scale"]
    assert scale > 0
    assert "scale" not in summary["fitted"]["maps"]["pcam"]


@pytest.mark.slow
def test_baselines_are_the_same_for_all_runs_and_can_be_left_out(judged):
    first = results(judged["stage1"])[0]
    other = results(judged["stage3"])[0]
    columns = [name for name in first if name.rsplit("_", 1)[0] in TRIVIAL]
    assert len(columns) > 20
    pd.testing.assert_frame_equal(first[columns], other[columns])
    run = judged["second"]
    before = results(run)[0]
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    table, maps, _ = results(run)
    assert list(maps) == ["cam", "pcam"]
    pd.testing.assert_frame_equal(table, before[table.columns])


@pytest.mark.slow
def test_a_person_reads_figures_with_intervals(judged, capsys):
    assert evaluate.main([str(judged["stage3"])]) == 0
    said = capsys.readouterr().out
    for words in (
        r"images  0\.\d{3} \(0\.\d{3}-\d\.\d{3}\) 0\.\d\d \(",
        r"fcn       0\.\d\d \(0\.\d\d-0\.\d\d\) 0\.\d{3} \(0\.\d{3}-\d\.\d{3}\) 0\.\d\d \(",
        r"masked accuracy 0\.\d\d \(.*under the other class's map",
        r"at val's operating points, above 0\.\d\d of images",
    ):
        assert pd.Series(said).str.contains(words).all(), words
    short = [line for line in said.splitlines() if str(judged["stage3"]) not in line]
    assert max(map(len, short)) <= 100


@pytest.mark.slow
def test_the_comparison_lies_beside_the_stages(judged, tmp_path, capsys):
    beside = judged["stage1"].parents[1]
    table = pd.read_csv(beside / "comparison-test.csv")
    claim = table[table.family.str.startswith("The paper")]
    assert len(claim) == 8
    assert claim["second"].iloc[0] == "CAM of stage 1 (mean of 2 seeds)"
    summaries = [results(judged[name])[2] for name in ("stage1", "second")]
    expected = np.mean([summary["pcam/hit"] for summary in summaries])
    assert claim.first_value.iloc[0] == pytest.approx(expected)
    text = (beside / "comparison-test.md").read_text()
    assert "## Each run" in text
    out = tmp_path / "mine.md"
    two = [str(judged["stage1"]), str(judged["stage2"])]
    assert evaluate.main([*two, "--no-baselines", "--compare", "--out", str(out)]) == 0
    assert out.is_file()
    assert "## Runs" in capsys.readouterr().out
    assert evaluate.main([*two, "--out", str(out)]) == 2
    assert "add one of them" in capsys.readouterr().err


@pytest.mark.slow
def test_a_half_finished_run_is_judged_and_said(runs, tmp_path, capsys):
    run = run_folder(tmp_path)
    shutil.copytree(runs["stage1"], run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 5
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    assert "NOTE half finished: 1 of 5 epochs are trained" in capsys.readouterr().out
    (run / "checkpoints" / "last.ckpt").unlink()
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    assert "last.ckpt is lost or damaged: whether training had ended" in capsys.readouterr().out
    assert "last.ckpt is lost" in results(run)[2]["notes"][0]


@pytest.mark.slow
def test_a_run_of_another_data_set_or_without_a_checkpoint_is_refused(runs, tmp_path, capsys):
    assert evaluate.main([str(runs["stage1"]), "data.name=mura"]) == 2
    assert "data.name: phantom -> mura" in capsys.readouterr().err
    run = run_folder(tmp_path)
    shutil.copytree(runs["stage1"], run)
    best = run / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    settings = {**content["hyper_parameters"], "weight_decay": 0.123}
    torch.save({**content, "hyper_parameters": settings}, best)
    assert evaluate.main([str(run)]) == 2
    assert "best.ckpt is of another run: it was trained with weight_d" in capsys.readouterr().err
    content["MuraDataModule"] = content.pop("PhantomDataModule")
    torch.save(content, best)
    assert evaluate.main([str(run)]) == 2
    assert "best.ckpt was not trained on data.name=phantom" in capsys.readouterr().err
    for checkpoint in (run / "checkpoints").glob("*.ckpt"):
        checkpoint.unlink()
    assert evaluate.main([str(run)]) == 2
    said = capsys.readouterr().err
    assert "best.ckpt does not exist; train the run to its first epoch's end first" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "told", "refused"),
    [
        (
            "lesions",
            "NOTE labels or lesion masks are not those that this run was trained with",
            "the lesion masks changed since this run",
        ),
        ("MURA-v1.1", f"NOTE {REPLACED}", "the images changed since this run"),
    ],
)
def test_a_run_is_said_to_be_judged_on_what_was_replaced(
    runs, tmp_path, capsys, where, told, refused
):
    root = yaml.safe_load((runs["stage1"] / "config.yaml").read_text())["data"]["root"]
    copy = shutil.copytree(root, tmp_path / "copy")
    path = next((copy / where).rglob("*.png"))
    cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    run = shutil.copytree(runs["stage1"], tmp_path / "phantom" / "stage1" / "seed0")
    assert evaluate.main([str(run), "--no-baselines", f"data.root={copy}"]) == 0
    assert told in capsys.readouterr().out
    words = [f"data.root={copy}", "--split", "left_out"]
    assert evaluate.main([str(run), *words]) == 2
    assert f"{copy}: {refused}" in capsys.readouterr().err
    if where != "lesions":
        assert load_trained(run).notes == (REPLACED,)  # as predict says
        assert report.main([str(run), f"data.root={root}"]) == 2  # drawn would be other images
        assert "(see its images, which were replaced); judge anew" in capsys.readouterr().err


@pytest.mark.slow
def test_masks_may_be_added_to_judge_by(tiny, tmp_path, capsys):
    """Stage 1 needs no masks; they are drawn later, and the run is judged by them."""
    words = [*tiny, f"run.root={tmp_path}", "data.name=mura", "lesions.per_batch=0"]
    assert train.main(["stage1", *words]) == 0
    run = tmp_path / "mura" / "stage1" / "seed0"
    root = yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]
    capsys.readouterr()
    assert evaluate.main([str(run), f"lesions.path={root}/lesions"]) == 0
    assert "NOTE labels or lesion masks are not those" in capsys.readouterr().out
    assert results(run)[2]["pcam/pixel_ap"] is not None


@pytest.mark.slow
def test_mura_without_masks_gives_null_and_stands_beside_published_figures(tiny, tmp_path, capsys):
    """The phantom's tree is MURA's: read as MURA it has no masks."""
    words = [*tiny, f"run.root={tmp_path}", "data.name=mura", "lesions.per_batch=0"]
    assert train.main(["stage1", *words]) == 0
    run = tmp_path / "mura" / "stage1" / "seed0"
    capsys.readouterr()
    assert evaluate.main([str(run)]) == 0
    said = capsys.readouterr().out
    assert "NOTE no lesion mask in test: maps are not judged, their figures are null" in said
    assert "github.com/ilias-ant/x-ray-abnormality-detection" in said
    assert "0.645" not in said  # two digits, as the others
    line = next(line for line in said.splitlines() if line.startswith("  overall"))
    assert line.split()[-4:] == ["0.63", "0.65", "0.62", "0.39"]
    summary = results(run)[2]
    assert summary["lesions"] == 0
    assert {"pcam/hit", "pcam/iou", "noise/pixel_ap"} <= {
        k for k, v in summary.items() if v is None
    }
    assert summary["intervals"]["pcam/hit"] == [None, None]
    assert "docs/evaluation.md" in summary["null"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["run", "run", "--compare"], "run and run are of one run; name one of them"),
        (["run", "run/checkpoints/last.ckpt", "--audit"], "run/checkpoints/last.ckpt are of one"),
        (["run", "--compare", "--out", ""], "--out . names no file for the comparison; add a name"),
        (["runs/lambda=1"], "runs/lambda=1 is no run directory (no config.yaml)"),
        (["lambda=1"], "lambda=1 does not exist: taken for key=value"),
        ([], "name a run directory, such as runs/phantom/stage1/seed0\n"),
    ],
)
def test_what_cannot_be_done_is_told_before_judging(tmp_path, monkeypatch, capsys, words, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        (tmp_path / "run" / name).touch()  # nothing of them is read
    assert evaluate.main(words) == 2
    assert error in capsys.readouterr().err
