"""Images of odd shapes and sizes: their overlays can be read, their maps fit into memory."""

from __future__ import annotations

import weakref

import cv2
import numpy as np
import pytest

from datamodules.phantom.drawing import draw as draw_phantom
from experiments.prediction import stream as prediction
from experiments.prediction.overlay import draw as draw_overlay
from tests.predictions import rows_of, save, told
from tests.untrained import judge, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return judge(make_run(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def phantoms():
    return [draw_phantom(0, number).image for number in range(6)]


@pytest.mark.parametrize("shape", [(2000, 33), (33, 2000), (32, 32), (4000, 32)])
def test_narrow_images_have_overlays_with_words_that_can_be_read(run, tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    save(tmp_path / "in" / "narrow.png", image)
    assert told(run, tmp_path / "in", "--out", tmp_path / "out") == 0
    picture = cv2.imread(str(tmp_path / "out" / "overlays" / "narrow.png.fcn.png"))
    assert picture.shape[1] > 250
    assert (picture[-30:] > 128).any(axis=(0, 2)).sum() > 100  # words, not a smear


def test_an_overlay_that_cannot_be_drawn_ends_nothing(run, phantoms, tmp_path, monkeypatch, capsys):
    def fails(shown, *words, **more):
        if shown.image.shape == (40, 50):
            raise TypeError("no picture")
        return draw_overlay(shown, *words, **more)

    monkeypatch.setattr("experiments.prediction.stream.draw", fails)
    save(tmp_path / "in" / "a.png", phantoms[0])
    save(tmp_path / "in" / "b.png", np.zeros((40, 50), np.uint8))
    save(tmp_path / "in" / "c.png", phantoms[1])
    out = tmp_path / "out"
    assert told(run, tmp_path / "in", "--out", out) == 1
    rows = rows_of(out)
    assert [bool(row.error) for row in rows.values()] == [False, True, False]
    assert "no overlay can be drawn of its 50 x 40 pixels (TypeError: no picture)" in (
        rows["b.png"].error
    )
    assert rows["b.png"].probability_abnormal is not None
    assert len(list((out / "maps").iterdir())) == 9
    assert len(list((out / "overlays").iterdir())) == 2
    printed = capsys.readouterr()
    assert "; 1 without an overlay; 3 of them now" in printed.out
    assert "b.png: no overlay can be drawn" in printed.err


def test_of_large_images_one_map_is_held_at_a_time(run, phantoms, tmp_path, monkeypatch):
    held, most = weakref.WeakSet(), []

    class Tracked(np.ndarray):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

    def counted(*words):
        full = full_map(*words).view(Tracked)
        held.add(full)
        most.append(len(held))
        return full

    full_map = prediction.full_map
    monkeypatch.setattr(prediction, "LARGE", 0)
    monkeypatch.setattr(prediction, "full_map", counted)
    for number, image in enumerate(phantoms):
        save(tmp_path / "in" / f"{number}.png", image)
    assert told(run, tmp_path / "in", "--out", tmp_path / "out") == 0
    assert len(most) == 3 * len(phantoms)
    assert max(most) == 1
