"""Attention maps against slow NumPy references, one loop a symbol of the formula."""

import math

import numpy as np
import pytest
import torch

from lightning_modules import attention

ROUNDING = {"atol": 1e-5, "rtol": 1e-5}


def slow_cam(features, weight, positive_only):
    batch, channels, height, width = features.shape
    maps = np.zeros((batch, len(weight), height, width))
    for b in range(batch):
        for k in range(len(weight)):
            for c in range(channels):
                w = weight[k, c]
                if positive_only and w < 0:
                    continue
                maps[b, k] += w * features[b, c]
    return maps


def slow_upsample(map, height, width):
    """Bilinear: pixel p is sampled at cell p * h / H; beyond the last cell it keeps its value."""
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(y * map.shape[0] / height, map.shape[0] - 1)
            u = min(x * map.shape[1] / width, map.shape[1] - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, map.shape[0] - 1), min(left + 1, map.shape[1] - 1)
            upper = map[top, left] * (1 - u + left) + map[top, right] * (u - left)
            lower = map[bottom, left] * (1 - u + left) + map[bottom, right] * (u - left)
            out[y, x] = upper * (1 - v + top) + lower * (v - top)
    return out


def slow_peak(map):
    """The documented rule with sets of pixels and a walk from neighbour to neighbour."""

    def nearest(pixels):
        cy = sum(y for y, _ in pixels) / len(pixels)
        cx = sum(x for _, x in pixels) / len(pixels)
        # Rounded: pixels at equal distances must tie here as well.
        return min(pixels, key=lambda p: (round((p[0] - cy) ** 2 + (p[1] - cx) ** 2, 9), p))

    top = {(int(y), int(x)) for y, x in np.argwhere(map == map.max())}
    plateau = {nearest(top)}
    while True:
        near = {
            (y + dy, x + dx) for y, x in plateau for dy in (-1, 0, 1) for dx in (-1, 0, 1)
        } & top
        if near == plateau:
            break
        plateau = near
    y, x = nearest(plateau)
    return x, y


def as_map(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]


@pytest.mark.parametrize("batch", [1, 3])
def test_cam_and_pcam_equal_the_reference(batch):
    rng = np.random.default_rng(0)
    features, weight = rng.random((batch, 5, 3, 4)), rng.normal(size=(2, 5))
    arguments = torch.from_numpy(features), torch.from_numpy(weight)
    np.testing.assert_allclose(attention.cam(*arguments), slow_cam(features, weight, False))
    np.testing.assert_allclose(attention.pcam(*arguments), slow_cam(features, weight, True))


def test_pooled_cam_is_the_logit_without_bias():
    features, fc = torch.rand(2, 8, 5, 5), torch.nn.Linear(8, 2)
    logits = fc(features.mean((2, 3)))
    torch.testing.assert_close(attention.cam(features, fc.weight).mean((2, 3)) + fc.bias, logits)


def test_pcam_of_relu_features_is_not_negative():
    assert attention.pcam(torch.rand(2, 8, 5, 5), torch.randn(2, 8)).min() >= 0


@pytest.mark.parametrize(
    ("features", "weight"), [((1, 3, 4, 4), (2, 4)), ((3, 4, 4), (2, 4)), ((1, 3, 4, 4), (3,))]
)
def test_shapes_that_do_not_fit_are_refused(features, weight):
    with pytest.raises(ValueError, match="shapes do not fit"):
        attention.cam(torch.zeros(features), torch.zeros(weight))


def test_normalise_equals_the_reference_image_by_image():
    maps = np.random.default_rng(1).normal(size=(3, 2, 4, 5))
    expected = [[(m - m.min()) / (m.max() - m.min()) for m in image] for image in maps]
    np.testing.assert_allclose(attention.normalise(torch.from_numpy(maps)), expected)


