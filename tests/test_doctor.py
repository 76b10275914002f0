"""What the doctor finds, and the machine as a run sees it."""

from __future__ import annotations

import os
import re
import sys
from collections import namedtuple
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from datamodules import files
from experiments import build, doctor, train
from experiments.config import ConfigError, load_config

Usage = namedtuple("Usage", "total used free")
OK, NOTE, PROBLEM = doctor.OK, doctor.NOTE, doctor.PROBLEM
LIGHTNING = "pytorch-lightning"


def test_a_line_a_finding_and_the_status(films, tmp_path, capsys):
    assert doctor.main([f"run.root={tmp_path}/runs", "data.num_workers=0"]) == 0
    output = capsys.readouterr().out
    topics = "Python torch pytorch-lightning opencv device precision run.root data W&B"
    for topic in topics.split():
        assert re.search(rf"^  (OK|note) +{topic}", output, re.MULTILINE), topic
    assert output.endswith("no problems\n")
    words = ["data.name=mura", f"data.root={tmp_path}/nowhere", f"run.root={tmp_path}"]
    assert doctor.main(words) == 2
    output = capsys.readouterr().out
    assert re.search(r"(?s)PROBLEM  data +.*nowhere", output)
    assert output.endswith("1 problem\n")
    assert doctor.main(["data.nmae=mura"]) == 2
    words = ["data.name=table", f"data.root={films}", f"lesions.path={tmp_path}/nowhere"]
    assert doctor.main([*words, f"run.root={tmp_path}"]) == 2
    assert re.search(r"(?s)PROBLEM  data +.*nowhere", capsys.readouterr().out)


def installs(name, version):
    """A stand-in for what is installed; without a version, the package is not there."""
    others = [one for one in metadata.distributions() if one.metadata["Name"] != name]
    own = [SimpleNamespace(metadata={"Name": name}, version=version)] if version else []
    return {"importlib.metadata.distributions": lambda: [*others, *own]}


NO_GPU = {"torch.cuda.is_available": lambda: False}
EMULATED = {"experiments.build.choose_precision": lambda accelerator: "32-true"}
FULL = {"shutil.disk_usage": lambda path: Usage(2**40, 2**40, 2**20)}


@pytest.mark.parametrize(
    ("topic", "words", "patches", "state", "text"),
    [
        (LIGHTNING, "", installs(LIGHTNING, "2.6.5"), PROBLEM, "but >=2.6.6 is needed"),
        ("torchmetrics", "", installs("torchmetrics", ""), PROBLEM, "not installed, .*make setup"),
        # The build for a CUDA version is the same torch.
        ("torch", "", installs("torch", "2.14.1+cu130"), OK, "2.14.1"),
        ("OpenCV", "", installs("opencv-python", "5.0"), PROBLEM, "uninstall -y opencv-p"),
        ("device", "trainer.accelerator=gpu", NO_GPU, PROBLEM, "accelerator=gpu, but"),
        ("device", "", {"sys.modules[experiments.build]": None}, PROBLEM, "make setup"),
        ("precision", "trainer.precision=bf16-mixed", EMULATED, NOTE, "not native"),
        ("weights", "model.encoder=timm:x model.weights=gone", {}, PROBLEM, "expected imagenet or"),
        ("run.root", "run.root=FILE/runs", {}, PROBLEM, "set run.root to another f"),
        ("cache", "run.root=HERE", FULL, PROBLEM, "0.00 GiB free; .*data.cache_dir"),
        ("data", "data.root=HERE", {}, PROBLEM, "no phantom and not empty.*data.root"),
        ("data", "data.image_size=64 model.zoom=1.1", {}, PROBLEM, "two of its views are one"),
        ("weights", "model.init_from=HERE", {}, PROBLEM, "is no run directory"),
        ("data", "data.root=HERE/new data.count=12", {}, OK, "draws itself .12 images"),
        ("W&B", "logger.wandb=online", {}, PROBLEM, "wandb login"),
    ],
)
def test_findings(tmp_path, monkeypatch, topic, words, patches, state, text):
    file = tmp_path / "file.txt"
    file.write_text("no folder")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in patches.items():
        if name.startswith("sys.modules"):
            monkeypatch.setitem(sys.modules, name[12:-1], value)
        else:
            monkeypatch.setattr(name, value)
    words = words.replace("FILE", str(file)).replace("HERE", str(tmp_path))
    findings = [*doctor.examine(load_config("stage1", words.split()))]
    ((verdict, _, reason),) = [finding for finding in findings if finding[1] == topic][:1]
    assert verdict == state
    assert re.search(text, reason)
    assert [*tmp_path.iterdir()] == [file]  # it looks, it does not touch


SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "jupyter"}
SHELL |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
FOUR, NODES = ["trainer.devices=4"], ["trainer.devices=2", "trainer.num_nodes=2"]
TWO_BY_TWO = {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"}


@pytest.mark.parametrize(
    ("variables", "words", "state"),
    [
        ({}, [], PROBLEM),
        ({"SLURM_NTASKS_PER_NODE": "4"}, FOUR, OK),
        ({"SLURM_NTASKS_PER_NODE": "2"}, FOUR, PROBLEM),
        (TWO_BY_TWO, NODES, OK),
        ({"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "4"}, [], OK),  # srun --ntasks=1
        ({"SLURM_NTASKS": "1"}, ["trainer.devices=2"], PROBLEM),  # it would wait for ever
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": ""}, [], PROBLEM),  # salloc's shell
        ({"SLURM_JOB_NAME": "interactive"}, [], OK),
        ({"TORCHELASTIC_RUN_ID": "1"}, FOUR, OK),  # torchrun
    ],
)
def test_slurm_tasks_that_are_none_are_found_before_anything_is_written(
    tmp_path, monkeypatch, capsys, variables, words, state
):
    for name, value in {**SHELL, **variables}.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    ((verdict, _, fault),) = doctor.check_slurm(load_config("stage1", words))
    assert verdict == state
    if state == PROBLEM:
        monkeypatch.chdir(tmp_path)
        assert train.main(["stage1", *words]) == 2
        assert capsys.readouterr().err == f"error: {fault}\n"
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "first"),
    [({"SLURM_NTASKS": "4"}, True), ({}, False), ({"TORCHELASTIC_RUN_ID": "1"}, True)],
)
def test_ranks_that_would_each_train_the_run_alone_are_refused(monkeypatch, variables, first):
    for name, value in {"WORLD_SIZE": "4", **variables}.items():
        monkeypatch.setenv(name, value)
    build.check_ranks(SimpleNamespace(world_size=4, is_global_zero=first), first)
    with pytest.raises(ConfigError, match="this training has 1 rank, but torchrun"):
        build.check_ranks(SimpleNamespace(world_size=1, is_global_zero=True), first)


@pytest.mark.parametrize(
    ("card", "cpuinfo", "accelerator", "device", "precision"),
    [
        (None, "model name\t: X\nflags\t\t: fpu sse avx512_bf16", "auto", "cpu", "bf16-mixed"),
        (None, "flags\t\t: fpu sse avx2 avx512f avx512bw\n", "cpu", "cpu", "32-true"),
        (None, "Features\t: fp asimd bf16 i8mm\n", "cpu", "cpu", "bf16-mixed"),
        (None, "", "cpu", "cpu", "32-true"),
        ((7, 5), "", "auto", "cuda", "32-true"),
        ((8, 0), "", "auto", "cuda", "bf16-mixed"),
        ((8, 0), "", "cpu", "cpu", "32-true"),
    ],
)
def test_device_and_precision(tmp_path, monkeypatch, card, cpuinfo, accelerator, device, precision):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    assert build.choose_device(accelerator).type == device
    assert build.choose_precision(accelerator) == precision


def test_cores_of_a_container_and_the_device_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert files.usable_cores() == 8
    for limit, cores in [("max 100000\n", 8), ("250000 100000\n", 3), ("50000 100000\n", 1)]:
        (tmp_path / "cpu.max").write_text(limit)
        assert files.usable_cores() == cores
    assert re.match(r"CPU .+, 1 core, \d+ threads?$", build.describe_device(torch.device("cpu")))
