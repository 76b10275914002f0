"""Submitting to SLURM, with stand-ins for sbatch and srun."""

from __future__ import annotations

import json
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

RECORDER = f"""#!{sys.executable}
import json, os, sys
with open(sys.argv[0] + ".calls", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if os.environ.get("REFUSE", "nothing") in " ".join(sys.argv):
    sys.exit("sbatch: error: no such partition")
print(os.path.getsize(sys.argv[0] + ".calls"), end=";cluster\\n")
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to submit from, with recording commands on the PATH."""
    folder = tmp_path / "a folder"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name in ("sbatch", "srun"):
        path = folder / "bin" / name
        path.write_text(RECORDER)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    return folder


def calls(name: str) -> list[list[str]]:
    path = Path("bin") / f"{name}.calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def dry(capsys, *words: str) -> dict[str, list[str]]:
    """The words of each sbatch call that a dry run prints, by its variable."""
    assert submit.main(["--dry-run", *words]) == 0
    assert calls("sbatch") == []
    lines = {}
    folder, *printed = capsys.readouterr().out.splitlines()
    assert folder.startswith("mkdir -p ")
    for line in printed:
        variable, _, call = line.partition("=$(")
        lines[variable] = shlex.split(call.removesuffix(")"))
    return lines


def refused(capsys, *words: str) -> str:
    try:
        status = submit.main(list(words))
    except SystemExit as error:  # by the parser of options
        status = error.code
    assert status == 2
    assert calls("sbatch") == []
    return capsys.readouterr().err


def value(call: list[str], option: str) -> str | None:
    """What a call gives an option; None without it."""
    given = [word.partition("=")[2] for word in call if word.split("=")[0] == option]
    assert len(given) < 2
    return given[0] if given else None


def words_of(call: list[str]) -> list[str]:
    """What the batch script is told."""
    return call[next(i for i, word in enumerate(call) if word.endswith(".sbatch")) + 1 :]


