"""Real runs of stages 2 and 3 through the command that people use, and where they start from."""

import json
import math
import shutil
from pathlib import Path

import cv2
import pandas as pd
import pytest
import torch

from callbacks.checkpoints import load_checkpoint
from callbacks.confidence import confidence
from callbacks.panels import CELL_GAP
from experiments import evaluate, train
from experiments.build import check_same_fold, check_same_judges, start_from
from experiments.config import load_config, save_config
from experiments.runs import RunError
from lightning_modules.stages import STAGES
from tests.runs import kill_at_step, run_folder, same_results, tiny_words

NAMES = {"stage1": "seed0", "stage2": "seed0", "stage3": "lambda1.0-seed0"}
WIDTH = 0.25


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words for a run of seconds, of a narrow network."""
    return [*tiny_words(tmp_path_factory.mktemp("tiny")), f"model.width={WIDTH}"]


@pytest.fixture(scope="module")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each stage."""
    root = tmp_path_factory.mktemp("runs")
    for stage in STAGES:
        assert train.main([stage, f"run.root={root}", *words_of(stage), *tiny]) == 0
    return {stage: run_folder(root, stage, name) for stage, name in NAMES.items()}


def words_of(stage):
    return ["lesions.per_batch=2"] if stage == "stage3" else []


