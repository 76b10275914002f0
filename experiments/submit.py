"""Send trainings to SLURM: ``python -m experiments.submit [STAGE ...] [options] [key=value ...]``.

STAGE is stage1, stage2, stage3, a YAML file, or evaluate; none means all of them. Each becomes a
job, or an array of jobs over seeds and lambdas. All words are checked before anything is submitted,
and a job waits only for what it needs: a start from a run submitted with it (``model.init_from``),
and the evaluation for all. Exit status: 0 submitted, 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.command import answered, run

if TYPE_CHECKING:  # at run time each function imports what it needs, see experiments.command
    from experiments.config import Config

SCRIPTS = Path(__file__).parent / "slurm"
EVALUATE = "evaluate"
# What the evaluation may be told besides the runs: where their data lies today, and how to load it.
EVALUATION_KEYS = ("data.root", "data.cache_dir", "data.num_workers", "data.batch_size")


class Job(NamedTuple):
    """One call of sbatch."""

    name: str
    options: list[str]  # for sbatch
    script: list[str]  # the script and its words
    runs: list[Path]  # the run directories that it trains or judges
    after: list[str]  # names of the jobs that it needs
    logs: Path  # beside its runs


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = build_parser().parse_intermixed_args(words)
    from experiments.config import ConfigError

    jobs = plan(arguments)
    if arguments.dry_run:
        # Without their folder SLURM would lose the logs and the jobs with them, unheard.
        print(shlex.join(["mkdir", "-p", *map(str, log_folders(jobs))]))
        print("\n".join(render(jobs)))
        return 0
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "no sbatch here: submit on a login node of a SLURM cluster; DRY=1 (--dry-run) "
            "prints what would be submitted"
        )
    return submit(jobs)


def build_parser() -> argparse.ArgumentParser:
    """The options, which ``make submit`` fills from the variables of the same names."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.submit", description="Send trainings to SLURM."
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="STAGE | key=value", help="stages, then their configuration")
    add("--partition", help="where jobs run; unless told, the cluster's own default")
    add("--gpus", default="1", help="GPUs a node, also of a kind (a100:4), 0 for none; 1")
    add("--nodes", type=int, default=1, help="nodes a training; 1")
    add("--ranks", type=int, help="processes a node; unless told, one a GPU")
    add("--cpus", type=int, default=8, help="cores a process; 8")
    add("--time", default="08:00:00", help="limit of one go, then it is requeued; 08:00:00")
    add("--account", help="whom the cluster charges")
    add("--sbatch-args", default="", help="anything else for sbatch, such as '--mem=64G'")
    add("--seeds", default="", help="'0 1 2': a run each, as an array of jobs")
    add("--lambdas", default="", help="'0 0.3 1': stage 3 with each of them, for each seed")
    add("--dry-run", action="store_true", help="print the sbatch commands, submit nothing")
    return parser


def plan(arguments: argparse.Namespace) -> list[Job]:
    """The jobs in the order of their submission.

    Raises:
        ConfigError: a word is wrong, two jobs would be the same run, or nothing is to be judged.
    """
    from experiments.config import STAGES, ConfigError, load_config

    settings = [word for word in arguments.words if "=" in word]
    stages = [word for word in arguments.words if "=" not in word] or [*STAGES, EVALUATE]
    for word in settings:
        if key_of(word) in ("trainer.devices", "trainer.num_nodes"):
            raise ConfigError(f"{word}: on a cluster GPUS, RANKS and NODES tell this; leave it out")
    for values, key in ((arguments.seeds, "seed"), (arguments.lambdas, "loss.lambda_lesion")):
        if values.strip() and key in map(key_of, settings):
            raise ConfigError(f"{key} is given as a word and as a list; leave one out")

    if "sweep" in stages:
        raise ConfigError(
            "a sweep has a script of its own (docs/sweep.md): sbatch --array=0-3 --gres=gpu:1 "
            "--cpus-per-task=8 experiments/slurm/sweep.sbatch make sweep"
        )
    trained = [stage for stage in stages if stage != EVALUATE]
    wanted = {stage: load_config(stage, settings).stage for stage in trained or STAGES}
    if len(trained) > len(set(trained)):
        raise ConfigError("a stage is named twice; leave one out")
    if arguments.lambdas.strip() and "stage3" not in wanted.values():
        raise ConfigError("LAMBDAS is for stage3, the only one with a lesion term; leave it out")
    jobs: list[Job] = []
    owner: dict[Path, str] = {}
    for stage, kind in wanted.items():
        # The first stage of a chain has no earlier one to start from.
        first = kind == "stage1" and len(wanted) > 1
        own = [word for word in settings if not (first and key_of(word) == "model.init_from")]
        jobs.append(training(arguments, stage, kind, own, owner))
    if EVALUATE not in stages:
        return jobs
    if trained:
        return [*jobs, evaluation(arguments, settings, jobs)]
    there = [
        job._replace(runs=[folder for folder in job.runs if is_trained(folder)]) for job in jobs
    ]
    return [evaluation(arguments, settings, there)._replace(after=[])]