def run_script(call: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script of a call as SLURM would, with the recording srun."""
    start = next(i for i, word in enumerate(call) if word.endswith(".sbatch"))
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": value(call, "--nodes") or "",
        "SLURM_NTASKS_PER_NODE": value(call, "--ntasks-per-node") or "",
        "SLURM_CPUS_PER_TASK": value(call, "--cpus-per-task") or "",
    }
    return subprocess.run(
        ["bash", *call[start:]],
        env={**os.environ, **slurm, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def trained_by(call: list[str], **variables: str) -> list[str]:
    """The words that ``experiments.train`` gets from a call's script."""
    done = run_script(call, **variables)
    assert done.returncode == 0, done.stderr
    told = calls("srun")[-1]
    cpus = f"--cpus-per-task={value(call, '--cpus-per-task')}"
    assert told[:3] == ["--kill-on-bad-exit=1", "--export=ALL", cpus]
    assert told[3:6] == [sys.executable, "-m", "experiments.train"]
    return told[6:]


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*")), ids=lambda path: path.name)
def test_scripts_are_valid_and_end_with_the_status_of_their_step(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert script.read_text().endswith("exit $rc\n")
    words = ["srun"] if script.stem == "sweep" else ["--python", sys.executable, "stage1"]
    assert run_script(["sbatch", str(script), *words], STATUS="138").returncode == 138


@pytest.mark.parametrize("script", ["train.sbatch", "sweep.sbatch"])
def test_scripts_of_trainings_are_requeued_warned_and_keep_their_log(script):
    given = [line for line in (SCRIPTS / script).read_text().splitlines() if "#SBATCH" in line]
    for option in ("--requeue", "--signal=USR1@120", "--open-mode=append", "--ntasks-per-node=1"):
        assert f"#SBATCH {option}" in given
    name = next(line for line in given if "job-name" in line).partition("=")[2]
    assert name not in ("bash", "interactive")


def test_a_sweeps_command_is_run_once_with_the_environments_python(here):
    (here / ".venv" / "bin").mkdir(parents=True)
    python = here / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "OMP_NUM_THREADS=$OMP_NUM_THREADS" $PYTHON "$@"\n')
    python.chmod(0o755)
    job = ["sbatch", "--cpus-per-task=3", str(SCRIPTS / "sweep.sbatch"), "python", "a b", "c"]
    task = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "2"}
    done = run_script(job, OMP_NUM_THREADS="", PYTHON="", **task)
    told = done.stdout.splitlines()
    assert "job 7 (6_2) on n1, restart 0: python a b c" in told[0]
    assert told[1] == "OMP_NUM_THREADS=3 python a b c"
    assert "name a command" in run_script(job[:-3]).stderr


def test_without_a_stage_all_three_are_sent_and_then_judged(capsys):
    jobs = dry(capsys, "data.name=mura")
    assert list(jobs) == ["stage1", "stage2", "stage3", "evaluate"]
    for stage in ("stage1", "stage2", "stage3"):
        assert value(jobs[stage], "--dependency") is None  # each trains from scratch
        assert words_of(jobs[stage]) == ["--python", sys.executable, stage, "data.name=mura"]
    assert value(jobs["evaluate"], "--dependency") == "afterok:${stage1}:${stage2}:${stage3}"
    runs = ["stage1/seed0", "stage2/seed0", "stage3/lambda1.0-seed0"]
    assert words_of(jobs["evaluate"])[2:] == [f"runs/mura/{run}" for run in runs]
    assert not Path("runs").exists()


def test_the_cluster_is_described_by_options(capsys):
    (call,) = dry(capsys, "stage1").values()
    for option in ("--partition", "--account", "--array", "--dependency"):
        assert value(call, option) is None
    assert value(call, "--gres") == "gpu:1"
    words = ["--partition=gpu", "--account=me", "--gpus=a100:4", "--nodes=2"]
    words += ["--cpus=6", "--time=1-0", "run.root=x y/100%"]
    train, judge = dry(
        capsys, "stage1", "evaluate", *words, "--sbatch-args=--mem=64G --constraint='a b'"
    ).values()
    shared = {"--partition": "gpu", "--account": "me", "--cpus-per-task": "6", "--time": "1-0"}
    shared |= {"--mem": "64G", "--constraint": "a b", "--output": "x y/100%%/slurm/%x-%j.log"}
    own = {"--nodes": ("2", "1"), "--ntasks-per-node": ("4", "1")}
    own |= {"--gres": ("gpu:a100:4", "gpu:a100:1")}
    for option, expected in {**{o: (v, v) for o, v in shared.items()}, **own}.items():
        assert (value(train, option), value(judge, option)) == expected
    submit.main(["--dry-run", "stage1", *words])
    assert capsys.readouterr().out.startswith("mkdir -p 'x y/100%/slurm'\n")


def test_ranks_make_a_distributed_training(capsys):
    (call,) = dry(capsys, "stage1", "--gpus=0").values()
    assert value(call, "--gres") is None
    assert trained_by(call) == ["stage1", "trainer.devices=1", "trainer.num_nodes=1"]
    (call,) = dry(capsys, "stage2", "--gpus=4", "--nodes=2", "trainer.strategy=fsdp").values()
    # A strategy of one's own comes later, and a later word wins.
    strategies = ["trainer.strategy=ddp", "trainer.strategy=fsdp"]
    told = ["stage2", *strategies, "trainer.devices=4", "trainer.num_nodes=2"]
    assert trained_by(call) == told
    (call,) = dry(capsys, "stage2", "--gpus=0", "--ranks=2").values()
    assert "trainer.devices=2" in trained_by(call)


def test_an_array_runs_each_seed_with_each_lambda(capsys):
    jobs = dry(capsys, "--seeds=0 1", "--lambdas=0 0.3")
    assert value(jobs["stage1"], "--array") == value(jobs["stage2"], "--array") == "0-1"
    assert value(jobs["stage3"], "--array") == "0-3"
    assert value(jobs["stage3"], "--output") == "runs/slurm/%x-%A_%a.log"
    pairs = [(seed, weight) for weight in ("0", "0.3") for seed in ("0", "1")]
    for index, (seed, weight) in enumerate(pairs):
        words = trained_by(jobs["stage3"], SLURM_ARRAY_TASK_ID=str(index))
        own = [word for word in words if word.startswith(("seed=", "loss.lambda_lesion="))]
        assert own == [f"seed={seed}", f"loss.lambda_lesion={weight}"]
    assert "seed=1" in trained_by(jobs["stage1"], SLURM_ARRAY_TASK_ID="1")
    runs = [f"stage{n}/seed{seed}" for n in (1, 2) for seed in (0, 1)]
    runs += [f"stage3/lambda{float(weight)}-seed{seed}" for seed, weight in pairs]
    assert words_of(jobs["evaluate"])[2:] == [f"runs/phantom/{run}" for run in runs]


def test_a_list_of_one_is_no_array(capsys):
    (call,) = dry(capsys, "stage3", "--seeds=5", "--lambdas=0.3").values()
    assert value(call, "--array") is None
    assert trained_by(call)[1:3] == ["seed=5", "loss.lambda_lesion=0.3"]
    (call,) = dry(capsys, "stage3", "seed=5", "--lambdas=0 1").values()
    assert trained_by(call, SLURM_ARRAY_TASK_ID="1")[1:3] == ["seed=5", "loss.lambda_lesion=1"]


def test_an_index_without_a_seed_ends_the_job(capsys):
    (call,) = dry(capsys, "stage1", "--seeds=0 1").values()
    done = run_script(call, SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 2
    assert "no seed and lambda for array index 2" in done.stderr
    (call,) = dry(capsys, "stage1").values()
    done = run_script(call, SLURM_ARRAY_TASK_ID="0")
    assert done.returncode == 2
    assert "an array needs --seeds" in done.stderr
    assert calls("srun") == []


@pytest.mark.parametrize("root", ["/a b/c", "/it's", '/a"b', "/$HOME", "/(x) *;&"])
def test_values_survive_two_shells(capsys, root):
    (call,) = dry(capsys, "stage1", f"data.root={root}", "--seeds=0 1").values()
    assert trained_by(call, SLURM_ARRAY_TASK_ID="0")[1] == f"data.root={root}"


def test_what_starts_from_a_run_of_the_chain_waits_for_it(capsys):
    start = "model.init_from=runs/phantom/stage1/seed${seed}"
    jobs = dry(capsys, "stage1", "stage2", "stage3", start, "--seeds=0 1")
    assert start not in words_of(jobs["stage1"])
    for later in ("stage2", "stage3"):
        assert value(jobs[later], "--dependency") == "afterok:${stage1}"
        assert value(jobs[later], "--kill-on-invalid-dep") == "yes"
        assert start in trained_by(jobs[later], SLURM_ARRAY_TASK_ID="0")
    best = "model.init_from=runs/phantom/stage1/seed0/checkpoints/best.ckpt"
    jobs = dry(capsys, "stage1", "stage2", best)
    assert value(jobs["stage2"], "--dependency") == "afterok:${stage1}"


def test_a_start_that_is_there_is_not_waited_for(capsys):
    start = "model.init_from=elsewhere/run"
    assert "elsewhere/run does not exist, nor is it" in refused(capsys, "stage2", start)
    Path("elsewhere/run").mkdir(parents=True)
    (call,) = dry(capsys, "stage2", start).values()
    assert value(call, "--dependency") is None


def test_evaluation_alone_takes_the_trained_runs(capsys):
    assert "no trained run to evaluate" in refused(capsys, "evaluate")
    best = Path("runs/phantom/stage2/seed1/checkpoints/best.ckpt")
    best.parent.mkdir(parents=True)
    best.touch()
    (call,) = dry(capsys, "evaluate", "--seeds=0 1", "data.root=/new place").values()
    assert value(call, "--dependency") is None
    assert words_of(call)[2:] == ["runs/phantom/stage2/seed1", "data.root=/new place"]
    assert run_script(call).returncode == 0
    told = calls("srun")[0]
    assert told[2:] == [sys.executable, "-m", "experiments.evaluate", *words_of(call)[2:]]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["stage1", "sed=1"], "sed"),
        (["stage9"], "stage9"),
        (["sweep"], "sbatch --array=0-3 .*sweep.sbatch make sweep"),
        (["stage1", "--seeds=0,1"], "seed.*0,1"),
        (["stage1", "--seeds=0 0"], "two of these jobs would be the run runs/phantom/stage1/seed0"),
        (["stage3", "--lambdas=1 1.0"], "two of these jobs would be the run .*lambda1.0-seed0"),
        (["stage1", "--seeds=0 1", "run.name=x"], "two of these jobs would be the run .*/x"),
        (["stage1", "stage1"], "named twice"),
        (["stage1", "--seeds=0 1", "seed=2"], "seed is given as a word and as a list"),
        (["stage1", "--lambdas=0 1"], "LAMBDAS is for stage3"),
        (["stage1", "trainer.devices=2"], "follow from GPUS, RANKS and NODES"),
        (["stage1", "--gpus=many"], "--gpus: expected a number or kind:number"),
        (["stage1", "--nodes=0"], "--nodes: expected a whole number, at least 1"),
        (["stage1", "--gpus=1", "--ranks=2"], "RANKS=2 with GPUS=1"),
        (["stage1", "--sbatch-args=--mem=1G --array=0-3"], "SEEDS and LAMBDAS make the array"),
        (["stage1", "--sbatch-args=-a 0-3"], "SEEDS and LAMBDAS make the array"),
        (["stage1", "--sbatch-args=-J bash"], "Lightning sees no SLURM job"),
        (["stage1", "--sbatch-args=--job-name=interactive"], "Lightning sees no SLURM job"),
        (["stage1", "--sbatch-args='"], "--sbatch-args"),
    ],
)
def test_mistakes_are_refused_before_anything_is_submitted(capsys, words, reason):
    assert re.search(reason, refused(capsys, *words))


