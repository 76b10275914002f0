"""Real runs through the command that people use: train, resume, refuse, evaluate."""

import json
import math
import shutil
from pathlib import Path

import cv2
import pandas as pd
import pytest
import torch

from callbacks.confidence import confidence
from callbacks.panels import CELL_GAP
from datamodules.phantom import source as phantom
from experiments import evaluate, train
from experiments.runs import LOCK, best_row, read_checkpoint
from experiments.training import loop
from lightning_modules.stages import STAGES
from tests.runs import NAMES, hold, kill_at_step, run_folder, same_results

pytestmark = pytest.mark.slow

FIRST = ["lr", "images_per_second", "train/loss", "train/l1", "train/accuracy", "val/loss"]
FIRST += ["val/accuracy", "val/balanced_accuracy", "val/auroc", "val/kappa", "val/study_kappa"]
FIRST += ["val/cam/hit", "val/cam/pixel_ap", "val/pcam/hit", "val/pcam/pixel_ap"]
SECOND = [*FIRST, "train/l2", "train/alpha", "val/masked_accuracy"]
THIRD = [*SECOND, "train/l3", "val/fcn/hit", "val/fcn/pixel_ap"]
LOGGED = dict(zip(STAGES, (FIRST, SECOND, THIRD), strict=True))


def last_of(run):
    return run / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_leaves_what_the_readme_promises(trained, stage):
    run = getattr(trained, stage)
    table = pd.read_csv(run / "metrics.csv")
    assert table["epoch"].tolist() == [0, 1, 2]
    assert table[LOGGED[stage]].notna().all().all()
    assert (run / "config.yaml").is_file()
    assert len(list((run / "panels").glob("*.png"))) == 3
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    scores = table["val/auroc"].round(3)
    assert best["epoch"] == scores[scores == scores.max()].index[-1]
    assert best["epoch"] == best_row(run, "val/auroc")["epoch"]
    assert best_row(run, "epoch")["epoch"] == 2  # checkpoint.monitor=epoch: the last
    assert (best["state_dict"]["map_scale"] > 0).all()
    # Plain values, no trainer needed; maps keep their contract.
    path = run / "checkpoints" / "best.ckpt"
    module = STAGES[stage].load_from_checkpoint(path, weights_only=True).eval()
    assert module.model.width == 0.25
    with torch.no_grad():
        maps = module.maps(torch.rand(2, 1, 64, 64))
    for values in maps.values():
        assert (values.shape, values.dtype) == ((2, 1, 64, 64), torch.float32)
        assert 0 <= float(values.min()) <= float(values.max()) <= 1


def test_the_terms_of_the_loss_are_logged_unweighted(trained):
    run = trained.stage3
    table = pd.read_csv(run / "metrics.csv")
    expected = [math.exp(-0.5), *map(confidence, table["val/accuracy"][:2])]
    assert table["train/alpha"].tolist() == pytest.approx(expected)
    alpha, l1, l2, l3 = (table[f"train/{name}"] for name in ("alpha", "l1", "l2", "l3"))
    total = (1 - alpha) * l1 + alpha * l2 + l3
    assert table["train/loss"].tolist() == pytest.approx(total.tolist())
    kept = read_checkpoint(last_of(run))["callbacks"]["Confidence"]
    assert kept["accuracy"] == pytest.approx(table["val/accuracy"][2])
    assert kept["alpha"] == confidence(kept["accuracy"])


def test_killed_and_resumed_equals_uninterrupted(trained, tmp_path):
    """SIGKILL in the second epoch, where alpha has moved; the last save is up to two steps old.

    Dropout goes on with its random numbers, and loader processes change nothing.
    """
    run, whole = run_folder(tmp_path, "stage3", NAMES["stage3"]), trained.stage3
    words = ["stage3", f"run.root={tmp_path}", "checkpoint.every_steps=2", *trained.words]
    kill_at_step(words, run, 10)
    killed = read_checkpoint(last_of(run))
    assert 10 <= killed["global_step"] < read_checkpoint(last_of(whole))["global_step"]
    assert killed["callbacks"]["Confidence"]["alpha"] != math.exp(-0.5)
    assert train.main([*words, "data.num_workers=2"]) == 0
    same_results(whole, run)
    kept = [read_checkpoint(last_of(one))["callbacks"].get("Confidence") for one in (run, whole)]
    assert kept[0] == kept[1]


