"""Equation (4): its losses, and the stage that sums them."""

import pytest
import torch

from lightning_modules.attention import normalise, upsample
from lightning_modules.losses import lesion_loss
from tests.stages import SIZE, names_without_gradient, network, settled, small_batch


def stage3(*words):
    torch.manual_seed(0)
    return network("stage3", *words)


@pytest.mark.parametrize(("masked", "expected"), [([1, 1, 0], (0.5 + 0.125) / 2), ([0] * 3, 0)])
def test_lesion_loss_is_the_mean_over_masked_images_in_float32(masked, expected):
    """Without any mask it keeps the graph."""
    output = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]], [[[0.9, 0.9]]]], dtype=torch.bfloat16)
    output.requires_grad_()
    mask = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.5]]], [[[0.0, 0.0]]]])
    loss = lesion_loss(output, mask, torch.tensor(masked).bool())  # (1 + 0) / 2 and (0.25 + 0) / 2
    assert (loss.dtype, loss.item()) == (torch.float32, expected)
    loss.backward()
    assert (output.grad.flatten(1).abs().sum(1) > 0).tolist() == masked
    with pytest.raises(ValueError, match=r"lesion masks: expected \(3, 1, 1, 2\)"):
        lesion_loss(output, mask[:1], torch.tensor(masked).bool())  # it would broadcast


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
    for name in networks[0]:
        if name != "map_scale":
            assert torch.equal(networks[0][name], networks[1][name]), name


def test_losses_are_stage_2s_and_the_error_on_the_marked_image_of_the_fcns_map():
    module = settled(stage3("loss.lambda_lesion=3")).eval()
    module.alpha = 0.7
    batch = small_batch()
    named, outputs = module.losses(batch)
    maps = module.maps(batch["image"])
    assert {name: shown.shape for name, shown in maps.items()} == dict.fromkeys(
        ("cam", "pcam", "fcn"), (4, 1, SIZE, SIZE)
    )
    torch.testing.assert_close(maps["fcn"], module.decoder(outputs.pyramid))
    error = (maps["fcn"] - batch["lesion_mask"]).square().mean((1, 2, 3))
    torch.testing.assert_close(named["l3"], error[-1])
    total = 0.3 * named["l1"] + 0.7 * named["l2"] + 3.0 * named["l3"]
    torch.testing.assert_close(named["loss"], total)
    assert set(named) == {"loss", "l1", "l2", "l3", "alpha"}
    module.loss.normal_masks = True  # normal images join with an empty mask; 2 is abnormal
    torch.testing.assert_close(module.losses(batch)[0]["l3"], error[[0, 1, 3]].mean())


@pytest.mark.parametrize(
    "words",
    [
        ["stage2"],
        ["stage3"],
        ["stage3", "loss.lambda_lesion=0"],
        ["stage3", "attention.source=fcn"],
        ["stage3", "loss.classification=false", "loss.lambda_lesion=2"],
    ],
)
@pytest.mark.parametrize("lesions", [True, False])
def test_every_parameter_gets_a_gradient(words, lesions):
    torch.manual_seed(0)
    module = network(*words).train()
    losses = module.losses(small_batch(lesions=lesions))[0]
    if not module.classifies:  # the masks alone train
        assert losses == {"loss": 2 * losses["l3"], "l3": losses["l3"]}
    losses["loss"].backward()
    assert names_without_gradient(module) == []
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert module.fc.weight.grad.any() == module.classifies
    assert "l3" not in losses or (losses["l3"].item() > 0) == lesions


def test_an_fcn_mask_teaches_the_decoder_nothing_and_is_swapped_for_the_normal_classs_map():
    module = settled(stage3("attention.source=fcn"))
    module.losses(small_batch())[0]["l2"].backward()
    assert all(p.grad is None for p in module.decoder.parameters())
    assert module.encoder.stem[0].weight.grad.any()
    module.eval()
    image, label = (small_batch()[name] for name in ("image", "label"))
    pyramid = module.encoder(image)
    own = module.classify_masked(image, module.decoder(pyramid))
    other = module.classify_masked(image, module.pcam_of(pyramid, torch.zeros(4, dtype=int)))
    torch.testing.assert_close(module.masked_logits(image, label), own)
    torch.testing.assert_close(module.swapped_masked_logits(image, label), other)


@pytest.mark.parametrize(
    ("target", "bias", "counted"),
    [
        ("masks", 3.0, [3]),
        ("fcn", -9.0, [3]),  # only the mask: the FCN sees nothing
        ("fcn", 3.0, [2, 3]),  # elsewhere on abnormal images what it draws
    ],
)
def test_pcam_may_be_drawn_towards_the_masks_and_what_the_fcn_sees(target, bias, counted):
    module = settled(stage3("loss.lambda_attention=2", f"attention.target={target}")).eval()
    torch.nn.init.constant_(module.decoder.output.bias, bias)
    batch = small_batch()
    named, outputs = module.losses(batch)
    wanted = torch.where(torch.arange(4).view(4, 1, 1, 1) == 3, batch["lesion_mask"], 0)
    wanted[2] = outputs.drawn["fcn"][2]
    features, weight = outputs.pyramid[-1], module.fc.weight[1:2].clamp(min=0)
    own = normalise(torch.einsum("bchw,kc->bkhw", features, weight))
    error = (upsample(own, (SIZE, SIZE)) - wanted).square().mean((1, 2, 3))
    torch.testing.assert_close(named["l4"], error[counted].mean())
    total = (1 - module.alpha) * named["l1"] + module.alpha * named["l2"] + named["l3"]
    torch.testing.assert_close(named["loss"], total + 2.0 * named["l4"])
    named["l4"].backward()
    assert all(p.grad is None for p in module.decoder.parameters())
    assert module.encoder.stem[0].weight.grad.any()
