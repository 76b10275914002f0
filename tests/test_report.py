"""The page for people: what it claims, which pictures it shows, that it opens alone."""

import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from experiments import report
from experiments.evaluation.compare import compare_runs
from experiments.evaluation.groups import group
from experiments.reporting.cases import pick
from experiments.reporting.claim import beside_trivial, best_map, claim, tiles
from experiments.reporting.page import columns_of, hero, render
from experiments.reporting.plots import curves, reliability_plot, sweep_plots, with_ids
from experiments.reporting.runs import train_command
from tests.test_comparison import made


class Page(HTMLParser):
    """What a browser would load, and what a screen reader would say."""

    EMPTY = frozenset(("meta", "img", "br", "link", "input"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.wrong, self.text = [], [], [], []
        self.feed(text)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def of(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]

    def said(self):
        return re.sub(r"\s+", " ", " ".join(self.text).replace("\xa0", " "))


def check(text):
    """Assert what holds of every page, and return it parsed."""
    page = Page(text)
    assert page.wrong == []
    assert text.startswith("<!DOCTYPE html>")
    assert page.of("html")[0]["lang"] == "en"
    assert page.of("script", "link", "iframe", "object") == []
    for attrs in (attrs for _, attrs in page.tags):
        assert not re.match("https?:", attrs.get("src") or "")
        assert (attrs.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attrs)
    assert "url(http" not in text
    assert "@import" not in text
    assert all(attrs["src"].startswith("data:image/") and attrs["alt"] for attrs in page.of("img"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    targets = {attrs["href"][1:] for attrs in page.of("a", "use") if "href" in attrs}
    assert targets <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(new <= old + 1 for old, new in itertools.pairwise(levels))
    assert levels.count(1) == 1
    tables = text.count("<table")
    assert text.count("<caption") == tables
    assert all(attrs.get("scope") for attrs in page.of("th"))
    return page


def joined(*runs):
    return group(runs)


def test_the_claim_counts_the_lesions_and_names_the_map_of_the_last_stage():
    runs = joined(made("stage3"), made("stage1"))
    assert best_map(runs)[1] == "fcn"
    said = claim(runs, "test").replace("\xa0", " ")
    assert said.startswith(
        "In 20 of 20 test images with a drawn lesion, the brightest point of the FCN’s map lies "
        "inside the lesion: 100 %"
    )
    # All right: the bootstrap has no width, which is no certainty.
    assert "no interval can be told" in said
    values = [tile.value.replace("\xa0", " ") for tile in tiles(runs)]
    assert values == ["100 %", "50 %", "1.000"]


def test_seeds_are_joined_by_their_mean():
    low, high = ({"cam": 0.2, "pcam": share} for share in (0.4, 0.8))
    runs = joined(made("stage1", 1, shares=high), made("stage1", 0, shares=low))
    assert [run.config.seed for run in runs[0].runs] == [0, 1]
    found = runs[0].estimate("pcam/hit")
    assert found.value == pytest.approx(0.6)
    assert found.low < 0.6 < found.high
    assert "In 60 % of 20 test" in claim(runs, "test").replace("\xa0", " ")
    assert "mean of 2 trainings" in claim(runs, "test")


def test_without_masks_the_claim_is_of_classification():
    run = made("stage1")
    run.table["lesion_area"] = np.nan
    for method in ("cam", "pcam"):
        run.table[f"{method}_hit"] = np.nan
        run.estimates[f"{method}/hit"] = run.estimates["cam/hit"]._replace(value=float("nan"))
    said = claim(joined(run), "test")
    assert said.startswith("The network tells abnormal from normal test images with an AUROC of 1")
    assert "nobody can say whether its maps show it" in said


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0, "that PCAM’s is better is not shown"), (1.0, "the difference is shown")],
)
def test_whether_the_map_beats_one_that_knows_nothing_is_said(share, said):
    runs = [made("stage1", shares={"cam": 0.0, "pcam": share}, trivial=True)]
    found = beside_trivial(joined(*runs), compare_runs(runs).table)
    assert found.replace("\xa0", " ").startswith("The best map that knows nothing of the image, ")
    assert said in found
    assert beside_trivial(joined(made("stage1")), compare_runs([made("stage1")]).table) == ""


def cases(count=9, normal=4):
    total = count + normal
    lesion = np.arange(total) < count
    return pd.DataFrame(
        {
            "path": [f"{number:02d}.png" for number in range(total)],
            "label": lesion.astype(int),
            "lesion_area": np.where(lesion, 0.02, np.nan),
            "probability": np.linspace(0.9, 0.1, total),
            # Two of equal overlap, 0: the nearer peak is the better one.
            "fcn_iou": np.where(lesion, np.maximum(0.7 - 0.1 * np.arange(total), 0), np.nan),
            "fcn_iou_otsu": np.nan,
            "fcn_distance": np.where(lesion, np.where(np.arange(total) == 7, 0.5, 0.1), np.nan),
            "fcn_area": np.where(lesion, 0.1, [0.0] * count + [0.01, 0.0, 0.2, 0.03][:normal]),
        }
    )


def test_pictures_are_picked_by_the_rule_whatever_the_order():
    table = cases().sample(frac=1, random_state=3)
    rule, picks = pick(table, "fcn")
    found = [(one.kind, table["path"].iloc[one.row]) for one in picks]
    assert found == [
        ("Best", "00.png"),
        ("Best", "01.png"),
        ("Median", "04.png"),
        ("Median", "05.png"),
        ("Worst", "08.png"),
        ("Worst", "07.png"),
        ("False positive", "11.png"),
        ("False positive", "12.png"),
    ]
    assert picks[-1].rank == "number 2 of 3 normal images on which a lesion is shown (4 in all)"
    assert "at val’s threshold" in rule


def test_no_picture_is_shown_twice_and_the_middle_one_comes_first():
    _, picks = pick(cases(1, 0), "fcn")
    assert [(one.kind, one.row) for one in picks] == [("Median", 0)]
    _, picks = pick(cases(4, 0), "fcn")
    assert len({one.row for one in picks}) == len(picks) == 4


def test_without_masks_pictures_are_picked_by_probability():
    table = cases().assign(lesion_area=np.nan)
    rule, picks = pick(table, "fcn")
    assert "ordered by the probability" in rule
    assert [one.row for one in picks if one.kind == "Worst"] == [7, 8]
    assert all(one.kind != "False positive" for one in picks)  # none is called abnormal
    assert pick(table.drop(columns="probability"), "")[1] == []


def test_columns_are_those_of_the_papers_figure():
    runs = joined(*(made(stage) for stage in ("stage1", "stage2", "stage3")))
    names = [column.name for column in columns_of(runs)]
    assert names == [
        "Stage 1, CAM",
        "Stage 1, PCAM",
        "Stage 2, PCAM",
        "Stage 3, PCAM",
        "Stage 3, FCN",
    ]
    cells = [{"name": name} for name in ("Radiograph", *names, "Lesion mask")]
    shown = hero([{"kind": "Median", "cells": cells}], columns_of(runs)[-1])
    assert [one["name"] for one in shown["cells"]] == [
        "Lesion mask",
        "Stage 1, PCAM",
        "Stage 3, FCN",
    ]
    assert hero([], columns_of(runs)[-1]) is None


def test_plots_take_the_pages_colours_and_say_what_they_show():
    table = pd.DataFrame(
        {
            "epoch": range(3),
            "train/l1": [0.7, 0.5, 0.3],
            "train/l3": [0.1, 0.02, 0.01],
            "train/alpha": [0.6, 0.7, 0.8],
            "val/accuracy": [0.5, 0.7, 0.9],
            "val/pcam/hit": [0.1, np.nan, 0.4],
        }
    )
    bins = pd.DataFrame({"images": [3, 0, 5], "probability": [0.1, np.nan, 0.9]})
    sweep = pd.DataFrame({"loss.lambda_lesion": [1.0, 0.0], "val/fcn/hit": [0.9, 0.1]})
    plots = [
        *curves([table, table], [2, 3], ["pcam"], True),
        reliability_plot([bins.assign(abnormal=[0.0, np.nan, 1.0])], "Stage 1"),
        *sweep_plots(sweep),
    ]
    assert len(plots) == 5
    # A network of masks alone was taught no class and no PCAM.
    assert [plot.title for plot in curves([table], [2], ["fcn"], False)] == ["Loss terms on train"]
    for plot in with_ids(plots, "a"):
        assert "var(--series1)" in plot.svg
        assert "#0a00" not in plot.svg
        assert "http" not in plot.svg
        assert "<style" not in plot.svg
    assert "L1 from 0.7 to 0.3; L3 from 0.1 to 0.01" in plots[0].alt
    assert "1.00 at 0.90 (5 images)" in plots[3].alt
    assert "at lambda 0, 1: FCN 0.10, 0.90" in plots[4].alt


def test_the_training_command_names_what_differs_from_the_stages_own_settings():
    run = made("stage3", 2, words=["loss.lambda_lesion=3", "run.name=my run", "loss.alpha=0.5"])
    assert train_command(run.config) == (
        "python -m experiments.train stage3 data.name=phantom seed=2 loss.alpha=0.5 "
        "loss.lambda_lesion=3.0 'run.name=my run'"
    )
    run = made("stage1", words=["data.root=/a b", "loss.class_weights=none"])
    assert "'data.root=/a b'" in train_command(run.config)


HOSTILE = '<script>alert("x")</script>&{{ 7 * 7 }}'


def test_what_is_inserted_is_escaped():
    table = {"count": "", "heads": [(HOSTILE, "")], "sections": []}
    cell = {"name": HOSTILE, "said": HOSTILE, "alt": HOSTILE, "src": "data:image/jpeg;base64,"}
    case = {"kind": "Best", "rank": HOSTILE, "about": HOSTILE, "path": HOSTILE, "cells": [cell]}
    run = {"name": HOSTILE, "folder": HOSTILE, "seed": 0, "checkpoint": HOSTILE, "epoch": "1"}
    run |= {"lightning": "2", "hashes": {HOSTILE: HOSTILE}, "config": HOSTILE, "train": HOSTILE}
    text = render(
        {
            **dict.fromkeys(("title", "about", "data", "split", "claim", "trivial"), HOSTILE),
            **dict.fromkeys(("rule", "pictured", "written", "patients_are"), HOSTILE),
            **dict.fromkeys(("maps", "classifiers", "lesions"), table),
            "parts": {**table, "sections": [{"heading": "", "rows": []}]},
            "tiles": [{"value": HOSTILE, "interval": HOSTILE, "words": HOSTILE}],
            **{name: [HOSTILE] for name in ("alerts", "notes", "commands")},
            "hero": case,
            "cases": [case],
            "images": True,
            "seeds": 1,
            **dict.fromkeys(("compared", "curves", "reliability", "sweeps"), ()),
            "runs": [run],
            "versions": {HOSTILE: HOSTILE},
        }
    )
    page = check(text)
    assert "<script" not in text
    assert "49" not in page.said()
    assert page.said().count('<script>alert("x")</script>') > 15


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a run directory, such as"),
        (["nowhere/seed0"], "nowhere/seed0 is no run directory"),
        (["data.root=x"], "name a run directory"),
    ],
)
def test_what_cannot_be_reported_is_said(words, said, capsys):
    assert report.main(words) == 2
    assert said in capsys.readouterr().err


def test_only_its_own_page_is_overwritten(tmp_path):
    page = report.own_page(tmp_path / "new" / "folder")
    assert page.parent.is_dir()
    page.write_text(f"<!DOCTYPE html><head>{report.MARK}</head>")
    assert report.own_page(page.parent) == page
    page.write_text("my own notes")
    with pytest.raises(ValueError, match="was not written by this command; name another --out"):
        report.own_page(page.parent)
    with pytest.raises(ValueError, match="cannot be written"):
        report.own_page(page)
    assert page.read_text() == "my own notes"
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
