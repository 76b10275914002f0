import math

import pytest
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.demos.boring_classes import BoringModel

from callbacks import Confidence
from callbacks.checkpoints import load_checkpoint
from callbacks.confidence import confidence
from experiments.training.loop import quiet_known_warnings

ACCURACIES = [0.6, 0.9, 0.75]
AT_CHANCE = math.exp(-0.5)


class Logs(BoringModel):
    """Logs a known accuracy an epoch and notes the alpha of each training step."""

    def __init__(self, name="val/accuracy"):
        super().__init__()
        self.name = name
        self.alpha = float("nan")
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.alpha)
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        self.log(self.name, ACCURACIES[self.current_epoch])

    def validation_step(self, batch, batch_idx):
        pass


class Stop(Callback):
    """Save and stop after some steps, in the middle of an epoch."""

    def __init__(self, step, path):
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(tmp_path, callbacks, model=None, resume=None, epochs=3):
    """Two steps an epoch, with Lightning's sanity check before the first."""
    quiet_known_warnings()
    model = model or Logs()
    trainer = Trainer(
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=callbacks,
    )
    trainer.fit(model, ckpt_path=resume, weights_only=True)
    return model


def expected(*accuracies):
    """Alpha of the two steps of each epoch."""
    alphas = [AT_CHANCE, *(math.exp(accuracy) / math.e for accuracy in accuracies)]
    return pytest.approx([alpha for alpha in alphas for _ in range(2)])


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
def test_alpha_follows_the_validation_before_and_never_the_sanity_check(tmp_path, source):
    callback = Confidence(source)
    model = fit(tmp_path, [callback], Logs(f"val/{source}"))
    assert model.seen == expected(*ACCURACIES[:2])
    assert callback.state_dict() == pytest.approx(
        {"accuracy": 0.75, "alpha": math.exp(0.75) / math.e}
    )


def test_a_resumed_run_goes_on_with_the_same_alpha(tmp_path):
    place = tmp_path / "stopped.ckpt"
    whole = fit(tmp_path, [Confidence()]).seen
    before = Logs()
    with pytest.raises(SystemExit):
        fit(tmp_path, [Confidence(), Stop(3, place)], before)
    load_checkpoint(place)  # plain values only
    after = fit(tmp_path, [Confidence()], resume=place).seen
    assert len(after) == 3
    assert before.seen + after == whole  # to the last bit


@pytest.mark.parametrize("alpha", [0, 0.25])
def test_a_fixed_alpha_stays_whatever_was_kept(tmp_path, alpha):
    callback = Confidence(alpha)
    callback.load_state_dict(Confidence("accuracy").state_dict())
    assert fit(tmp_path, [callback], epochs=2).seen == [alpha] * 4
    assert [type(value) for value in callback.state_dict().values()] == [float, float]
