import pytest
import torch

from lightning_modules.decoder import Decoder
from lightning_modules.encoder import ResNet23
from lightning_modules.losses import lesion_loss
from tests.stages import names_without_gradient


@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_map_has_the_size_of_the_image(size):
    encoder = ResNet23(width=0.5).eval()
    decoder = Decoder(encoder.channels).eval()
    with torch.no_grad():
        map = decoder(encoder(torch.rand(2, 1, *size)))
    assert map.shape == (2, 1, *size)
    assert map.dtype == torch.float32
    assert 0 <= map.min() <= map.max() <= 1


def test_features_can_raise_the_map_above_the_bias_and_lower_it():
    """With output weights of one sign, features that are never negative could only darken it."""
    for seed in range(5):
        torch.manual_seed(seed)
        weight = Decoder((64, 128, 128)).output.weight
        assert weight.min() < -0.1
        assert weight.max() > 0.1


def test_every_parameter_of_the_decoder_takes_part_even_without_masks():
    encoder = ResNet23(width=0.25)
    decoder = Decoder(encoder.channels)
    output = decoder(encoder(torch.rand(2, 1, 32, 32)))
    assert output.mean() < 0.2  # it starts dark
    lesion_loss(output, torch.zeros_like(output), torch.zeros(2).bool()).backward(retain_graph=True)
    assert names_without_gradient(decoder) == []
    assert all(p.grad.abs().sum() == 0 for p in decoder.parameters())
    lesion_loss(output, torch.ones_like(output), torch.ones(2).bool()).backward()
    assert encoder.stem[0].weight.grad.abs().sum() > 0
    assert encoder.stages[-1][-1].normalise3.weight.grad.abs().sum() > 0


def test_bf16_gives_a_float32_map_close_to_the_exact_one():
    torch.manual_seed(0)
    encoder = ResNet23(width=0.5).eval()
    decoder = Decoder(encoder.channels).eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = decoder(encoder(image))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            map = decoder(encoder(image))
    assert map.dtype == torch.float32
    torch.testing.assert_close(map, expected, atol=0.02, rtol=0)


def test_learns_where_a_bright_square_is():
    torch.manual_seed(0)
    encoder = ResNet23(width=0.5)
    decoder = Decoder(encoder.channels)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=3e-3)

    def draw(images):
        mask = torch.zeros(images, 1, 48, 48)
        for one in mask:
            y, x = torch.randint(0, 36, (2,)).tolist()
            one[:, y : y + 12, x : x + 12] = 1
        return 0.5 * torch.randn(images, 1, 48, 48) + 2 * mask, mask

    for _ in range(40):
        image, mask = draw(8)
        loss = lesion_loss(decoder(encoder(image)), mask, torch.ones(8).bool())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, mask = draw(16)
    encoder.eval()
    decoder.eval()
    with torch.no_grad():
        map = decoder(encoder(image))
    overlap = ((map > 0.5) & (mask > 0)).sum() / ((map > 0.5) | (mask > 0)).sum()
    assert overlap > 0.7


def test_other_pyramids_are_refused():
    with pytest.raises(ValueError, match="expects 3 features, strides 4, 8 and 16"):
        Decoder((32, 64, 128, 128))
