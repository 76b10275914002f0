"""The command that writes ONNX files: what they say, that they agree, and what is refused."""

import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.decode import decode
from datamodules.geometry import from_square
from experiments import evaluate, export, predict, train
from experiments.evaluation.figures import read_images
from experiments.prediction import onnx as model_file
from experiments.prediction.card import model_card
from experiments.prediction.network import load_trained
from experiments.prediction.properties import properties
from experiments.runs import RunError
from tests.runs import run_folder, tiny_words
from tests.stages import network

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

HOUSE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def words(root):
    return [*tiny_words(root), "model.width=0.25", "trainer.max_epochs=1", f"run.root={root}"]


@pytest.fixture(scope="module")
def run(root, words):
    """A stage 3 of one epoch, judged on test."""
    assert train.main(["stage3", *words]) == 0
    run = run_folder(root, "stage3", "lambda1.0-seed0")
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    return run


@pytest.fixture(scope="module")
def file(run, root):
    """Its file, in a folder that the command makes."""
    file = root / "a folder" / "model.onnx"
    assert export.main([str(run), "--out", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def trained(run):
    return load_trained(run)


def ask(file, squares):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": squares[:, None]}), strict=True))


def about(file):
    return onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map


def squares_of(trained, root, paths):
    """The squares of images of the data set, as a stranger makes them from the files."""
    images = [decode(root / "phantom" / path) for path in paths]
    return [trained.to_square(image) for image in images]


def test_file_evaluation_and_network_say_the_same(run, file, trained, root):
    table = read_images(run / "evaluation" / "test" / "images.csv")
    made = squares_of(trained, root, table["path"])
    squares = np.stack([square for square, _ in made])
    found = ask(file, squares)
    assert list(found) == ["probability", "cam", "pcam", "fcn"]
    assert found["probability"] == pytest.approx(table["probability"].to_numpy(), abs=1e-4)
    probability, maps = trained.explain(squares)
    assert found["probability"] == pytest.approx(probability, abs=1e-4)
    for name, expected in maps.items():
        assert found[name].shape == (len(table), 1, 64, 64)
        assert found[name].dtype == np.float32
        assert found[name].min() >= 0
        assert found[name].max() <= 1
        assert found[name][:, 0] == pytest.approx(expected, abs=1e-4)
        assert expected.any(), f"{name} is dark everywhere: nothing was compared"
        for (_, geometry), map, (_, row) in zip(made, found[name], table.iterrows(), strict=True):
            full = from_square(map[0], geometry)
            peak = full[int(row[f"{name}_peak_y"]), int(row[f"{name}_peak_x"])]
            assert peak == pytest.approx(full.max(), abs=1e-4)


def test_file_and_predict_say_the_same(run, file, trained, root, tmp_path):
    valid = root / "phantom" / "MURA-v1.1" / "valid"
    words = [str(run), str(valid), "--methods", "fcn", "--out", str(tmp_path / "out")]
    assert predict.main(words) == 0
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert len(table) > 10
    images = [decode(valid / path) for path in table["path"]]
    made = [trained.to_square(image) for image in images]
    found = ask(file, np.stack([square for square, _ in made]))
    expected = table["probability_abnormal"].to_numpy()
    assert found["probability"] == pytest.approx(expected, abs=1e-4)
    called = found["probability"] > float(about(file)["threshold"])
    assert called.tolist() == (table["predicted_abnormal"] == 1).tolist()
    for (_, geometry), map, (_, row) in zip(made, found["fcn"], table.iterrows(), strict=True):
        full = from_square(map[0], geometry)
        peak = full[int(row["map_peak_y"]), int(row["map_peak_x"])]
        assert peak == pytest.approx(full.max(), abs=1e-4)
        shown = decode(tmp_path / "out" / "maps" / f"{row['path']}.fcn.png")
        assert shown / 255 == pytest.approx(full, abs=0.51 / 255 + 1e-4)


def test_an_image_gets_the_same_answer_in_any_batch(file, trained):
    squares = model_file.check_images(trained.recipe)[:, 0]
    together = ask(file, squares)
    for number in (0, 5, 9):
        for name, alone in ask(file, squares[number : number + 1]).items():
            assert alone[0] == pytest.approx(together[name][number], abs=1e-6)


def test_the_file_says_what_it_needs_and_how_it_decides(run, file, trained):
    said = about(file)
    fitted = json.loads((run / "evaluation/test/summary.json").read_text())["fitted"]
    assert float(said["threshold"]) == fitted["threshold"]
    assert float(said["study_threshold"]) == fitted["study_threshold"]
    assert json.loads(said["map_thresholds"])["fcn"] == fitted["maps"]["fcn"]["threshold"]
    assert json.loads(said["map_scales"]) == trained.map_scales
    assert json.loads(said["classes"]) == ["normal", "abnormal"]
    assert said["best_map"] == "fcn"
    assert said["decided_by"] == "val"
    assert "research use only" in said["use"]
    recipe = json.loads(said["preprocessing"])
    assert (recipe["image_size"], recipe["crop"], recipe["contrast"]) == (64, "none", "none")
    assert recipe["normalisation"] == "(image / 255 - 0.2) / 0.2, in the graph"
    data = json.loads(said["training_data"])
    assert data["name"] == "phantom"
    assert data["index_hash"] == trained.hashes["index"]
    assert data["lesion_masks"] == "at most 100, the source's own"
    weights = (run / "checkpoints/best.ckpt").read_bytes()
    assert json.loads(said["checkpoint"])["sha256"] == hashlib.sha256(weights).hexdigest()


def test_no_path_of_this_machine_is_in_file_or_card(root, file):
    for content in (file.read_bytes(), file.with_suffix(".md").read_bytes()):
        for path in (HOUSE, root, Path(torch.__file__).parent):
            assert str(path).encode() not in content


def test_the_card_shows_the_figures_of_this_checkpoint(run, file, trained):
    card = file.with_suffix(".md").read_text()
    summary = json.loads((run / "evaluation/test/summary.json").read_text())
    low, high = summary["intervals"]["fcn/hit"]
    row = f"| `fcn`: hit rate | {summary['fcn/hit']:.3f} | {low:.3f} to {high:.3f} |"
    assert row in card
    assert f"{summary['images']} images of {summary['patients']} patients" in card
    shown = f"`fcn` claims a lesion on {100 * summary['fcn/shown_normal']:.0f} % of the normal"
    assert shown in card
    assert "**Research use only; not a medical device.**" in card
    assert f"above {summary['fitted']['threshold']:.4f}; a study" in card
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert "The training data are drawings" in card
    assert max(map(len, card.replace("|", "\n").splitlines())) < 200


def test_card_and_file_do_not_say_that_val_decided_what_it_could_not(trained):
    assert "Decided by: val.\n" in model_card(trained, "model.onnx", "0" * 64, 0.0)
    without = replace(trained, undecided_maps=("pcam", "fcn"))
    card = " ".join(model_card(without, "model.onnx", "0" * 64, 0.0).split())
    assert "Decided by: val, but of `pcam`, `fcn` nobody: val held no lesion mask, and 0.5" in card
    assert "- The threshold of `pcam`, `fcn` was not decided on any image." in card
    assert json.loads(properties(without)["undecided_maps"]) == ["pcam", "fcn"]
    assert json.loads(properties(trained)["undecided_maps"]) == []


def test_figures_of_another_checkpoint_are_not_shown(run, trained):
    path = run / "evaluation" / "test" / "summary.json"
    kept = path.read_text()
    try:
        path.write_text(kept.replace(trained.hashes["checkpoint"], "0" * 64))
        assert trained.run.summary("test") is None
    finally:
        path.write_text(kept)
    assert trained.run.summary("test") is not None


def test_an_existing_file_or_card_is_left_alone(run, file, tmp_path, capsys):
    before = file.read_bytes()
    assert export.main([str(run), "--out", str(file)]) == 2
    assert f"error: {file} exists; --force replaces it" in capsys.readouterr().err
    assert file.read_bytes() == before
    (tmp_path / "model.md").write_text("mine")
    assert export.main([str(run), "--out", str(tmp_path / "model.onnx")]) == 2
    assert f"error: {tmp_path / 'model.md'} exists" in capsys.readouterr().err


def test_a_file_that_disagrees_is_not_left(run, file, tmp_path, capsys, monkeypatch):
    wrong = onnx.load(file)
    (bias,) = (value for value in wrong.graph.initializer if value.name.endswith("fc.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([0.0, 0.1], np.float32), bias.name))
    monkeypatch.setattr(model_file, "build", lambda *_: wrong.SerializeToString())
    assert export.main([str(run), "--out", str(tmp_path / "new" / "wrong.onnx")]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"wrong.onnx is not written: its probability differs from PyTorch's by \d", said
    )
    assert "0.0001 is allowed" in said
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_no_number_counts_as_wrong():
    numbers = np.zeros(2, np.float32)
    assert model_file._apart(np.array([0, np.nan], np.float32), numbers) == float("inf")
    assert model_file._apart(numbers[:1], numbers) == float("inf")
    assert model_file._apart(numbers, numbers + np.float32(0.5)) == 0.5


@pytest.mark.slow
def test_masks_alone_teach_no_class(root, words, tmp_path, capsys):
    only = [*words, "loss.classification=false", "lesions.per_batch=2", "run.name=masks"]
    assert train.main(["stage3", *only]) == 0
    run, file = run_folder(root, "stage3", "masks"), tmp_path / "masks.onnx"
    last = run / "checkpoints" / "last.ckpt"
    file.write_bytes(b"an older one")
    assert export.main([str(last), "--out", str(file), "--force"]) == 0
    assert sorted(tmp_path.iterdir()) == [file.with_suffix(".md"), file]
    assert "fcn (B, 1, 64, 64), float32 in [0, 1]; trained on lesion masks alone" in (
        capsys.readouterr().out
    )
    trained = load_trained(last)
    assert list(ask(file, model_file.check_images(trained.recipe)[:, 0])) == ["fcn"]
    assert "threshold" not in about(file)
    card = " ".join(file.with_suffix(".md").read_text().split())
    assert "it gives a map of the lesion and no probability" in card
    assert "no evaluation of this very checkpoint on test was found" in card
    assert "`cam`" not in card


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ("model.pt", "name a file that ends in .onnx; its card is then FILE.md"),
        ("folder.onnx", "folder.onnx is a folder; choose another name"),
        ("file/model.onnx", "file is a file and no folder; choose another --out"),
        ("file/new/model.onnx", "file is a file and no folder; choose another --out"),
    ],
)
def test_where_it_cannot_be_written(run, tmp_path, capsys, monkeypatch, out, error):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(model_file, "build", None)  # told before any work
    assert export.main([str(run), "--out", str(tmp_path / out)]) == 2
    assert error in capsys.readouterr().err


def test_no_run_and_no_extra(run, tmp_path, capsys, monkeypatch):
    words = ["--out", str(tmp_path / "model.onnx")]
    assert export.main([str(tmp_path / "none"), *words]) == 2
    assert "none is no run directory (no config.yaml)" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export.main([str(run), *words]) == 2
    assert "an ONNX file needs onnxscript" in (said := capsys.readouterr().err)
    assert "pip install -c constraints.txt -e '.[onnx]'" in said


def test_a_network_that_diverged_has_no_scale():
    module = network().eval()
    module.map_scale[0] = float("nan")
    with pytest.raises(RunError, match="the map scale is nan: .* export another checkpoint"):
        model_file.build(module, 64, {})
