"""What of the GPU script needs no GPU: collection, the wheels, parts that fail."""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

HOUSE = Path(__file__).parents[1]
SCRIPTS = HOUSE / "tests" / "gpu"


def start(*command, **environment):
    return subprocess.run(
        command, cwd=HOUSE, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_gpu_tests_are_collected_on_a_named_device_only(monkeypatch):
    assert all("pytest.mark.gpu" in path.read_text() for path in SCRIPTS.glob("test_*.py"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for named, hidden in (("cpu", []), ("", ["test_*.py"])):
        monkeypatch.setenv("DECISION_BASIS_DEVICE", named)
        assert runpy.run_path(str(SCRIPTS / "conftest.py"))["collect_ignore_glob"] == hidden


def test_every_dependency_is_on_the_machine_or_fetched_at_its_pin():
    script = (SCRIPTS / "wheels.sh").read_text()
    present, lacking = (
        set(re.findall(rf"^{name}=\((.*?)^\)", script, re.M | re.S)[0].split())
        for name in ("present", "lacking")
    )
    project = (HOUSE / "pyproject.toml").read_text()
    block = project.partition("\ndependencies = [")[2].partition("\n]")[0]
    assert {name.lower() for name in re.findall(r'^ +"([\w-]+)', block, re.M)} <= present | lacking
    assert not present & lacking
    pins = re.findall(r"^([\w-]+)==", (HOUSE / "constraints.txt").read_text(), re.M)
    assert lacking <= set(pins)
    assert "--constraint constraints.txt" in script


def test_parts_that_fail_do_not_end_the_script(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")  # an interpreter that starts nothing
    python.chmod(0o755)
    command = (str(SCRIPTS / "run.sh"), "--device", "cpu", "--out", str(tmp_path / "out"))
    ended = start(*command, PYTHON=str(python))
    assert ended.returncode == 1, ended.stderr
    parts = pd.read_csv(tmp_path / "out" / "parts.tsv", sep="\t")
    assert set(parts["state"]) == {"failed"}
    assert {"tests", "data", "stage1", "stage2", "stage3", "evaluate"} < set(parts["part"])
    assert start(*command).returncode == 2  # the folder holds something


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_are_clean():
    checked = start("shellcheck", *map(str, SCRIPTS.glob("*.sh")))
    assert checked.returncode == 0, checked.stdout
