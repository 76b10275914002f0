"""alpha = e^P / e, epoch by epoch; real runs follow it in test_train."""

import math
from types import SimpleNamespace

import pytest
import torch

from callbacks.confidence import Confidence, confidence

AT_CHANCE = math.exp(-0.5)


def validated(callback, module, accuracy, name="val/accuracy", sanity=False):
    """What Lightning calls at a validation's end."""
    metrics = {name: torch.tensor(accuracy)}
    trainer = SimpleNamespace(sanity_checking=sanity, callback_metrics=metrics)
    callback.on_validation_end(trainer, module)
    return module.alpha


def started(callback):
    module = SimpleNamespace(alpha=math.nan)
    callback.on_train_start(None, module)
    return module


@pytest.mark.parametrize(
    ("accuracy", "alpha"),
    [(0.0, 1 / math.e), (0.5, 0.6065306597), (1.0, 1.0), (-0.5, 1 / math.e), (1.5, 1.0)],
)
def test_confidence_known_values(accuracy, alpha):
    assert confidence(accuracy) == pytest.approx(alpha, abs=1e-9)


def test_confidence_of_nan_is_refused():
    with pytest.raises(ValueError, match=r"accuracy that sets alpha is NaN.*loss\.alpha"):
        confidence(float("nan"))


@pytest.mark.parametrize("source", ["accuracy", "balanced_accuracy"])
def test_alpha_follows_the_validation_before_and_never_the_sanity_check(source):
    callback = Confidence(source)
    module = started(callback)
    assert module.alpha == pytest.approx(AT_CHANCE)
    assert validated(callback, module, 0.9, "val/any", sanity=True) == pytest.approx(AT_CHANCE)
    for accuracy in (0.6, 0.9, 0.75):
        alpha = validated(callback, module, accuracy, f"val/{source}")
        assert alpha == pytest.approx(math.exp(accuracy) / math.e)
    kept = callback.state_dict()
    assert kept == pytest.approx({"accuracy": 0.75, "alpha": alpha})
    assert [type(value) for value in kept.values()] == [float, float]  # plain, for checkpoints
    again = Confidence(source)
    again.load_state_dict(kept)
    assert started(again).alpha == alpha  # to the last bit


@pytest.mark.parametrize("alpha", [0, 0.25])
def test_a_fixed_alpha_stays_whatever_was_kept(alpha):
    callback = Confidence(alpha)
    callback.load_state_dict(Confidence("accuracy").state_dict())
    module = started(callback)
    assert module.alpha == alpha
    assert validated(callback, module, 0.9) == alpha
