"""Alpha, the average of the weights, which checkpoint is best, and what a panel shows."""

import math
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule

from callbacks.averaging import AveragedWeights
from callbacks.checkpoints import RunCheckpoints, StoppedInTraining
from callbacks.confidence import Confidence
from callbacks.options import Checkpoint
from callbacks.panels import spread

NAN = math.nan


# alpha = e^P / e, epoch by epoch; real runs follow it in test_train.


def alphas(callback, *accuracies, sanity=False):
    """Alpha at the start of training and after each validation."""
    module = SimpleNamespace(alpha=NAN)
    callback.on_train_start(None, module)
    values = [module.alpha]
    for accuracy in accuracies:
        metrics = {f"val/{callback.source}": torch.tensor(accuracy)}
        trainer = SimpleNamespace(sanity_checking=sanity, callback_metrics=metrics)
        callback.on_validation_end(trainer, module)
        values.append(module.alpha)
    return values


def test_alpha_follows_the_last_validation_and_never_the_sanity_check():
    callback = Confidence("balanced_accuracy")
    assert alphas(callback, 0.9, sanity=True) == pytest.approx([math.exp(-0.5)] * 2)
    expected = [0.6065307, 1 / math.e, 1.0, math.exp(0.75 - 1)]
    assert alphas(callback, 0.0, 1.0, 0.75) == pytest.approx(expected, abs=1e-7)
    kept = callback.state_dict()
    assert [type(value) for value in kept.values()] == [float, float]  # plain, for checkpoints
    again = Confidence("balanced_accuracy")
    again.load_state_dict(kept)
    assert alphas(again) == [callback.alpha]  # to the last bit
    fixed = Confidence(0.25)
    fixed.load_state_dict(kept)
    assert alphas(fixed, 0.9) == [0.25, 0.25]
    with pytest.raises(ValueError, match=r"accuracy that sets alpha is NaN.*loss\.alpha"):
        alphas(callback, NAN)


# The average of the weights: what is validated, kept and taken up again.


class Network(LightningModule):
    """One weight, a running statistic, a count, and a value that validation sets."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("statistic", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(()))


def averaged(steps):
    """A network whose weight and statistic are the number of the step, and its callback."""
    network, callback = Network(), AveragedWeights(epochs=2.0)
    trainer = SimpleNamespace(num_training_batches=5, accumulate_grad_batches=1, global_step=0)
    callback.setup(trainer, network, "fit")
    callback.on_train_start(trainer, network)
    for trainer.global_step in range(1, steps + 1):
        for value in (network.weight.data, network.statistic, network.count):
            value.fill_(trainer.global_step)
        callback.on_train_batch_end(trainer, network, None, None, trainer.global_step)
    return network, callback, trainer


def test_the_average_is_that_of_its_time_constant():
    network, callback, trainer = averaged(steps=200)
    expected = 1.0  # the first step's weights as they are
    for step in range(2, 201):
        decay = min(1 - 1 / 10, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    callback.on_validation_start(trainer, network)
    assert network.weight.item() == pytest.approx(expected, rel=1e-5)
    assert network.statistic.item() == pytest.approx(expected, rel=1e-5)


def test_the_latest_weights_come_back_and_keep_what_validation_set():
    network, callback, trainer = averaged(steps=7)
    callback.on_validation_start(trainer, network)
    callback.on_validation_epoch_start(trainer, network)
    network.scale.fill_(5.0)
    callback.on_validation_epoch_end(trainer, network)
    assert network.weight.item() < 7  # the panels are still to be drawn
    callback.on_validation_end(trainer, network)
    state = network.weight.item(), network.statistic.item(), network.count.item()
    assert (*state, network.scale.item()) == (7, 7, 7, 5.0)
    # A checkpoint holds the average, and training goes on with the latest.
    checkpoint = {"state_dict": network.state_dict()}
    callback.on_save_checkpoint(trainer, network, checkpoint)
    assert checkpoint["state_dict"]["weight"] < 7
    again, other, _ = averaged(steps=1)
    again.load_state_dict(checkpoint["state_dict"])
    other.on_load_checkpoint(trainer, again, checkpoint)
    assert again.weight.item() == 7
    other.on_validation_start(trainer, again)
    assert again.weight.item() == checkpoint["state_dict"]["weight"].item()
    callback.on_train_end(trainer, network)
    assert (network.weight.item() < 7, network.scale.item()) == (True, 5.0)


# Which epoch's checkpoint is best.


class Trainer(SimpleNamespace):
    """Writes its epoch instead of a checkpoint."""

    is_global_zero = True
    world_size = 1
    global_step = 0
    max_epochs = None
    num_training_batches = 9
    accumulate_grad_batches = 1
    sanity_checking = False
    strategy = SimpleNamespace(barrier=lambda name: None)

    def save_checkpoint(self, path, weights_only):
        """Write the epoch."""
        path.write_text(str(self.current_epoch))


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.7, 0.9, 0.8], 1),
        ([0.9, 0.9, 0.8], 1),  # of equal ones the latest
        ([0.90004, 0.90001, 0.8996, 0.8994], 2),  # equal as printed
        ([NAN, NAN], 1),  # nothing to judge by: the latest
        ([NAN, 0.4, NAN], 1),
        ([0.9, None, 0.9, None], 2),  # an epoch without validation is never best
    ],
)
def test_best_is_the_latest_of_the_highest_scores(tmp_path, scores, best):
    checkpoints = RunCheckpoints(tmp_path, SimpleNamespace(number=0), Checkpoint())
    for epoch, score in enumerate(scores):
        if epoch == 1:  # a restart takes up what was best
            state = checkpoints.state_dict()
            checkpoints = RunCheckpoints(tmp_path, SimpleNamespace(number=0), Checkpoint())
            checkpoints.load_state_dict(state)
        trainer = Trainer(current_epoch=epoch, callback_metrics={"val/auroc": score or 0.0})
        if score is not None:
            checkpoints.on_validation_end(trainer, None)
        checkpoints.on_train_epoch_end(trainer, None)
    assert (tmp_path / "best.ckpt").read_text() == str(best)
    assert (tmp_path / "last.ckpt").read_text() == str(len(scores) - 1)


@pytest.mark.parametrize("batches", [1, 3])
def test_a_stop_waits_until_the_gradients_of_a_step_are_used(tmp_path, batches):
    checkpoints = RunCheckpoints(tmp_path, SimpleNamespace(number=10), Checkpoint())
    trainer = Trainer(current_epoch=0, accumulate_grad_batches=batches)
    for batch in range(batches - 1):
        checkpoints.on_train_batch_end(trainer, None, None, None, batch)
        assert not (tmp_path / "last.ckpt").exists()
    with pytest.raises(StoppedInTraining):
        checkpoints.on_train_batch_end(trainer, None, None, None, batches - 1)
    assert (tmp_path / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("label", "masked", "part", "count", "rows"),
    [
        # abnormal images of all parts come first, and some are normal
        ("11110001", "11111111", "00110012", 4, [0, 2, 7, 4]),
        ("11110001", "11111111", "00110012", 8, [0, 2, 7, 1, 3, 4, 6, 5]),
        # masked images come before others, and gaps are filled
        ("111", "010", "001", 4, [1, 0, 2]),
        ("00000", "00000", "00001", 4, [0, 4, 1, 2]),
    ],
)
def test_which_images_a_panel_shows(label, masked, part, count, rows):
    label, masked, part = (torch.tensor([*map(int, word)]) for word in (label, masked, part))
    batch = {"label": label, "has_lesion": masked.bool(), "body_part": part}
    assert spread(batch, count).tolist() == rows
