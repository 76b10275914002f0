import pytest
import torch
from torch import nn

from lightning_modules.encoder import ENCODERS, STRIDE, Bottleneck, ResNet23, enlarge
from lightning_modules.options import STRIDES
from lightning_modules.stage1 import Stage1Classifier
from tests.stages import names_without_gradient


def test_classifier_has_23_weighted_layers():
    weighted = [
        name
        for name, module in Stage1Classifier().named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(weighted) == 23


def test_moving_the_image_by_one_stride_moves_the_features_by_one_position():
    torch.manual_seed(0)
    encoder = ResNet23(width=0.25).eval()
    for block in encoder.modules():
        if isinstance(block, Bottleneck):
            nn.init.ones_(block.normalise3.weight)  # so that the 3x3 convolutions take part
    image = torch.zeros(1, 1, 352, 352)
    image[:, :, 160:176, 170:180] = torch.rand(16, 10)
    with torch.no_grad():
        features = encoder(image)[-1]
        moved = encoder(image.roll(STRIDE, dims=3))[-1]
    inside = features[:, :, 5:-5, 5:-6]
    assert inside.std() > 0
    torch.testing.assert_close(moved[:, :, 5:-5, 6:-5], inside, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("width", "first"), [(0.1, 8), (0.3, 16), (1.0, 64), (1.5, 96)])
def test_width_scales_all_but_the_last_128_maps_of_the_paper(width, first):
    encoder = ResNet23(width=width).eval()
    assert (encoder.channels[0], encoder.channels[-1]) == (first, 128)
    with torch.no_grad():
        pyramid = encoder(torch.rand(1, 1, 320, 320))
    assert [feature.shape[-1] for feature in pyramid] == [80, 40, 20]


def test_channels_last_and_bf16_give_the_same_features():
    torch.manual_seed(0)
    encoder, image = ResNet23(width=0.5).eval(), torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = encoder(image)[-1]
        encoder = encoder.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(encoder(image)[-1], expected, atol=1e-5, rtol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = encoder(image)[-1].float()
    assert (low - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 160, 150), "divisible by 16, got 160 x 150 pixels"),
        ((1, 1, 8, 16), "divisible by 16, got 8 x 16 pixels"),
        ((1, 1, 0, 16), "divisible by 16, got 0 x 16 pixels"),
        ((1, 3, 32, 32), "expects grey images"),
        ((1, 32, 32), "expects grey images"),
    ],
)
def test_other_images_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        ResNet23(width=0.25)(torch.zeros(shape))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_what_the_stages_need(name):
    assert ENCODERS.keys() == STRIDES.keys()
    encoder = ENCODERS[name](width=0.25)
    pyramid = encoder(torch.randn(2, 1, 96, 64))
    pyramid[-1].sum().backward()
    assert names_without_gradient(encoder) == []
    assert encoder.strides[-1] == STRIDES[name]
    for feature, channels, stride in zip(pyramid, encoder.channels, encoder.strides, strict=True):
        assert feature.shape == (2, channels, 96 // stride, 64 // stride)
        assert feature.min() >= 0
        assert feature.max() > 0
    blocks = [f"{block}." for block in encoder.blocks()]
    below = [next(b for b in blocks if name.startswith(b)) for name in encoder.state_dict()]
    assert list(dict.fromkeys(below)) == blocks[::-1]  # all weights, the last ones first


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_cell_looks_where_enlarge_puts_it(level):
    # Where a cell looks is measured: the centre of mass of its gradient with respect to the image.
    torch.manual_seed(0)
    encoder = ResNet23().eval().double()
    stride = 2 ** (level + 2)
    image = torch.rand(8, 1, 320, 320, dtype=torch.float64).requires_grad_()
    row, column = 160 // stride, 128 // stride
    encoder(image)[level][:, :, row, column].sum().backward()
    weight = image.grad.abs().sum((0, 1))
    pixels = torch.arange(320.0, dtype=torch.float64)
    x = (weight.sum(0) * pixels).sum() / weight.sum()
    y = (weight.sum(1) * pixels).sum() / weight.sum()

    spot = torch.zeros(1, 1, 320 // stride, 320 // stride)
    spot[..., row, column] = 1
    drawn = enlarge(spot, (320, 320))[0, 0].double()
    assert (drawn.sum(0) * pixels).sum() / drawn.sum() == pytest.approx(float(x), abs=0.25 * stride)
    assert (drawn.sum(1) * pixels).sum() / drawn.sum() == pytest.approx(float(y), abs=0.25 * stride)
