"""The command that writes ONNX files: what they say, that they agree, and what is refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.decode import decode
from experiments import export
from experiments.evaluation.store import read_images
from experiments.prediction import exporting
from experiments.prediction.exporting import check_images, model_card
from experiments.prediction.network import load_trained
from tests.untrained import judge, make_run

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

HOUSE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    """The file of a stage 3 that was judged on test, in its run, in the place of an older one."""
    run = trained.copy("stage3", tmp_path_factory.mktemp("export"), judged=True)
    file = run / "model.onnx"
    file.write_bytes(b"an older one")
    assert export.main([str(run), "--out", str(file), "--force"]) == 0
    assert sorted(run.glob("model*")) == [file.with_suffix(".md"), file]
    return file


@pytest.fixture(scope="module")
def network(file):
    return load_trained(file.parent)


def test_the_file_says_what_network_and_evaluation_say(file, network, trained):
    table = read_images(file.parent / "evaluation" / "test" / "images.csv")
    decoded = [decode(trained.root.parent / "phantom" / path) for path in table["path"]]
    squares = np.stack([network.recipe.apply(image)[0] for image in decoded])
    session, (probability, maps) = onnxruntime.InferenceSession(file), network.explain(squares)
    names = [output.name for output in session.get_outputs()]
    assert names == ["probability", "cam", "pcam", "fcn"]
    answers = dict(zip(names, session.run(None, {"image": squares[:, None]}), strict=True))
    assert answers["probability"] == pytest.approx(probability, abs=1e-4)
    assert answers["probability"] == pytest.approx(table["probability"].to_numpy(), abs=1e-4)
    for name, expected in maps.items():
        assert (answers[name].shape, answers[name].dtype) == ((len(table), 1, 64, 64), np.float32)
        assert answers[name][:, 0] == pytest.approx(expected, abs=1e-4)
        assert expected.any(), f"{name} is dark everywhere: nothing was compared"


def test_file_and_card_say_what_the_network_decides_and_is_worth(file, network, monkeypatch):
    run, card = file.parent, file.with_suffix(".md").read_text()
    texts = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    values = {key: json.loads(text) for key, text in texts.items() if text[0] in "[{"}
    summary = json.loads((run / "evaluation/test/summary.json").read_text())
    fitted, (low, high) = summary["fitted"], summary["intervals"]["fcn/hit"]
    for key in ("threshold", "study_threshold", "temperature"):
        assert float(texts[key]) == fitted[key]
    scales = network.run.module.map_scale.tolist()
    assert values["map_scales"] == dict(zip(("cam", "pcam", "fcn"), scales, strict=True))
    assert values["map_thresholds"]["fcn"] == fitted["maps"]["fcn"]["threshold"]
    assert (texts["best_map"], texts["decided_by"]) == ("fcn", "val")
    recipe, data = values["preprocessing"], values["training_data"]
    assert (recipe["image_size"], data["name"]) == (64, "phantom")
    assert data["lesion_masks"] == "at most 100, the source's own"
    weights = hashlib.sha256((run / "checkpoints/best.ckpt").read_bytes()).hexdigest()
    assert values["checkpoint"]["sha256"] == weights
    for text in (
        f"| `fcn`: hit rate | {summary['fcn/hit']:.3f} | {low:.3f} to {high:.3f} |",
        f"`fcn` claims a lesion on {100 * summary['fcn/shown_normal']:.0f} % of the normal",
        "**Research use only; not a medical device.**",
        f"above {fitted['threshold']:.4f}; a study",
        hashlib.sha256(file.read_bytes()).hexdigest(),
        "Decided by: val.\n",
    ):
        assert text in card
    for path in (HOUSE, run.parents[3], Path(torch.__file__).parent):
        assert str(path).encode() not in file.read_bytes() + card.encode()
    card = model_card(replace(network, undecided_maps=("pcam", "fcn")), "model.onnx", "0" * 64, 0.0)
    assert "Decided by: val, but of `pcam`, `fcn` nobody" in card
    newer = {**network.run.decisions()[0], "fitted": {**fitted, "threshold": 0.99}}
    monkeypatch.setattr(type(network.run), "decisions", lambda _: (newer, run))
    assert "None: no evaluation" in model_card(network, "model.onnx", "0" * 64, 0.0)  # test's: old


def test_a_file_that_disagrees_is_not_left(file, tmp_path, capsys, monkeypatch):
    wrong = onnx.load(file)
    (bias,) = (value for value in wrong.graph.initializer if value.name.endswith("fc.bias"))
    for value, difference in ((0.1, r"differs from PyTorch's by 2.5e-02"), (np.nan, "by inf")):
        added = onnx.numpy_helper.to_array(bias) + np.array([0.0, value], np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(added, bias.name))
        content = wrong.SerializeToString()
        monkeypatch.setattr(exporting, "build", lambda *_, content=content: content)
        assert export.main([str(file.parent), "--out", str(tmp_path / "new" / "wrong.onnx")]) == 2
        assert "wrong.onnx is not written: its probability" in (error := capsys.readouterr().err)
        assert difference in error
        assert list(tmp_path.iterdir()) == []


def test_masks_alone_teach_no_class(tmp_path):
    words = ["loss.classification=false", "model.mirror=true", "model.zoom=1.5"]
    alone = load_trained(judge(make_run(tmp_path, words=words)))
    about, squares = exporting.describe(alone), check_images(alone.recipe)
    assert list(about["outputs"]) == ["fcn"]
    assert "threshold" not in about
    apart = exporting.differences(exporting.build(alone), alone.run.module, squares)
    assert apart == {"fcn": pytest.approx(0, abs=1e-4)}  # all six views are in the graph
    card = " ".join(model_card(alone, "masks.onnx", "0" * 64, 0.0).split())
    assert "it gives a map of the lesion and no probability" in card
    assert "`cam`" not in card


def test_what_cannot_be_exported(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.md").touch()
    for installed, out, error in (
        (exporting.LIBRARIES, "model.pt", "expected a name that ends in .onnx"),
        (exporting.LIBRARIES, "mine.onnx", "mine.md exists. Fix: --force replaces it"),
        (exporting.LIBRARIES, "new.onnx", "none is no run directory (no config.yaml)"),
        (["onnx"], "new.onnx", "needs onnxscript, onnxruntime. Fix: pip install -c"),
    ):
        monkeypatch.setattr(exporting, "find_spec", {name: name for name in installed}.get)
        assert export.main([str(tmp_path / "none"), "--out", str(tmp_path / out)]) == 2
        assert error in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["mine.md"]