def training(
    arguments: argparse.Namespace,
    stage: str,
    kind: str,
    settings: list[str],
    owner: dict[Path, str],
) -> Job:
    """The job of a stage, or its array; enters its run directories into ``owner``."""
    from experiments.config import ConfigError, load_config, run_directory

    name = unused(Path(stage).stem, {EVALUATE, *owner.values()})
    lambdas = arguments.lambdas.split() if kind == "stage3" else []
    seeds = arguments.seeds.split()
    if lambdas and not seeds:
        seeds = [str(load_config(stage, settings).seed)]
        settings = [word for word in settings if key_of(word) != "seed"]
    each = combinations(seeds, lambdas)
    configs = [load_config(stage, [*settings, *own]) for own in each]
    runs = [run_directory(config) for config in configs]
    for folder in runs:
        if folder in owner:
            raise ConfigError(
                f"two of these jobs would be the run {folder}; leave out what is there twice, and "
                "RUN (run.name) with SEEDS or LAMBDAS"
            )
        owner[folder] = name
    after = list(dict.fromkeys(start for c in configs if (start := needed(c, owner))))
    script = interpreter("train.sbatch")
    array = []
    if len(each) > 1:
        array = [f"--array=0-{len(each) - 1}"]
        script += ["--seeds", " ".join(seeds)]
        script += ["--lambdas", " ".join(lambdas)] if lambdas else []
    else:
        settings = [*settings, *each[0]]
    logs = Path(configs[0].run.root) / "slurm"
    options = [*cluster_options(arguments, name, logs, array=bool(array)), *array]
    return Job(name, options, [*script, stage, *settings], runs, after, logs)


def evaluation(arguments: argparse.Namespace, settings: list[str], jobs: list[Job]) -> Job:
    """The job that judges all runs of ``jobs``, when they are done."""
    from experiments.config import ConfigError

    judged = [folder for job in jobs for folder in job.runs]
    if not judged:
        raise ConfigError("there is no trained run to evaluate; name stages, to train them first")
    told = [word for word in settings if key_of(word) in EVALUATION_KEYS]
    script = [*interpreter("evaluate.sbatch"), *map(str, judged), *told]
    logs = jobs[0].logs
    options = cluster_options(arguments, EVALUATE, logs, single=True)
    return Job(EVALUATE, options, script, judged, [job.name for job in jobs], logs)


def combinations(seeds: list[str], lambdas: list[str]) -> list[list[str]]:
    """The words of each run in the order of the array's index: the seeds count first."""
    return [
        [*([f"seed={seed}"] if seed else []), *([f"loss.lambda_lesion={lam}"] if lam else [])]
        for lam in lambdas or [""]
        for seed in seeds or [""]
    ]


def needed(config: Config, owner: dict[Path, str]) -> str | None:
    """The job whose run ``config`` starts from; None where it starts from scratch or is there.

    Raises:
        ConfigError: the run is neither there nor among those submitted.
    """
    from experiments.config import ConfigError

    if config.model.init_from is None:
        return None
    start = Path(os.path.abspath(config.model.init_from))
    for folder, name in owner.items():
        place = Path(os.path.abspath(folder))
        if start == place or place in start.parents:
            return name
    if not start.exists():
        raise ConfigError(
            f"model.init_from: {config.model.init_from} does not exist, nor is it one of the runs "
            f"submitted here ({', '.join(map(str, owner))}); submit its stage too, or train it "
            "first"
        )
    return None


def is_trained(folder: Path) -> bool:
    """Whether a run has a checkpoint to judge."""
    return (folder / "checkpoints" / "best.ckpt").is_file()


