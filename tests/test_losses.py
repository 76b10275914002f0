import pytest
import torch

from lightning_modules.losses import guided_loss, lesion_loss, weakly_supervised_loss


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 2.0), (0.25, 3.0), (1.0, 6.0)])
def test_guided_loss_known_values(alpha, expected):
    assert guided_loss(torch.tensor(2.0), torch.tensor(6.0), alpha).item() == expected


@pytest.mark.parametrize("weight", [3.0, 0.0])
def test_each_loss_gets_its_weight_as_gradient(weight):
    """Also a weight of 0: the loss is then stage 2's, and L3 still in the graph."""
    parts = [torch.tensor(value, requires_grad=True) for value in (2.0, 6.0, 0.5)]
    loss = weakly_supervised_loss(*parts, alpha=0.75, lambda_=weight)
    loss.backward()
    assert [part.grad.item() for part in parts] == [0.25, 0.75, weight]
    assert loss.item() == guided_loss(*parts[:2], 0.75).item() + weight * 0.5


def test_lesion_loss_is_the_mean_over_masked_images():
    output = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]], [[[0.9, 0.9]]]], requires_grad=True)
    mask = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.5]]], [[[0.0, 0.0]]]])
    # (1 + 0) / 2 and (0.25 + 0) / 2; the third image has no mask
    loss = lesion_loss(output, mask, torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx((0.5 + 0.125) / 2)
    loss.backward()
    assert (output.grad.flatten(1).abs().sum(1) > 0).tolist() == [True, True, False]


def test_lesion_loss_without_masks_is_zero_and_keeps_the_graph():
    output = torch.rand(2, 1, 4, 4, requires_grad=True)
    loss = lesion_loss(output, torch.ones(2, 1, 4, 4), torch.zeros(2, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(output.grad, torch.zeros(2, 1, 4, 4))


def test_lesion_loss_works_in_float32():
    output = torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16)
    loss = lesion_loss(output, torch.full((1, 1, 2, 2), 0.25), torch.tensor([True]))
    assert (loss.dtype, loss.item()) == (torch.float32, 0.0625)


@pytest.mark.parametrize(
    ("mask", "has_lesion"), [((2, 1, 8, 8), 2), ((2, 4, 4), 2), ((2, 1, 4, 4), 1)]
)
def test_lesion_loss_refuses_shapes_that_would_broadcast(mask, has_lesion):
    with pytest.raises(ValueError, match="do not fit"):
        lesion_loss(torch.zeros(2, 1, 4, 4), torch.zeros(mask), torch.ones(has_lesion).bool())
