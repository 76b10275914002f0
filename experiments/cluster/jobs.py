"""Jobs for SLURM: which there are, what each waits for, and how sbatch is called.

Not by submitit: it pickles a function and gives up after three time limits, while here a person
sees, copies and changes the command itself.
"""

from __future__ import annotations

import itertools
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

    stage: str  # or a YAML file, or "evaluate"
    options: list[str]  # for sbatch
    script: list[str]  # the script and its words
    runs: list[Path]  # the run directories that it trains or judges
    after: list[str]  # the stages whose jobs it needs
    logs: str  # folder, beside its runs


def send(options: Namespace, stages: list[str], settings: list[str]) -> int:
    """Submit the jobs, or print how; return the exit status."""
    jobs = plan(options, list(dict.fromkeys(stages)) or [*STAGES, EVALUATE], settings)
    # Without their folder SLURM would lose the logs and the jobs with them, silently.
    logs = list(dict.fromkeys(job.logs for job in jobs))
    if options.dry_run:
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
        if needed := [ids[stage] for stage in job.after]:
            # The second: a job whose start failed would stay in the queue for ever.
            waits = [f"--dependency=afterok:{':'.join(needed)}", "--kill-on-invalid-dep=yes"]
        if options.dry_run:
            # A file's name may be none that a variable can have.
            variable = job.stage if job.stage in (*STAGES, EVALUATE) else f"job_{number}"
            ids[job.stage] = f"${{{variable}}}"
            print(f"{variable}=$({' '.join([shlex.join(call), *waits, shlex.join(job.script)])})")
            continue
        done = subprocess.run([*call, *waits, *job.script], capture_output=True, text=True)
        if done.returncode:
            raise ConfigError(f"sbatch refused {job.stage}: {done.stderr.strip()}")
        ids[job.stage] = done.stdout.strip().split(";")[0]  # ID or ID;CLUSTER
        after = f", after {', '.join(needed)}" if needed else ""
        several = f"{len(job.runs)} runs, such as " if len(job.runs) > 1 else ""
        print(f"job {ids[job.stage]}  {job.stage}{after}: {several}{job.runs[0]}")
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
    own = {"trainer.devices", "trainer.num_nodes"}
    own |= {"seed"} if options.seeds else set()
    own |= {"loss.lambda_lesion"} if options.lambdas else set()
    if twice := own & {*map(key_of, settings)}:
        raise ConfigError(
            f"{', '.join(sorted(twice))}: given by GPUS, RANKS, NODES, SEEDS or LAMBDAS, too. Fix: "
            "leave it out."
        )
    kind, gpus = options.gpus
    if gpus and (options.ranks or 1) > gpus:
        raise ConfigError(
            f"RANKS={options.ranks} with GPUS={kind}{gpus}: a process needs a GPU of its own"
        )
    trained = [stage for stage in stages if stage != EVALUATE]
    kinds = {stage: load_config(stage, settings).stage for stage in trained or STAGES}
    if options.lambdas and "stage3" not in kinds.values():
        raise ConfigError("LAMBDAS is for stage3, the only one with a lesion term; leave it out")
    jobs: list[Job] = []
    owner: dict[Path, str] = {}
    for stage in kinds:
        # The first stage of a chain has no earlier one to start from.
        first = kinds[stage] == "stage1" and len(kinds) > 1
        words = [word for word in settings if not (first and key_of(word) == "model.init_from")]
        jobs.append(training(options, stage, words, owner))
    if EVALUATE not in stages:
        return jobs
    judged = [run for run in owner if trained or (run / "checkpoints" / "best.ckpt").is_file()]
    if not judged:
        raise ConfigError("there is no trained run to evaluate; name stages, to train them first")
    words = [word for word in settings if key_of(word) in EVALUATION_KEYS]
    script, logs = [*batch_script("evaluate"), *map(str, judged), *words], jobs[0].logs
    jobs = jobs if trained else []
    after = [job.stage for job in jobs]
    alone = Namespace(**{**vars(options), "gpus": (kind, min(gpus, 1)), "nodes": 1, "ranks": 1})
    return [*jobs, Job(EVALUATE, cluster(alone, EVALUATE, logs), script, judged, after, logs)]


def training(options: Namespace, stage: str, settings: list[str], owner: dict[Path, str]) -> Job:
    """The job of a stage, or its array; enters its run directories into ``owner``."""
    config = load_config(stage, settings)
    seeds, lambdas = options.seeds, options.lambdas if config.stage == "stage3" else []
    if lambdas and not seeds:
        seeds = [str(config.seed)]
        settings = [word for word in settings if key_of(word) != "seed"]
    # In the order of the array's index: the seeds count first.
    choices = [[f"loss.lambda_lesion={x}" for x in lambdas], [f"seed={seed}" for seed in seeds]]
    each = [point[::-1] for point in itertools.product(*filter(None, choices))]
    after, runs = [], []
    for point in each:
        config = load_config(stage, [*settings, *point])
        runs.append(run_directory(config))
        if runs[-1] in owner:
            raise ConfigError(
                f"two of these jobs would be the run {runs[-1]}; leave out what is there twice, "
                "and RUN (run.name) with SEEDS or LAMBDAS"
            )
        owner[runs[-1]] = stage
        after += needed(config, owner)
    script = batch_script("train")
    if len(each) > 1:
        script += ["--seeds", " ".join(seeds)]
        script += ["--lambdas", " ".join(lambdas)] if lambdas else []
    else:
        settings = [*settings, *each[0]]
    logs = str(Path(config.run.root) / "slurm")
    words = cluster(options, Path(stage).stem, logs, len(each))
    return Job(stage, words, [*script, stage, *settings], runs, list(dict.fromkeys(after)), logs)


def needed(config: Config, owner: dict[Path, str]) -> list[str]:
    """The stage whose run ``config`` starts from; none where it starts from scratch or is there."""
    if config.model.init_from is None:
        return []
    start = Path(config.model.init_from).resolve()
    for folder, stage in owner.items():
        if folder.resolve() in (start, *start.parents):
            return [stage]
    if not start.exists():
        raise ConfigError(
            f"model.init_from: {config.model.init_from} does not exist, nor is it one of the runs "
            f"submitted here ({', '.join(map(str, owner))}). Fix: train it first, or submit its "
            "stage, too."
        )
    return []


def cluster(options: Namespace, name: str, logs: str, array: int = 1) -> list[str]:
    """The options of sbatch."""
    kind, gpus = options.gpus
    values = {
        "job-name": f"decision-basis-{name}",
        "partition": options.partition,
        "account": options.account,
        "nodes": options.nodes,
        "ntasks-per-node": options.ranks or gpus or 1,
        "cpus-per-task": options.cpus,
        "gres": f"gpu:{kind}{gpus}" if gpus else "",
        "time": options.time,
        "output": f"{logs}/".replace("%", "%%") + ("%x-%A_%a.log" if array > 1 else "%x-%j.log"),
    }
    words = [f"--{key}={value}" for key, value in values.items() if value]
    return [*words, *options.sbatch_args, *[f"--array=0-{array - 1}"] * (array > 1)]


def batch_script(name: str) -> list[str]:
    """A batch script and this interpreter, relative to here where they lie below."""
    here, paths = Path.cwd(), (SCRIPTS / f"{name}.sbatch", Path(sys.executable))
    short = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths]
    return [short[0], "--python", short[1]]


def key_of(word: str) -> str:
    """The key of a ``key=value`` word."""
    return word.partition("=")[0].strip()
