import math

import pytest
import torch
from torch.nn import SyncBatchNorm

from lightning_modules.attention import normalise, pcam, soft_mask, upsample
from lightning_modules.stage2 import Stage2GuidedAttention
from tests.stages import SIZE, network, settled, small_batch

IMAGE = "attention.statistics=image"


class Precise(Stage2GuidedAttention):
    """In float64, for finite differences."""

    def classify(self, features, share=None):
        return self.fc(features.mean((2, 3)))


@pytest.fixture
def module():
    # One set of running statistics: in evaluation both passes are then the same function.
    torch.manual_seed(0)
    return settled(network("stage2", IMAGE))


def test_losses_are_those_of_two_passes_written_out(module):
    assert module.alpha == pytest.approx(math.exp(0.5) / math.e)  # as at chance
    module.eval()
    module.alpha = 0.7
    batch = small_batch()
    features = module.encoder(batch["image"])[-1]
    own = pcam(features, module.fc.weight[1:])
    mask = torch.sigmoid(10 * (upsample(normalise(own), (SIZE, SIZE)) - 0.5))
    cross_entropy = torch.nn.functional.cross_entropy
    l1 = cross_entropy(module.fc(features.mean((2, 3))), batch["label"])
    masked = module.fc(module.encoder(batch["image"] * mask)[-1].mean((2, 3)))
    l2 = cross_entropy(masked, batch["label"])
    named, outputs = module.losses(batch)
    expected = {"l1": l1, "l2": l2, "loss": 0.3 * l1 + 0.7 * l2, "alpha": torch.tensor(0.7)}
    torch.testing.assert_close(named, {name: expected[name] for name in named})
    torch.testing.assert_close(outputs.logits, module(batch["image"]))
    torch.testing.assert_close(outputs.masked, masked)
    module.validation_step(batch, 0)  # counts the masked pass
    right = (masked.argmax(1) == batch["label"]).sum()
    assert module.val_means.sums["masked_accuracy"].tolist() == [right, 4]


def test_masked_out_pixels_become_the_fill():
    module = network("stage2", "attention.omega=1000", "attention.fill=-1")
    attention = torch.zeros(1, 1, 4, 4)
    attention[..., :2] = 7.0
    masked = module.mask_image(torch.full((1, 1, SIZE, SIZE), 3.0), attention)
    assert masked[..., : SIZE // 4].allclose(torch.tensor(3.0))
    assert masked[..., -SIZE // 4 :].allclose(torch.tensor(-1.0))


def trained(*words, convert=lambda module: module):
    """A network after one backward pass."""
    torch.manual_seed(0)
    module = convert(network(*words)).train()
    module.losses(small_batch())[0]["loss"].backward()
    return module


@pytest.mark.parametrize("source", ["abnormal", "predicted", "true"])
def test_the_leak_test_swaps_the_class_of_the_map(source):
    torch.manual_seed(0)
    module = settled(network("stage2", f"attention.source={source}", IMAGE)).eval()
    batch = small_batch()
    image, label = batch["image"], batch["label"]
    maps = pcam(module.encoder(image)[-1], module.fc.weight)
    predicted = module(image).argmax(1)
    chosen = {"abnormal": label * 0 + 1, "predicted": predicted, "true": label}[source]
    shown = [module.masked_logits(image, label), module.swapped_masked_logits(image, label)]
    for classes, logits in zip((chosen, 1 - chosen), shown, strict=True):
        attention = maps[torch.arange(4), classes].unsqueeze(1)
        mask = soft_mask(upsample(normalise(attention), (SIZE, SIZE)))
        torch.testing.assert_close(logits, module(image * mask))
    assert not torch.equal(*shown)


def test_the_masked_pass_may_have_running_statistics_of_its_own():
    first, image, own = trained("stage1"), trained("stage2", IMAGE), trained("stage2")
    # Neither the start nor the training nor what the unmasked pass remembers depends on it.
    for name, weight in image.named_parameters():
        assert torch.equal(own.get_parameter(name).grad, weight.grad), name
    for name, buffer in first.named_buffers():
        assert torch.equal(image.get_buffer(name), buffer), name
        assert torch.equal(own.get_buffer(name), buffer), name
    # After twenty moves by a tenth each set is what its pass has seen: first whole, then masked.
    seen = []
    hook = own.encoder.stem[1].register_forward_hook(
        lambda module, given, output: seen.append(output.float().mean((0, 2, 3)))
    )
    for _ in range(20):
        own.losses(small_batch())
    hook.remove()
    means = own.encoder.stem[2].running_mean, own.second_pass.running_mean_0
    for mean, other, batch in zip(means, reversed(means), seen[-2:], strict=True):
        assert (mean - batch).norm() < 0.5 * (other - batch).norm()


def test_synchronised_batchnorm_changes_nothing_in_a_process_of_its_own():
    """What trainer.sync_batchnorm=true makes of the network; several GPUs are not at hand."""
    plain = trained("stage2")
    converted = trained("stage2", convert=SyncBatchNorm.convert_sync_batchnorm)
    assert any(isinstance(module, SyncBatchNorm) for module in converted.modules())
    assert list(plain.state_dict()) == list(converted.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name
    for name, weight in plain.named_parameters():
        assert torch.equal(converted.get_parameter(name).grad, weight.grad), name


def test_gradient_of_l2_is_that_of_finite_differences():
    """It reaches the encoder and the FC layer through the masked pass and through the mask."""
    torch.manual_seed(0)
    module = settled(network("stage2", "model.width=0.125", kind=Precise)).double().eval()
    batch = small_batch(images=2)
    batch["image"] = batch["image"].double()
    module.losses(batch)[0]["l2"].backward()
    stages = module.encoder.stages
    convolutions = module.encoder.stem[0], stages[1][0].conv2, stages[-1][-1].conv3
    for weight in (*(layer.weight for layer in convolutions), module.fc.weight):
        place = int(weight.grad.abs().argmax())
        entry, values, step = weight.data.view(-1)[place : place + 1], [], 1e-6
        for change in (step, -2 * step):
            entry += change
            values.append(module.losses(batch)[0]["l2"].item())
        entry += step
        expected = (values[0] - values[1]) / (2 * step)
        assert abs(expected) > 1e-7
        assert weight.grad.flatten()[place].item() == pytest.approx(expected, rel=1e-4)
