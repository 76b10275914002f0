"""Trivial maps: what they show, and that no network or class takes part."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.geometry import letterbox
from experiments.evaluation.baselines import STEP, Centre, Edges, MeanMask, Noise, baselines, smooth
from experiments.evaluation.methods import fit_scale, raw_map, shown_map
from lightning_modules.attention import peak

SIZE = 64


def data(masks=()):
    """A tall image (row 0), and one with a crop that fills the square (row 1)."""
    geometry = [letterbox(80, 40, SIZE), letterbox(50, 90, SIZE, (20, 0, 50, 50))]
    pixels = SimpleNamespace(geometry_of=geometry.__getitem__, mask=list(masks).__getitem__)
    return SimpleNamespace(pixels=pixels, lesion_rows=np.arange(len(masks)))


def batch(rows=(0, 1)):
    return {"index": torch.tensor(rows)}


def full(method, image, rows=(0, 1)):
    raw = raw_map(method, None, image, batch(rows))
    assert raw.shape == (len(rows), 1, SIZE // STEP, SIZE // STEP)
    assert raw.min() >= 0
    return shown_map(raw, fit_scale(raw.amax((1, 2, 3)).tolist()), image.shape[-2:])


def test_the_centre_prior_is_a_bump_of_the_contents_shape():
    image = torch.randn(2, 1, SIZE, SIZE)
    shown = full(Centre(data()), image)
    assert peak(shown).tolist() == [pytest.approx([31.5] * 2, abs=STEP)] * 2
    spread = [
        float((one > 0.5).any(dim=0).sum() / (one > 0.5).any(dim=1).sum()) for one in shown[:, 0]
    ]
    assert spread == pytest.approx([0.5, 1.0], abs=0.1)
    assert torch.equal(shown, full(Centre(data()), -image))


def test_the_mean_mask_lies_where_lesions_were():
    masks = np.zeros((3, SIZE, SIZE), dtype=np.uint8)
    masks[:2, 8:16, 40:56] = 255
    masks[2, 50:54, 4:8] = 255
    shown = full(MeanMask(data(masks)), torch.randn(2, 1, SIZE, SIZE))
    assert peak(shown).tolist() == [pytest.approx([47.5, 11.5], abs=STEP)] * 2
    assert 0 < shown[0, 0, 52, 6] < 0.5
    assert [one.name for one in baselines(data(masks))] == ["centre", "mean_mask", "edges", "noise"]
    assert [one.name for one in baselines(data())] == ["centre", "edges", "noise"]


def test_the_edge_map_peaks_on_the_edge_and_is_dark_elsewhere():
    image = torch.zeros(2, 1, SIZE, SIZE)
    image[0, ..., 40:] = 3.0
    image[1] = 1.0
    shown = full(Edges(), image)
    assert abs(float(peak(shown)[0, 0]) - 39.5) <= STEP
    assert shown[0, 0, :, :20].max() < 0.01
    assert shown[1].max() == 0


def test_noise_depends_on_the_image_alone():
    image = torch.randn(3, 1, SIZE, SIZE)
    shown = full(Noise(), image, rows=(5, 6, 7))
    alone = Noise()(None, image[1:2], batch([6]))
    torch.testing.assert_close(alone[0], Noise()(None, image, batch([5, 6, 7]))[1])
    assert not torch.equal(shown[0], shown[1])
    state = torch.random.get_rng_state()
    Noise()(None, image, batch([5, 6, 7]))
    assert torch.equal(state, torch.random.get_rng_state())


def test_blurring_keeps_the_sum_and_a_constant():
    map = torch.zeros(1, 1, SIZE, SIZE)
    map[..., 32, 32] = 1.0
    blurred = smooth(map, 0.05)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    # A Gaussian of 3.2 pixels has 1 / (2 pi 3.2^2) at its top, a little more as its tails are cut.
    assert float(blurred.max()) == pytest.approx(1 / (2 * np.pi * 3.2**2), rel=0.02)
    constant = torch.full((1, 1, 8, 8), 2.0)
    torch.testing.assert_close(smooth(constant, 0.3), constant)
