"""What a run may start from (``model.init_from``), and which runs a command takes."""

import os
from pathlib import Path

import pytest
import torch

from experiments.build import start_from
from experiments.config import load_config, save_config
from experiments.runs import RunError, choose_runs
from tests.stages import network

MINE = {"index_hash": "mine", "judges_hash": "mine"}


class Data:
    """Of a data module what counts here."""

    index_hash = judges_hash = "mine"

    def judges_as(self, trained_on):
        return trained_on.get("judges_hash") == self.judges_hash


def write_run(folder, stage="stage1", words=(), change=lambda weights: None, **parts):
    """A run directory as training leaves it; returns its weights."""
    words = ["model.width=0.25", *words]
    save_config(load_config(stage, words), folder / "config.yaml")
    torch.manual_seed(5)
    weights = network(stage, *words).state_dict()
    change(weights)
    (folder / "checkpoints").mkdir()
    content = {"stage": stage, "state_dict": weights, "Data": MINE, **parts}
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return weights


def start(stage, path, *words):
    torch.manual_seed(6)
    module = network(stage)
    start_from(module, load_config(stage, [f"model.init_from={path}", *words]), Data())
    return module.state_dict()


OTHER = {"judges_hash": "other", "index_hash": "mine"}
OTHER_MASKS = {"judges_hash": "mine", "index_hash": "other"}  # deal all folds anew


@pytest.mark.parametrize(
    ("stage", "earlier", "file"),
    [("stage2", "stage1", ""), ("stage3", "stage2", "checkpoints/best.ckpt")],
)
def test_encoder_and_fc_are_handed_over(tmp_path, stage, earlier, file):
    given = write_run(tmp_path / "run", earlier, Data=OTHER_MASKS)  # no other data without folds
    taken = start(stage, tmp_path / "run" / file)
    shared = [name for name in taken if name.startswith(("encoder.", "fc."))]
    assert len(shared) == len([name for name in given if name.startswith(("encoder.", "fc."))]) > 50
    assert all(torch.equal(taken[name], given[name]) for name in shared)
    mean = "encoder.stem.2.running_mean"  # the masked pass starts from it, too
    assert torch.equal(taken["second_pass.running_mean_0"], given[mean])


SAME = "trained on other images: they may be val or test images here"


@pytest.mark.parametrize(
    ("stage", "run", "words", "message"),
    [
        ("stage1", {"stage": "stage1"}, [], "stage1 can start from none"),
        ("stage3", {"stage": "stage3"}, [], "is of stage3: .* can start from stage1 or stage2"),
        ("stage2", {"Data": {}}, [], SAME),
        ("stage2", {"Data": OTHER}, [], SAME),
        ("stage2", {"Data": OTHER_MASKS}, ["lesions.folds=3"], SAME),
        ("stage2", {"words": ["model.width=0.5"]}, [], "another network .*the same model.width"),
        ("stage2", {"change": lambda weights: weights.pop("fc.bias")}, [], "Missing key.*bias"),
        ("stage2", {"state_dict": None}, [], "it lacks state_dict"),
    ],
)
def test_another_stage_data_or_network_is_refused(tmp_path, stage, run, words, message):
    write_run(tmp_path / "run", **run)
    if "state_dict" in run:
        torch.save({"stage": "stage1"}, tmp_path / "run" / "checkpoints" / "best.ckpt")
    with pytest.raises(RunError, match=rf"(?s)^model.init_from: .*{message}"):
        start(stage, tmp_path / "run", *words)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match=r"^model.init_from: .*none is no run directory"):
        start("stage2", tmp_path / "none")


@pytest.fixture
def trained_runs(tmp_path, monkeypatch):
    """Runs, each later than the one before; the last is not trained."""
    monkeypatch.chdir(tmp_path)
    for age, run in enumerate(["runs/phantom/stage1/old", "runs/phantom/stage1/new run"]):
        for place in (run, f"a b/{run.removeprefix('runs/')}"):
            best = tmp_path / place / "checkpoints" / "best.ckpt"
            best.parent.mkdir(parents=True)
            best.touch()
            os.utime(best, (1000 + age, 1000 + age))
    (tmp_path / "runs/phantom/stage3/untrained/checkpoints").mkdir(parents=True)


@pytest.mark.parametrize(
    ("places", "settings", "runs"),
    [
        (["stage1", "stage2", "stage3"], [], ["runs/phantom/stage1/new run"]),
        (["stage1"], ["run.name=old", "seed=1"], ["runs/phantom/stage1/old"]),
        (["/x/y", "stage1"], ["run.root=a b"], ["/x/y", "a b/phantom/stage1/new run"]),
        (["stage1"], ["data.name=mura"], "in runs/mura, .* or train: make stage1 DATA=mura"),
        (["stage3"], [], "no trained run in runs/phantom, no run directory. Fix: name one"),
        ([], [], "no run directory"),
    ],
)
def test_a_stage_stands_for_its_latest_trained_run(trained_runs, places, settings, runs):
    if isinstance(runs, str):
        with pytest.raises(RunError, match=runs):
            choose_runs(places, settings)
    else:
        assert choose_runs(places, settings) == [Path(run) for run in runs]
