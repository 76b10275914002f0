"""Which epoch's checkpoint is best."""

from types import SimpleNamespace

import pytest

from callbacks.checkpoints import RunCheckpoints, StoppedInTraining


class Trainer(SimpleNamespace):
    """Writes its epoch instead of a checkpoint."""

    is_global_zero = True
    world_size = 1
    global_step = 0
    num_training_batches = 9
    accumulate_grad_batches = 1
    sanity_checking = False
    strategy = SimpleNamespace(barrier=lambda name: None)

    def save_checkpoint(self, path, weights_only):
        """Write the epoch."""
        path.write_text(str(self.epoch))


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.7, 0.9, 0.8], 1),
        ([0.9, 0.9, 0.8], 1),  # of equal ones the latest
        ([0.90004, 0.90001, 0.8996], 2),  # equal as printed
        ([0.9004, 0.8994], 0),
        ([float("nan"), float("nan")], 1),  # nothing to judge by: the latest
        ([float("nan"), 0.4, float("nan")], 1),
        ([0.0, 0.0], 1),
    ],
)
def test_best_is_the_latest_of_the_highest_scores(tmp_path, scores, best):
    checkpoints = RunCheckpoints(tmp_path)
    for epoch, score in enumerate(scores):
        if epoch == 1:  # a restart takes up what was best
            state = checkpoints.state_dict()
            checkpoints = RunCheckpoints(tmp_path)
            checkpoints.load_state_dict(state)
        trainer = Trainer(epoch=epoch, callback_metrics={"val/auroc": score})
        checkpoints.on_validation_end(trainer, None)
        checkpoints.on_train_epoch_end(trainer, None)
    assert (tmp_path / "best.ckpt").read_text() == str(best)
    assert (tmp_path / "last.ckpt").read_text() == str(len(scores) - 1)


def test_an_epoch_without_validation_is_never_best(tmp_path):
    checkpoints = RunCheckpoints(tmp_path)
    for epoch in range(4):
        trainer = Trainer(epoch=epoch, callback_metrics={"val/auroc": 0.9})
        if epoch in (0, 2):
            checkpoints.on_validation_end(trainer, None)
        checkpoints.on_train_epoch_end(trainer, None)
    assert (tmp_path / "best.ckpt").read_text() == "2"
    assert (tmp_path / "last.ckpt").read_text() == "3"


@pytest.mark.parametrize("batches", [1, 3])
def test_a_stop_waits_until_the_gradients_of_a_step_are_used(tmp_path, batches):
    stop = SimpleNamespace(number=10)
    checkpoints = RunCheckpoints(tmp_path, stop=stop)
    trainer = Trainer(epoch=0, accumulate_grad_batches=batches)
    for batch in range(batches - 1):
        checkpoints.on_train_batch_end(trainer, None, None, None, batch)
        assert not (tmp_path / "last.ckpt").exists()
    with pytest.raises(StoppedInTraining):
        checkpoints.on_train_batch_end(trainer, None, None, None, batches - 1)
    assert (tmp_path / "last.ckpt").is_file()
