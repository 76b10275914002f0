"""Equation (4): its losses, and the stage that sums them."""

import pytest
import torch
from torch.nn.functional import interpolate

from experiments.evaluation.judge import _outputs as judged
from lightning_modules.losses import LESION_LOSSES, mean_error, squared_error
from tests.stages import SIZE, names_without_gradient, network, settled, small_batch


def stage3(*words):
    torch.manual_seed(0)
    return network("stage3", *words)


@pytest.mark.parametrize(("masked", "expected"), [([1, 1, 0], (0.5 + 0.125) / 2), ([0] * 3, 0)])
def test_lesion_loss_is_the_mean_over_masked_images_in_float32(masked, expected):
    """Without any mask it keeps the graph."""
    scores = torch.tensor([[[[-20.0, 20.0]]], [[[0.0, 0.0]]], [[[2.0, 2.0]]]])
    scores = scores.bfloat16().requires_grad_()
    mask = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.5]]], [[[0.0, 0.0]]]])
    errors = squared_error(scores, mask)  # (1 + 0) / 2, (0.25 + 0) / 2, ...
    loss = mean_error(errors, torch.tensor(masked))
    assert (loss.dtype, loss.item()) == (torch.float32, pytest.approx(expected))
    loss.backward()
    assert (scores.grad.flatten(1).abs().sum(1) > 0).tolist() == masked
    with pytest.raises(ValueError, match=r"lesion masks: expected \(3, 1, 1, 2\)"):
        squared_error(scores, mask[:1])  # it would broadcast


def test_an_images_weight_multiplies_its_error_and_not_the_number_of_images():
    assert mean_error(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 3.0])) == 13 / 2


@pytest.mark.parametrize("kind", LESION_LOSSES)
def test_lesion_losses_are_0_for_the_mask_itself_and_finite_for_its_opposite(kind):
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 1:3, 1:3] = 1
    sure = 60 * (2 * mask - 1)
    assert LESION_LOSSES[kind](sure, mask) == pytest.approx([0.0, 0.0], abs=1e-6)
    opposite = LESION_LOSSES[kind]((-sure).requires_grad_(), mask)
    # 12 + 4 pixels drawn and wanted, none of both; an empty mask has no overlap.
    expected = {"mse": (1, 1), "bce": (60, 60), "bce_dice": (60 + 1 - 1 / 17, 60)}
    assert opposite.tolist() == pytest.approx(expected[kind])
    opposite.sum().backward()