def test_submitting_tells_ids_logs_and_what_to_do_next(capsys):
    assert submit.main(["stage1", "stage2", "evaluate", "--seeds=0 1"]) == 0
    told = capsys.readouterr().out
    first, _, judge = calls("sbatch")
    assert first[0] == "--parsable"
    a, b, c = (line.split()[1] for line in told.splitlines()[:3])
    assert a.isdigit()  # without the cluster's name
    assert value(judge, "--dependency") == f"afterok:{a}:{b}"
    assert f"job {a}  stage1: 2 runs, such as runs/phantom/stage1/seed0" in told
    assert f"job {c}  evaluate, after {a}, {b}: 4 runs" in told
    for line in (f"squeue -j {a},{b},{c}", f"scancel {a} {b} {c}", f"--signal=USR1 {a}"):
        assert line in told
    assert Path("runs/slurm").is_dir()  # SLURM writes no log where there is no folder


def test_what_sbatch_refuses_is_said_with_what_is_submitted_already(capsys, monkeypatch):
    monkeypatch.setenv("REFUSE", "stage2")
    assert submit.main(["stage1", "stage2", "stage3"]) == 2
    output, error = capsys.readouterr()
    assert "sbatch refused stage2: sbatch: error: no such partition" in error
    assert f"to take back stage1: scancel {output.split()[1]}" in error
    assert len(calls("sbatch")) == 2


