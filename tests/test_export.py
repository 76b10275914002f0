"""The command that writes ONNX files: what they say, that they agree, and what is refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.decode import decode
from datamodules.geometry import from_square
from experiments import evaluate, export, predict, train
from experiments.evaluation.store import read_images
from experiments.prediction import exporting
from experiments.prediction import onnx as model_file
from experiments.prediction.exporting import model_card
from experiments.prediction.network import load_trained
from tests import stages
from tests.runs import run_folder

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

HOUSE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A stage 3, judged on test."""
    run = trained.copy("stage3", tmp_path_factory.mktemp("export"))
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    return run


@pytest.fixture(scope="module")
def file(run):
    """Its file, in a folder that the command makes."""
    file = run.parent / "a folder" / "model.onnx"
    assert export.main([str(run), "--out", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def network(run):
    return load_trained(run)


def ask(file, squares):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": squares[:, None]}), strict=True))


def metadata(file):
    return onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map


def test_file_network_evaluation_and_predict_say_the_same(run, file, network, trained, tmp_path):
    root = trained.root.parent / "phantom"
    words = [str(run), str(root / "MURA-v1.1"), "--methods", "fcn", "--out", str(tmp_path)]
    assert predict.main(words) == 0
    predicted = pd.read_csv(tmp_path / "predictions.csv").set_index("path")
    table = read_images(run / "evaluation" / "test" / "images.csv")
    made = [network.recipe.apply(decode(root / path)) for path in table["path"]]
    squares = np.stack([square for square, _ in made])
    answers = ask(file, squares)
    assert list(answers) == ["probability", "cam", "pcam", "fcn"]
    probability, maps = network.explain(squares)
    assert answers["probability"] == pytest.approx(probability, abs=1e-4)
    assert answers["probability"] == pytest.approx(table["probability"].to_numpy(), abs=1e-4)
    rows = predicted.loc[table["path"].str.removeprefix("MURA-v1.1/")]
    assert answers["probability"] == pytest.approx(rows["probability_abnormal"], abs=1e-4)
    called = answers["probability"] > float(metadata(file)["threshold"])
    assert called.tolist() == (rows["predicted_abnormal"] == 1).tolist()
    for name, expected in maps.items():
        assert (answers[name].shape, answers[name].dtype) == ((len(table), 1, 64, 64), np.float32)
        assert (answers[name].min(), answers[name].max()) >= (0, 0)
        assert answers[name].max() <= 1
        assert answers[name][:, 0] == pytest.approx(expected, abs=1e-4)
        assert expected.any(), f"{name} is dark everywhere: nothing was compared"
        for number, (_, geometry) in enumerate(made):
            full = from_square(answers[name][number, 0], geometry)
            line = table.iloc[number]
            peak = full[int(line[f"{name}_peak_y"]), int(line[f"{name}_peak_x"])]
            assert peak == pytest.approx(full.max(), abs=1e-4)
            if name == "fcn":
                row = rows.iloc[number]
                peak = full[int(row["map_peak_y"]), int(row["map_peak_x"])]
                assert peak == pytest.approx(full.max(), abs=1e-4)
                written = decode(tmp_path / "maps" / f"{row.name}.fcn.png")
                assert written / 255 == pytest.approx(full, abs=0.51 / 255 + 1e-4)


def test_an_image_gets_the_same_answer_in_any_batch(file, network):
    squares = model_file.check_images(network.recipe)[:, 0]
    together = ask(file, squares)
    for number in (0, 5, 9):
        for name, alone in ask(file, squares[number : number + 1]).items():
            assert alone[0] == pytest.approx(together[name][number], abs=1e-6)


def test_the_file_says_what_it_needs_and_how_it_decides(run, file, network):
    texts = metadata(file)
    values = {key: json.loads(text) for key, text in texts.items() if text[0] in "[{"}
    fitted = json.loads((run / "evaluation/test/summary.json").read_text())["fitted"]
    weights = (run / "checkpoints/best.ckpt").read_bytes()
    scales = network.run.module.map_scale.tolist()
    for key in ("threshold", "study_threshold", "temperature"):
        assert float(texts[key]) == fitted[key]
    assert values["map_thresholds"]["fcn"] == fitted["maps"]["fcn"]["threshold"]
    assert values["map_scales"] == dict(zip(("cam", "pcam", "fcn"), scales, strict=True))
    assert values["classes"] == ["normal", "abnormal"]
    assert (texts["best_map"], texts["decided_by"]) == ("fcn", "val")
    assert "research use only" in texts["use"]
    recipe = values["preprocessing"]
    assert (recipe["image_size"], recipe["crop"], recipe["contrast"]) == (64, "none", "none")
    assert recipe["normalisation"] == "(image / 255 - 0.2) / 0.2, in the graph"
    data = values["training_data"]
    assert (data["name"], data["lesion_masks"]) == ("phantom", "at most 100, the source's own")
    assert data["index_hash"] == network.run.trained_on["index_hash"]
    assert values["checkpoint"]["sha256"] == hashlib.sha256(weights).hexdigest()
    for content in (file.read_bytes(), file.with_suffix(".md").read_bytes()):
        for path in (HOUSE, run.parents[3], Path(torch.__file__).parent):
            assert str(path).encode() not in content


def test_the_card_shows_the_figures_of_this_checkpoint(run, file, network):
    card = file.with_suffix(".md").read_text()
    path = run / "evaluation/test/summary.json"
    summary = json.loads(path.read_text())
    low, high = summary["intervals"]["fcn/hit"]
    for text in (
        f"| `fcn`: hit rate | {summary['fcn/hit']:.3f} | {low:.3f} to {high:.3f} |",
        f"{summary['images']} images of {summary['patients']} patients",
        f"`fcn` claims a lesion on {100 * summary['fcn/shown_normal']:.0f} % of the normal",
        "**Research use only; not a medical device.**",
        f"above {summary['fitted']['threshold']:.4f}; a study",
        hashlib.sha256(file.read_bytes()).hexdigest(),
        "The training data are drawings",
        "Decided by: val.\n",
    ):
        assert text in card
    assert max(map(len, card.replace("|", "\n").splitlines())) < 200
    without = replace(network, undecided_maps=("pcam", "fcn"))
    card = " ".join(model_card(without, "model.onnx", "0" * 64, 0.0).split())
    assert "Decided by: val, but of `pcam`, `fcn` nobody: val held no lesion mask, and 0.5" in card
    assert "- The threshold of `pcam`, `fcn` was not decided on any image." in card
    kept = path.read_text()
    try:  # figures of another checkpoint are not shown
        path.write_text(kept.replace(network.run.identity["checkpoint_hash"], "0" * 64))
        assert "None: no evaluation" in model_card(network, "model.onnx", "0" * 64, 0.0)
    finally:
        path.write_text(kept)


def test_a_file_that_disagrees_is_not_left(run, file, network, tmp_path, capsys, monkeypatch):
    wrong = onnx.load(file)
    (bias,) = (value for value in wrong.graph.initializer if value.name.endswith("fc.bias"))
    images = model_file.check_images(network.recipe)
    for value, difference in ((0.1, r"differs from PyTorch's by 2.5e-02"), (np.nan, "by inf")):
        added = onnx.numpy_helper.to_array(bias) + np.array([0.0, value], np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(added, bias.name))
        content = wrong.SerializeToString()
        monkeypatch.setattr(exporting, "build", lambda *_, content=content: content)
        assert export.main([str(run), "--out", str(tmp_path / "new" / "wrong.onnx")]) == 2
        assert "wrong.onnx is not written: its probability" in (error := capsys.readouterr().err)
        assert difference in error
        assert list(tmp_path.iterdir()) == []
    assert model_file.differences(file.read_bytes(), network.run.module.cpu(), images)["fcn"] < 1e-4


@pytest.mark.slow
def test_masks_alone_teach_no_class(trained, tmp_path, capsys):
    words = [*trained.words, "trainer.max_epochs=1", f"run.root={tmp_path / 'runs'}"]
    assert train.main(["stage3", *words, "loss.classification=false", "run.name=masks"]) == 0
    last = run_folder(tmp_path / "runs", "stage3", "masks") / "checkpoints" / "last.ckpt"
    file = tmp_path / "new" / "masks.onnx"
    file.parent.mkdir()
    file.write_bytes(b"an older one")
    assert export.main([str(last), "--out", str(file), "--force"]) == 0
    assert sorted(file.parent.iterdir()) == [file.with_suffix(".md"), file]
    outputs = "fcn (B, 1, 64, 64), float32 in [0, 1]; trained on lesion masks alone"
    assert outputs in capsys.readouterr().out
    assert list(ask(file, model_file.check_images(load_trained(last).recipe)[:, 0])) == ["fcn"]
    assert "threshold" not in metadata(file)
    card = " ".join(file.with_suffix(".md").read_text().split())
    assert "it gives a map of the lesion and no probability" in card
    assert "no evaluation of this very checkpoint on test was found" in card
    assert "`cam`" not in card


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ("model.pt", "expected a name that ends in .onnx"),
        ("folder.onnx", "folder.onnx is a folder"),
        ("file/model.onnx", "file is a file, not a folder"),
        ("file/new/model.onnx", "file is a file, not a folder"),
        ("mine.onnx", "mine.md exists. Fix: --force replaces it"),
        ("old.onnx", "old.onnx exists. Fix: --force replaces it"),
    ],
)
def test_where_it_cannot_be_written(tmp_path, capsys, out, error):
    (tmp_path / "folder.onnx").mkdir()
    for name in ("file", "mine.md", "old.onnx"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    assert export.main(["no run", "--out", str(tmp_path / out)]) == 2  # before any work
    assert error in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_no_run_and_no_extra_and_no_scale(run, tmp_path, capsys, monkeypatch):
    words = ["--out", str(tmp_path / "model.onnx")]
    assert export.main([str(tmp_path / "none"), *words]) == 2
    assert "none is no run directory (no config.yaml)" in capsys.readouterr().err
    monkeypatch.setattr(exporting, "find_spec", lambda name: name if name == "onnx" else None)
    assert export.main([str(run), *words]) == 2
    assert "an ONNX file needs onnxscript, onnxruntime" in (error := capsys.readouterr().err)
    assert "Fix: pip install -c constraints.txt -e '.[onnx]'" in error
    diverged = stages.network().eval()
    diverged.map_scale[0] = float("nan")
    with pytest.raises(ValueError, match="map scale: expected a finite number"):
        model_file._Graph(diverged)
