"""Real runs through the command that people use: train, resume, refuse, evaluate."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from callbacks.checkpoints import load_checkpoint
from datamodules.phantom import source as phantom
from experiments import evaluate, train
from experiments.metrics_csv import best_row
from lightning_modules import Stage1Classifier
from tests.runs import kill_at_step, run_folder, same_results, tiny_words

pytestmark = pytest.mark.slow

# Holds a run directory, as does a process that it forks; prints that one's number.
OWNER = """
import os, sys, time
from pathlib import Path
from experiments.runs import lock_run

with lock_run(Path(sys.argv[1])):
    forked = os.fork()
    if forked:
        print(forked, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words for a run of seconds."""
    return tiny_words(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage 1 run."""
    root = tmp_path_factory.mktemp("runs")
    assert train.main(["stage1", f"run.root={root}", *tiny]) == 0
    return run_folder(root)


def test_a_run_leaves_what_the_readme_promises(finished: Path) -> None:
    """Configuration, metrics of every epoch, two checkpoints, panels."""
    table = pd.read_csv(finished / "metrics.csv")
    assert table["epoch"].tolist() == [0, 1, 2]
    for name in [
        "train/loss",
        "train/l1",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
        "val/balanced_accuracy",
        "val/auroc",
        "val/kappa",
        "val/study_kappa",
        "val/cam/hit",
        "val/pcam/pixel_ap",
        "lr",
        "images_per_second",
    ]:
        assert table[name].notna().all(), name
    assert (finished / "config.yaml").is_file()
    assert len(list((finished / "panels").glob("*.png"))) == 3
    best = load_checkpoint(finished / "checkpoints" / "best.ckpt")
    assert best["epoch"] == best_row(finished, "val/auroc")["epoch"]
    scores = table["val/auroc"].round(3)
    assert best["epoch"] == scores[scores == scores.max()].index[-1]
    assert (best["state_dict"]["map_scale"] > 0).all()


def test_the_same_command_says_that_it_is_finished(
    finished: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained again."""
    before = (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    root = finished.parents[2]
    assert train.main(["stage1", f"run.root={root}", *tiny]) == 0
    assert "is finished (3 epochs)" in capsys.readouterr().out
    assert (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


@pytest.mark.parametrize("step", [3, 7, 11])
def test_killed_and_resumed_equals_uninterrupted(
    finished: Path, tiny: list[str], tmp_path: Path, step: int
) -> None:
    """SIGKILL in an epoch or at its end; the last save is up to two steps old."""
    words = ["stage1", f"run.root={tmp_path}", "checkpoint.every_steps=2", *tiny]
    run = run_folder(tmp_path)
    kill_at_step(words, run, step)
    done = load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    assert step <= done < 21
    assert train.main(words) == 0
    same_results(finished, run)


def test_a_save_that_was_cut_short_is_not_used(
    finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    """A partial file beside last.ckpt is removed; a damaged last.ckpt is refused by name."""
    words = ["stage1", f"run.root={tmp_path}", *tiny]
    assert train.main([*words, "trainer.max_epochs=1"]) == 0
    run = run_folder(tmp_path)
    (run / "checkpoints" / "last.ckpt.partial").write_bytes(b"half")
    assert train.main([*words, "trainer.max_epochs=2"]) == 0
    assert not (run / "checkpoints" / "last.ckpt.partial").exists()
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    (run / "checkpoints" / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    assert train.main(words) == 2


def test_another_configuration_is_refused_with_the_difference(
    finished: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is overwritten; keys that do not change the result are free."""
    words = ["stage1", f"run.root={finished.parents[2]}", *tiny]
    assert train.main([*words, "optimizer.learning_rate=0.5"]) == 2
    error = capsys.readouterr().err
    assert "optimizer.learning_rate: 0.001 -> 0.5" in error
    assert "run.name" in error
    assert train.main([*words, "data.num_workers=1", "checkpoint.every_minutes=1"]) == 0


def test_a_checkpoint_of_another_stage_is_refused(
    finished: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied by hand into the wrong run directory."""
    words = ["stage1", f"run.root={tmp_path}", *tiny]
    folder = run_folder(tmp_path) / "checkpoints"
    folder.mkdir(parents=True)
    content = load_checkpoint(finished / "checkpoints" / "last.ckpt")
    torch.save({**content, "stage": "stage2"}, folder / "last.ckpt")
    shutil.copy(finished / "config.yaml", folder.parent)
    assert train.main([*words, "trainer.max_epochs=4"]) == 2
    assert "is a checkpoint of stage2, not of stage1" in capsys.readouterr().err


def test_workers_do_not_change_the_result(finished: Path, tiny: list[str], tmp_path: Path) -> None:
    """Two loader processes give the same run as none."""
    assert train.main(["stage1", f"run.root={tmp_path}", *tiny, "data.num_workers=2"]) == 0
    same_results(finished, run_folder(tmp_path))


def test_dropout_goes_on_with_its_random_numbers(tiny: list[str], tmp_path: Path) -> None:
    """Killed and resumed, a run with dropout equals an uninterrupted one."""
    words = ["stage1", *tiny, "model.dropout=0.3"]
    assert train.main([*words, f"run.root={tmp_path / 'whole'}"]) == 0
    cut = [*words, f"run.root={tmp_path / 'cut'}", "checkpoint.every_steps=2"]
    kill_at_step(cut, run_folder(tmp_path / "cut"), 9)
    assert train.main(cut) == 0
    same_results(run_folder(tmp_path / "whole"), run_folder(tmp_path / "cut"))


def test_other_data_under_the_same_run_is_refused(
    finished: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resume and evaluation both compare the index: train images must not be judged."""
    words = ["stage1", f"run.root={tmp_path}", *tiny]
    assert train.main([*words, "trainer.max_epochs=1"]) == 0
    run = run_folder(tmp_path)
    tree = Path(next(word for word in tiny if word.startswith("data.root=")).split("=", 1)[1])
    other = tmp_path / "other"
    shutil.copytree(tree, other)
    csv = other / "MURA-v1.1" / "train_image_paths.csv"
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join(lines[:-4]) + "\n")  # a study less
    note = other / "phantom.json"
    described = json.loads(note.read_text())
    described["csv_hash"] = phantom._hash_csvs(other)
    note.write_text(json.dumps(described))
    assert train.main([*words, f"data.root={other}"]) == 2
    assert "is not the data that this run was trained on" in capsys.readouterr().err
    assert evaluate.main([str(run), f"data.root={other}"]) == 2
    assert "is not the data that this run was trained on" in capsys.readouterr().err


def test_evaluate_judges_as_trained(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another seed of the splits would put train images into test."""
    for word in ("data.seed=1", "data.split=image", "data.limit=8", "data.crop=content"):
        assert evaluate.main([str(finished), "--split", "val", word]) == 2
        assert "was trained otherwise" in capsys.readouterr().err
    assert evaluate.main([str(finished), "--split", "val", "data.batch_size=3"]) == 0


def test_a_checkpoint_opens_the_lightning_way(finished: Path) -> None:
    """Plain values only, no trainer needed; maps keep their contract."""
    path = finished / "checkpoints" / "best.ckpt"
    module = Stage1Classifier.load_from_checkpoint(path, weights_only=True).eval()
    with torch.no_grad():
        maps = module.maps(torch.rand(2, 1, 64, 64))
    for values in maps.values():
        assert values.shape == (2, 1, 64, 64)
        assert values.dtype == torch.float32
        assert 0 <= float(values.min()) <= float(values.max()) <= 1


def test_a_failed_start_can_be_mended_in_place(tiny: list[str], tmp_path: Path) -> None:
    """Nothing was trained, so nothing is protected."""
    words = ["stage1", f"run.root={tmp_path}", *tiny]
    assert train.main([*words, "data.batch_size=500"]) == 2
    assert train.main([*words, "trainer.max_epochs=1"]) == 0


def test_wandb_offline_keeps_one_run_over_restarts(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same id in every offline folder, nothing sent, nothing asked."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    words = ["stage1", f"run.root={tmp_path}", *tiny, "logger.wandb=offline"]
    for epochs in (1, 2):
        assert train.main([*words, f"trainer.max_epochs={epochs}"]) == 0
    run = run_folder(tmp_path)
    identity = (run / "wandb_id").read_text()
    folders = list((run / "wandb").glob("offline-run-*"))
    assert folders
    # W&B appends -1 to the folder of a start within the same second.
    assert all(f"-{identity}" in folder.name for folder in folders)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.precision=foo", "trainer"),
        ("logger.wandb=online", "logger.wandb=online needs a key"),
        ("data.name=murra", "did you mean mura"),
    ],
)
def test_what_cannot_be_is_said_without_a_traceback(
    tiny: list[str],
    tmp_path: Path,
    word: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit status 2 and the key."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train.main(["stage1", f"run.root={tmp_path}", *tiny, word]) == 2
    assert message in capsys.readouterr().err


def test_a_batch_larger_than_the_split_is_said(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the key to change."""
    assert train.main(["stage1", f"run.root={tmp_path}", *tiny, "data.batch_size=500"]) == 2
    assert "data.batch_size" in capsys.readouterr().err


def test_a_directory_that_another_process_trains_in_is_refused(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A killed owner does not keep the lock, not even where a process that it forked lives on."""
    from experiments.runs import lock_run

    run = run_folder(tmp_path)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    forked = int(owner.stdout.readline())
    try:
        assert train.main(["stage1", f"run.root={tmp_path}", *tiny]) == 2
        assert "another process trains in" in capsys.readouterr().err
        owner.kill()
        owner.wait()
        with lock_run(run):
            os.kill(forked, 0)  # still there
    finally:
        owner.kill()
        os.kill(forked, signal.SIGKILL)
        owner.wait()
        owner.stdout.close()


def test_evaluate_judges_each_test_image_once(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are those of the written rows."""
    assert evaluate.main([str(finished)]) == 0
    assert "AUROC" in capsys.readouterr().out
    rows = pd.read_csv(finished / "evaluation" / "test" / "images.csv")
    summary = json.loads((finished / "evaluation" / "test" / "summary.json").read_text())
    assert rows["path"].is_unique
    assert len(rows) == summary["images"]
    accuracy = ((rows["probability"] > 0.5) == rows["label"]).mean()
    assert summary["accuracy"] == pytest.approx(accuracy)


def test_evaluate_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No run directory; a run that has not finished its first epoch."""
    assert evaluate.main([str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("stage: stage1\n")
    assert evaluate.main([str(tmp_path)]) == 2
    assert "best.ckpt does not exist" in capsys.readouterr().err
