"""The average of the weights: what is validated, kept and taken up again."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule

from callbacks.averaging import AveragedWeights


class Network(LightningModule):
    """One weight, a running statistic, a count, and a value that validation finds."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("statistic", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(()))


def trained(steps, epochs=2.0, steps_per_epoch=5):
    """A network whose weight and statistic are the number of the step, and its callback."""
    network, callback = Network(), AveragedWeights(epochs)
    trainer = SimpleNamespace(
        num_training_batches=steps_per_epoch, accumulate_grad_batches=1, global_step=0
    )
    callback.setup(trainer, network, "fit")
    callback.on_train_start(trainer, network)
    for step in range(1, steps + 1):
        with torch.no_grad():
            network.weight.fill_(step)
        network.statistic.fill_(step)
        network.count.fill_(step)
        trainer.global_step = step
        callback.on_train_batch_end(trainer, network, None, None, step)
    return network, callback, trainer


def test_the_average_is_that_of_its_time_constant():
    network, callback, trainer = trained(steps=200)
    expected = 1.0  # the first step's weights as they are
    for step in range(2, 201):
        decay = min(1 - 1 / 10, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    callback.on_validation_start(trainer, network)
    assert network.weight.item() == pytest.approx(expected, rel=1e-5)
    assert network.statistic.item() == pytest.approx(expected, rel=1e-5)
    assert 190 < expected < 192  # some ten steps behind


def test_the_latest_weights_come_back_and_keep_what_validation_found():
    network, callback, trainer = trained(steps=7)
    callback.on_validation_start(trainer, network)
    callback.on_validation_epoch_start(trainer, network)
    network.scale.fill_(5.0)
    callback.on_validation_epoch_end(trainer, network)
    assert network.weight.item() < 7  # the panels are still to be drawn
    callback.on_validation_end(trainer, network)
    assert (network.weight.item(), network.statistic.item(), network.count.item()) == (7, 7, 7)
    assert network.scale.item() == 5.0
    callback.on_train_end(trainer, network)
    assert network.weight.item() < 7
    assert network.scale.item() == 5.0


def test_a_checkpoint_holds_the_average_and_training_goes_on_with_the_latest():
    network, callback, trainer = trained(steps=7)
    checkpoint = {"state_dict": network.state_dict()}
    callback.on_save_checkpoint(trainer, network, checkpoint)
    assert checkpoint["state_dict"]["weight"] < 7
    again, other, trainer = trained(steps=1)
    again.load_state_dict(checkpoint["state_dict"])
    other.on_load_checkpoint(trainer, again, checkpoint)
    assert again.weight.item() == 7
    other.on_validation_start(trainer, again)
    assert again.weight.item() == checkpoint["state_dict"]["weight"].item()
