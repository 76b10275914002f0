"""Ranks on one card: the gradient of a batch does not depend on how many share it."""

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_modules import STAGES
from tests.gpu.networks import apart, gradient, made, moved

pytestmark = pytest.mark.gpu


class Step(nn.Module):
    """A stage's loss as DDP wants it: from ``forward``."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        for part in module.modules():  # an image's loss must not depend on who shares its rank
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()

    def forward(self, batch):
        return self.module.losses(batch)[0]["loss"]


def step_and_share(rank, ranks, stage, root, device):
    """A stage's step and this rank's images of a batch, half of them with a lesion mask."""
    _, module, batch = made(stage, root)
    batch["lesion_mask"][:4, :, 8:24, 8:24], batch["lesion_mask"][4:] = 1.0, 0.0
    batch["has_lesion"] = torch.arange(len(batch["label"])) < 4
    mine = {name: values[rank::ranks] for name, values in batch.items()}
    return Step(module.to(device)), moved(mine, device)


def work(rank, ranks, backend, stage, root, folder, device):
    """One rank's step; its gradient goes to a file."""
    place = f"file://{folder / 'meeting'}"
    distributed.init_process_group(backend, init_method=place, rank=rank, world_size=ranks)
    step, batch = step_and_share(rank, ranks, stage, root, device)
    ranked = DistributedDataParallel(step)  # by a name: gone before backward, it averages nothing
    ranked(batch).backward()
    torch.save(gradient(step), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(("backend", "ranks"), [("nccl", 1), ("gloo", 2)])
def test_ranks_together_have_the_whole_batchs_gradient(
    backend, ranks, root, device, tmp_path, monkeypatch, record_property
):
    if backend == "nccl" and device.type != "cuda":
        pytest.skip("needs a card")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # no network, nor a name that resolves
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    stage = list(STAGES)[-1]
    alone, batch = step_and_share(0, 1, stage, root, device)
    alone(batch).backward()
    given = (ranks, backend, stage, root, tmp_path, device)
    torch.multiprocessing.spawn(work, given, nprocs=ranks)
    for rank in range(ranks):
        far = apart(torch.load(tmp_path / f"{rank}.pt"), gradient(alone))
        record_property("gradients apart", far)
        assert far < 1e-3
