"""What a run may start from (``model.init_from``), without a training."""

import pytest
import torch

from experiments.build import start_from
from experiments.config import load_config, save_config
from experiments.runs import RunError
from tests.stages import network


class Data:
    """Of a data module what counts here."""

    index_hash = judges_hash = "mine"

    def judges_as(self, trained_on):
        return trained_on.get("judges_hash") == self.judges_hash


def write_run(folder, stage="stage1", words=(), **changes):
    """A run directory as training leaves it."""
    words = ["model.width=0.25", *words]
    save_config(load_config(stage, words), folder / "config.yaml")
    torch.manual_seed(5)
    weights = network(stage, *words).state_dict()
    trained_on = {"index_hash": "mine", "judges_hash": "mine"}
    content = {"stage": stage, "state_dict": weights, "Data": trained_on}
    (folder / "checkpoints").mkdir()
    torch.save({**content, **changes}, folder / "checkpoints" / "best.ckpt")
    return content


def start(stage, path, *words):
    torch.manual_seed(6)
    module = network(stage)
    start_from(module, load_config(stage, [f"model.init_from={path}", *words]), Data())
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
    mean = "encoder.stem.2.running_mean"  # the masked pass starts from it, too
    assert torch.equal(taken["second_pass.running_mean_0"], given[mean])


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
    ("theirs", "words", "message"),
    [
        ({}, [], "the same options"),
        ({"judges_hash": "other", "index_hash": "mine"}, [], "the same options"),
        ({"judges_hash": "other"}, ["data.seed=1"], "data.seed: 0 -> 1"),
        # one mask more deals all folds anew
        ({"judges_hash": "mine", "index_hash": "other"}, ["lesions.folds=3"], "the same options"),
    ],
)
def test_a_start_must_have_had_the_same_val_and_test(tmp_path, theirs, words, message):
    write_run(tmp_path / "run", Data=theirs)
    with pytest.raises(RunError, match=rf"trained on other images \({message}\): .* val or test"):
        start("stage2", tmp_path / "run", *words)


def test_new_masks_alone_are_no_other_data(tmp_path):
    write_run(tmp_path / "run", Data={"judges_hash": "mine", "index_hash": "other"})
    start("stage2", tmp_path / "run")


def test_another_network_is_refused_and_nothing_changes(tmp_path):
    write_run(tmp_path / "run", words=["model.width=0.5"])
    module = network("stage2")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    config = load_config("stage2", [f"model.init_from={tmp_path / 'run'}"])
    with pytest.raises(RunError, match=r"best.ckpt holds another network.*here.*model\.width"):
        start_from(module, config, Data())
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("fc.bias"), "fc.bias is missing"),
        (lambda weights: weights.update({"fc.scale": torch.ones(1)}), "fc.scale .* here unknown"),
        (
            lambda weights: weights.update({"fc.bias": torch.ones(3)}),
            r"fc.bias is \(3,\), here",
        ),
    ],
)
def test_the_hand_over_is_strict(tmp_path, change, message):
    content = write_run(tmp_path / "run")
    change(content["state_dict"])
    torch.save(content, tmp_path / "run" / "checkpoints" / "best.ckpt")
    with pytest.raises(RunError, match=f"^model.init_from: .*best.ckpt holds .*{message}"):
        start("stage2", tmp_path / "run")


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("none", None, "does not exist; give a run directory"),
        ("empty", None, "is no run directory"),
        ("table.csv", None, "is no checkpoint; give a run directory"),
        ("run", torch.ones(3), "no whole checkpoint.*it holds no dictionary"),
        ("run", {"stage": "stage1"}, "it lacks state_dict"),
        ("run", b"PK half", "is no whole checkpoint"),
        ("run", b"", "is no whole checkpoint"),
    ],
)
def test_what_cannot_be_started_from_is_said(tmp_path, path, content, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b\n")
    write_run(tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    if isinstance(content, bytes):
        best.write_bytes(content)
    elif content is not None:
        torch.save(content, best)
    with pytest.raises(RunError, match=rf"^model.init_from: .*{message}"):
        start("stage2", tmp_path / path)
