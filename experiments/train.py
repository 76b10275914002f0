"""Train a stage: ``python -m experiments.train STAGE [key=value ...]``.

STAGE is stage1, stage2, stage3 or a YAML file. The same command again resumes an unfinished run. On
USR1 and SIGTERM training saves at the end of the batch, and a SLURM job is requeued. Exit status:
0 done, 2 the request cannot be carried out, 130 stopped by Ctrl-C, 138 and 143 by USR1 and SIGTERM.
"""

import sys

from experiments.command import answered, build_parser, parse
from experiments.training.preemption import Stopped, StopRequest, leave


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("train", "Train one stage, or resume it.", "STAGE")
    parser.add_argument("--data-only", action="store_true", help="prepare the data and stop")
    options, stages, settings = parse(parser, words)
    if not stages:
        parser.error("expected a stage: stage1, stage2, stage3, or a YAML file")
    with StopRequest(last=words is None) as stop:
        try:
            return carry_out(stages[0], [*stages[1:], *settings], options.data_only, stop)
        except Stopped as stopped:
            return leave(stopped.number, "nothing was under way")


@answered
def carry_out(stage: str, settings: list[str], data_only: bool, stop: StopRequest) -> int:
    """Train ``stage``, or prepare its data only; all that is heavy is imported under handlers."""
    from experiments.config import load_config

    config = load_config(stage, settings)  # a typing mistake is answered before torch is there
    from experiments.training.loop import train

    return train(config, data_only, stop)


if __name__ == "__main__":
    sys.exit(main())
