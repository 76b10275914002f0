"""What this machine offers: device, native bfloat16, cores and memory that a job may really use."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from datamodules.files import usable_cores

_CPUINFO = Path("/proc/cpuinfo")


def choose_device(accelerator: str = "auto") -> torch.device:
    """The device of ``trainer.accelerator``; ``auto`` is CUDA, else the CPU."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", 0)
    # Only when asked for: it knows no float64, in which figures are added up here.
    if accelerator in ("gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps", 0)
    return torch.device("cpu")


def choose_precision(accelerator: str = "auto") -> str:
    """``bf16-mixed`` where the device computes bfloat16 natively, else ``32-true``."""
    return "bf16-mixed" if native_bf16(choose_device(accelerator)) else "32-true"


def native_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware; emulated, it is slower than float32."""
    if device.type == "cuda":
        # Compute capability 8.0 (Ampere) and later; before that PyTorch emulates.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Flags of x86 (AVX-512, AMX) and of Arm.
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & {*_cpu("flags|Features").split()})
    return False


def describe_device(device: torch.device) -> str:
    """Name and size of ``device`` for people, such as ``Intel Xeon, 2 cores``."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return f"{card.name} (cuda:{device.index or 0}), {card.total_memory / 2**30:.0f} GiB"
    if device.type != "cpu":
        return f"{device.type.upper()} ({platform.machine()})"
    counts = {"core": usable_cores(), "thread": torch.get_num_threads()}
    parts = [f"{number} {name}{'s' * (number > 1)}" for name, number in counts.items()]
    return ", ".join([f"CPU {_cpu('model name') or platform.machine()}", *parts])


def slurm_fault(trainer: dict[str, Any]) -> str:
    """Why Lightning cannot train in the SLURM job around us, with the remedy; "" where it can."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    devices, nodes = trainer["devices"], trainer["num_nodes"]
    try:
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            job = SLURMEnvironment()
            one = job.global_rank() == 0 and job.world_size() == devices == nodes == 1
            if isinstance(devices, int) and not one:
                job.validate_settings(devices, nodes)
                if job.world_size() != devices * nodes:  # ranks would train alone, or wait
                    raise ValueError
    except (RuntimeError, ValueError, KeyError):
        return (
            f"SLURM_NTASKS={os.environ['SLURM_NTASKS']}, but this is no task that srun started for "
            f"trainer.devices={devices} and trainer.num_nodes={nodes}. Fix: start it by srun "
            f"--nodes={nodes} --ntasks-per-node={devices}, or, as one process (shell, notebook), "
            "with SLURM_JOB_NAME=interactive or without SLURM_NTASKS."
        )
    return ""


def _cpu(pattern: str) -> str:
    """What follows a line's name in the system's description of its processor, if it has one."""
    text = _CPUINFO.read_text(errors="replace") if _CPUINFO.is_file() else ""
    match = re.search(rf"^(?:{pattern})\s*:(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""
