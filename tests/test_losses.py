import pytest
import torch

from lightning_modules.losses import (
    guided_loss,
    lesion_loss,
    weakly_supervised_loss,
)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 2.0), (0.25, 3.0), (1.0, 6.0)])
def test_guided_loss_known_values(alpha, expected):
    l1, l2 = torch.tensor(2.0), torch.tensor(6.0)
    assert guided_loss(l1, l2, alpha).item() == expected
    assert guided_loss(l1, l2, torch.tensor(alpha)).item() == expected


def test_each_loss_gets_its_weight_as_gradient():
    parts = [torch.tensor(value, requires_grad=True) for value in (2.0, 6.0, 0.5)]
    weakly_supervised_loss(*parts, alpha=0.75, lambda_=3.0).backward()
    assert [part.grad.item() for part in parts] == [0.25, 0.75, 3.0]


def test_lambda_zero_is_the_loss_of_stage_2_and_keeps_the_graph():
    l1, l2, l3 = (torch.tensor(value, requires_grad=True) for value in (2.0, 6.0, 0.5))
    loss = weakly_supervised_loss(l1, l2, l3, alpha=0.3, lambda_=0.0)
    assert torch.equal(loss, guided_loss(l1, l2, 0.3))
    loss.backward()
    assert l3.grad.item() == 0


def test_lesion_loss_is_the_mean_over_masked_images():
    output = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]], [[[0.9, 0.9]]]])
    mask = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.5]]], [[[0.0, 0.0]]]])
    has_lesion = torch.tensor([True, True, False])
    # (1 + 0) / 2 and (0.25 + 0) / 2; the third image has no mask
    assert lesion_loss(output, mask, has_lesion).item() == pytest.approx((0.5 + 0.125) / 2)


def test_lesion_loss_has_no_gradient_where_there_is_no_mask():
    output = torch.rand(3, 1, 4, 4, requires_grad=True)
    lesion_loss(output, torch.zeros(3, 1, 4, 4), torch.tensor([False, True, False])).backward()
    assert output.grad[1].abs().sum() > 0
    assert output.grad[[0, 2]].abs().sum() == 0


def test_lesion_loss_without_masks_is_zero_and_keeps_the_graph():
    output = torch.rand(2, 1, 4, 4, requires_grad=True)
    loss = lesion_loss(output, torch.ones(2, 1, 4, 4), torch.zeros(2, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(output.grad, torch.zeros(2, 1, 4, 4))


def test_lesion_loss_works_in_float32():
    output = torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16)
    loss = lesion_loss(output, torch.full((1, 1, 2, 2), 0.25), torch.tensor([True]))
    assert loss.dtype == torch.float32
    assert loss.item() == 0.0625


@pytest.mark.parametrize(
    ("output", "mask", "has_lesion"),
    [
        ((2, 1, 4, 4), (2, 1, 8, 8), 2),
        ((2, 1, 4, 4), (2, 4, 4), 2),
        ((2, 1, 4, 4), (2, 1, 4, 4), 1),
    ],
)
def test_lesion_loss_refuses_shapes_that_would_broadcast(output, mask, has_lesion):
    with pytest.raises(ValueError, match="do not fit"):
        lesion_loss(torch.zeros(output), torch.zeros(mask), torch.ones(has_lesion).bool())
