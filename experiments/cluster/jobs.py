"""Jobs for SLURM: which there are, what each waits for, and how sbatch is called.

Not by submitit: it pickles a function and gives up after three time limits, while here a person
sees, copies and changes the command itself.
"""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from experiments.config import HERE, LOADING, STAGES, ConfigError, load_config, run_directory

SCRIPTS = HERE / "slurm"
EVALUATE = "evaluate"


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
    if not options.dry_run and shutil.which("sbatch") is None:
        raise ConfigError("no sbatch here. Fix: submit on a login node; DRY=1 prints the commands.")
    # Without their folder SLURM would lose the logs and the jobs with them, silently.
    logs = list(dict.fromkeys(job.logs for job in jobs))
    if options.dry_run:
        print(shlex.join(["mkdir", "-p", *logs]))
    else:
        for folder in logs:
            Path(folder).mkdir(parents=True, exist_ok=True)
    ids: dict[str, str] = {}
    for job in jobs:
        call, waits = ["sbatch", "--parsable", *job.options], []
        if needed := [ids[stage] for stage in job.after]:
            # The second: a job whose start failed would stay in the queue for ever.
            waits = [f"--dependency=afterok:{':'.join(needed)}", "--kill-on-invalid-dep=yes"]
        if options.dry_run:
            variable = re.sub(r"\W|^(?=\d)", "_", job.stage, flags=re.ASCII)
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
    words = {word.partition("=")[0].strip(): word for word in settings}
    if options.ranks and options.ranks > options.gpus[1] > 0:
        what = f"RANKS={options.ranks}: more than GPUS={options.gpus[1]} a node"
        raise ConfigError(f"{what}. Fix: leave RANKS out: a rank a GPU")
    own = ["trainer.devices", "trainer.num_nodes", *["seed"] * bool(options.seeds)]
    own += ["loss.lambda_lesion"] * bool(options.lambdas)
    if both := [key for key in words if key in own]:
        what = "also given by GPUS, RANKS, NODES, SEEDS or LAMBDAS. Fix: not both."
        raise ConfigError(f"{both[0]}: {what}")
    trained = [stage for stage in stages if stage != EVALUATE]
    configs = {stage: load_config(stage, settings) for stage in trained or STAGES}
    if options.lambdas and all(config.stage != "stage3" for config in configs.values()):
        raise ConfigError("LAMBDAS is for stage3, which has a lesion term. Fix: leave it out.")
    jobs: list[Job] = []
    owner: dict[Path, str] = {}
    for stage, config in configs.items():
        # The first stage of a chain has no earlier one to start from.
        first = config.stage == "stage1" and len(configs) > 1
        chosen = [words[key] for key in words if not (first and key == "model.init_from")]
        jobs.append(training(options, stage, chosen, owner))
    if EVALUATE not in stages:
        return jobs
    judged = [run for run in owner if trained or (run / "checkpoints" / "best.ckpt").is_file()]
    if not judged:
        raise ConfigError("there is no trained run to evaluate. Fix: name stages, to train them.")
    script = [str(SCRIPTS / "evaluate.sbatch"), "--python", sys.executable, *map(str, judged)]
    script += ["--split", "left_out"] * any(config.lesions.folds for config in configs.values())
    script += [words[key] for key in [*LOADING, "data.batch_size"] if key in words]
    jobs, logs = jobs if trained else [], jobs[0].logs
    one_gpu = options.gpus[0], min(options.gpus[1], 1)
    alone = Namespace(**{**vars(options), "gpus": one_gpu, "nodes": 1, "ranks": 1})
    after = [job.stage for job in jobs]
    return [*jobs, Job(EVALUATE, cluster(alone, EVALUATE, logs), script, judged, after, logs)]


def training(options: Namespace, stage: str, settings: list[str], owner: dict[Path, str]) -> Job:
    """The job of a stage, or its array; enters its run directories into ``owner``."""
    config = load_config(stage, settings)
    seeds, lambdas = options.seeds, options.lambdas if config.stage == "stage3" else []
    if lambdas and not seeds:
        seeds = [str(config.seed)]
    # In the order of the array's index: the seeds count first.
    choices = [[f"loss.lambda_lesion={x}" for x in lambdas], [f"seed={seed}" for seed in seeds]]
    each = [point[::-1] for point in itertools.product(*filter(None, choices))]
    after, runs = [], []
    for point in each:
        config = load_config(stage, [*settings, *point])
        runs.append(run_directory(config))
        if runs[-1] in owner:
            raise ConfigError(
                f"two of these jobs would be the run {runs[-1]}. Fix: leave out what is there "
                "twice, and RUN (run.name) with SEEDS or LAMBDAS."
            )
        owner[runs[-1]] = stage
        # Not after hours in a queue; imported here and below, as both import PyTorch.
        if config.model.weights and not config.model.init_from:
            from experiments.training.pretrained import find_origin

            find_origin(config.model, runs[-1])
        if config.model.init_from:
            start = Path(config.model.init_from).resolve()
            waits = [owner[run] for run in owner if run.resolve() in (start, *start.parents)]
            if not waits and not start.exists():
                raise ConfigError(
                    f"model.init_from: {start} does not exist, nor is it a run submitted here. "
                    "Fix: train it first, or submit its stage, too."
                )
            after += waits
    if config.model.encoder.startswith("timm:"):
        from lightning_modules.timm_encoder import create

        create(config.model.encoder.removeprefix("timm:"))
    script = [str(SCRIPTS / "train.sbatch"), "--python", sys.executable]
    if len(each) > 1:
        script += ["--seeds", " ".join(seeds)]
        script += ["--lambdas", " ".join(lambdas)] if lambdas else []
    else:
        settings = [*settings, *each[0]]
    logs = str(Path(config.run.root) / "slurm")
    words = cluster(options, Path(stage).stem, logs, len(each))
    return Job(stage, words, [*script, stage, *settings], runs, list(dict.fromkeys(after)), logs)


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
        # A card that the node does not hide is somebody else's.
        "export": "" if gpus else "ALL,CUDA_VISIBLE_DEVICES=",
        "time": options.time,
        "output": f"{logs}/".replace("%", "%%") + ("%x-%A_%a.log" if array > 1 else "%x-%j.log"),
    }
    words = [f"--{key}={value}" for key, value in values.items() if value]
    return [*words, *options.sbatch_args, *[f"--array=0-{array - 1}"] * (array > 1)]
