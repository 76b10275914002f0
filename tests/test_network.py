"""The encoder, and the decoder on its pyramid."""

import pytest
import torch
from torch import nn

from lightning_modules.decoder import Decoder
from lightning_modules.encoder import ENCODERS, ResNet23, enlarge
from lightning_modules.losses import squared_error
from lightning_modules.options import STRIDES
from lightning_modules.stage1 import Stage1Classifier
from tests.stages import names_without_gradient, network, small_batch


def test_classifier_has_23_weighted_layers():
    kinds = nn.Conv2d | nn.Linear
    names = [name for name, layer in Stage1Classifier().named_modules() if isinstance(layer, kinds)]
    assert sum("shortcut" not in name for name in names) == 23


@pytest.mark.parametrize(("width", "first"), [(0.1, 8), (1.0, 64), (1.5, 96)])
def test_width_scales_all_but_the_last_128_maps_of_the_paper(width, first):
    encoder = ResNet23(width=width)
    assert (encoder.channels[0], encoder.channels[-1]) == (first, 128)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_what_the_stages_need(name):
    assert {*ENCODERS, "timm"} == STRIDES.keys()
    encoder = ENCODERS[name](width=0.25)
    pyramid = encoder(torch.randn(2, 1, 96, 64))
    pyramid[-1].sum().backward()
    assert names_without_gradient(encoder) == []
    assert encoder.strides[-1] == STRIDES[name]
    for feature, channels, stride in zip(pyramid, encoder.channels, encoder.strides, strict=True):
        assert feature.shape == (2, channels, 96 // stride, 64 // stride)
        assert 0 <= feature.min() < feature.max()
    blocks = [f"{block}." for block in encoder.blocks()]
    below = [next(b for b in blocks if name.startswith(b)) for name in encoder.state_dict()]
    assert list(dict.fromkeys(below)) == blocks[::-1]  # all weights, the last ones first


def test_ddp_gets_a_gradient_of_what_only_finer_features_come_from(monkeypatch):
    class Branched(ResNet23):
        def forward(self, image):
            fine, *coarse = super().forward(image)
            return [self.branch(fine), *coarse]

    module = network("stage1")
    module.encoder = Branched(width=0.25)
    module.encoder.branch = nn.Conv2d(*module.encoder.channels[:1] * 2, kernel_size=1)
    monkeypatch.setattr("lightning_modules.stage1.distributed.is_initialized", lambda: True)
    module.training_step(small_batch(), 0).backward()
    assert names_without_gradient(module) == []


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_cell_looks_where_enlarge_puts_it(level):
    # Where a cell looks is measured: the centre of mass of its gradient with respect to the image.
    torch.manual_seed(0)
    encoder, stride = ResNet23(width=0.5).eval().double(), 2 ** (level + 2)
    image = torch.rand(2, 1, 320, 320, dtype=torch.float64).requires_grad_()
    row, column = 160 // stride, 128 // stride
    encoder(image)[level][:, :, row, column].sum().backward()
    spot = torch.zeros(1, 1, 320 // stride, 320 // stride, dtype=torch.float64)
    spot[..., row, column] = 1
    weight, drawn = image.grad.abs().sum((0, 1)), enlarge(spot, (320, 320))[0, 0]
    pixels = torch.arange(320.0, dtype=torch.float64)
    for axis in (0, 1):
        looks, put = ((one.sum(axis) * pixels).sum() / one.sum() for one in (weight, drawn))
        assert put.item() == pytest.approx(looks.item(), abs=0.25 * stride)


def test_bf16_changes_little_and_the_map_has_the_size_of_the_image():
    torch.manual_seed(0)
    size = (32, 48)
    encoder = ResNet23(width=0.5).eval()
    decoder = Decoder(encoder.channels).eval()
    image = torch.rand(2, 1, *size)
    with torch.no_grad():
        features, map = encoder(image)[-1], decoder(encoder(image)).sigmoid()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low, low_map = encoder(image)[-1].float(), decoder(encoder(image)).sigmoid()
    assert (low - features).abs().max() < 0.05 * features.abs().max()
    assert (map.shape, map.dtype, low_map.dtype) == ((2, 1, *size), torch.float32, torch.float32)
    torch.testing.assert_close(low_map, map, atol=0.02, rtol=0)
    assert 0 <= map.min() <= map.max() <= 1
    assert map.mean() < 0.2  # it starts dark


def test_learns_where_a_bright_square_is():
    torch.manual_seed(0)
    encoder = ResNet23(width=0.5)
    network = nn.Sequential(encoder, Decoder(encoder.channels))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    mask = torch.zeros(336, 1, 48, 48)
    for one, (y, x) in zip(mask, torch.randint(0, 36, (336, 2)), strict=True):
        one[:, y : y + 12, x : x + 12] = 1
    image = 0.5 * torch.randn(mask.shape) + 2 * mask
    for rows in torch.arange(320).split(8):
        loss = squared_error(network(image[rows]), mask[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn, wanted = network.eval()(image[320:]) > 0, mask[320:] > 0
    assert (drawn & wanted).sum() / (drawn | wanted).sum() > 0.7