def test_without_slurm_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no sbatch here: submit on a login node" in refused(capsys, "stage1")


def test_a_node_without_the_environment_says_so(capsys):
    job = ["sbatch", str(SCRIPTS / "train.sbatch"), "stage1"]
    done = run_script(job)
    assert done.returncode == 2
    assert "no .venv/bin/python on" in done.stderr
    assert run_script(["sbatch", str(SCRIPTS / "evaluate.sbatch"), "run"]).returncode == 2
    assert "name a stage" in run_script(["sbatch", str(SCRIPTS / "train.sbatch")]).stderr


def stage_file(path: str, text: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(f"stage: stage1\n{text}\n")
    return path


def test_files_that_share_a_name_are_jobs_of_their_own(capsys):
    files = [
        stage_file(f"{name}.yaml", f"seed: {len(name)}") for name in ("a/x", "bb/x", "evaluate")
    ]
    assert submit.main([*files, "evaluate"]) == 0
    sent = calls("sbatch")
    names = [value(call, "--job-name") for call in sent]
    assert names == [f"decision-basis-{name}" for name in ("x", "x-2", "evaluate-2", "evaluate")]
    ids = [line.split()[1] for line in capsys.readouterr().out.splitlines()[:4]]
    assert value(sent[-1], "--dependency") == f"afterok:{':'.join(ids[:3])}"


def test_a_dry_run_can_be_copied_whatever_the_files_are_called(capsys):
    names = ("1st", "größe", "PATH", "x y")
    files = [stage_file(f"{name}.yaml", f"seed: {n}") for n, name in enumerate(names)]
    assert submit.main(["--dry-run", *files, "evaluate"]) == 0
    printed = capsys.readouterr().out
    done = subprocess.run(["bash", "-euc", printed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, judge = sent = calls("sbatch")
    assert [words_of(call)[2] for call in sent[:-1]] == files
    # The recording sbatch answers with an id and its cluster.
    assert re.fullmatch(r"afterok(:\d+;cluster){4}", value(judge, "--dependency") or "")


def test_logs_lie_beside_the_runs_wherever_those_are_named(capsys):
    files = [stage_file(f"{name}.yaml", f"run: {{root: {name}}}") for name in ("here", "there")]
    jobs = dry(capsys, *files, "evaluate")
    logs = [value(call, "--output") for call in jobs.values()]
    assert logs == [f"{folder}/slurm/%x-%j.log" for folder in ("here", "there", "here")]
    assert submit.main(files) == 0
    assert "logs      here/slurm/, there/slurm/\n" in capsys.readouterr().out
    assert Path("there/slurm").is_dir()