def test_a_finished_run_is_kept_protected_and_may_be_extended(
    trained, tmp_path, capsys, monkeypatch
):
    """Keys that do not change the result are free; on another machine it keeps its precision."""
    run = trained.copy("stage1", tmp_path)
    before = last_of(run).stat().st_mtime_ns
    assert trained.again(run, "optimizer.learning_rate=0.5") == 2
    assert "optimizer.learning_rate: 0.001 -> 0.5" in capsys.readouterr().err
    assert trained.again(run, "data.num_workers=1", "checkpoint.every_minutes=1") == 0
    assert "is finished (3 epochs)" in capsys.readouterr().out
    assert last_of(run).stat().st_mtime_ns == before
    last_of(run).with_name("last.ckpt.partial").write_bytes(b"cut short by a crash")
    own = read_checkpoint(last_of(run))["precision"]
    monkeypatch.setattr(
        loop.build, "choose_precision", lambda _: {"32-true": "bf16-mixed"}.get(own, "32-true")
    )
    assert trained.again(run, "trainer.max_epochs=4") == 0
    assert "EXTENDED   from 3 epochs" in capsys.readouterr().out
    assert not [*last_of(run).parent.glob("*.partial")]
    extended = read_checkpoint(last_of(run))
    assert (extended["epoch"], extended["precision"]) == (3, own)


def test_a_checkpoint_of_another_run_is_refused(trained, tmp_path, capsys):
    """Each lambda has a run directory of its own; this one was copied into it by hand."""
    run = run_folder(tmp_path, "stage3", "lambda0.3-seed0")
    shutil.copytree(trained.stage3 / "checkpoints", run / "checkpoints")
    text = (trained.stage3 / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("lambda_lesion: 1.0", "lambda_lesion: 0.3"))
    words, before = ["loss.lambda_lesion=0.3"], last_of(run).read_bytes()
    for epochs in (3, 4):  # finished, or to go on
        assert trained.again(run, *words, f"trainer.max_epochs={epochs}") == 2
        assert "is of another run (loss.lambda_lesion: 1.0 -> 0.3)" in capsys.readouterr().err
    assert last_of(run).read_bytes() == before
    torch.save({**read_checkpoint(last_of(run)), "stage": "stage2"}, last_of(run))
    assert trained.again(run, *words, "trainer.max_epochs=4") == 2
    assert "is a checkpoint of stage2, not of stage3" in capsys.readouterr().err


def test_other_data_under_the_same_run_is_refused(trained, tmp_path, capsys):
    """Resume and evaluation both compare the index: train images must not be judged."""
    run = trained.copy("stage1", tmp_path)
    root = next(word for word in trained.words if word.startswith("data.root="))
    other = Path(shutil.copytree(root.partition("=")[2], tmp_path / "other"))
    csv = other / "MURA-v1.1" / "train_image_paths.csv"
    csv.write_text("\n".join(csv.read_text().splitlines()[:-4]) + "\n")  # a study less
    note = json.loads((other / "phantom.json").read_text())
    note["csv_hash"] = phantom._hash_csvs(other)
    (other / "phantom.json").write_text(json.dumps(note))
    assert trained.again(run, f"data.root={other}") == 2
    assert evaluate.main([str(run), f"data.root={other}"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("is not the data that this run was trained on") == 2


def test_evaluate_judges_as_trained(trained, capsys):
    """Another seed of the splits would put train images into test."""
    trainer = "trainer.accelerator=gpu", "trainer.deterministic=true"
    for word in ("data.seed=1", "data.split=image", "data.crop=content", *trainer):
        assert evaluate.main([str(trained.stage1), "--split", "val", word]) == 2
        assert "was trained otherwise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stage1 trainer.precision=foo", "trainer"),
        ("stage1 trainer.accelerator=mps", "trainer.accelerator=mps: torch sees no CUDA here"),
        ("stage1 run.root=/sys/runs", "cannot write the run directory /sys/runs"),
        ("stage3 lesions.count=0 lesions.per_batch=0", "stage 3 learns from lesion masks of train"),
        ("stage1 data.batch_size=500", "data.batch_size"),
    ],
)
def test_what_cannot_be_is_a_line_and_can_be_mended_in_place(
    trained, tmp_path, capsys, words, message
):
    stage, *more = words.split()
    usual = [stage, f"run.root={tmp_path}", *trained.words]
    assert train.main([*usual, *more]) == 2
    assert message in capsys.readouterr().err
    if "batch_size" in message:  # nothing was trained, so nothing is protected
        assert train.main([*usual, "trainer.max_epochs=1"]) == 0


