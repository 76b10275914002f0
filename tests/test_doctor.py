"""What the doctor finds, and the machine as a run sees it."""

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
OK, NOTE, PROBLEM = doctor.OK, doctor.NOTE, doctor.PROBLEM


def finding(check, topic, *words):
    """The finding on ``topic`` of a check."""
    (only,) = [one for one in check(load_config("stage1", list(words))) if one.topic == topic]
    return only


def test_a_sound_machine_is_reported_line_by_line(tmp_path):
    words = [f"run.root={tmp_path}/runs", "data.num_workers=0"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.doctor", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "90"},
    )
    lines = done.stdout.splitlines()
    topics = "Python torch pytorch-lightning OpenCV device precision run.root data"
    for topic in [*topics.split(), "W&B"]:
        assert any(re.match(rf"  (OK|note|PROBLEM) +{re.escape(topic)} ", line) for line in lines)
    assert all(len(line) <= 90 for line in lines[1:])
    assert "no problems" in lines[-1], done.stdout
    assert done.returncode == 0
    assert not (tmp_path / "runs").exists()  # it looks, it does not touch


def test_problems_and_unknown_keys_give_status_2(tmp_path, capsys):
    words = ["data.name=mura", f"data.root={tmp_path}/nowhere", f"run.root={tmp_path}"]
    assert doctor.main(words) == 2
    output = capsys.readouterr().out
    assert "PROBLEM  data" in output
    assert "nowhere" in output
    assert "1 problem" in output.splitlines()[-1]
    assert doctor.main(["data.nmae=mura"]) == 2
    assert "data.name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "version", "state", "words"),
    [
        ("pytorch-lightning", "2.6.2", PROBLEM, "malicious .GHSA-w37p-236h-pfx3"),
        ("pytorch-lightning", "2.6.3+local", PROBLEM, "malicious .GHSA-w37p-236h-pfx3"),
        ("pytorch-lightning", "2.6.5", PROBLEM, ">=2.6.6 is needed"),
        ("torchmetrics", None, PROBLEM, "not installed; make setup"),
        ("wandb", "0.99.0", NOTE, "tested with"),
        ("torch", "2.14.1+cu130", OK, "2.14.1"),  # the build for a CUDA version is the same torch
    ],
)
def test_versions_against_what_is_needed_and_tested(monkeypatch, name, version, state, words):
    real = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda n: version if n == name else real(n))
    one = finding(doctor.check_versions, name)
    assert one.state == state
    assert re.search(words, one.text)


def test_two_cv2_wheels_and_a_missing_package_are_problems(monkeypatch):
    real = doctor.installed_version
    monkeypatch.setattr(
        doctor, "installed_version", lambda n: "5.0" if n == "opencv-python" else real(n)
    )
    one = finding(doctor.check_versions, "OpenCV")
    assert one.state == PROBLEM
    assert "pip uninstall -y opencv-python-headless opencv-python; pip install" in one.text
    monkeypatch.setitem(sys.modules, "experiments.hardware", None)
    one = finding(doctor.examine, "device")
    assert one.state == PROBLEM
    assert "make setup" in one.text


def test_a_device_that_is_not_there_and_emulated_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    one = finding(doctor.check_device, "device", "trainer.accelerator=gpu")
    assert one.state == PROBLEM
    assert "trainer.accelerator=gpu" in one.text
    monkeypatch.setattr(hardware, "native_bf16", lambda device: False)
    one = finding(doctor.check_device, "precision", "trainer.precision=bf16-mixed")
    assert one.state == NOTE
    assert "not native" in one.text


def test_shared_memory_for_the_workers_that_a_run_starts(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**26, 0, 2**26))  # Docker's
    words = ["data.image_size=320", "data.batch_size=32"]
    one = finding(doctor.check_memory, "shared memory", *words, "data.num_workers=4")
    needed = 4 * 2 * 32 * 320 * 320 * 5  # workers, batches each, images, pixels, bytes
    assert one.state == PROBLEM
    assert f"64 MiB free in /dev/shm, loader workers need {needed / 2**20:.0f}" in one.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not list(doctor.check_memory(load_config("stage1", words)))  # no loader process
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("datamodules.radiographs.usable_cores", lambda: 6)
    one = finding(doctor.check_memory, "shared memory", "data.batch_size=32")  # the phantom's size
    assert f"need {3 * 2 * 32 * 160 * 160 * 5 / 2**20:.0f}" in one.text


