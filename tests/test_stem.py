"""The first convolution: all as PyTorch's own, the image's gradient in another order."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_modules.encoder import Encoder
from lightning_modules.stem import StemConvolution, image_gradient


def both(image, dtype=torch.float32):
    """Our convolution and PyTorch's own with the same weights; each with an image that learns."""
    torch.manual_seed(0)
    ours = StemConvolution(8).to(dtype)
    plain = nn.Conv2d(1, 8, 7, stride=2, padding=3, bias=False).to(dtype)
    plain.load_state_dict(ours.state_dict())
    return [(layer, image.clone().to(dtype).requires_grad_()) for layer in (ours, plain)]


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


def test_bf16_rounds_as_the_plain_convolution_does():
    torch.manual_seed(2)
    (ours, image), (plain, other) = both(torch.randn(4, 1, 64, 64))
    for layer, learns in ((ours, image), (plain, other)):
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(learns)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    assert image.grad.dtype == torch.float32
    assert ours.weight.grad.dtype == torch.float32
    # Both add up in float32 and round once: where the order moves a sum over an edge, by one step.
    assert (image.grad == other.grad).float().mean() > 0.99
    torch.testing.assert_close(image.grad, other.grad, rtol=2**-7, atol=1e-3)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, rtol=1e-2, atol=1e-2)


def test_the_gradient_can_be_differentiated_again():
    torch.manual_seed(3)
    (ours, image), _ = both(torch.randn(2, 1, 8, 8), torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: ours(x).square(), image, atol=1e-6, rtol=1e-4)


def test_without_an_image_that_learns_the_layer_is_pytorchs():
    layer, image = StemConvolution(8), torch.randn(2, 1, 16, 16)
    out = layer(image)
    assert type(out.grad_fn).__name__ == "ConvolutionBackward0"
    plain = functional.conv2d(image, layer.weight, stride=2, padding=3)
    assert torch.equal(out, plain)


def test_the_encoder_begins_with_it():
    assert isinstance(Encoder().stem[0], StemConvolution)
    assert next(iter(Encoder().state_dict())) == "stem.0.weight"
