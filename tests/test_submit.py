"""Submitting to SLURM, with stand-ins for sbatch and srun."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import submit
from experiments.cluster.jobs import SCRIPTS
from tests.standins import calls_of, stand_in

ANSWER = """
if os.environ.get("REFUSE", "nothing") in " ".join(sys.argv):
    sys.exit("sbatch: error: no such partition")
print(os.path.getsize(sys.argv[0] + ".calls"), end=";cluster\\n")
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to submit from, with recording commands on the PATH."""
    folder = tmp_path / "a folder"
    for name in ("sbatch", "srun"):
        stand_in(folder / "bin" / name, ANSWER)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    return folder


def calls(name: str) -> list[list[str]]:
    return [words for words, _ in calls_of(Path("bin") / name)]


class Call:
    """A call of sbatch."""

    def __init__(self, words: list[str]) -> None:
        start = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
        self.options = dict(word.partition("=")[::2] for word in words[:start])
        assert len(self.options) == start  # each option once
        self.script, self.words = words[start], words[start + 1 :]

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the script as SLURM would, with the recording srun."""
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
        slurm["SLURM_JOB_NUM_NODES"] = self.options.get("--nodes", "")
        for option in ("ntasks-per-node", "cpus-per-task"):
            name = f"SLURM_{option.upper().replace('-', '_')}"
            slurm[name] = self.options.get(f"--{option}", "")
        words, environment = ["bash", self.script, *self.words], os.environ | slurm | variables
        return subprocess.run(words, env=environment, capture_output=True, text=True)

    def trains(self, index: str = "") -> list[str]:
        """The words that ``experiments.train`` gets from the script."""
        done = self.run(SLURM_ARRAY_TASK_ID=index)
        assert done.returncode == 0, done.stderr
        cpus = f"--cpus-per-task={self.options['--cpus-per-task']}"
        step = ["--kill-on-bad-exit=1", "--export=ALL", cpus, sys.executable, "-m"]
        assert calls("srun")[-1][:6] == [*step, "experiments.train"]
        return calls("srun")[-1][6:]


def dry(capsys, *words: str) -> dict[str, Call]:
    """The sbatch calls that a dry run prints, by their variables."""
    assert submit.main(["--dry-run", *words]) == 0
    assert calls("sbatch") == []
    folder, *lines = capsys.readouterr().out.splitlines()
    assert folder.startswith("mkdir -p ")
    pairs = [line.removesuffix(")").split("=$(", 1) for line in lines]
    return {variable: Call(shlex.split(call)[2:]) for variable, call in pairs}


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sbatch")), ids=lambda path: path.name)
def test_scripts_are_requeued_warned_and_end_with_the_status_of_their_step(script):
    options = ["--requeue", "--open-mode=append", "--ntasks-per-node=1"]
    options += ["--signal=USR1@120"] * (script.stem != "evaluate")
    assert {f"#SBATCH {option}" for option in options} <= set(script.read_text().splitlines())
    words = ["srun"] if script.stem == "sweep" else ["--python", sys.executable, "stage1"]
    assert Call([str(script), *words]).run(STATUS="138").returncode == 138
    done = Call([str(script)] + ["stage1"] * (script.stem != "sweep")).run()
    assert done.returncode == 2  # no environment here, or no command


def test_a_sweeps_command_is_run_once_with_the_environments_python(here):
    python = stand_in(here / ".venv" / "bin" / "python")
    job = Call(["--cpus-per-task=3", str(SCRIPTS / "sweep.sbatch"), "python", "a b", "c"])
    task = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "2"}
    output = job.run(OMP_NUM_THREADS="", PYTHON="", **task).stdout
    assert "job 7 (6_2) on n1, restart 0: python a b c" in output
    ((words, environment),) = calls_of(python)
    assert words == ["a b", "c"]
    assert (environment["OMP_NUM_THREADS"], environment["PYTHON"]) == ("3", "python")


CLUSTER = ["--partition=gpu", "--account=me", "--gpus=a100:4", "--nodes=2", "--cpus=6"]
CLUSTER += ["--time=1-0", "--sbatch-args=--mem=64G --constraint='a b'", "run.root=x y/100%"]


