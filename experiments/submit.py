"""Send trainings to SLURM: ``python -m experiments.submit [STAGE ...] [options] [key=value ...]``.

STAGE is stage1, stage2, stage3, a YAML file, or evaluate; none means all of them (docs/cluster.md).
Exit status: 0 submitted, 2 the request cannot be carried out.
"""

import argparse
import re
import shlex
import sys

from experiments.command import answered, build_parser, parse


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status. ``make submit`` has variables of the same names."""
    parser = build_parser("submit", "Send trainings to SLURM.", "STAGE")
    add = parser.add_argument
    add("--partition", help="where jobs run; the cluster's own default unless given")
    add("--gpus", type=gpus, default="1", help="GPUs a node, also a kind (a100:4), 0 for none; 1")
    add("--nodes", type=int, default=1, help="nodes a training; 1")
    add("--ranks", type=int, help="processes a node; one a GPU unless given")
    add("--cpus", type=int, default=8, help="cores a process; 8")
    add("--time", default="08:00:00", help="limit of one go, then it is requeued; 08:00:00")
    add("--account", help="whom the cluster charges")
    add("--sbatch-args", type=shlex.split, default=[], help="more for sbatch, such as '--mem=64G'")
    add("--seeds", type=str.split, default=[], help="'0 1 2': a run each, as an array of jobs")
    add("--lambdas", type=str.split, default=[], help="'0 0.3 1': stage 3 with each, for each seed")
    add("--dry-run", action="store_true", help="print the sbatch commands, submit nothing")
    options, stages, settings = parse(parser, words)
    from experiments.cluster.jobs import send

    return send(options, stages, settings)


def gpus(text: str) -> tuple[str, int]:
    """The kind, such as ``a100:`` or nothing, and the number of GPUs a node."""
    if not (match := re.fullmatch(r"(.+:)?(\d+)", text)):
        raise argparse.ArgumentTypeError(f"expected a number or kind:number (a100:4), got {text}")
    return match[1] or "", int(match[2])


if __name__ == "__main__":
    sys.exit(main())
