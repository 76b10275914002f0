"""Which images are worth annotating, and what a map outlines on them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.annotations.marks import Mark, draw
from experiments.annotation.checks import check_mark
from experiments.annotation.choosing import Look, choose_images
from experiments.annotation.package import outline


@pytest.fixture
def table():
    """20 patients of 3 body parts, unevenly; each with 2 studies of 2 images."""
    rows = [
        (f"{patient}/{study}/{view}.png", f"p{patient}", f"p{patient}s{study}", part, False)
        for patient, part in enumerate(["hand"] * 12 + ["wrist"] * 5 + ["elbow"] * 3)
        for study in range(2)
        for view in range(2)
    ]
    return pd.DataFrame(rows, columns=["path", "patient", "study", "body_part", "masked"])


@pytest.fixture
def look(table):
    generator = np.random.default_rng(0)
    return Look(
        generator.normal(size=(len(table), 4)).astype(np.float32),
        generator.exponential(size=len(table)).astype(np.float32),
        np.full(len(table), 0.5, np.float32),
    )


def part_of(look, places):
    return Look(*(values[places] for values in look))


@pytest.fixture(params=["random", "run"])
def how(request, look):
    return look if request.param == "run" else None


def paths(table, count, look=None, seed=0):
    return table["path"].iloc[choose_images(table, count, seed, look)[0]].tolist()


def test_fewer_are_the_beginning_of_more_in_any_order_of_the_table(table, how):
    wanted = paths(table, 30, how)
    assert len(set(wanted)) == 30
    assert paths(table, 11, how) == wanted[:11]
    order = np.random.default_rng(1).permutation(len(table))
    assert paths(table.iloc[order], 30, how and part_of(how, order)) == wanted
    assert len(paths(table, 1000, how)) == len(table)


def test_patients_first_body_parts_in_turn_then_other_studies(table, how):
    chosen = table.iloc[choose_images(table, 60, 0, how)[0]]
    assert chosen["patient"][:20].is_unique
    assert chosen["body_part"][:9].value_counts().eq(3).all()
    assert chosen["patient"][20:40].is_unique
    assert chosen["study"][:40].is_unique


def test_the_seed_decides_at_random(table):
    assert paths(table, 10) != paths(table, 10, seed=1)


def test_what_is_masked_is_not_chosen_but_counts_for_its_patient_and_part(table, how):
    table["masked"] = table["patient"].isin(["p12", "p13", "p14"]) & table["path"].str.endswith(
        "0/0.png"
    )
    chosen = table.iloc[choose_images(table, 17, 0, how)[0]]
    assert not chosen["masked"].any()
    assert not set(chosen["patient"]) & {"p12", "p13", "p14"}
    # The wrist has three already: hand and elbow catch up first.
    assert set(chosen["body_part"][:6]) == {"hand", "elbow"}


def test_a_run_is_asked_for_the_unsure_half_and_then_for_what_is_far():
    table = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(8)],
            "patient": [f"p{number}" for number in range(8)],
            "study": [f"s{number}" for number in range(8)],
            "body_part": "hand",
            "masked": False,
        }
    )
    features = np.array([[0], [1], [10], [4], [100], [200], [300], [400]], np.float32)
    margin = np.array([2, 1, 3, 4, 5, 6, 7, 8], np.float32)
    look = Look(features, margin, np.zeros(8, np.float32))
    places, unsure = choose_images(table, 5, 0, look)
    # The least sure; then the farthest of the less sure half; then the rest, the farthest first.
    assert places.tolist() == [1, 2, 3, 0, 7]
    assert unsure.tolist() == [True, True, True, True, False]
    table.loc[2, "masked"] = True  # then what lies near it is covered already
    assert choose_images(table, 3, 0, look)[0].tolist() == [4, 0, 3]


def test_a_run_covers_its_unsure_half_better_than_chance_or_uncertainty_alone():
    generator = np.random.default_rng(2)
    count = 200
    table = pd.DataFrame({"path": [f"{number}.png" for number in range(count)]})
    table = table.assign(patient=table["path"], study="s", body_part="hand", masked=False)
    features = generator.normal(size=(count, 2)).astype(np.float32)
    margin = np.abs(features[:, 0])  # the unsure lie together
    look = Look(features, margin, np.zeros(count, np.float32))
    unsure = np.argsort(margin)[: count // 2]

    def farthest(places):
        apart = features[unsure][:, None] - features[places]
        return np.linalg.norm(apart, axis=2).min(axis=1).max()

    places, of_half = choose_images(table, 20, 0, look)
    assert of_half.all()
    half = table.iloc[unsure]
    chance = [unsure[choose_images(half, 20, seed)[0]] for seed in range(10)]
    assert farthest(places) < min(map(farthest, chance))
    assert farthest(places) < farthest(unsure[:20])


def blobs(seed, shape=(90, 120)):
    noise = torch.from_numpy(np.random.default_rng(seed).random((1, 1, 8, 10)))
    smooth = torch.nn.functional.interpolate(noise, shape, mode="bilinear")
    return smooth[0, 0].float().numpy()


def test_an_outlined_square_is_drawn_back_to_the_pixel():
    shown = np.zeros((40, 60), np.float32)
    shown[10:20, 30:50] = 0.7
    (polygon,) = outline(shown, 0.7)
    assert sorted(polygon) == [(30.5, 10.5), (30.5, 19.5), (49.5, 10.5), (49.5, 19.5)]
    drawn = draw([Mark("", tuple(polygon))], 40, 60)
    assert (drawn > 0).tolist() == (shown > 0).tolist()
    assert outline(shown, 0.71) == []
    assert outline(np.zeros((40, 60)), 0.0) == []


@pytest.mark.parametrize("seed", range(10))
def test_outlines_are_near_the_map_and_sound(seed):
    shown = blobs(seed)
    polygons = outline(shown, 0.6)
    areas = [abs(shoelace(polygon)) for polygon in polygons]
    assert areas == sorted(areas, reverse=True)
    marks = [Mark("", tuple(polygon)) for polygon in polygons]
    assert [check_mark(mark, shown.shape) for mark in marks] == [""] * len(marks)
    drawn, wanted = draw(marks, *shown.shape) > 0, shown >= 0.6
    assert (drawn & wanted).sum() / (drawn | wanted).sum() > 0.8  # holes are filled


def shoelace(polygon):
    x, y = np.array(polygon).T
    return (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
