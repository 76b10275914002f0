"""What a run may start from (``model.init_from``), without a training."""

import pytest
import torch

from experiments.build import start_from
from experiments.config import load_config, save_config
from experiments.runs import RunError
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


@pytest.mark.parametrize(
    ("stage", "earlier"), [("stage2", "stage1"), ("stage3", "stage1"), ("stage3", "stage2")]
)
@pytest.mark.parametrize("file", ["", "checkpoints/best.ckpt"])
def test_encoder_and_fc_are_handed_over(tmp_path, stage, earlier, file):
    # New masks alone are no other data.
    other_masks = {"judges_hash": "mine", "index_hash": "other"}
    given = write_run(tmp_path / "run", earlier, Data=other_masks)
    taken = start(stage, tmp_path / "run" / file)
    shared = [name for name in taken if name.startswith(("encoder.", "fc."))]
    assert len(shared) == len([name for name in given if name.startswith(("encoder.", "fc."))]) > 50
    assert all(torch.equal(taken[name], given[name]) for name in shared)
    mean = "encoder.stem.2.running_mean"  # the masked pass starts from it, too
    assert torch.equal(taken["second_pass.running_mean_0"], given[mean])


SAME = r"trained on other images \(the same options\): .* val or test"
OTHER = {"judges_hash": "other", "index_hash": "mine"}
OTHER_MASKS = {"judges_hash": "mine", "index_hash": "other"}  # deal all folds anew


@pytest.mark.parametrize(
    ("stage", "run", "words", "message"),
    [
        ("stage1", {"stage": "stage1"}, [], "stage1 can start from none"),
        ("stage2", {"stage": "stage3"}, [], "is of stage3: stage2 can start from stage1$"),
        ("stage3", {"stage": "stage3"}, [], "can start from stage1 or stage2"),
        ("stage2", {"Data": {}}, [], SAME),
        ("stage2", {"Data": OTHER}, [], SAME),
        ("stage2", {"Data": OTHER}, ["data.seed=1"], r"\(data.seed: 0 -> 1\)"),
        ("stage2", {"Data": OTHER_MASKS}, ["lesions.folds=3"], SAME),
        ("stage2", {"words": ["model.width=0.5"]}, [], "another network .*the same model.width"),
        ("stage2", {"change": lambda weights: weights.pop("fc.bias")}, [], "Missing key.*bias"),
        (
            "stage2",
            {"change": lambda weights: weights.update({"fc.scale": torch.ones(1)})},
            [],
            "Unexpected key.*scale",
        ),
    ],
)
def test_another_stage_data_or_network_is_refused(tmp_path, stage, run, words, message):
    write_run(tmp_path / "run", **run)
    with pytest.raises(RunError, match=rf"(?s)^model.init_from: .*{message}"):
        start(stage, tmp_path / "run", *words)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("none", None, "is no run directory"),
        ("table.csv", None, "is no run directory"),
        ("run", torch.ones(3), "no whole checkpoint.*it holds no dictionary"),
        ("run", {"stage": "stage1"}, "it lacks state_dict"),
        ("run", b"PK half", "is no whole checkpoint"),
    ],
)
def test_what_cannot_be_started_from_is_named(tmp_path, path, content, message):
    (tmp_path / "table.csv").write_text("a,b\n")
    write_run(tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    if isinstance(content, bytes):
        best.write_bytes(content)
    elif content is not None:
        torch.save(content, best)
    with pytest.raises(RunError, match=rf"^model.init_from: .*{message}"):
        start("stage2", tmp_path / path)