def confidence_of(checkpoint):
    return load_checkpoint(checkpoint)["callbacks"]["Confidence"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_a_run_logs_its_terms_unweighted(finished, stage):
    table = pd.read_csv(finished[stage] / "metrics.csv")
    names = ["train/l1", "train/l2", "train/alpha", "val/masked_accuracy"]
    if stage == "stage3":
        names += ["train/l3", "val/fcn/hit", "val/fcn/pixel_ap"]
    assert table[names].notna().all().all()
    expected = [math.exp(-0.5), *map(confidence, table["val/accuracy"][:2])]
    assert table["train/alpha"].tolist() == pytest.approx(expected)
    alpha, l1, l2 = (table[f"train/{name}"] for name in ("alpha", "l1", "l2"))
    total = (1 - alpha) * l1 + alpha * l2 + (table["train/l3"] if stage == "stage3" else 0)
    assert table["train/loss"].tolist() == pytest.approx(total.tolist())
    kept = confidence_of(finished[stage] / "checkpoints" / "last.ckpt")
    assert kept["accuracy"] == pytest.approx(table["val/accuracy"][2])
    assert kept["alpha"] == confidence(kept["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_killed_and_resumed_equals_uninterrupted(finished, tiny, tmp_path, stage):
    """SIGKILL in the second epoch, where alpha has moved."""
    words = [stage, f"run.root={tmp_path}", "checkpoint.every_steps=1", *words_of(stage), *tiny]
    run = run_folder(tmp_path, stage, NAMES[stage])
    whole = load_checkpoint(finished[stage] / "checkpoints" / "last.ckpt")
    first_epoch = whole["global_step"] // 3
    kill_at_step(words, run, first_epoch + 1)
    killed = load_checkpoint(run / "checkpoints" / "last.ckpt")
    assert first_epoch < killed["global_step"] < whole["global_step"]
    assert killed["callbacks"]["Confidence"]["alpha"] != math.exp(-0.5)
    assert train.main(words) == 0
    same_results(finished[stage], run)
    assert confidence_of(run / "checkpoints" / "last.ckpt") == whole["callbacks"]["Confidence"]


@pytest.mark.slow
def test_without_any_lesion_term_stage_3_trains_as_stage_2(finished, tiny, tmp_path):
    words = ["loss.lambda_lesion=0", "lesions.per_batch=0", *tiny]
    assert train.main(["stage3", f"run.root={tmp_path}", *words]) == 0
    runs = finished["stage2"], run_folder(tmp_path, "stage3", "lambda0.0-seed0")
    two, three = (load_checkpoint(run / "checkpoints" / "last.ckpt") for run in runs)
    for name, weights in two["state_dict"].items():
        if name != "map_scale":  # has an entry for the FCN
            assert torch.equal(weights, three["state_dict"][name]), name
    tables = [pd.read_csv(run / "metrics.csv") for run in runs]
    same = [name for name in tables[0] if not name.startswith("images_per") and name != "val/loss"]
    pd.testing.assert_frame_equal(tables[0][same], tables[1][same], check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [3, 4], ids=["finished", "to go on"])
def test_a_checkpoint_of_another_lambda_is_refused(finished, tiny, tmp_path, capsys, epochs):
    """Each lambda has a run directory of its own; this one was copied into it by hand."""
    words = ["stage3", f"run.root={tmp_path}", *words_of("stage3"), *tiny]
    words += [f"trainer.max_epochs={epochs}", "loss.lambda_lesion=0.3"]
    run = run_folder(tmp_path, "stage3", "lambda0.3-seed0")
    shutil.copytree(finished["stage3"] / "checkpoints", run / "checkpoints")
    text = (finished["stage3"] / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("lambda_lesion: 1.0", "lambda_lesion: 0.3"))
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert train.main(words) == 2
    told = capsys.readouterr().err
    assert "last.ckpt is of another run: it was trained with lambda_lesion=1.0, here 0.3" in told
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_masks_alone_train_without_confidence(tiny, tmp_path, capsys):
    words = ["loss.classification=false", *words_of("stage3"), *tiny, "trainer.max_epochs=1"]
    assert train.main(["stage3", f"run.root={tmp_path}", *words]) == 0
    run = run_folder(tmp_path, "stage3", NAMES["stage3"])
    table = pd.read_csv(run / "metrics.csv")
    assert table["train/loss"][0] == table["train/l3"][0] > 0
    # Nobody teaches the FC layer: what it says, and the maps from it, are no figures.
    untaught = {
        "train/l1",
        "train/l2",
        "train/alpha",
        "train/accuracy",
        "val/auroc",
        "val/pcam/hit",
    }
    assert untaught.isdisjoint(table.columns)
    assert evaluate.main([str(run), "--peers", "gradcam"]) == 0
    assert "NOTE trained on the lesion masks alone: there is no class" in capsys.readouterr().out
    summary = json.loads((run / "evaluation" / "test" / "summary.json").read_text())
    assert {"accuracy", "masked_accuracy", "pcam/hit", "gradcam/hit"}.isdisjoint(summary)
    assert summary["fcn/pixel_ap"] > 0
    best = load_checkpoint(run / "checkpoints" / "best.ckpt")
    assert "Confidence" not in best["callbacks"]
    panel = cv2.imread(str(run / "panels" / "epoch_001.png"))
    assert panel.shape[1] == 3 * (192 + CELL_GAP)  # radiograph, FCN, lesion mask
    score = next(state for name, state in best["callbacks"].items() if "Checkpoint" in name)
    assert score["best"] == pytest.approx(table["val/fcn/pixel_ap"][0])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lesions.count=0", "learns from the lesion masks of train alone"),
        ("lesions.path={empty}", "learns from the lesion masks of train alone"),
        ("loss.lambda_lesion=0", "with loss.classification=false nothing else is learned"),
    ],
)
def test_masks_alone_that_teach_nothing_are_refused(tiny, tmp_path, capsys, word, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "lesions.csv").write_text("image,mask,lesion_type\n")
    words = ["loss.classification=false", "lesions.per_batch=0", word.format(empty=empty), *tiny]
    assert train.main(["stage3", f"run.root={tmp_path}", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_cross_fitting_judges_what_was_left_out(finished, tiny, tmp_path, capsys):
    words = ["lesions.folds=3", "lesions.fold=1", "loss.lambda_attention=1", *words_of("stage3")]
    words += [*tiny, "trainer.max_epochs=1", "optimizer.average_epochs=0"]
    assert train.main(["stage3", f"run.root={tmp_path}", *words]) == 0
    run = run_folder(tmp_path, "stage3", f"{NAMES['stage3']}-fold1")
    assert pd.read_csv(run / "metrics.csv")["train/l4"][0] > 0
    assert "current_model_state" not in load_checkpoint(run / "checkpoints" / "last.ckpt")
    assert evaluate.main([str(run), "--split", "left_out"]) == 0
    summary = json.loads((run / "evaluation" / "left_out" / "summary.json").read_text())
    assert summary["lesions"] > 0
    assert evaluate.main([str(finished["stage1"]), "--split", "left_out"]) == 2
    assert "left no image out of training" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_judges_masked_passes_and_maps(finished, tmp_path):
    """From stage 2 on both masked accuracies, from stage 3 on the FCN; all from written rows."""
    for stage, run in finished.items():
        assert evaluate.main([str(run)]) == 0
        rows = pd.read_csv(run / "evaluation" / "test" / "images.csv")
        summary = json.loads((run / "evaluation" / "test" / "summary.json").read_text())
        methods = {"cam", "pcam"} | ({"fcn"} if stage == "stage3" else set())
        trivial = {"centre", "mean_mask", "edges", "noise"}
        assert methods | trivial == {n.split("/")[0] for n in summary if n.endswith("/pixel_ap")}
        for name in methods:
            assert summary[f"{name}/hit"] == pytest.approx(rows[f"{name}_hit"].mean())
        assert rows["pcam_hit"].notna().sum() == summary["lesions"] == (rows["label"] == 1).sum()
        assert ("masked_accuracy" in summary) == (stage != "stage1")
        if stage != "stage1":
            called = rows["swapped_masked_probability"] > 0.5
            assert summary["swapped_masked_abnormal"] == pytest.approx(called.mean())
            right = (called == (rows["label"] == 1)).mean()
            assert summary["swapped_masked_accuracy"] == pytest.approx(right)


@pytest.mark.slow
def test_stage_2_starts_from_stage_1_and_only_once(finished, tiny, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(finished["stage1"], start)
    words = [
        "stage2",
        f"run.root={tmp_path}",
        f"model.init_from={start}",
        "optimizer.learning_rate=1e-9",  # stays where it starts
        *tiny,
    ]
    assert train.main([*words, "trainer.max_epochs=1"]) == 0
    weights = load_checkpoint(start / "checkpoints" / "best.ckpt")["state_dict"]
    run = run_folder(tmp_path, "stage2") / "checkpoints" / "last.ckpt"
    started = load_checkpoint(run)["state_dict"]
    for name in (
        "encoder.stem.0.weight",
        "encoder.stages.2.2.conv3.weight",
        "fc.weight",
        "fc.bias",
    ):
        torch.testing.assert_close(started[name], weights[name], atol=1e-6, rtol=0)
    shutil.rmtree(start)
    assert train.main(words) == 0  # a resumed run needs it no more
    assert load_checkpoint(run)["epoch"] == 2


@pytest.mark.slow
def test_a_wrong_start_ends_with_status_2(tiny, tmp_path, capsys):
    words = [f"run.root={tmp_path}", f"model.init_from={tmp_path / 'none'}", *tiny]
    assert train.main(["stage2", *words]) == 2
    assert f"model.init_from: {tmp_path / 'none'} does not exist" in capsys.readouterr().err


def write_run(folder, stage="stage1", width=WIDTH, words=()):
    """A run directory as training leaves it, without the training."""
    save_config(load_config(stage, [f"model.width={width}", *words]), folder / "config.yaml")
    torch.manual_seed(5)
    module = STAGES[stage](width=width)
    (folder / "checkpoints").mkdir()
    content = {"stage": stage, "state_dict": module.state_dict()}
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return content


def start(stage, path, *words):
    torch.manual_seed(6)
    module = STAGES[stage](width=WIDTH)
    start_from(module, load_config(stage, [f"model.init_from={path}", *words]))
    return module.state_dict()


@pytest.mark.parametrize(
    ("stage", "earlier"), [("stage2", "stage1"), ("stage3", "stage1"), ("stage3", "stage2")]
)
@pytest.mark.parametrize("file", ["", "checkpoints/best.ckpt"])
def test_encoder_and_fc_are_handed_over(tmp_path, stage, earlier, file):
    given = write_run(tmp_path / "run", earlier)["state_dict"]
    taken = start(stage, tmp_path / "run" / file)
    shared = [name for name in taken if name.startswith(("encoder.", "fc."))]
    assert len(shared) == len([name for name in given if name.startswith(("encoder.", "fc."))]) > 50
    assert all(torch.equal(taken[name], given[name]) for name in shared)


@pytest.mark.parametrize(
    ("stage", "earlier", "remedy"),
    [
        ("stage1", "stage1", "leave it out"),
        ("stage2", "stage2", "give one of stage1"),
        ("stage2", "stage3", "give one of stage1"),
        ("stage3", "stage3", "give one of stage1 or stage2"),
    ],
)
def test_only_an_earlier_stage_is_taken(tmp_path, stage, earlier, remedy):
    write_run(tmp_path / "run", earlier)
    pattern = f"best.ckpt is a checkpoint of {earlier}, and {stage} can start .*; {remedy}"
    with pytest.raises(RunError, match=pattern):
        start(stage, tmp_path / "run")


@pytest.mark.parametrize(
    "word", ["data.seed=1", "data.name=mura", "data.split=image", "data.count=50"]
)
def test_a_run_on_other_data_is_refused(tmp_path, word):
    write_run(tmp_path / "run", words=[word])
    key, value = word.split("=")
    with pytest.raises(RunError, match=f"was trained with {key}={value}, .* val or test images"):
        start("stage2", tmp_path / "run")


class Data:
    """Of a data module what counts here."""

    index_hash = judges_hash = "mine"


@pytest.mark.parametrize(
    "theirs",
    [{}, {"Data": {}}, {"Data": {"judges_hash": "other", "index_hash": "mine"}}],
)
def test_a_start_must_have_had_the_same_val_and_test(tmp_path, theirs):
    check_same_judges({"Data": {"judges_hash": "mine", "index_hash": "other"}}, Data(), tmp_path)
    check_same_judges({"Data": {"index_hash": "mine"}}, Data(), tmp_path)  # of before the hash
    with pytest.raises(RunError, match="was trained on other val and test images"):
        check_same_judges(theirs, Data(), tmp_path)


def test_a_start_that_is_no_checkpoint_is_said(tmp_path):
    write_run(tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    for content, told in [
        (torch.ones(3), "it holds no dictionary"),
        ({"stage": "stage1"}, "it lacks state_dict"),
    ]:
        torch.save(content, best)
        with pytest.raises(RunError, match=f"^model.init_from: .*no whole checkpoint.*{told}"):
            start("stage2", tmp_path / "run")


def test_the_masked_pass_starts_from_the_statistics_handed_over(tmp_path):
    content = write_run(tmp_path / "run")
    content["state_dict"]["encoder.stem.2.running_mean"] += 0.5
    torch.save(content, tmp_path / "run" / "checkpoints" / "best.ckpt")
    taken = start("stage2", tmp_path / "run")
    given = content["state_dict"]["encoder.stem.2.running_mean"]
    assert torch.equal(taken["second_pass.running_mean_0"], given)


def test_a_start_must_have_left_out_the_same_fold(tmp_path):
    config = load_config("stage3", ["lesions.folds=3", "lesions.fold=1"])
    check_same_fold({"Data": {"index_hash": "mine"}}, config, Data(), tmp_path)
    with pytest.raises(RunError, match="did not leave out fold 1 of 3"):
        check_same_fold({"Data": {"index_hash": "other"}}, config, Data(), tmp_path)


def test_the_phantoms_count_matters_to_the_phantom_only(tmp_path):
    write_run(tmp_path / "run", words=["data.name=mura", "data.count=50"])
    start("stage2", tmp_path / "run", "data.name=mura")


def test_another_width_is_refused_and_nothing_changes(tmp_path):
    write_run(tmp_path / "run", width=0.5)
    torch.manual_seed(6)
    module = STAGES["stage2"](width=WIDTH)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    config = load_config("stage2", [f"model.init_from={tmp_path / 'run'}"])
    with pytest.raises(RunError, match=r"best.ckpt holds another network.*here.*model\.width"):
        start_from(module, config)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("fc.bias"), "fc.bias is missing"),
        (lambda weights: weights.update({"fc.scale": torch.ones(1)}), "fc.scale is unknown here"),
        (
            lambda weights: weights.update({"fc.bias": torch.ones(3)}),
            r"fc.bias is \(3,\), here \(2,\)",
        ),
    ],
)
def test_the_hand_over_is_strict(tmp_path, change, message):
    content = write_run(tmp_path / "run")
    change(content["state_dict"])
    torch.save(content, tmp_path / "run" / "checkpoints" / "best.ckpt")
    with pytest.raises(RunError, match=f"^model.init_from: .*best.ckpt holds .*{message}"):
        start("stage2", tmp_path / "run")


def test_what_is_no_run_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b\n")
    for path, message in [
        ("none", "does not exist; give a run directory"),
        ("empty", "is no run directory"),
        ("table.csv", "is no checkpoint; give a run directory"),
    ]:
        with pytest.raises(RunError, match=f"model.init_from: .*{path} {message}"):
            start("stage2", tmp_path / path)


def test_an_unfinished_or_damaged_run_is_said(tmp_path):
    write_run(tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    best.unlink()
    with pytest.raises(RunError, match=r"best\.ckpt does not exist; train the run"):
        start("stage2", tmp_path / "run")
    best.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"model\.init_from: .*best\.ckpt is no whole checkpoint"):
        start("stage2", tmp_path / "run")
