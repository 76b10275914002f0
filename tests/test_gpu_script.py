"""What of the GPU script needs no GPU: collection, the wheels, the table, parts that fail."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.table import figures, gather, table

HOUSE = Path(__file__).parents[1]
SCRIPTS = HOUSE / "tests" / "gpu"


def test_gpu_tests_are_collected_on_a_named_device_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for named, hidden in (("cpu", []), ("", ["test_*.py"])):
        monkeypatch.setenv("DECISION_BASIS_DEVICE", named)
        assert runpy.run_path(str(SCRIPTS / "conftest.py"))["collect_ignore_glob"] == hidden
    for path in SCRIPTS.glob("test_*.py"):
        assert re.search(r"^pytestmark = .*pytest\.mark\.gpu\b", path.read_text(), re.M)


def test_every_dependency_is_on_the_machine_or_fetched_at_its_pin():
    script = (SCRIPTS / "wheels.sh").read_text()
    present, lacking = (
        set(re.findall(rf"^{name}=\((.*?)^\)", script, re.M | re.S)[0].split())
        for name in ("present", "lacking")
    )
    project = (HOUSE / "pyproject.toml").read_text()
    block = project.partition("\ndependencies = [")[2].partition("\n]")[0]
    assert {name.lower() for name in re.findall(r'^ +"([\w-]+)', block, re.M)} <= present | lacking
    pins = re.findall(r"^([\w-]+)==", (HOUSE / "constraints.txt").read_text(), re.M)
    assert lacking <= set(pins) - present


STEP = {"row": "step", "value": 1234.5, "unit": "images/s", "beside": "float32", "ratio": 3.1}
STEP |= {"low": 3.0, "high": 3.25, "share_of_peak": 0.412, "peak_memory_mb": 812.4}
REPORT = """<testsuite><testcase name="test_x[a]" time="1.25"><properties>
<property name="cam apart" value="1e-06"/></properties><failure message="assert 1 | 2&#10;more"/>
</testcase></testsuite>"""


def test_a_recorded_run_becomes_a_table(tmp_path):
    (tmp_path / "card").write_text("NVIDIA T4, 580.1\n")
    parts = "tests\t1\t60\t200\nbench-step\t0\t51\t60\nbench-data\t124\t9\t9\n"
    (tmp_path / "parts.tsv").write_text(parts)
    (tmp_path / "tests.memory").write_text("10\n2048\n[N/A]\n")
    (tmp_path / "tests.xml").write_text(REPORT)
    (tmp_path / "bench-step.json").write_text(json.dumps({"rows": [STEP]}))
    assert table({**gather(tmp_path), "torch": "2.11.0"}).splitlines() == [
        "NVIDIA T4, 580.1, torch 2.11.0, 2.0 minutes",
        "",
        "| part | row | value | beside | ratio | of peak | memory | state |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| tests |  | 60 of 200 s |  |  |  | 2,048 MB | failed |",
        "|  | test_x[a] | 1.25 s | cam apart 1e-06 |  |  |  | failure: assert 1 / 2 |",
        "| bench-step |  | 51 of 60 s |  |  |  |  | done |",
        "|  | step | 1,234 images/s | float32 | 3.1 (3 to 3.25) | 41% | 812 MB |  |",
        "| bench-data |  | 9 of 9 s |  |  |  |  | timed out |",
        "|  | results |  |  |  |  |  | cannot be read: FileNotFoundError |",
    ]
    summary = tmp_path / "runs" / "phantom" / "stage3" / "a" / "evaluation/test/summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"fcn/hit": 0.5}))
    expected, judged = figures("stage3", tmp_path)
    assert re.search(r"three seeds: accuracy .* FCN hit rate .* PCAM hit", expected["beside"])
    assert judged == {"row": "stage3 fcn/hit", "value": 0.5}


def test_parts_that_fail_do_not_end_the_script(tmp_path):
    """An interpreter that makes the table and nothing else."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" != -m -a "$1" != -c ] || exit 3\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    command = (SCRIPTS / "run.sh", "--device", "cpu", "--out", tmp_path / "out")
    environment = {**os.environ, "PYTHON": str(python)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    states = {part["part"]: part["state"] for part in results["parts"]}
    assert set(states.values()) == {"failed"}
    assert {"install", "tests", "data", "stage1", "stage2", "stage3", "evaluate"} < set(states)
    assert table(results) in done.stdout
    assert subprocess.run(command, capture_output=True).returncode == 2  # the folder is not empty


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_are_clean():
    checked = subprocess.run(["shellcheck", *SCRIPTS.glob("*.sh")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