def test_the_cluster_is_described_by_options(capsys):
    train, judge = dry(capsys, "stage1", "evaluate", *CLUSTER).values()
    shared = {"--partition": "gpu", "--account": "me", "--cpus-per-task": "6", "--time": "1-0"}
    shared |= {"--mem": "64G", "--constraint": "a b", "--output": "x y/100%%/slurm/%x-%j.log"}
    own = {"--nodes": "2", "--ntasks-per-node": "4", "--gres": "gpu:a100:4"}
    one = {"--nodes": "1", "--ntasks-per-node": "1", "--gres": "gpu:a100:1"}
    assert train.options == {**shared, **own, "--job-name": "decision-basis-stage1"}
    names = {"--job-name": "decision-basis-evaluate", "--dependency": "afterok:${stage1}"}
    assert judge.options == {**shared, **one, **names, "--kill-on-invalid-dep": "yes"}
    (plain,) = dry(capsys, "stage1").values()
    assert plain.options["--gres"] == "gpu:1"
    assert plain.options.keys().isdisjoint({"--partition", "--account", "--array", "--dependency"})


ROOT = """/a b/it's/a"b/$HOME/(x) *;&"""  # goes through two shells


@pytest.mark.parametrize(
    ("words", "index", "trains"),
    [
        (["--gpus=0"], "", ["trainer.devices=1", "trainer.num_nodes=1"]),
        # A strategy of one's own comes later, and a later word wins.
        (
            ["--gpus=4", "--nodes=2", "trainer.strategy=fsdp"],
            "",
            ["trainer.strategy=ddp", "trainer.strategy=fsdp", "trainer.devices=4"],
        ),
        (["--gpus=0", "--ranks=2"], "", ["trainer.strategy=ddp", "trainer.devices=2"]),
        (["--seeds=5", "--lambdas=0.3"], "", ["seed=5", "loss.lambda_lesion=0.3"]),
        (["seed=5", "--lambdas=0 1"], "1", ["seed=5", "seed=5", "loss.lambda_lesion=1"]),
        (["--seeds=0 1", "--lambdas=0 1"], "1", ["seed=1", "loss.lambda_lesion=0"]),
        (["--seeds=0 1", "--lambdas=0 1"], "2", ["seed=0", "loss.lambda_lesion=1"]),
        ([f"data.root={ROOT}", "--seeds=0 1"], "0", [f"data.root={ROOT}", "seed=0"]),
    ],
)
def test_the_script_starts_the_training_of_its_index(capsys, words, index, trains):
    (call,) = dry(capsys, "stage3", *words).values()
    assert ("--array" in call.options) is bool(index)
    assert call.trains(index)[: len(trains) + 1] == ["stage3", *trains]