def test_normalise_keeps_the_full_range_of_weak_maps():
    weak = attention.normalise(1e-30 * torch.rand(1, 1, 4, 4))
    assert weak.min() == 0
    assert weak.max() == 1


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_constant_maps_become_zeros_with_finite_gradients(value):
    constant = torch.full((1, 1, 3, 3), value, requires_grad=True)
    normalised = attention.normalise(constant)
    assert torch.equal(normalised, torch.zeros(1, 1, 3, 3))
    attention.soft_mask(attention.upsample(normalised, (6, 6))).sum().backward()
    assert torch.equal(constant.grad, torch.zeros(1, 1, 3, 3))


def test_one_constant_map_does_not_disturb_its_neighbour():
    maps = torch.stack([torch.full((1, 2, 2), 5.0), torch.arange(4.0).view(1, 2, 2)])
    maps.requires_grad_()
    normalised = attention.normalise(maps)
    assert normalised[1].flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    normalised.square().sum().backward()
    assert maps.grad.isfinite().all()
    assert maps.grad[1].abs().sum() > 0


def test_nan_is_not_hidden():
    assert attention.normalise(torch.tensor([[1.0, float("nan")]])).isnan().all()


def test_empty_batches_stay_empty():
    empty = torch.zeros(0, 8, 4, 4)
    maps = attention.pcam(empty, torch.rand(1, 8))
    assert maps.shape == (0, 1, 4, 4)
    mask = attention.soft_mask(attention.upsample(attention.normalise(maps), (8, 8)))
    assert mask.shape == (0, 1, 8, 8)
    assert attention.peak(maps).shape == (0, 2)
    assert attention.has_peak(maps).shape == (0,)


def test_scale_map_cuts_divides_and_clips():
    raw = torch.tensor([-1.0, 0.0, 1.0, 2.0, 5.0])
    assert attention.scale_map(raw, 4.0).tolist() == [0, 0, 0.25, 0.5, 1]
    assert attention.scale_map(raw, torch.tensor(4.0)).tolist() == [0, 0, 0.25, 0.5, 1]
    assert attention.scale_map(raw, 0.0).tolist() == [0] * 5


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scale_must_be_finite_and_not_negative(scale):
    with pytest.raises(ValueError, match="map scale: expected a finite number"):
        attention.scale_map(torch.zeros(2), scale)


@pytest.mark.parametrize("size", [(4, 6), (9, 7), (16, 24), (2, 3)])
def test_upsample_equals_the_reference(size):
    map = np.random.default_rng(2).random((4, 6))
    result = attention.upsample(torch.from_numpy(map)[None, None], size)[0, 0]
    np.testing.assert_allclose(result, slow_upsample(map, *size), **ROUNDING)


def test_soft_mask_equals_the_formula():
    map = np.linspace(0, 1, 11)
    expected = [1 / (1 + math.exp(-4 * (a - 0.3))) for a in map]
    np.testing.assert_allclose(attention.soft_mask(torch.from_numpy(map), 4.0, 0.3), expected)
    assert attention.soft_mask(torch.tensor(0.5)).item() == 0.5


