from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from datamodules import files
from experiments import doctor, hardware, train
from experiments.config import load_config

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def config(tmp_path):
    return load_config("stage1", [f"run.root={tmp_path}"])


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these versions are installed; None: not there."""

    def pretend(**versions):
        names = {name.replace("_", "-"): version for name, version in versions.items()}
        real = doctor.installed_version
        monkeypatch.setattr(
            doctor, "installed_version", lambda name: names[name] if name in names else real(name)
        )

    return pretend


def one(findings, topic):
    (found,) = [finding for finding in findings if finding.topic == topic]
    return found


def run_doctor(*words, **variables):
    return subprocess.run(
        [sys.executable, "-m", "experiments.doctor", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )


def test_a_sound_machine_is_reported_line_by_line(tmp_path):
    done = run_doctor(f"run.root={tmp_path}/runs", "data.num_workers=0", COLUMNS="90")
    lines = done.stdout.splitlines()
    topics = "Python torch pytorch-lightning OpenCV device precision memory run.root data W&B"
    for topic in topics.split():
        assert any(re.match(rf"  (OK|note|PROBLEM) +{re.escape(topic)} ", line) for line in lines)
    assert all(len(line) <= 90 for line in lines[1:])
    assert "no problems" in lines[-1], done.stdout
    assert done.returncode == 0
    assert not (tmp_path / "runs").exists()  # it looks, it does not touch


def test_problems_give_status_2(tmp_path):
    done = run_doctor("data.name=mura", f"data.root={tmp_path}/nowhere", f"run.root={tmp_path}")
    assert done.returncode == 2
    assert "PROBLEM  data" in done.stdout
    assert "nowhere" in done.stdout
    assert "1 problem" in done.stdout.splitlines()[-1]


def test_unknown_key_gives_status_2(capsys):
    assert doctor.main(["data.nmae=mura"]) == 2
    assert "did you mean data.name?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("2.6.2", "malicious (GHSA-w37p-236h-pfx3)"),
        ("2.6.3+local", "malicious (GHSA-w37p-236h-pfx3)"),
        ("2.6.5", "runs code from checkpoints"),
        ("1.9.0", "runs code from checkpoints"),
    ],
)
def test_dangerous_lightning(config, installed, version, words):
    installed(pytorch_lightning=version)
    found = one(doctor.check_versions(config), "pytorch-lightning")
    assert found.state == doctor.PROBLEM
    assert words in found.text
    assert "pytorch-lightning>=2.6.6" in found.text


def test_dangerous_lightning_under_its_other_name(config, installed):
    installed(lightning="2.6.3")
    assert one(doctor.check_versions(config), "lightning").state == doctor.PROBLEM


def test_versions_against_the_tested_ones(config, installed):
    installed(torchmetrics=None, wandb="0.99.0", torch=f"{doctor.tested_versions()['torch']}+cu130")
    found = list(doctor.check_versions(config))
    assert one(found, "torchmetrics").state == doctor.PROBLEM
    assert one(found, "wandb").state == doctor.NOTE
    assert "tested with" in one(found, "wandb").text
    assert one(found, "torch").state == doctor.OK  # the build for a CUDA version is the same torch


def test_two_cv2_wheels(config, installed):
    installed(opencv_python="5.0.0.93")
    (found,) = doctor.check_cv2(config)
    assert found.state == doctor.PROBLEM
    assert "opencv-python-headless and opencv-python overwrite each other's files" in found.text
    assert "pip uninstall -y opencv-python-headless opencv-python; pip install" in found.text


def test_empty_cv2_folder(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", type(sys)("cv2"))  # what an uninstalled twin leaves
    (found,) = doctor.check_cv2(config)
    assert found.state == doctor.PROBLEM
    assert "cv2 does not work" in found.text


def test_a_missing_package_is_a_finding(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "experiments.hardware", None)
    found = one(doctor.examine(config), "device")
    assert found.state == doctor.PROBLEM
    assert "make setup" in found.text


def test_accelerator_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = load_config("stage1", ["trainer.accelerator=gpu"])
    found = one(doctor.check_device(config), "device")
    assert found.state == doctor.PROBLEM
    assert "trainer.accelerator=gpu" in found.text


def test_apples_gpu_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.choose_device("auto").type == "cpu"
    assert hardware.choose_device("mps").type == "mps"


def test_emulated_bf16_is_noted(monkeypatch):
    monkeypatch.setattr(hardware, "native_bf16", lambda device: False)
    config = load_config("stage1", ["trainer.precision=bf16-mixed", "trainer.accelerator=cpu"])
    found = one(doctor.check_device(config), "precision")
    assert found.state == doctor.NOTE
    assert "not native" in found.text


def test_small_shared_memory(monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Usage(2**26, 0, 2**26)
    )  # Docker's 64 MiB
    config = load_config(
        "stage1", ["data.num_workers=4", "data.image_size=320", "data.batch_size=32"]
    )
    needed = 4 * 2 * 32 * 320 * 320 * 5  # workers, batches each, images, pixels, bytes
    assert doctor.loader_bytes(config) == needed
    found = one(doctor.check_limits(config), "shared memory")
    assert found.state == doctor.PROBLEM
    assert f"64 MiB free in /dev/shm, loader workers need about {needed / 2**20:.0f}" in found.text
    without = load_config("stage1", ["data.num_workers=0"])
    assert one(doctor.check_limits(without), "shared memory").state == doctor.OK


def test_workers_are_counted_as_a_run_starts_them(monkeypatch):
    config = load_config("stage1", ["data.batch_size=32"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.loader_bytes(config) == 0  # without CUDA no loader process is started
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("experiments.build.usable_cores", lambda: 6)
    assert doctor.loader_bytes(config) == 3 * 2 * 32 * 160 * 160 * 5


@pytest.mark.parametrize("there", [False, True])
def test_a_root_where_the_phantom_would_be_drawn(tmp_path, there):
    root = tmp_path / "new"
    if there:
        root.mkdir()
    words = [f"data.root={root}", f"run.root={tmp_path}", "data.count=12"]
    (found,) = doctor.check_data(load_config("stage1", words))
    assert found.state == doctor.OK
    assert found.text == f"phantom, draws itself (12 images) into {root} on first use"
    assert list(tmp_path.iterdir()) == [root] * there  # it looks, it does not touch


def test_a_root_where_the_phantom_cannot_be_drawn(tmp_path, monkeypatch):
    (tmp_path / "holiday.txt").write_text("sun")
    (found,) = doctor.check_data(load_config("stage1", [f"data.root={tmp_path}"]))
    assert found.state == doctor.PROBLEM
    assert "is no phantom and not empty; choose another data.root" in found.text
    below = tmp_path / "holiday.txt" / "new"
    (found,) = doctor.check_data(load_config("stage1", [f"data.root={below}"]))
    assert found.state == doctor.PROBLEM
    assert "cannot be written (Not a directory); set data.root to another folder" in found.text


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    found = doctor.check_folder("run.root", tmp_path / "file" / "runs", 1)
    assert found.state == doctor.PROBLEM
    assert "cannot be written (Not a directory); set run.root to another folder" in found.text


def test_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 2**20))
    found = doctor.check_folder("cache", tmp_path / "new" / "cache", 1)
    assert found.state == doctor.PROBLEM
    assert "0.00 GiB free; make room, or set data.cache_dir to another disk" in found.text


def test_wandb_login(config, monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (found,) = doctor.check_wandb(config)
    assert found.state == doctor.OK
    assert found.text.startswith("offline (no key configured)")
    (found,) = doctor.check_wandb(load_config("stage1", ["logger.wandb=online"]))
    assert found.state == doctor.PROBLEM
    assert "run 'wandb login', or use logger.wandb=offline" in found.text
    monkeypatch.setenv("WANDB_API_KEY", "secret-value")
    (found,) = doctor.check_wandb(config)
    assert found.text == "online (a key is configured)"


SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "jupyter"}
SHELL |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("variables", "words", "state"),
    [
        ({}, [], doctor.PROBLEM),
        ({}, ["trainer.devices=4"], doctor.PROBLEM),
        ({"SLURM_NTASKS_PER_NODE": "4"}, [], doctor.PROBLEM),
        ({"SLURM_NTASKS_PER_NODE": "4"}, ["trainer.devices=4"], doctor.OK),
        ({"SLURM_NTASKS_PER_NODE": "2"}, ["trainer.devices=4"], doctor.PROBLEM),
        (
            {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"},
            ["trainer.devices=2", "trainer.num_nodes=2"],
            doctor.OK,
        ),
        ({"SLURM_NTASKS": "1"}, [], doctor.OK),
        ({"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "4"}, [], doctor.OK),  # srun --ntasks=1
        ({"SLURM_NTASKS": "1"}, ["trainer.devices=2"], doctor.PROBLEM),  # it would wait for ever
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": ""}, [], doctor.PROBLEM),  # salloc's shell
        ({"SLURM_NTASKS": ""}, [], doctor.OK),
        ({"SLURM_JOB_NAME": "interactive"}, [], doctor.NOTE),
        ({"TORCHELASTIC_RUN_ID": "1"}, ["trainer.devices=4"], doctor.OK),  # torchrun
    ],
)
def test_slurm_tasks_that_are_none_are_found_before_anything_is_written(
    tmp_path, monkeypatch, capsys, variables, words, state
):
    for name, value in {**SHELL, **variables}.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in SHELL if variables.get(name) == ""]:
        monkeypatch.delenv(name)
    (found,) = doctor.check_slurm(load_config("stage1", words))
    assert found.state == state
    if state != doctor.PROBLEM:
        return
    assert "=interactive or without SLURM_NTASKS" in found.text
    monkeypatch.chdir(tmp_path)
    assert train.main(["stage1", *words]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {found.text}\n"
    assert f"SLURM_NTASKS={os.environ['SLURM_NTASKS']}, but this is no task that srun" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cpuinfo", "native"),
    [
        ("model name\t: X\nflags\t\t: fpu sse avx512f avx512_bf16 amx_bf16\n", True),
        ("flags\t\t: fpu sse avx2 avx512f avx512bw\n", False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("", False),
    ],
)
def test_native_bf16_on_a_cpu(tmp_path, monkeypatch, cpuinfo, native):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    assert hardware.native_bf16(torch.device("cpu")) is native
    assert hardware.choose_precision("cpu") == ("bf16-mixed" if native else "32-true")


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 5), "32-true"), ((8, 0), "bf16-mixed"), ((12, 0), "bf16-mixed")],
)
def test_native_bf16_on_a_gpu(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.choose_precision("auto") == precision
    assert hardware.choose_device("cpu") == torch.device("cpu")


def test_cores_and_memory_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    monkeypatch.setattr(files, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert files.usable_cores() == 8
    for limit, cores in [("max 100000\n", 8), ("250000 100000\n", 3), ("50000 100000\n", 1)]:
        (tmp_path / "cpu.max").write_text(limit)
        assert files.usable_cores() == cores
    (tmp_path / "memory.max").write_text("1048576\n")
    assert hardware.usable_memory() == 2**20


def test_device_is_described():
    assert re.match(
        r"CPU .+, \d+ cores?, \d+ threads?$", hardware.describe_device(torch.device("cpu"))
    )