def test_all_stages_are_sent_for_each_seed_and_lambda_and_then_judged(capsys):
    jobs = dry(capsys, "--seeds=0 1", "--lambdas=0 0.3")
    assert list(jobs) == ["stage1", "stage2", "stage3", "evaluate"]
    waits = [call.options.get("--dependency") for call in jobs.values()]
    assert waits == [None, None, None, "afterok:${stage1}:${stage2}:${stage3}"]
    arrays = [jobs[stage].options["--array"] for stage in ("stage1", "stage2", "stage3")]
    assert arrays == ["0-1", "0-1", "0-3"]
    assert jobs["stage3"].options["--output"] == "runs/slurm/%x-%A_%a.log"
    assert "seed=1" in jobs["stage1"].trains("1")
    runs = [f"stage{n}/seed{seed}" for n in (1, 2) for seed in (0, 1)]
    runs += [f"stage3/lambda{weight}-seed{seed}" for weight in (0.0, 0.3) for seed in (0, 1)]
    assert jobs["evaluate"].words[2:] == [f"runs/phantom/{run}" for run in runs]
    assert not Path("runs").exists()
    done = jobs["stage1"].run(SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 2
    assert "no seed and lambda for array index 2" in done.stderr


def test_what_starts_from_a_run_of_the_chain_waits_for_it(capsys):
    start = "model.init_from=runs/phantom/stage1/seed${seed}"
    jobs = dry(capsys, "stage1", "stage2", start, "--seeds=0 1")
    assert start not in jobs["stage1"].words
    assert jobs["stage2"].options["--dependency"] == "afterok:${stage1}"
    assert start in jobs["stage2"].trains("0")
    Path("elsewhere/run").mkdir(parents=True)
    (call,) = dry(capsys, "stage2", "model.init_from=elsewhere/run").values()
    assert "--dependency" not in call.options


def test_evaluation_alone_takes_the_trained_runs(capsys):
    best = Path("runs/phantom/stage2/seed1/checkpoints/best.ckpt")
    best.parent.mkdir(parents=True)
    best.touch()
    (call,) = dry(
        capsys, "evaluate", "--seeds=0 1", "data.root=/new place", "lesions.path=/new"
    ).values()
    assert "--dependency" not in call.options
    folds = dry(capsys, "stage1", "evaluate", "lesions.folds=2", "lesions.fold=1")
    assert "--split left_out" in " ".join(folds["evaluate"].words)
    assert call.words[2:] == [
        "runs/phantom/stage2/seed1",
        "data.root=/new place",
        "lesions.path=/new",
    ]
    assert call.run().returncode == 0
    command = [sys.executable, "-m", "experiments.evaluate", *call.words[2:]]
    assert calls("srun")[0][2:] == command


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["stage1", "sed=1"], "sed"),
        (["stage1", "--seeds=0,1"], "seed.*0,1"),
        (["stage1", "--seeds=0 0"], "two of these jobs would be the run runs/phantom/stage1/seed0"),
        (["stage1", "--seeds=0 1", "run.name=x"], "two of these jobs would be the run .*/x"),
        (["stage1", "--seeds=0 1", "seed=2"], "seed: also given by .* SEEDS"),
        (["stage1", "trainer.devices=2"], "trainer.devices: also given by GPUS"),
        (["stage1", "--lambdas=0 1"], "LAMBDAS is for stage3"),
        (["stage1", "--gpus=many"], "--gpus: expected a number or kind:number"),
        (["stage1", "--sbatch-args='"], "--sbatch-args"),
        (["stage2", "model.init_from=none"], "model.init_from: .*none does not exist"),
        (["stage3", "model.encoder=timm:x", "model.weights=none"], "expected imagenet or a file"),
        (["stage3", "model.encoder=timm:x"], "has no model x|timm:x needs timm"),
        (["evaluate"], "no trained run to evaluate"),
        (["stage1", "--gpus=2", "--ranks=4"], "RANKS=4: more than GPUS=2"),
    ],
)
def test_mistakes_are_refused_before_anything_is_submitted(capsys, words, reason):
    with contextlib.suppress(SystemExit):  # argparse's own way out, with status 2
        assert submit.main(words) == 2
    assert re.search(reason, capsys.readouterr().err)
    assert calls("sbatch") == []


def test_submitting_prints_ids_logs_and_what_to_do_next(capsys, monkeypatch):
    assert submit.main(["stage1", "stage2", "evaluate", "--seeds=0 1"]) == 0
    output = capsys.readouterr().out
    a, b, c = (line.split()[1] for line in output.splitlines()[:3])
    assert a.isdigit()  # without the cluster's name
    assert f"--dependency=afterok:{a}:{b}" in calls("sbatch")[-1]
    assert f"job {c}  evaluate, after {a}, {b}: 4 runs, such as runs/phantom/stage1" in output
    for line in (f"squeue -j {a},{b},{c}", f"scancel {a} {b} {c}", f"--signal=USR1 {a}"):
        assert line in output
    assert Path("runs/slurm").is_dir()  # SLURM writes no log where there is no folder
    monkeypatch.setenv("REFUSE", "stage2")
    assert submit.main(["stage1", "stage2", "stage3"]) == 2
    output, error = capsys.readouterr()
    assert "sbatch refused stage2: sbatch: error: no such partition" in error
    assert output.startswith("job ")  # what there is to be cancelled
    assert len(calls("sbatch")) == 5
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert submit.main(["stage1"]) == 2
    assert "no sbatch here. Fix: submit on a login node" in capsys.readouterr().err


def test_a_dry_run_can_be_copied_whatever_the_files_are_called(capsys):
    files = [f"{name}.yaml" for name in ("a/x", "b/x", "evaluate", "größe", "PATH", "3 y")]
    for number, file in enumerate(files):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(f"stage: stage1\nseed: {number}\nrun: {{root: r{number % 2}}}\n")
    assert submit.main(["--dry-run", *files, "evaluate"]) == 0
    done = subprocess.run(["bash", "-euc", capsys.readouterr().out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *train, judge = (Call(words[1:]) for words in calls("sbatch"))
    assert [call.words[2] for call in train] == files
    # Logs lie beside the runs.
    logs = [call.options["--output"] for call in (*train, judge)]
    assert logs == [f"r{n % 2}/slurm/%x-%j.log" for n in (*range(6), 0)]
    # The recording sbatch answers with an id and its cluster.
    assert re.fullmatch(r"afterok(:\d+;cluster){6}", judge.options["--dependency"])