def test_bf16_features_give_float32_maps():
    features, weight = torch.rand(2, 8, 5, 5).bfloat16(), torch.randn(2, 8)
    expected = attention.pcam(features.float(), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = attention.pcam(features, weight)
        mask = attention.soft_mask(attention.upsample(attention.normalise(maps), (10, 10)))
    assert maps.dtype == mask.dtype == torch.float32
    torch.testing.assert_close(maps, expected)
    for step in (attention.non_negative, attention.normalise, attention.soft_mask):
        assert step(features).dtype == torch.float32
    assert attention.scale_map(features, 2.0).dtype == torch.float32


def test_gradients_equal_finite_differences():
    torch.manual_seed(3)
    features = torch.rand(2, 3, 3, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 3, dtype=torch.double, requires_grad=True)

    def mask(features, weight):
        map = attention.normalise(attention.pcam(features, weight))
        return attention.soft_mask(attention.upsample(map, (6, 8)), omega=3.0)

    def scaled(features, weight):
        return attention.scale_map(attention.cam(features, weight), 0.7)

    assert torch.autograd.gradcheck(attention.cam, (features, weight))
    assert torch.autograd.gradcheck(mask, (features, weight))
    assert torch.autograd.gradcheck(scaled, (features, weight))


def test_gradient_reaches_bf16_features_through_the_mask():
    features = torch.rand(1, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    map = attention.normalise(attention.pcam(features, torch.rand(1, 3)))
    attention.soft_mask(map).sum().backward()
    assert features.grad.isfinite().all()
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("rows", "x", "y"),
    [
        ([[0, 0, 0], [0, 0, 9], [0, 0, 0]], 2, 1),
        ([[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]], 2, 1),
        ([[-5, -2], [-3, -4]], 1, 0),
        # a constant map: the middle of the image
        ([[0] * 5] * 3, 2, 1),
        ([[4] * 3] * 5, 1, 2),
        # two plateaus: the middle of the one nearer to the centroid of both, never the gap
        ([[1, 1, 1, 0, 0, 0, 1]], 1, 0),
        ([[1, 0, 0, 0, 0, 1, 1, 1]], 6, 0),
        # equally near: the left one, the upper one
        ([[1, 0, 1]], 0, 0),
        ([[1], [0], [1]], 0, 0),
        # a ring: its centroid is not on it
        ([[1, 1, 1], [1, 0, 1], [1, 1, 1]], 1, 0),
        # touching corners join
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], 1, 1),
    ],
)
def test_peak_of_drawn_maps(rows, x, y):
    assert attention.peak(as_map(rows)).tolist() == [[x, y]]
    assert slow_peak(np.array(rows)) == (x, y)


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.9])
def test_peak_equals_the_reference_on_random_plateaus(density):
    rng = np.random.default_rng(int(density * 10))
    for _ in range(40):
        map = (rng.random(rng.integers(1, 12, size=2)) < density).astype(np.float32)
        assert attention.peak(torch.from_numpy(map)[None, None])[0].tolist() == list(slow_peak(map))


def test_peak_stays_in_a_winding_plateau():
    map = torch.zeros(21, 21)
    map[::2] = 1
    map[1::4, -1] = map[3::4, 0] = 1  # one long snake
    map[-1, :] = 0
    map[-1, 3] = 1  # and a pixel apart
    assert attention.peak(map[None, None])[0].tolist() == list(slow_peak(map.numpy()))


def test_peak_of_a_clipped_map_survives_upsampling():
    small = torch.zeros(1, 1, 6, 6)
    small[0, 0, 1:4, 2:5] = 0.7
    large = attention.upsample(small, (61, 61))
    x, y = attention.peak(large)[0].tolist()
    # The middle cell is (3, 2); a cell is 61 / 6 pixels.
    assert abs(x - 30.5) < 1
    assert abs(y - 20.3) < 1


def test_peak_takes_each_image_by_itself_and_any_precision():
    maps = torch.zeros(2, 1, 4, 4)
    maps[0, 0, 3, 1] = 0.01
    maps[1, 0, 0, 2] = 100
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        result = attention.peak(maps.to(dtype).requires_grad_())
        assert result.dtype == torch.float32
        assert not result.requires_grad
        assert result.tolist() == [[1, 3], [2, 0]]


def test_has_peak_tells_constant_maps():
    maps = torch.zeros(3, 1, 4, 4)
    maps[1] = 0.3
    maps[2, 0, 1, 1] = 1e-6
    assert attention.has_peak(maps).tolist() == [False, False, True]
    assert not attention.has_peak(attention.upsample(torch.full((1, 1, 3, 3), 0.3), (31, 31)))


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (4, 4), (1, 1, 0, 4)])
def test_peak_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected maps \(B, 1, H, W\)"):
        attention.peak(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_peak_refuses_maps_that_are_not_finite(value):
    with pytest.raises(ValueError, match="model has diverged"):
        attention.peak(as_map([[0.0, value]]))
