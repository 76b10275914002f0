"""Jobs for SLURM: which there are, what each waits for, and how sbatch is called.

Not by submitit: it pickles a function and gives up after three time limits, while here a person
sees, copies and changes the command itself.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from experiments.config import STAGES, Config, ConfigError, load_config, run_directory

SCRIPTS = Path(__file__).parents[1] / "slurm"
EVALUATE = "evaluate"
# What the evaluation takes besides the runs: where their data lies today, and how to load it.
EVALUATION_KEYS = ("data.root", "data.cache_dir", "data.num_workers", "data.batch_size")


class Job(NamedTuple):
    """One call of sbatch."""

    name: str
    options: list[str]  # for sbatch
    script: list[str]  # the script and its words
    runs: list[Path]  # the run directories that it trains or judges
    after: list[str]  # names of the jobs that it needs
    logs: str  # folder, beside its runs


def send(options: Namespace, stages: list[str], settings: list[str]) -> int:
    """Submit the jobs, or print how; return the exit status."""
    jobs = plan(options, stages, settings)
    logs = list(dict.fromkeys(job.logs for job in jobs))
    if options.dry_run:
        # Without their folder SLURM would lose the logs and the jobs with them, unheard.
        print(shlex.join(["mkdir", "-p", *logs]))
    elif shutil.which("sbatch") is None:
        raise ConfigError(
            "no sbatch here: submit on a login node of a SLURM cluster; DRY=1 (--dry-run) prints "
            "what would be submitted"
        )
    else:
        for folder in logs:
            Path(folder).mkdir(parents=True, exist_ok=True)
    ids: dict[str, str] = {}
    for number, job in enumerate(jobs, start=1):
        call, waits = ["sbatch", "--parsable", *job.options], []
        needed = [ids[name] for name in job.after]
        if needed:
            # The second: a job whose start failed would stay in the queue for ever.
            waits = [f"--dependency=afterok:{':'.join(needed)}", "--kill-on-invalid-dep=yes"]
        if options.dry_run:
            # A file's name may be none that a variable can have, or mean something, such as PATH.
            variable = job.name if job.name in (*STAGES, EVALUATE) else f"job_{number}"
            ids[job.name] = f"${{{variable}}}"
            print(f"{variable}=$({' '.join([shlex.join(call), *waits, shlex.join(job.script)])})")
            continue
        done = subprocess.run([*call, *waits, *job.script], capture_output=True, text=True)
        if done.returncode:
            hint = " (GPUS=0 asks for none)" if "gres" in done.stderr else ""
            undo = f"; to take back {', '.join(ids)}: scancel {' '.join(ids.values())}" * bool(ids)
            raise ConfigError(f"sbatch refused {job.name}: {done.stderr.strip()}{hint}{undo}")
        ids[job.name] = done.stdout.strip().split(";")[0]  # ID or ID;CLUSTER
        after = f", after {', '.join(needed)}" if needed else ""
        several = f"{len(job.runs)} runs, such as " if len(job.runs) > 1 else ""
        print(f"job {ids[job.name]}  {job.name}{after}: {several}{job.runs[0]}")
    if not options.dry_run:
        print(
            f"logs      {'/, '.join(logs)}/\n"
            f"watch     squeue -j {','.join(ids.values())}\n"
            f"cancel    scancel {' '.join(ids.values())}\n"
            f"preempt   scancel --signal=USR1 {next(iter(ids.values()))}    (saves, is requeued, "
            "goes on)\n"
            "again     a job that failed or was cancelled goes on when it is submitted again"
        )
    return 0


def plan(options: Namespace, stages: list[str], settings: list[str]) -> list[Job]:
    """The jobs in the order of their submission; a mistake in any word is refused here."""
    stages = stages or [*STAGES, EVALUATE]
    keys, trained = {*map(key_of, settings)}, [stage for stage in stages if stage != EVALUATE]
    extra, lists = " ".join(options.sbatch_args), "is given as a word and as a list; leave one out"
    kind, gpus = options.gpus
    mistakes = {
        "trainer.devices and trainer.num_nodes follow from GPUS, RANKS and NODES; leave them out": (
            keys & {"trainer.devices", "trainer.num_nodes"}
        ),
        f"seed {lists}": options.seeds and "seed" in keys,
        f"loss.lambda_lesion {lists}": options.lambdas and "loss.lambda_lesion" in keys,
        "a sweep has a script of its own (docs/cluster.md): sbatch --array=0-3 --gres=gpu:1 "
        "--cpus-per-task=8 experiments/slurm/sweep.sbatch make sweep": "sweep" in stages,
        "a stage is named twice; leave one out": len(trained) > len(set(trained)),
        f"RANKS={options.ranks} with GPUS={kind}{gpus}: a process needs a GPU of its own": (
            gpus and (options.ranks or 1) > gpus
        ),
        f"SBATCH_ARGS={extra}: under this name Lightning sees no SLURM job and each rank would "
        "train alone; choose another": (
            re.search(r"(--job-name[= ]|-J ?)(bash|interactive)\b", extra)
        ),
        f"SBATCH_ARGS={extra}: SEEDS and LAMBDAS make the array; by hand each of its jobs would "
        "be the same run": re.search(r"(^| )(--array\b|-a\b)", extra),
    }
    for message, wrong in mistakes.items():
        if wrong:
            raise ConfigError(message)
    kinds = {stage: load_config(stage, settings).stage for stage in trained or STAGES}
    if options.lambdas and "stage3" not in kinds.values():
        raise ConfigError("LAMBDAS is for stage3, the only one with a lesion term; leave it out")
    jobs: list[Job] = []
    owner: dict[Path, str] = {}
    for stage in kinds:
        # The first stage of a chain has no earlier one to start from.
        first = kinds[stage] == "stage1" and len(kinds) > 1
        own = [word for word in settings if not (first and key_of(word) == "model.init_from")]
        jobs.append(training(options, stage, own, owner))
    if EVALUATE not in stages:
        return jobs
    judged = [run for run in owner if trained or (run / "checkpoints" / "best.ckpt").is_file()]
    if not judged:
        raise ConfigError("there is no trained run to evaluate; name stages, to train them first")
    own = [word for word in settings if key_of(word) in EVALUATION_KEYS]
    script = [*batch_script("evaluate"), *map(str, judged), *own]
    after, logs = [job.name for job in jobs] if trained else [], jobs[0].logs
    evaluation = Job(EVALUATE, cluster(options, EVALUATE, logs), script, judged, after, logs)
    return [*jobs, evaluation] if trained else [evaluation]


def training(options: Namespace, stage: str, settings: list[str], owner: dict[Path, str]) -> Job:
    """The job of a stage, or its array; enters its run directories into ``owner``."""
    taken, stem = {EVALUATE, *owner.values()}, Path(stage).stem  # two files may share their name
    name = next(n for n in [stem, *(f"{stem}-{i}" for i in range(2, 99))] if n not in taken)
    config = load_config(stage, settings)
    seeds, lambdas = options.seeds, options.lambdas if config.stage == "stage3" else []
    if lambdas and not seeds:
        seeds = [str(config.seed)]
        settings = [word for word in settings if key_of(word) != "seed"]
    # In the order of the array's index: the seeds count first.
    each = [[f"seed={seed}"] for seed in seeds] or [[]]
    each = [
        [*s, *lam] for lam in ([f"loss.lambda_lesion={x}"] for x in lambdas) for s in each
    ] or each
    after = []
    runs = []
    for own in each:
        config = load_config(stage, [*settings, *own])
        runs.append(run_directory(config))
        if runs[-1] in owner:
            raise ConfigError(
                f"two of these jobs would be the run {runs[-1]}; leave out what is there twice, "
                "and RUN (run.name) with SEEDS or LAMBDAS"
            )
        owner[runs[-1]] = name
        after += needed(config, owner)
    script = batch_script("train")
    if len(each) > 1:
        script += ["--seeds", " ".join(seeds)]
        script += ["--lambdas", " ".join(lambdas)] if lambdas else []
    else:
        settings = [*settings, *each[0]]
    logs = str(Path(config.run.root) / "slurm")
    words = cluster(options, name, logs, len(each))
    return Job(name, words, [*script, stage, *settings], runs, list(dict.fromkeys(after)), logs)


def needed(config: Config, owner: dict[Path, str]) -> list[str]:
    """The job whose run ``config`` starts from; none where it starts from scratch or is there."""
    if config.model.init_from is None:
        return []
    start = Path(config.model.init_from).resolve()
    for folder, name in owner.items():
        if folder.resolve() in (start, *start.parents):
            return [name]
    if not start.exists():
        raise ConfigError(
            f"model.init_from: {config.model.init_from} does not exist, nor is it one of the runs "
            f"submitted here ({', '.join(map(str, owner))}); submit its stage too, or train it "
            "first"
        )
    return []


def cluster(options: Namespace, name: str, logs: str, array: int = 1) -> list[str]:
    """The options of sbatch; the evaluation is one process on one node."""
    kind, gpus = options.gpus
    nodes, ranks = options.nodes, options.ranks or gpus or 1
    if name == EVALUATE:
        gpus, nodes, ranks = min(gpus, 1), 1, 1
    output = f"{logs}/".replace("%", "%%") + f"%x-{'%A_%a' if array > 1 else '%j'}.log"
    return [
        f"--job-name=decision-basis-{name}",
        *([f"--partition={options.partition}"] if options.partition else []),
        *([f"--account={options.account}"] if options.account else []),
        f"--nodes={nodes}",
        f"--ntasks-per-node={ranks}",
        f"--cpus-per-task={options.cpus}",
        *([f"--gres=gpu:{kind}{gpus}"] if gpus else []),
        f"--time={options.time}",
        f"--output={output}",
        *options.sbatch_args,
        *([f"--array=0-{array - 1}"] if array > 1 else []),
    ]


def batch_script(name: str) -> list[str]:
    """A batch script and this interpreter, as short as they can be said from here."""
    here, paths = Path.cwd(), (SCRIPTS / f"{name}.sbatch", Path(sys.executable))
    short = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths]
    return [short[0], "--python", short[1]]


def key_of(word: str) -> str:
    """The key of a ``key=value`` word."""
    return word.partition("=")[0].strip()
