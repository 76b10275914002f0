"""A training step never asks the device for a value, and validation not once an image."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks import progress
from callbacks.averaging import AveragedWeights
from lightning_modules.stages import STAGES
from tests.stages import network, settled, small_batch

# What a GPU is waited for: answers asked of it, and numbers copied to it, which is how torch.tensor
# and new_tensor bring them from Python (lift_fresh).
WAITS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "bincount", "_unique2"}
WAITS.add("lift_fresh")
COPIES = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu)


@contextmanager
def waits():
    """Names of what would wait for a GPU, noted while this is open."""
    seen = []

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func._schema.name.removeprefix("aten::")
            indices = args[1] if name in ("index", "index_put", "index_put_") else ()
            if name in WAITS or any(i is not None and i.dtype == torch.bool for i in indices):
                seen.append(name)
            return func(*args, **(kwargs or {}))

    class Methods(TorchFunctionMode):  # these read a processor's memory without an operation
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in COPIES:
                seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Operations(), Methods():
        yield seen


def module_of(stage, *words, **data):
    """A stage's small network, laid out as in training."""
    torch.manual_seed(0)
    return network(stage, *words, **data).to(memory_format=torch.channels_last)


def test_what_counts_as_waiting():
    x = torch.ones(3)
    with waits() as seen:
        _ = x.tolist(), bool((x > 0).any()), x[x > 0], torch.tensor(0.5) * x
    assert seen == ["tolist", "_local_scalar_dense", "index", "lift_fresh"]


@pytest.mark.parametrize(
    "words",
    [
        ["stage1", "loss.label_smoothing=0.1", "model.dropout=0.2"],
        ["stage2", "attention.source=predicted", "attention.statistics=image"],
        ["stage2", "attention.source=true"],
        ["stage3", "attention.pooling=lesion", "loss.normal_masks=true", "lesions.apart=true"],
        ["stage3", "loss.classification=false"],
    ],
)
def test_a_training_step_never_waits_for_the_device(words):
    module, batch = module_of(*words, class_weights=(0.8, 1.2)), small_batch()
    average = AveragedWeights()
    trainer = SimpleNamespace(num_training_batches=5, accumulate_grad_batches=1, global_step=0)
    average.setup(trainer, module, "fit")
    average.on_train_start(trainer, module)
    with waits() as seen:
        for trainer.global_step in (1, 2):  # the second adds to the first one's means
            module.training_step(batch, 0).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            average.on_train_batch_end(trainer, module, None, None, 0)
    assert seen == []


@pytest.mark.parametrize("stage", STAGES)
def test_validation_waits_no_oftener_for_more_images(stage):
    """The same four images, all with a mask, once and eight times: their plateaus fill alike."""
    module, batch = settled(module_of(stage, body_parts=["hand"])).eval(), small_batch()
    batch["lesion_mask"][:], batch["has_lesion"][:] = batch["lesion_mask"][-1:].clone(), True
    counts = []
    for copies in (1, 8):
        many = {name: torch.cat([values] * copies) for name, values in batch.items()}
        with waits() as seen, torch.no_grad():
            module.validation_step(many, 0)
        counts.append(len(seen))
    assert counts[0] == counts[1] <= 4 + 25 * len(module.judged_maps)
    many["has_lesion"] = torch.zeros_like(many["has_lesion"])
    with waits() as seen, torch.no_grad():
        module.validation_step(many, 0)
    assert seen == ["nonzero"]  # is there a mask?


def test_speed_counts_the_steps_that_the_device_still_had_to_do(monkeypatch):
    clock = iter(range(1, 100))  # a second a look
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: [next(clock) for _ in range(9)])
    logged = {}
    module = SimpleNamespace(
        device=torch.device("cuda"), log=lambda *words, **_: logged.update([words])
    )
    trainer = SimpleNamespace(world_size=1, current_epoch=0)
    callback = progress.EpochProgress()
    for number in range(3):  # the first is not counted
        callback.on_train_batch_end(trainer, module, None, {"label": torch.zeros(6)}, number)
    callback.on_validation_start(trainer, module)
    callback.on_train_epoch_end(trainer, module)
    assert logged == {"images_per_second": 2 * 6 / (2 + 10)}
