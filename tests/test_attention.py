"""Attention maps against slow references and known answers."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_modules import attention

NAN, INF = float("nan"), float("inf")


def slow_upsample(map, height, width):
    """Bilinear: pixel p is sampled at cell p * h / H; beyond the last cell it keeps its value."""
    place = np.meshgrid(
        *(np.arange(n) * cells / n for n, cells in zip((height, width), map.shape, strict=True)),
        indexing="ij",
    )
    return ndimage.map_coordinates(map, place, order=1, mode="nearest")


def test_cam_and_pcam_equal_the_reference():
    rng = np.random.default_rng(0)
    features, weight = rng.random((3, 5, 3, 4)), rng.normal(size=(2, 5))
    tensors = torch.from_numpy(features), torch.from_numpy(weight)
    for function, used in ((attention.cam, weight), (attention.pcam, np.maximum(weight, 0))):
        slow = np.zeros((3, 2, 3, 4))
        for b, k, c in np.ndindex(3, 2, 5):
            slow[b, k] += used[k, c] * features[b, c]
        np.testing.assert_allclose(function(*tensors), slow)
    fc = torch.nn.Linear(5, 2).double()
    logits = fc(tensors[0].mean((2, 3)))  # the pooled CAM is the logit without bias
    torch.testing.assert_close(attention.cam(tensors[0], fc.weight).mean((2, 3)) + fc.bias, logits)


def test_normalise_equals_the_reference_image_by_image():
    maps = np.random.default_rng(1).normal(size=(3, 2, 4, 5))
    expected = [[(m - m.min()) / (m.max() - m.min()) for m in image] for image in maps]
    np.testing.assert_allclose(attention.normalise(torch.from_numpy(maps)), expected)
    weak = attention.normalise(1e-30 * torch.rand(1, 1, 4, 4))
    assert (weak.min(), weak.max()) == (0, 1)
    assert attention.normalise(torch.tensor([[1.0, NAN]])).isnan().all()  # not hidden


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_constant_maps_become_zeros_with_finite_gradients(value):
    maps = torch.stack([torch.full((1, 2, 2), value), torch.arange(4.0).view(1, 2, 2)])
    maps.requires_grad_()
    normalised = attention.normalise(maps)
    assert normalised.flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, 1 / 3, 2 / 3, 1])
    attention.soft_mask(attention.upsample(normalised, (6, 6))).square().sum().backward()
    assert torch.equal(maps.grad[0], torch.zeros(1, 2, 2))
    assert maps.grad[1].isfinite().all()
    assert maps.grad[1].any()


def test_soft_mask_and_scale_map_equal_their_formulas():
    expected = [1 / (1 + math.exp(-4 * (a - 0.3))) for a in (0.0, 0.3, 1.0)]
    mask = attention.soft_mask(torch.tensor([0.0, 0.3, 1.0]), 4.0, 0.3)
    assert mask.tolist() == pytest.approx(expected)
    raw = torch.tensor([-1.0, 0.0, 1.0, 2.0, 5.0])
    for scale, expected in ((4.0, [0, 0, 0.25, 0.5, 1]), (0.0, [0] * 5)):
        assert attention.scale_map(raw, scale).tolist() == expected
        assert attention.scale_map(raw, torch.tensor(scale)).tolist() == expected


@pytest.mark.parametrize("size", [(4, 6), (9, 7), (16, 24), (2, 3)])
def test_upsample_equals_the_reference(size):
    map = np.random.default_rng(2).random((4, 6))
    result = attention.upsample(torch.from_numpy(map)[None, None], size)[0, 0]
    np.testing.assert_allclose(result, slow_upsample(map, *size), atol=1e-5, rtol=1e-5)


def test_bf16_features_give_float32_maps_and_gradients():
    weight = torch.randn(2, 8)
    features = torch.rand(2, 8, 5, 5, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = attention.pcam(features, weight)
        mask = attention.soft_mask(attention.upsample(attention.normalise(maps), (10, 10)))
    torch.testing.assert_close(maps, attention.pcam(features.float(), weight))
    results = [maps, mask, attention.non_negative(features), attention.scale_map(features, 2.0)]
    assert {result.dtype for result in results} == {torch.float32}
    mask.sum().backward()
    assert features.grad.isfinite().all()
    assert features.grad.any()


@pytest.mark.parametrize(
    ("rows", "x", "y"),
    [
        ([[0, 0, 0], [0, 0, 9], [0, 0, 0]], 2, 1),
        ([[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]], 2, 1),
        ([[-5, -2], [-3, -4]], 1, 0),
        ([[0] * 5] * 3, 2, 1),  # a constant map: the middle of the image
        # two plateaus: the middle of the one nearer to the centroid of both, never the gap
        ([[1, 1, 1, 0, 0, 0, 1]], 1, 0),
        ([[1, 0, 0, 0, 0, 1, 1, 1]], 6, 0),
        ([[1, 0, 1]], 0, 0),  # equally near: the left one, the upper one
        ([[1], [0], [1]], 0, 0),
        ([[1, 1, 1], [1, 0, 1], [1, 1, 1]], 1, 0),  # a ring: its centroid is not on it
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], 1, 1),  # touching corners join
        # a hook and a pixel apart: the middle of the hook
        ([[1, 1, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 0]], 2, 1),
    ],
)
def test_peak_of_drawn_maps(rows, x, y):
    low = torch.tensor(rows)[None, None].bfloat16().requires_grad_()
    other = torch.zeros_like(low)
    other[..., -1, 0] = 100  # each image by itself
    result = attention.peak(torch.cat([low, other]))
    assert result.tolist() == [[x, y], [0, len(rows) - 1]]
    assert (result.dtype, result.requires_grad) == (torch.float32, False)


def test_constant_empty_and_diverged_maps_have_no_peak():
    maps = torch.zeros(3, 1, 4, 4)
    maps[1], maps[2, 0, 1, 1] = 0.3, 1e-6
    assert attention.has_peak(maps).tolist() == [False, False, True]
    assert not attention.has_peak(attention.upsample(torch.full((1, 1, 3, 3), 0.3), (31, 31)))
    empty = attention.upsample(maps[:0], (8, 8))
    shapes = [empty.shape, attention.peak(empty).shape, attention.has_peak(empty).shape]
    assert shapes == [(0, 1, 8, 8), (0, 2), (0,)]
    for value in (NAN, INF):
        with pytest.raises(FloatingPointError, match="model has diverged"):
            attention.peak(torch.full((1, 1, 2, 2), value))
