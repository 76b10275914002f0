"""One step and one map on the card, beside the CPU's."""

import copy

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning import Callback, Trainer

from experiments.build import build_data, build_module
from experiments.config import load_config
from lightning_modules.attention import peak
from lightning_modules.stages import STAGES
from tests.runs import tiny_words

# Other versions than ours may be there, with warnings of their own.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

# Float32 rounds as the CPU's does: TF32, cuDNN's own choice, keeps ten bits only.
torch.backends.cudnn.allow_tf32 = False

CPU = torch.device("cpu")
# A mask is made from a map stretched to [0, 1], which multiplies rounding: in stages 2 and 3 the
# CPU's own gradients in two memory layouts are about 0.005 apart. The card's may be this much more.
TIMES = 10


def made(stage, root):
    """The tiny phantom, a stage's network and a batch for it, all on the CPU."""
    config = load_config(stage, [*tiny_words(root), "data.num_workers=0"])
    data = build_data(config)
    data.prepare_data()
    data.setup()
    torch.manual_seed(0)
    module = build_module(config, data)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    with torch.no_grad():  # with BatchNorm's first statistics it would multiply rounding errors
        for batch in 2 * batches:
            module.losses(batch)
    return data, module, batches[0]


def apart(one, other):
    """Length of the difference of two vectors, as a share of the second one's."""
    return float((one - other).norm() / other.norm())


def step(module, batch, device, precision=torch.float32, layout=torch.channels_last):
    """Named losses of a copy of the network on ``device``, and its gradient as a CPU's vector."""
    module = copy.deepcopy(module).to(device, memory_format=layout)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        losses, outputs = module.losses(move_data_to_device(batch, device))
    losses["loss"].backward()
    assert all(one.is_contiguous(memory_format=layout) for one in outputs.pyramid)
    parts = [one.grad.flatten() for one in module.parameters() if one.grad is not None]
    gradient = torch.cat(parts).double().cpu()
    return {name: value.item() for name, value in losses.items()}, gradient


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradients_equal_the_cpus(stage, root, device, record_property):
    _, module, batch = made(stage, root)
    expected, right = step(module, batch, CPU)
    _, other = step(module, batch, CPU, layout=torch.contiguous_format)
    losses, there = step(module, batch, device)
    assert losses == pytest.approx(expected, rel=1e-4)
    record_property("gradients apart", apart(there, right))
    record_property("in two layouts on the CPU", apart(other, right))
    assert apart(there, right) < max(1e-3, TIMES * apart(other, right))


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_in_channels_last_learns_a_batch(stage, root, device, record_property):
    _, module, batch = made(stage, root)
    before, _ = step(module, batch, CPU)
    assert step(module, batch, device, torch.bfloat16)[0] == pytest.approx(before, rel=0.05)
    module.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for _ in range(20):
        with torch.autocast(device.type, torch.bfloat16):
            loss = module.losses(move_data_to_device(batch, device))[0]["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    record_property("loss left", share := loss.item() / before["loss"])
    assert share < 0.2


@pytest.mark.parametrize("stage", STAGES)
def test_maps_and_peaks_equal_the_cpus(stage, root, device, record_property):
    _, module, batch = made(stage, root)
    module.eval()
    with torch.no_grad():
        module.map_scale.fill_(module.raw_maps(module.unmasked_pass(batch["image"]))["pcam"].max())
        expected = module.maps(batch["image"])
        there = module.to(device).maps(batch["image"].to(device))
    for name, map in expected.items():
        record_property(f"{name} apart", (there[name].cpu() - map).abs().max().item())
        torch.testing.assert_close(there[name].cpu(), map, atol=1e-4, rtol=0)
        # Of the same map: where two pixels are equally high, rounding would choose.
        assert peak(map.to(device)).cpu().tolist() == peak(map).tolist()


class NoWaits(Callback):
    """From the batch, on the card, to the moved weights a wait is an error."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("stage", STAGES)
def test_a_training_step_never_waits_for_the_device(stage, root, device):
    data, module, _ = made(stage, root)
    trainer = Trainer(
        accelerator=device.type,
        devices=1,
        precision="bf16-mixed",
        max_steps=4,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        barebones=True,
        callbacks=[NoWaits()] if device.type == "cuda" else [],
    )
    try:
        trainer.fit(module.to(memory_format=torch.channels_last), data)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step == 4