def cluster_options(
    arguments: argparse.Namespace,
    name: str,
    logs: Path,
    *,
    single: bool = False,
    array: bool = False,
) -> list[str]:
    """What sbatch is told about the cluster; ``single``: one process on one node.

    Raises:
        ConfigError: an impossible number, or a name under which Lightning sees no SLURM.
    """
    from experiments.config import ConfigError

    kind, _, number = arguments.gpus.rpartition(":")
    if not number.isdigit():
        raise ConfigError(f"GPUS={arguments.gpus}: expected a number or kind:number, as a100:4")
    gpus, nodes = int(number), arguments.nodes
    ranks = arguments.ranks if arguments.ranks is not None else gpus or 1
    for variable, value in (("NODES", nodes), ("RANKS", ranks), ("CPUS", arguments.cpus)):
        if value < 1:
            raise ConfigError(f"{variable}={value}: expected a whole number, at least 1")
    if gpus and ranks > gpus:
        raise ConfigError(f"RANKS={ranks} with GPUS={gpus}: a process needs a GPU of its own")
    try:
        more = shlex.split(arguments.sbatch_args)
    except ValueError as error:
        raise ConfigError(f"SBATCH_ARGS={arguments.sbatch_args}: {error}") from None
    if re.search(r"(--job-name[= ]|-J ?)(bash|interactive)\b", " ".join(more)):
        raise ConfigError(
            f"SBATCH_ARGS={arguments.sbatch_args}: under this name Lightning sees no SLURM job and "
            "each rank would train alone; choose another"
        )
    if re.search(r"(^| )(--array\b|-a\b)", " ".join(more)):
        raise ConfigError(
            f"SBATCH_ARGS={arguments.sbatch_args}: SEEDS and LAMBDAS make the array; by hand each "
            "of its jobs would be the same run"
        )
    if single:
        gpus, nodes, ranks = min(gpus, 1), 1, 1
    return [
        f"--job-name=decision-basis-{name}",
        *([f"--partition={arguments.partition}"] if arguments.partition else []),
        *([f"--account={arguments.account}"] if arguments.account else []),
        f"--nodes={nodes}",
        f"--ntasks-per-node={ranks}",
        f"--cpus-per-task={arguments.cpus}",
        *([f"--gres=gpu:{kind + ':' if kind else ''}{gpus}"] if gpus else []),
        f"--time={arguments.time}",
        "--output=" + f"{logs}/".replace("%", "%%") + f"%x-{'%A_%a' if array else '%j'}.log",
        *more,
    ]


def log_folders(jobs: list[Job]) -> list[Path]:
    """Where the jobs' logs go."""
    return list(dict.fromkeys(job.logs for job in jobs))


def unused(name: str, taken: set[str]) -> str:
    """The name, or the first of name-2, name-3, ... that is free: two files may share theirs."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def key_of(word: str) -> str:
    """The key of a ``key=value`` word."""
    return word.partition("=")[0].strip()


def interpreter(script: str) -> list[str]:
    """A batch script and this interpreter, as short as they can be said from here."""
    here = Path.cwd()
    paths = (SCRIPTS / script, Path(sys.executable))
    told = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths]
    return [told[0], "--python", told[1]]


def command(job: Job, ids: dict[str, str]) -> list[str]:
    """The words of the call of sbatch, given the ids of earlier jobs."""
    waits = []
    if job.after:
        # Else a job whose start failed would stay in the queue for ever.
        waits = [f"--dependency=afterok:{':'.join(ids[name] for name in job.after)}"]
        waits += ["--kill-on-invalid-dep=yes"]
    return ["sbatch", "--parsable", *job.options, *waits, *job.script]


def render(jobs: list[Job]) -> list[str]:
    """The calls as lines of the shell, in which a variable stands for an earlier job's id.

    A file's name may be none that a variable can have, or one with a meaning, such as PATH.
    """
    from experiments.config import STAGES

    variables = {
        job.name: job.name if job.name in (*STAGES, EVALUATE) else f"job_{number}"
        for number, job in enumerate(jobs, start=1)
    }
    marks = {name: f"ID_OF_{variable}_" for name, variable in variables.items()}
    lines = []
    for job in jobs:
        line = shlex.join(command(job, marks))
        for name in job.after:
            line = line.replace(marks[name], f"${{{variables[name]}}}")
        lines.append(f"{variables[job.name]}=$({line})")
    return lines


def submit(jobs: list[Job]) -> int:
    """Call sbatch for each job and tell what a person needs to know next."""
    try:
        for folder in log_folders(jobs):  # SLURM makes no folder: a job would die unheard
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: {folder} cannot be made ({error.strerror})", file=sys.stderr)
        return 2
    ids: dict[str, str] = {}
    for job in jobs:
        done = subprocess.run(command(job, ids), capture_output=True, text=True)
        if done.returncode:
            hint = " (GPUS=0 asks for none)" if "gres" in done.stderr else ""
            print(f"error: sbatch refused {job.name}: {done.stderr.strip()}{hint}", file=sys.stderr)
            if ids:
                print(
                    f"submitted before it: {', '.join(ids)}; to take that back: "
                    f"scancel {' '.join(ids.values())}",
                    file=sys.stderr,
                )
            return 2
        ids[job.name] = done.stdout.strip().split(";")[0]  # ID or ID;CLUSTER
        waits = f", after {', '.join(ids[name] for name in job.after)}" if job.after else ""
        count = f"{len(job.runs)} runs, such as " if len(job.runs) > 1 else ""
        print(f"job {ids[job.name]}  {job.name}{waits}: {count}{job.runs[0]}")
    every = " ".join(ids.values())
    print(
        f"logs      {'/, '.join(map(str, log_folders(jobs)))}/\n"
        f"watch     squeue -j {every.replace(' ', ',')}\n"
        f"cancel    scancel {every}\n"
        f"preempt   scancel --signal=USR1 {next(iter(ids.values()))}    (saves, is requeued, goes "
        "on)\n"
        "again     a job that failed or was cancelled goes on when it is submitted again"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
