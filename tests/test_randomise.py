"""The cascade initialises what it says, in its order, and leaves the trained network alone."""

import pytest
import torch

from experiments.audit.cascade import cascade, steps
from lightning_modules import STAGES
from tests.stages import SIZE, network, settled

BLOCKS = ["stages.2.3", "stages.2.2", "stages.2.1", "stages.2.0", "stages.1.1", "stages.1.0"]


@pytest.fixture(scope="module", params=sorted(STAGES))
def module(request):
    torch.manual_seed(0)
    trained = settled(network(request.param)).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return trained


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_the_order_is_from_the_score_to_the_stem(module):
    names = [name for name, _ in steps(module)]
    decoder = ["decoder"] if module.stage == "stage3" else []
    assert names == ["fc", *decoder, *BLOCKS, "stages.0.0", "stem"]


def test_each_step_changes_its_own_weights_and_keeps_those_above(module, images):
    before, made = weights(module), dict(steps(module))
    for name, changed in cascade(module, images):
        now = weights(changed)
        moved = {key for key in now if not torch.equal(now[key], before[key])}
        assert moved, name
        assert all(key.startswith(made[name]) for key in moved), name
        own = {key for key in now if key.startswith(made[name])}
        assert not any(torch.equal(now[key], weights(module)[key]) for key in own), name
        before = now
    assert not any(torch.equal(now[key], value) for key, value in weights(module).items())


def test_the_trained_network_stays_as_it_is(module, images):
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = torch.get_rng_state()
    for _, changed in cascade(module, images):
        assert not any(part.training for part in changed.modules())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part.training for part in module.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_random_weights_are_those_that_training_would_begin_with(module, images):
    *_, (_, random) = cascade(module, images, seed=5)
    torch.manual_seed(5)
    begun = network(module.stage)
    for key, value in begun.named_parameters():
        assert torch.equal(random.get_parameter(key), value), key


def test_the_seed_draws_the_weights(module, images):
    first, again, other = (
        weights(next(cascade(module, images, seed))[1])["fc.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_layers_are_normalised_by_the_images(module, images):
    *_, (_, random) = cascade(module, images)
    norm = random.encoder.stem[2]
    with torch.no_grad():
        seen = random.encoder.stem[:2](images)
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert norm.momentum == 0.1


def test_trained_layers_keep_their_running_statistics(module, images):
    _, changed = next(cascade(module, images))
    for mine, theirs in zip(module.encoder.buffers(), changed.encoder.buffers(), strict=True):
        assert torch.equal(mine, theirs)