def test_few_pixels_weigh_as_much_as_many_in_dice_alone():
    """A lesion of four pixels in 4,096, not drawn at all."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :2, :2] = 1
    dark = torch.full_like(mask, -5.0)
    errors = {kind: float(loss(dark, mask)) for kind, loss in LESION_LOSSES.items()}
    assert max(errors["mse"], errors["bce"]) < 0.02
    assert errors["bce_dice"] > 0.9


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
    torch.testing.assert_close(maps["fcn"], module.decoder(outputs.pyramid).sigmoid())
    error = (maps["fcn"] - batch["lesion_mask"]).square().mean((1, 2, 3))
    torch.testing.assert_close(named["l3"], error[-1])
    total = 0.3 * named["l1"] + 0.7 * named["l2"] + 3.0 * named["l3"]
    torch.testing.assert_close(named["loss"], total)
    assert set(named) == {"loss", "l1", "l2", "l3", "alpha"}
    module.loss.normal_masks = True  # normal images join with an empty mask; 2 is abnormal
    torch.testing.assert_close(module.losses(batch)[0]["l3"], error[[0, 1, 3]].mean())
    module.loss.normal_weight = 5
    weighted = (5 * error[0] + 5 * error[1] + error[3]) / 3
    torch.testing.assert_close(module.losses(batch)[0]["l3"], weighted)


def test_images_apart_teach_the_fcn_alone():
    module, batch = settled(stage3()).eval(), small_batch()
    named = module.losses({**batch, "classified": torch.tensor([True, True, True, False])})[0]
    fewer = module.losses({name: values[:3] for name, values in batch.items()})[0]
    torch.testing.assert_close([named["l1"], named["l2"]], [fewer["l1"], fewer["l2"]])
    torch.testing.assert_close(named["l3"], module.losses(batch)[0]["l3"])


def test_without_l2_there_is_no_second_pass():
    module = settled(stage3("loss.alpha=0"))
    named, outputs = module.losses(small_batch())
    torch.testing.assert_close(named["loss"], named["l1"] + named["l3"])
    assert (outputs.masked, set(named)) == (None, {"loss", "l1", "l3"})
    assert judged(module, small_batch())[0].keys() == {"probability"}


@pytest.mark.parametrize("offset", [0.0, 15.0])
def test_where_the_fcn_weighs_the_positions_the_evidence_adds_up_to_the_score(offset):
    """Pixel by pixel, CAM times the weight: in closed form, in one pass."""
    module = settled(stage3("attention.pooling=lesion", "attention.floor=0.05")).eval()
    module.encoder.offsets = module.decoder.offset, 0.0, offset
    torch.nn.init.constant_(module.decoder.output.bias, 1.0)
    image = small_batch()["image"]
    with torch.no_grad():
        outputs = module.unmasked_pass(image)
        raw = module.raw_maps(outputs)
        lesion = outputs.lesion_scores.sigmoid()
        weight = 0.05 + 0.95 * lesion
        weight = weight / weight.mean((2, 3), keepdim=True)
        whole = weight * module.upsample(raw["cam"], (SIZE, SIZE))
        scores = whole.mean((1, 2, 3)) + module.fc.bias[1]
        torch.testing.assert_close(outputs.logits[:, 1], scores)
        torch.testing.assert_close(module(image), outputs.logits)
        positive = weight * module.upsample(raw["pcam"], (SIZE, SIZE))
        torch.testing.assert_close(raw["evidence"], positive)
        probability, maps = module.explain(image)
        torch.testing.assert_close(maps["fcn"], probability.view(-1, 1, 1, 1) * lesion)
    assert list(maps) == list(module.map_methods) == list(raw)
    assert module.best_map == "fcn"
    module.loss.lambda_lesion = 0.0
    assert module.best_map == "pcam"  # nothing teaches the FCN


def test_the_answer_is_the_mean_of_the_views_answers():
    module, mean, maps = settled(stage3()).eval(), 0, 0
    image = small_batch()["image"]
    size = image.shape[-1]
    with torch.no_grad():
        for side in (size, 2 * size, size // 2):
            for turn in (lambda x: x, lambda x: x.flip(-1)):
                seen = image if side == size else interpolate(image, (side, side), mode="bilinear")
                one, drawn = module.explain(turn(seen))
                back = interpolate(turn(drawn["fcn"]), (size, size), mode="bilinear")
                mean, maps = mean + one / 6, maps + back / 6
        module.model.mirror, module.model.zoom = True, 2.0
        probability, every = module.explain(image)
    torch.testing.assert_close(probability, mean)
    torch.testing.assert_close(every["fcn"], maps)


def test_the_classifier_follows_the_fcn_and_does_not_draw_its_map():
    module = settled(stage3("attention.pooling=lesion"))
    named, _ = module.losses(small_batch())
    (named["l1"] + named["l2"]).backward()
    assert all(p.grad is None for p in module.decoder.parameters())
    assert module.encoder.stem[0].weight.grad.any()
    assert module.swapped_masked_logits(*(small_batch()[key] for key in ("image", "label"))).any()


@pytest.mark.parametrize(
    "words",
    [
        ["stage2"],
        ["stage3"],
        ["stage3", "loss.lambda_lesion=0"],
        ["stage3", "attention.pooling=lesion", "loss.lesion=bce_dice", "loss.alpha=0"],
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
