import pytest
import torch

from lightning_modules.attention import normalise, upsample
from lightning_modules.stage2 import Stage2GuidedAttention
from tests.stages import SIZE, names_without_gradient, network, settled, small_batch


def stage3(*words):
    torch.manual_seed(0)
    return network("stage3", *words)


def count_decoder_passes(module):
    passes = []
    module.decoder.register_forward_hook(lambda *_: passes.append(1))
    return passes


def test_lambda_zero_without_masks_equals_stage_2_step_for_step():
    """Also with dropout: the decoder's initialisation leaves the random state where it was."""
    networks = []
    for stage in ("stage2", "stage3"):
        torch.manual_seed(7)
        module = network(stage, "model.dropout=0.3", "loss.lambda_lesion=0").train()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        for step in range(3):
            optimizer.zero_grad()
            module.losses(small_batch(lesions=False, seed=step))[0]["loss"].backward()
            optimizer.step()
        networks.append(module.state_dict())
    shared = [name for name in networks[0] if name != "map_scale"]
    assert any(name.startswith("encoder.") for name in shared)
    for name in shared:
        assert torch.equal(networks[0][name], networks[1][name]), name


def test_losses_are_stage_2s_and_the_error_on_the_marked_image():
    module = settled(stage3("loss.lambda_lesion=3")).eval()
    module.alpha = 0.7
    batch = small_batch()
    named, outputs = module.losses(batch)
    error = (module.decoder(outputs.pyramid) - batch["lesion_mask"]).square()
    torch.testing.assert_close(named["l3"], error[-1].mean())
    total = 0.3 * named["l1"] + 0.7 * named["l2"] + 3.0 * named["l3"]
    torch.testing.assert_close(named["loss"], total)
    assert set(named) == {"loss", "l1", "l2", "l3", "alpha"}
    before, _ = Stage2GuidedAttention.losses(module, batch)
    torch.testing.assert_close([named["l1"], named["l2"]], [before["l1"], before["l2"]])


def test_normal_images_may_join_with_an_empty_mask():
    module = settled(stage3("loss.normal_masks=true")).eval()
    batch = small_batch()
    named, outputs = module.losses(batch)
    error = (module.decoder(outputs.pyramid) - batch["lesion_mask"]).square().mean((1, 2, 3))
    torch.testing.assert_close(named["l3"], error[[0, 1, 3]].mean())  # image 2: abnormal, no mask


@pytest.mark.parametrize("lesions", [True, False])
@pytest.mark.parametrize("classification", ["true", "false"])
@pytest.mark.parametrize("source", ["abnormal", "fcn"])
def test_every_parameter_gets_a_gradient(lesions, classification, source):
    module = stage3(f"loss.classification={classification}", f"attention.source={source}").train()
    losses = module.losses(small_batch(lesions=lesions))[0]
    losses["loss"].backward()
    assert names_without_gradient(module) == []
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert (losses["l3"].item() > 0) == lesions


def test_without_classification_the_masks_alone_train():
    module = stage3("loss.classification=false", "loss.lambda_lesion=2").train()
    named, _ = module.losses(small_batch())
    torch.testing.assert_close(named["loss"], 2.0 * named["l3"])
    assert set(named) == {"loss", "l3"}
    named["loss"].backward()
    assert module.fc.weight.grad.abs().sum() == 0
    assert module.encoder.stem[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("source", ["abnormal", "fcn"])
def test_a_step_draws_once(source):
    module = settled(stage3(f"attention.source={source}")).eval()
    passes = count_decoder_passes(module)
    _, outputs = module.losses(small_batch())
    maps = module.raw_maps(outputs.pyramid, outputs.drawn)
    assert len(passes) == 1
    assert torch.equal(maps["fcn"], module.decoder(outputs.pyramid))


def test_the_fcns_mask_carries_no_gradient_to_the_decoder():
    module = stage3("attention.source=fcn").train()
    module.losses(small_batch())[0]["l2"].backward()
    assert all(p.grad is None for p in module.decoder.parameters())
    assert module.encoder.stem[0].weight.grad.abs().sum() > 0


def test_the_leak_test_of_an_fcn_mask_uses_the_normal_classs_map():
    module = settled(stage3("attention.source=fcn")).eval()
    image = small_batch()["image"]
    features = module.encoder(image)
    own = module.classify_masked(image, module.decoder(features))
    other = module.classify_masked(image, module.pcam_of(features, torch.zeros(4, dtype=int)))
    torch.testing.assert_close(module.masked_logits(image), own)
    torch.testing.assert_close(module.swapped_masked_logits(image), other)


def test_maps_hold_the_fcns_output_as_it_is():
    module = settled(stage3()).eval()
    image = small_batch()["image"]
    maps = module.maps(image)
    assert list(maps) == ["cam", "pcam", "fcn"]
    assert all(shown.shape == (4, 1, SIZE, SIZE) for shown in maps.values())
    torch.testing.assert_close(maps["fcn"], module.decoder(module.encoder(image)))


def pcam_error(module, pyramid, target):
    """Of each image's stretched PCAM, ``(B,)``."""
    features, weight = pyramid[-1], module.fc.weight[1:2].clamp(min=0)
    raw = torch.einsum("bchw,kc->bkhw", features, weight)
    return (upsample(normalise(raw), (SIZE, SIZE)) - target).square().mean((1, 2, 3))


def test_pcam_may_be_drawn_towards_the_masks():
    module = settled(stage3("loss.lambda_attention=2", "attention.target=masks")).eval()
    batch = small_batch()
    named, outputs = module.losses(batch)
    error = pcam_error(module, outputs.pyramid, batch["lesion_mask"])
    torch.testing.assert_close(named["l4"], error[-1])
    plain, _ = settled(stage3()).eval().losses(batch)
    torch.testing.assert_close(named["loss"], plain["loss"] + 2.0 * named["l4"])


def test_pcam_may_follow_what_the_fcn_sees():
    """Masks where there are any, the FCN's drawing on abnormal images, nothing where it is dark."""
    module = settled(stage3("loss.lambda_attention=1", "attention.target=fcn")).eval()
    batch = small_batch()
    torch.nn.init.constant_(module.decoder.output.bias, -9.0)
    named, outputs = module.losses(batch)
    error = pcam_error(module, outputs.pyramid, batch["lesion_mask"])
    torch.testing.assert_close(named["l4"], error[3])  # only the mask: the FCN sees nothing
    torch.nn.init.constant_(module.decoder.output.bias, 3.0)
    named, outputs = module.losses(batch)
    drawn = pcam_error(module, outputs.pyramid, outputs.drawn["fcn"])
    torch.testing.assert_close(named["l4"], (drawn[2] + error[3]) / 2)
    named["l4"].backward()
    assert all(p.grad is None for p in module.decoder.parameters())
    assert module.encoder.stem[0].weight.grad.abs().sum() > 0