def test_a_directory_that_another_process_trains_in_is_refused(trained, tmp_path, capsys):
    """A killed owner does not keep the lock, not even where a process that it forked lives on."""
    run = trained.copy("stage1", tmp_path)
    with hold(run / LOCK) as owner:
        assert trained.again(run) == 2
        assert "another process trains in" in capsys.readouterr().err
        owner.kill()
        owner.wait()
        assert trained.again(run) == 0


# What only some configurations do -----------------------------------------------------------------


def test_masks_alone_train_without_confidence(trained, tmp_path, capsys):
    words = ["loss.classification=false", "lesions.count=2"]
    words += [*trained.words, "trainer.max_epochs=1"]
    assert train.main(["stage3", f"run.root={tmp_path}", *words]) == 0
    run = run_folder(tmp_path, "stage3", NAMES["stage3"])
    assert "learned    2 of train's masks" in capsys.readouterr().out
    table = pd.read_csv(run / "metrics.csv")
    assert table["train/loss"][0] == table["train/l3"][0] > 0
    # Nobody teaches the FC layer: what it says, and the maps from it, are no figures.
    untaught = {f"train/{name}" for name in ("l1", "l2", "alpha", "accuracy")}
    assert (untaught | {"val/auroc", "val/pcam/hit"}).isdisjoint(table.columns)
    assert evaluate.main([str(run), "--peers", "gradcam"]) == 0
    assert "NOTE trained on the lesion masks alone: there is no class" in capsys.readouterr().out
    summary = json.loads((run / "evaluation" / "test" / "summary.json").read_text())
    assert {"accuracy", "masked_accuracy", "pcam/hit", "gradcam/hit"}.isdisjoint(summary)
    assert summary["fcn/pixel_ap"] > 0
    states = read_checkpoint(run / "checkpoints" / "best.ckpt")["callbacks"]
    assert "Confidence" not in states
    assert states["RunCheckpoints"]["best"] == pytest.approx(table["val/fcn/pixel_ap"][0])
    panel = cv2.imread(str(run / "panels" / "epoch_001.png"))
    assert panel.shape[1] == 3 * (192 + CELL_GAP)  # radiograph, FCN, lesion mask


def test_cross_fitting_judges_what_was_left_out(trained, tmp_path, capsys):
    words = ["lesions.folds=3", "lesions.fold=1", "lesions.apart=true", *trained.words]
    words += ["trainer.max_epochs=1", "optimizer.average_epochs=0"]
    assert train.main(["stage3", f"run.root={tmp_path}", *words]) == 0
    run = run_folder(tmp_path, "stage3", f"{NAMES['stage3']}-fold1")
    assert "current_model_state" not in read_checkpoint(last_of(run))
    assert evaluate.main([str(run), "--split", "left_out"]) == 0
    summary = json.loads((run / "evaluation" / "left_out" / "summary.json").read_text())
    assert summary["lesions"] > 0
    assert evaluate.main([str(trained.stage1), "--split", "left_out"]) == 2
    assert "left no image out" in capsys.readouterr().err


def test_stage_2_starts_from_stage_1_and_only_once(trained, tmp_path):
    start = trained.copy("stage1", tmp_path / "start")
    words = ["stage2", f"run.root={tmp_path}", f"model.init_from={start}", *trained.words]
    words += ["optimizer.learning_rate=1e-9"]  # stays where it starts
    assert train.main([*words, "trainer.max_epochs=1"]) == 0
    weights = read_checkpoint(start / "checkpoints" / "best.ckpt")["state_dict"]
    run = run_folder(tmp_path, "stage2")
    started = read_checkpoint(last_of(run))["state_dict"]
    for name in ("encoder.stem.0.weight", "fc.weight"):
        torch.testing.assert_close(started[name], weights[name], atol=1e-6, rtol=0)
    shutil.rmtree(start)
    assert train.main([*words, "trainer.max_epochs=2"]) == 0  # a resumed run needs it no more
