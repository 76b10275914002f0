"""The first convolution: all as PyTorch's own, the image's gradient in another order."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from lightning_modules.encoder import Encoder
from lightning_modules.stage1 import Stage1Classifier
from lightning_modules.stage2 import Stage2GuidedAttention
from lightning_modules.stage3 import Stage3WeaklySupervised
from lightning_modules.stem import StemConvolution, image_gradient


def both(image, dtype=torch.float32):
    """Our convolution and PyTorch's own with the same weights; each with an image that learns."""
    torch.manual_seed(0)
    ours = StemConvolution(8).to(dtype)
    ours.fast_gradient = True
    plain = nn.Conv2d(1, 8, 7, stride=2, padding=3, bias=False).to(dtype)
    plain.load_state_dict(ours.state_dict())
    return [(layer, image.clone().to(dtype).requires_grad_()) for layer in (ours, plain)]


def rms(values):
    return values.double().square().mean().sqrt()


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (32, 48), (8, 20)])
def test_gradients_are_those_of_a_plain_convolution(size):
    torch.manual_seed(1)
    (ours, image), (plain, other) = both(torch.randn(3, 1, *size), torch.float64)
    out, expected = ours(image), plain(other)
    assert torch.equal(out, expected)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(image.grad, other.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)


def test_every_weight_reaches_its_pixel():
    """One output, one weight: the pixel that it saw gets the weight and no other anything."""
    weight = torch.arange(1.0, 50.0).view(1, 1, 7, 7)
    gradient = torch.zeros(1, 1, 8, 8)
    gradient[..., 4, 3] = 1.0
    found = image_gradient(gradient, weight)
    expected = torch.zeros(1, 1, 16, 16)
    expected[..., 5:12, 3:10] = weight
    assert torch.equal(found, expected)


def test_bf16_sums_are_no_further_from_the_exact_ones_than_pytorchs():
    torch.manual_seed(2)
    pairs = both(torch.randn(4, 1, 64, 64))
    gradients = []
    for layer, learns in pairs:
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(learns)
        assert out.dtype == torch.bfloat16
        (slope,) = torch.autograd.grad(out.float().square().sum(), out, retain_graph=True)
        out.backward(slope)
        assert learns.grad.dtype == layer.weight.grad.dtype == torch.float32
        gradients.append(learns.grad)
        weight = layer.weight.detach().bfloat16().double()
        exact = conv2d_input(learns.shape, weight, slope.double(), stride=2, padding=3)
    ours, plain = (rms(found - exact) / rms(exact) for found in gradients)
    # Where the processor multiplies bf16, both add up in float32 and round once: half a step of
    # 2^-8 at most. Elsewhere PyTorch's rounds on the way.
    assert ours < 2**-9
    assert ours < 1.1 * plain
    (layer, _), (other, _) = pairs
    torch.testing.assert_close(layer.weight.grad, other.weight.grad, rtol=1e-2, atol=1e-2)


def test_float32_sums_are_as_exact_as_sums_of_float32_are():
    torch.manual_seed(4)
    image, slopes = torch.randn(4, 1, 64, 64), torch.randn(4, 8, 32, 32)
    found = []
    for dtype in (torch.float32, torch.float64):
        (layer, learns), _ = both(image, dtype)
        layer(learns).backward(slopes.to(dtype))
        found.append(learns.grad)
    assert rms(found[0] - found[1]) / rms(found[1]) < 3e-7


def test_the_gradient_can_be_differentiated_again():
    torch.manual_seed(3)
    (ours, image), _ = both(torch.randn(2, 1, 8, 8), torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: ours(x).square(), image, atol=1e-6, rtol=1e-4)


def test_sides_that_are_no_blocks_are_left_to_pytorch():
    (ours, image), (plain, other) = both(torch.randn(1, 1, 18, 21))
    assert torch.equal(ours(image), plain(other))
    ours(image).sum().backward()
    plain(other).sum().backward()
    assert torch.equal(image.grad, other.grad)


@pytest.mark.parametrize(("fast", "learns"), [(True, False), (False, True)])
def test_unless_asked_for_an_image_that_learns_the_layer_is_pytorchs(fast, learns):
    layer, image = StemConvolution(8), torch.randn(2, 1, 16, 16, requires_grad=learns)
    layer.fast_gradient = fast
    out = layer(image)
    assert type(out.grad_fn).__name__ == "ConvolutionBackward0"
    plain = functional.conv2d(image, layer.weight, stride=2, padding=3)
    assert torch.equal(out, plain)


def test_the_encoder_begins_with_it():
    assert isinstance(Encoder().stem[0], StemConvolution)
    assert next(iter(Encoder().state_dict())) == "stem.0.weight"


def test_from_stage_2_on_it_is_used_when_asked_for():
    assert not Stage1Classifier().encoder.stem[0].fast_gradient
    for stage in (Stage2GuidedAttention, Stage3WeaklySupervised):
        assert not stage().encoder.stem[0].fast_gradient
        assert stage(mask_gradient="convolution").encoder.stem[0].fast_gradient
        with pytest.raises(ValueError, match=r"attention\.gradient=exact is none of"):
            stage(mask_gradient="exact")
