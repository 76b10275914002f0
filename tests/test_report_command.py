"""The command that writes the page, on real runs."""

import base64
import json
import re
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from experiments import evaluate, report, train
from lightning_modules import STAGES
from tests.runs import run_folder, tiny_words
from tests.test_report import check

NAMES = {"stage1": "seed0", "stage2": "seed0", "stage3": "lambda1.0-seed0"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    words = tiny_words(tmp_path_factory.mktemp("tiny"))
    return [*words, "model.width=0.25", "trainer.max_epochs=1", "lesions.per_batch=2"]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A run of each stage; the first is judged already."""
    root = tmp_path_factory.mktemp("runs")
    for stage in STAGES:
        assert train.main([stage, f"run.root={root}", *tiny]) == 0
    found = [run_folder(root, stage, name) for stage, name in NAMES.items()]
    assert evaluate.main([str(found[0])]) == 0
    return found


@pytest.fixture(scope="module")
def page(runs):
    """What ``make report`` gives after three trainings."""
    assert report.main([*map(str, runs)]) == 0
    return runs[0].parents[1] / "report" / "report.html"


def summary(run):
    return json.loads((run / "evaluation" / "test" / "summary.json").read_text())


@pytest.mark.slow
def test_the_page_holds_what_was_judged(runs, page):
    text = page.read_text()
    said = check(text).said()
    assert len(text) < 5e6
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
    found = summary(runs[2])
    hits = round(found["fcn/hit"] * found["lesions"])
    assert f"In {hits} of {found['lesions']} test images with a drawn lesion" in said
    cell = r'<td><span class="value">([\d.]+)</span>\s*(?:<span class="interval">([^<]*)<)?'
    rows = re.findall(rf'<th scope="row">(\w+)</th>\s*{cell}', text)
    own = [("CAM", "cam"), ("PCAM", "pcam")]
    wanted = [
        (name, f"{summary(run)[f'{method}/hit']:.2f}", f"{low:.2f} to {high:.2f}")
        for run, methods in zip(runs, (own, own, [*own, ("FCN", "fcn")]), strict=True)
        for name, method in methods
        for low, high in [summary(run)["intervals"][f"{method}/hit"]]
    ]
    assert rows[: len(wanted)] == wanted
    for run in runs:
        assert f"{summary(run)['auroc']:.3f}" in said
        assert str(run) in said
        assert "python -m experiments.train" in said
    assert "hash of images, labels and splits" in said
    assert "The radiographs are drawings of the phantom" in said


@pytest.mark.slow
def test_pictures_are_the_radiograph_every_map_and_the_mask(runs, page):
    text = page.read_text()
    names = re.findall(r"<figcaption><b>([^<]*)</b>", text[text.index('id="cases"') :])
    case = ["Radiograph", "Stage 1, CAM", "Stage 1, PCAM", "Stage 2, PCAM", "Stage 3, PCAM"]
    case += ["Stage 3, FCN", "Lesion mask"]
    assert names[:7] == case
    encoded = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', text)
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(encoded[-1]), np.uint8), cv2.IMREAD_COLOR)
    assert max(shown.shape) == 480


@pytest.mark.slow
def test_a_stale_evaluation_is_judged_again_and_a_current_one_is_not(runs, page, capsys):
    copy = runs[0].parent / "again"
    shutil.copytree(runs[0], copy)
    assert report.main([str(copy), "--no-images"]) == 0
    assert "judging" not in capsys.readouterr().out
    shutil.copy(copy / "checkpoints" / "last.ckpt", copy / "checkpoints" / "best.ckpt")
    assert report.main([str(copy), "--no-images"]) == 0
    assert "holds no evaluation of this best.ckpt" in capsys.readouterr().out
    shutil.rmtree(copy)


@pytest.mark.slow
def test_masks_that_changed_since_are_refused(runs, page, tmp_path, capsys):
    copy = tmp_path / "phantom" / "stage1" / "seed0"
    shutil.copytree(runs[0], copy)
    path = copy / "evaluation" / "test" / "images.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["lesion_area"] = [f"{2 * float(area)}" if area else "" for area in table["lesion_area"]]
    table.to_csv(path, index=False)
    assert report.main([str(copy)]) == 2
    said = capsys.readouterr().err
    assert "was judged on other data than phantom is today" in said
    assert f"judge anew: python -m experiments.evaluate {copy}" in said
    assert not (tmp_path / "phantom" / "report" / "report.html").exists()


@pytest.mark.slow
def test_without_images_no_data_is_needed_and_no_name_is_told(runs, tmp_path, page):
    folder = tmp_path / 'a <b>"x"</b> & {{ y }}' / "phantom" / "stage1" / "seed0"
    shutil.copytree(runs[0], folder)
    words = [str(folder), "--no-images", "--out", str(tmp_path / "out"), "data.root=/none/"]
    assert report.main(words) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    parsed = check(text)
    assert parsed.of("img", "b")
    assert not parsed.of("img")
    assert "<b>" not in text.split("Runs</h3>")[1]
    assert str(folder) in parsed.said()
    assert "XR_" not in text
    assert "All radiographs were left out" in parsed.said()


@pytest.mark.slow
def test_without_masks_it_is_of_classification(runs, tiny, tmp_path, capsys):
    words = [word for word in tiny if not word.startswith(("data.count", "lesions"))]
    mura = ["data.name=mura", *words, f"run.root={tmp_path}", "data.cache_dir=" + str(tmp_path)]
    assert train.main(["stage1", *mura]) == 0
    run = tmp_path / "mura" / "stage1" / "seed0"
    assert report.main([str(run)]) == 0
    assert "It holds" in (out := capsys.readouterr().out)
    assert "check your data's terms before you pass it on" in out
    said = check((tmp_path / "mura" / "report" / "report.html").read_text()).said()
    assert "The network tells abnormal from normal test images with an AUROC of" in said
    assert "Images are ordered" not in said
    assert "ordered by the probability that the network gives" in said
    assert "DenseNet-169, ImageNet (published, on the valid split)" in said
    assert "This page holds radiographs of mura" in said
    assert report.main([str(run), str(runs[0])]) == 2
    assert "a report is of one data set" in capsys.readouterr().err


@pytest.mark.slow
def test_masks_alone_have_a_page_too(runs, tiny, tmp_path):
    words = [*tiny, f"run.root={tmp_path}", "loss.classification=false"]
    assert train.main(["stage3", *words]) == 0
    assert report.main([str(tmp_path / "phantom" / "stage3" / "lambda1.0-seed0")]) == 0
    said = check((tmp_path / "phantom" / "report" / "report.html").read_text()).said()
    assert "the FCN’s map" in said
    assert "AUROC" not in said


@pytest.mark.slow
def test_what_is_missing_is_named(runs, tmp_path, capsys):
    run = tmp_path / "phantom" / "stage1" / "seed0"
    shutil.copytree(runs[0], run)
    (run / "checkpoints" / "best.ckpt").unlink()
    assert report.main([str(run)]) == 2
    assert "best.ckpt does not exist; name" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert report.main([str(runs[0]), "--out", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert report.main([str(runs[0]), str(runs[0] / "checkpoints" / "best.ckpt")]) == 2
    assert "are of one run" in capsys.readouterr().err
