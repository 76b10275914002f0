"""Ranks on one card: the gradient of a batch does not depend on how many share it."""

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_modules import STAGES
from tests.gpu.networks import apart, gradient, made

pytestmark = pytest.mark.gpu


def module_and_share(rank, ranks, root, device):
    """Stage 3 and this rank's images of a batch, half of them with a lesion mask."""
    _, module, batch = made(list(STAGES)[-1], root)
    module.forward = lambda batch: module.losses(batch)[0]["loss"]  # what DDP runs
    for part in module.modules():  # an image's loss must not depend on who shares its rank
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    batch["lesion_mask"][:4, :, 8:24, 8:24], batch["lesion_mask"][4:] = 1.0, 0.0
    batch["has_lesion"] = torch.arange(len(batch["label"])) < 4
    mine = {name: values[rank::ranks] for name, values in batch.items()}
    return module.to(device), move_data_to_device(mine, device)


def work(rank, ranks, backend, root, folder, device):
    """One rank's step; its gradient goes to a file."""
    place = f"file://{folder / 'meeting'}"
    distributed.init_process_group(backend, init_method=place, rank=rank, world_size=ranks)
    module, batch = module_and_share(rank, ranks, root, device)
    ranked = DistributedDataParallel(module)  # by a name: gone before backward, it averages nothing
    ranked(batch).backward()
    torch.save(gradient(module), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(("backend", "ranks"), [("nccl", 1), ("gloo", 2)])
def test_ranks_together_have_the_whole_batchs_gradient(
    backend, ranks, root, device, tmp_path, monkeypatch, record_property
):
    if backend == "nccl" and device.type != "cuda":
        pytest.skip("needs a card")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")  # without a network the machine's name leads nowhere
    alone, batch = module_and_share(0, 1, root, device)
    alone(batch).backward()
    torch.multiprocessing.spawn(work, (ranks, backend, root, tmp_path, device), nprocs=ranks)
    for rank in range(ranks):
        far = apart(torch.load(tmp_path / f"{rank}.pt"), gradient(alone))
        record_property("gradients apart", far)
        assert far < 0.01
