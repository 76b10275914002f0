"""The page for people: what it claims, which pictures it shows, that it opens alone."""

import json
import re
import shlex
import shutil
from collections import defaultdict
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from experiments import report
from experiments.config import load_config
from experiments.evaluation.compare import group
from experiments.reporting import page as room
from experiments.reporting.cases import pick
from experiments.reporting.plots import curves, reliability_plot
from tests.test_comparison import made

NAN = float("nan")
HOSTILE = '<script>alert("x")</script>&{{ 999 * 999 }}'


def read(path):
    """Assert what holds of every page, and return its text and the words that people read."""
    text = path.read_text()
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    tags = [(element.tag.rpartition("}")[2], element.attrib) for element in root.iter()]
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    attributes = [pair for _, attrs in tags for pair in attrs.items()]
    ids = [f"#{value}" for name, value in attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {value for name, value in attributes if name.endswith("href")} <= set(ids)
    assert all(value.startswith("data:image/") for name, value in attributes if name == "src")
    assert all(attrs["alt"] for tag, attrs in tags if tag == "img")
    return text, re.sub(r"\s+", " ", " ".join(root.find("body").itertext()))


@pytest.fixture
def show(monkeypatch, tmp_path):
    """Write the page of made runs, which have no network; its words."""

    def show(*runs, **more):
        for run in runs:
            run.folder = run.target = tmp_path / run.folder
            run.folder.mkdir(parents=True, exist_ok=True)
            (run.folder / "config.yaml").write_text(HOSTILE)
            run.about |= {"checkpoint": "best.ckpt", "epoch": 1, "epochs": 1}
        opened = {"content": {"pytorch-lightning_version": "2"}, "trained_on": defaultdict(str)}
        monkeypatch.setattr(room, "judged", lambda *_, **__: list(runs))
        monkeypatch.setattr(room, "open_run", lambda *_: SimpleNamespace(**opened))
        content = room.gather([], "test", [], images=False) | {"words": [HOSTILE]} | more
        room.write_page(tmp_path / "page.html", **content)
        return read(tmp_path / "page.html")[1]

    return show


PERFECT = (
    "In 20 of 20 test images with a drawn lesion, the brightest point of the FCN’s map lies inside "
    # The bootstrap of equal values has no width, which is no certainty.
    "the lesion: 100 % (all patients alike: no interval)."
)


def test_the_claim_is_of_the_last_map_of_the_last_stage(show):
    page = show(made("stage3", trivial=True), made())
    rival = "map that knows nothing of the image’s class, noise, reaches 0 %: the difference is"
    classifier = "50 % of images with a lesion: the same for the classifier’s own"
    for claim in (PERFECT, classifier, rival):
        assert claim in page
    looks = made("stage3", shares={"pcam": 0.5, "evidence": 0.7, "fcn": 1.0})
    assert "70 % of images with a lesion: the same for the classifier’s own evidence" in show(looks)
    page = show(*(made(seed=seed, shares={"pcam": seed / 5}) for seed in (4, 2)))
    for claim in ("In 60 % of 20 test", "mean of 2 trainings", "joined by their mean", "AUROC"):
        assert claim in page
    alone = made("stage3", words=["loss.classification=false"])
    alone.table, alone.maps = alone.table.drop(columns="probability"), {"fcn": alone.maps["fcn"]}
    alone.fitted, alone.estimates = None, {}
    alone.__post_init__()
    page = show(alone)
    assert (PERFECT in page, "AUROC" in page) == (True, False)


def test_without_masks_the_page_goes_by_probability_and_what_is_inserted_is_escaped(show):
    run = made(name=HOSTILE, words=["data.name=mura"])
    run.table[run.table.filter(regex="lesion_area|_hit|_iou|_distance").columns] = NAN
    run.table = run.table.assign(body_part=HOSTILE, lesion_type=HOSTILE)
    dark = {"lesion_pixels": np.zeros((40, 256)), "pixels": np.zeros((40, 256))}
    run.maps, run.estimates = {"pcam": run.maps["pcam"]._replace(**dark)}, {}
    leak = "2 images of val or test are also in train, pixel for pixel"
    run.notes = [HOSTILE, f"half finished: {HOSTILE}", leak]
    run.__post_init__()
    picture = {"name": HOSTILE, "src": "data:image/jpeg;base64,", "hit": 1.0, "area": NAN}
    case = run.table.iloc[0].to_dict() | {"kind": "Median", "number": 1, "count": 1}
    page = show(run, cases=[{**case, "path": HOSTILE, "pictures": [picture]}])
    claims = ["with an AUROC of", "no test image has a lesion mask, so that nobody can say whether"]
    claims += ["ordered by the probability", "DenseNet-169, ImageNet (published, on", "pass it on"]
    assert [claim for claim in claims if claim not in page] == []
    assert "998001" not in page
    assert f"Careful: stage 1, seed 0: {leak}" in page  # on the first screen
    assert page.count('<script>alert("x")</script>') > 12


def cases(count=9, normal=4, **columns):
    """Images of which lesion 0 is found best, normal image 11 claimed most; in no order."""
    number = np.arange(count + normal)
    values = {
        "path": [f"{n:02d}" for n in number],
        "label": number < count,
        "lesion_area": 0.02,
        "probability": 0.9 - 0.07 * number,
        # Two of equal overlap, 0: the nearer peak is the better one.
        "fcn_iou": np.maximum(0.7 - 0.1 * number, 0),
        "fcn_iou_otsu": number / 20,
        "fcn_distance": np.where(number == 7, 0.5, 0.1),
        "fcn_area": [*[0.1] * count, *[0.01, 0.0, 0.2, 0.03][:normal]],
    }
    table = pd.DataFrame(values).assign(**columns).sample(frac=1, random_state=3)
    lesion_figures = ["lesion_area", "fcn_iou", "fcn_iou_otsu", "fcn_distance"]
    table.loc[~table["label"], lesion_figures] = NAN
    return table


def test_pictures_are_picked_by_a_rule():
    for table, rule, rows in (
        (cases(), "val", "B00 B01 M04 M05 W08 W07 F11 F12"),
        (cases(fcn_iou=NAN), "Otsu", "B08 B07 M04 M03 W01 W00 F11 F12"),
        (cases(1, 0), "val", "M00"),  # none twice
        (cases(lesion_area=NAN), "probability", "B00 B01 M04 M05 W07 W08"),
        (cases(lesion_area=NAN).drop(columns="probability"), "", ""),
    ):
        by, picked = pick(table, "fcn")
        kinds = [f"{row['kind'][0]}{row['path']}" for row in picked.to_dict("records")]
        assert (by, " ".join(kinds)) == (rule, rows)
    picked = pick(cases(), "fcn")[1]
    assert picked["number"].tolist() == [1, 2, 5, 6, 8, 9, 1, 2]
    assert picked["count"].tolist() == [9] * 6 + [3] * 2


def test_plots_take_the_pages_colours_and_say_what_they_show(tmp_path):
    run = made(shares={"pcam": 0.5})
    run.folder, run.about["epoch"] = tmp_path, 2
    logged = {"epoch": range(3), "train/l1": [0.7, 0.5, 0.3], "train/l3": [0.1, 0.02, 0.01]}
    logged |= {"train/alpha": [0.6, 0.7, 0.8], "val/auroc": 0.5, "val/pcam/hit": [0.1, NAN, 0.4]}
    pd.DataFrame(logged).to_csv(tmp_path / "metrics.csv")
    (one,) = group([run])
    plots = [*curves(one), reliability_plot(one)]
    alt = ["L1 from 0.7 to 0.3; L3 from 0.1 to 0.01", "alpha from 0.6 to 0.8; AUROC from 0.5 to"]
    alt += ["PCAM from 0.1 to 0.4", "0.00 at 0.20 (20 images), 1.00 at 0.90 (20 images)"]
    for plot, words in zip(plots, alt, strict=True):
        assert words in plot.alt
        assert "var(--series1)" in plot.svg
        assert not re.search(r"#[0-9a-f]{6}\b|<metadata|<\?xml", plot.svg)


def test_the_training_command_names_what_differs_from_the_stages_own_or_the_recipe():
    for words in (
        "stage3 data.name=phantom seed=2 'data.root=/a b' loss.alpha=0.5 'run.name=my run'",
        "experiments/fractures.yaml data.name=phantom seed=2 data.root=/a trainer.max_epochs=3",
        "stage1 data.name=phantom model.encoder=timm:a model.weights=w optimizer.encoder_scale=1.0",
    ):
        config = load_config((each := shlex.split(words))[0], each[1:])
        room.resolve(config, room.build_data(config))
        assert room.train_command(config) == f"python -m experiments.train {words}"


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """Two stages, reported as ``make report`` does."""
    root = tmp_path_factory.mktemp("runs")
    copies = [trained.copy(stage, root, stage == "stage3") for stage in ("stage1", "stage3")]
    (root / "phantom/sweeps/own & fine").mkdir(parents=True)
    (root / "phantom/sweeps/own & fine/plot.png").write_bytes(b"plot")
    assert report.main([*map(str, copies)]) == 0  # judges the first
    return copies


@pytest.mark.slow
def test_the_page_holds_what_was_judged(runs):
    text, words = read(runs[0].parents[1] / "report" / "report.html")
    judged = [json.loads((run / "evaluation/test/summary.json").read_text()) for run in runs]
    hits = round(judged[1]["fcn/hit"] * judged[1]["lesions"])
    assert f"In {hits} of {judged[1]['lesions']} test images with a drawn lesion" in words
    cell = r'<td><span class="value">([\d.]+)</span>\s*<span class="interval">([^<]*)<'
    wanted = [
        (method.upper(), f"{one[f'{method}/hit']:.2f}", f"{low:.2f} to {high:.2f}")
        for one, methods in zip(judged, ("cam pcam", "cam pcam fcn"), strict=True)
        for method in methods.split()
        for low, high in [one["intervals"][f"{method}/hit"]]
    ]
    assert re.findall(rf'<th scope="row">(\w+)</th>\s*{cell}', text)[:5] == wanted
    assert "drawings of the phantom and show nobody" in words
    assert "Sweep own & fine, on val" in words
    assert 'src="data:image/png;base64,cGxvdA=="' in text
    names = re.findall("<figcaption><b>([^<]*)</b>", text)
    assert names[:3] == ["Lesion mask", "Stage 1, PCAM", "Stage 3, FCN"]
    maps = ["Stage 1, CAM", "Stage 1, PCAM", "Stage 3, PCAM", "Stage 3, FCN"]
    assert names[3:9] == ["Radiograph", *maps, "Lesion mask"]


@pytest.mark.slow
def test_without_images_no_data_is_needed(runs, tmp_path, capsys):
    run = shutil.copytree(runs[0], tmp_path / 'a <b>"x"</b> & {{ y }}' / "seed0")
    assert report.main([str(run), "--no-images", "--out", str(tmp_path), "data.root=/none/"]) == 0
    text, words = read(tmp_path / "report.html")
    assert not re.search("<img|XR_", text)
    assert f"seed 0: {run}" in words
    assert "judging" not in capsys.readouterr().out


@pytest.mark.slow
def test_what_was_judged_on_other_data_is_judged_again(runs, tmp_path, capsys):
    run = shutil.copytree(runs[0], tmp_path / "run")
    summary = run / "evaluation/test/summary.json"
    whole = summary.read_text()
    for changed in (
        lambda on: on | {"mask_hash": ""},
        lambda on: on | {"rows": ""},
        lambda _: None,
    ):
        about = json.loads(whole)  # other masks; studies or body parts; once it was not written
        summary.write_text(json.dumps(about | {"judged_on": changed(about["judged_on"]), "a": 1}))
        assert report.main([str(run), "--out", str(tmp_path)]) == 0
        assert "no evaluation of this checkpoint on test as the data" in capsys.readouterr().out
        assert summary.read_text() == whole.replace(str(runs[0]), str(run))
    assert report.main([str(run), "--out", str(tmp_path)]) == 0
    assert "judging" not in capsys.readouterr().out


@pytest.mark.slow
def test_what_cannot_be_reported_is_named(runs, tmp_path, capsys):
    def refused(message, *words):
        assert report.main([*map(str, words)]) == 2
        assert message in capsys.readouterr().err

    run, page = shutil.copytree(runs[0], tmp_path / "run"), tmp_path / "report.html"
    page.write_text("my own notes")
    refused("no trained run in runs/phantom. Fix: make stage1 DATA=phantom, or name")
    refused("was not written by this command. Fix: name", run, "--out", tmp_path)
    assert page.read_text() == "my own notes"
    (run / "checkpoints/best.ckpt").unlink()
    refused("best.ckpt does not exist", run)