@pytest.mark.parametrize("there", [False, True])
def test_a_root_where_the_phantom_would_be_drawn(tmp_path, there):
    root = tmp_path / "new"
    if there:
        root.mkdir()
    words = [f"data.root={root}", f"run.root={tmp_path}", "data.count=12"]
    one = finding(doctor.check_data, "data", *words)
    assert one.state == OK
    assert one.text == f"phantom, draws itself (12 images) into {root} on first use"
    assert list(tmp_path.iterdir()) == [root] * there  # it looks, it does not touch


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "holiday.txt").write_text("sun")
    below = tmp_path / "holiday.txt" / "new"
    for root, reason in [(tmp_path, "is no phantom and not empty"), (below, "Not a directory")]:
        one = finding(doctor.check_data, "data", f"data.root={root}")
        assert one.state == PROBLEM
        assert reason in one.text
        assert "data.root" in one.text
    one = finding(doctor.check_folders, "run.root", f"run.root={below}")
    assert one.state == PROBLEM
    assert "cannot be written (Not a directory); set run.root to another folder" in one.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 2**20))
    one = finding(doctor.check_folders, "cache", f"run.root={tmp_path}")
    assert one.state == PROBLEM
    assert "0.00 GiB free; make room, or set data.cache_dir to another disk" in one.text


def test_wandb_login(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    one = finding(doctor.check_wandb, "W&B")
    assert one.state == OK
    assert one.text.startswith("offline (no key configured)")
    assert finding(doctor.check_wandb, "W&B", "logger.wandb=online").state == PROBLEM
    monkeypatch.setenv("WANDB_API_KEY", "secret-value")
    assert finding(doctor.check_wandb, "W&B").text == "online (a key is configured)"


SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "jupyter"}
SHELL |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("variables", "words", "state"),
    [
        ({}, [], PROBLEM),
        ({}, ["trainer.devices=4"], PROBLEM),
        ({"SLURM_NTASKS_PER_NODE": "4"}, [], PROBLEM),
        ({"SLURM_NTASKS_PER_NODE": "4"}, ["trainer.devices=4"], OK),
        ({"SLURM_NTASKS_PER_NODE": "2"}, ["trainer.devices=4"], PROBLEM),
        (
            {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"},
            ["trainer.devices=2", "trainer.num_nodes=2"],
            OK,
        ),
        ({"SLURM_NTASKS": "1"}, [], OK),
        ({"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "4"}, [], OK),  # srun --ntasks=1
        ({"SLURM_NTASKS": "1"}, ["trainer.devices=2"], PROBLEM),  # it would wait for ever
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": ""}, [], PROBLEM),  # salloc's shell
        ({"SLURM_NTASKS": ""}, [], OK),
        ({"SLURM_JOB_NAME": "interactive"}, [], NOTE),
        ({"TORCHELASTIC_RUN_ID": "1"}, ["trainer.devices=4"], OK),  # torchrun
    ],
)
def test_slurm_tasks_that_are_none_are_found_before_anything_is_written(
    tmp_path, monkeypatch, capsys, variables, words, state
):
    for name, value in {**SHELL, **variables}.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    one = finding(doctor.check_slurm, "SLURM", *words)
    assert one.state == state
    if state == PROBLEM:
        monkeypatch.chdir(tmp_path)
        assert train.main(["stage1", *words]) == 2
        assert capsys.readouterr().err == f"error: {one.text}\n"
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


def test_apples_gpu_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.choose_device("auto").type == "cpu"
    assert hardware.choose_device("mps").type == "mps"


def test_cores_of_a_container_and_the_device_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert files.usable_cores() == 8
    for limit, cores in [("max 100000\n", 8), ("250000 100000\n", 3), ("50000 100000\n", 1)]:
        (tmp_path / "cpu.max").write_text(limit)
        assert files.usable_cores() == cores
    words = hardware.describe_device(torch.device("cpu"))
    assert re.match(r"CPU .+, 1 core, \d+ threads?$", words)
