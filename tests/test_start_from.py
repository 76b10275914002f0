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
OTHER = MINE | {"judges_hash": "other"}
MEAN = "encoder.stem.2.running_mean"
OTHER_MASKS = MINE | {"index_hash": "other"}  # deal all folds anew


class Data:
    """Of a data module what counts here."""

    index_hash = judges_hash = "mine"

    def judges_as(self, trained_on):
        return trained_on.get("judges_hash") == self.judges_hash


def start(folder, stage, *words, place="run", of="stage1", width=0.25, lost=(), **parts):
    """Start a stage from a run that is as training leaves it but for ``parts``; weights of both."""
    run, words_of_run = folder / "run", [f"model.width={width}"]
    save_config(load_config(of, words_of_run), run / "config.yaml")
    given = network(of, *words_of_run).state_dict()
    given[MEAN] += 1  # trained
    content = {"stage": of, "state_dict": given, "Data": MINE, **parts}
    content.setdefault("hyper_parameters", {"model": {}})
    (run / "checkpoints").mkdir()
    torch.save(
        {name: content[name] for name in content if name not in lost}, run / "checkpoints/best.ckpt"
    )
    module = network(stage)
    start_from(module, load_config(stage, [f"model.init_from={folder / place}", *words]), Data())
    return given, module.state_dict()


@pytest.mark.parametrize(
    ("stage", "earlier", "place"),
    [("stage2", "stage1", "run"), ("stage3", "stage2", "run/checkpoints/best.ckpt")],
)
def test_encoder_and_fc_are_handed_over(tmp_path, stage, earlier, place):
    # Without folds, other masks are no other data.
    given, taken = start(tmp_path, stage, place=place, of=earlier, Data=OTHER_MASKS)
    shared = [name for name in taken if name.startswith(("encoder.", "fc."))]
    assert len(shared) == len([name for name in given if name.startswith(("encoder.", "fc."))]) > 50
    assert all(torch.equal(taken[name], given[name]) for name in shared)
    # The masked pass starts from it, too.
    assert torch.equal(taken["second_pass.running_mean_0"], given[MEAN])


SAME = "trained on other images: they may be val or test images here"


@pytest.mark.parametrize(
    ("stage", "run", "words", "message"),
    [
        ("stage1", {}, [], "stage1 can start from none"),
        ("stage3", {"of": "stage3"}, [], "is of stage3: .* can start from stage1 or stage2"),
        ("stage2", {"Data": {}}, [], SAME),
        (
            "stage2",
            {"hyper_parameters": {"model": {"encoder": "timm:x"}}},
            [],
            "has model.encoder=timm:x. Fix: the same here",
        ),
        ("stage2", {"Data": OTHER}, [], SAME),
        ("stage2", {"Data": OTHER_MASKS}, ["lesions.folds=3"], SAME),
        ("stage2", {"width": 0.5}, [], "another network .*the same model.width"),
        ("stage2", {"lost": ["state_dict"]}, [], "it lacks state_dict"),
        ("stage2", {"place": "none"}, [], "none is no run directory"),
    ],
)
def test_another_stage_data_or_network_is_refused(tmp_path, stage, run, words, message):
    with pytest.raises(RunError, match=rf"(?s)^model.init_from: .*{message}"):
        start(tmp_path, stage, *words, **run)


@pytest.mark.parametrize(
    ("places", "settings", "runs"),
    [
        (["stage1", "stage2", "stage3"], [], ["runs/phantom/stage1/new run"]),
        (["stage1"], ["run.name=old", "seed=1"], ["runs/phantom/stage1/old"]),
        (["x/y", "stage1"], ["run.root=a b"], ["x/y", "a b/phantom/stage1/new run"]),
        (["stage1", "seed1"], [], "seed1 is no run directory"),
        (["stage1"], ["data.name=mura"], "in runs/mura. Fix: make stage1 DATA=mura, or name"),
        (["stage3"], [], "no trained run in runs/phantom. Fix: make stage3 DATA=phantom"),
    ],
)
def test_a_stage_stands_for_its_latest_trained_run(tmp_path, monkeypatch, places, settings, runs):
    monkeypatch.chdir(tmp_path)
    latest = [
        f"{root}/phantom/stage1/{name}" for name in ("old", "new run") for root in ("runs", "a b")
    ]
    for age, run in enumerate(["x/y", *latest]):
        best = tmp_path / run / "checkpoints" / "best.ckpt"
        best.parent.mkdir(parents=True)
        best.touch()
        (tmp_path / run / "config.yaml").touch()
        os.utime(best, (1000 + age, 1000 + age))
    (tmp_path / "runs/phantom/stage3/untrained/checkpoints").mkdir(parents=True)
    if isinstance(runs, str):
        with pytest.raises(RunError, match=runs):
            choose_runs(places, settings)
    else:
        assert choose_runs(places, settings) == [Path(run) for run in runs]
