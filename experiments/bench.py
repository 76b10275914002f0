"""Time the code beside what people would use instead: ``python -m experiments.bench``.

    --rows step,data     some of the rows; all unless told, but ``paper``, which trains for long
    --rounds N           turns that count, for the median and the spread, of what is timed in this
                         process; commands of their own are run three times, memory is taken once
    --cpu                processor time of one thread where code is timed in this process: for a
                         machine that others use, too
    --quick              few turns on little data: to see that all works, not to quote
    key=value            configuration; 320 px and a phantom of 400 images unless told

What is compared takes turns in one run, so that a busy machine slows all of it alike, and is told
by the ratio within each round. What each row means, and what was tried: docs/performance.md. Exit
status: 0 done, 1 some rows could not be measured (named), 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
from pathlib import Path

from experiments.bench_table import HEADER, Line, Request, cells, show
from experiments.command import answered, run

# The module and the function that measure each row.
ROWS = {
    "step": ("bench_steps", "step"),
    "stages": ("bench_steps", "stages"),
    "gain": ("bench_steps", "gain"),
    "maps": ("bench_maps", "maps"),
    "data": ("bench_data", "data"),
    "cache": ("bench_data", "cache_build"),
    "evaluation": ("bench_evaluation", "evaluation"),
    "memory": ("bench_memory", "memory"),
    "start": ("bench_runs", "start"),
    "ranks": ("bench_runs", "ranks"),
    "paper": ("bench_runs", "paper"),
}
LONG = ("paper",)
QUICK_ROUNDS = 2


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description="Time the code beside what people would use instead.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration")
    parser.add_argument("--rows", help=f"comma between: {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, help="turns that count (9; quick: 2)")
    parser.add_argument("--cpu", action="store_true", help="processor time, one thread")
    parser.add_argument("--quick", action="store_true", help="little data, few turns: a try")
    arguments = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from datamodules.files import take
    from experiments.runs import LOCK, RunError

    chosen, request = understand(arguments)
    if arguments.cpu:
        use_one_thread()
    request.folder.mkdir(parents=True, exist_ok=True)
    with (request.folder / LOCK).open("w") as lock:
        if not take(lock):
            raise RunError(f"another bench runs in {request.folder}: two would time each other")
        return measure(chosen, request)


def understand(arguments: argparse.Namespace) -> tuple[list[str], Request]:
    """Rows and request of the command's words.

    Raises:
        ConfigError: a row is unknown, there are no rounds, or the configuration is wrong.
    """
    from experiments.config import ConfigError, load_config

    chosen = [row for row in ROWS if row not in LONG]
    if arguments.rows:
        chosen = [row.strip() for row in arguments.rows.split(",")]
        for row in chosen:
            if row not in ROWS:
                raise ConfigError(f"--rows={row} is none of {', '.join(ROWS)}")
    rounds = arguments.rounds
    if rounds is None:
        rounds = QUICK_ROUNDS if arguments.quick else Request().rounds
    if rounds < 1:
        raise ConfigError(f"--rounds={rounds}: give at least 1")
    words = ["data.image_size=320", "data.count=400", *arguments.overrides]
    if arguments.quick:
        words = ["data.image_size=64", "data.count=80", "data.batch_size=8", *arguments.overrides]
    config = load_config("stage1", words)
    folder = Path(config.run.root).absolute() / "bench"
    if config.data.cache_dir is None:
        words.append(f"data.cache_dir={Path(config.run.root) / 'cache'}")
    clock = time.process_time if arguments.cpu else time.perf_counter
    return chosen, Request(words, rounds, arguments.quick, folder, clock)


def use_one_thread() -> None:
    """Processor time of several threads says nothing: they also spin while they wait."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def measure(chosen: list[str], request: Request) -> int:
    """Print the table, a row when it is measured; return the exit status.

    Raises:
        ConfigError: the data's name or a setting is wrong, for whatever row.
    """
    from datamodules import DataError
    from experiments.build import build_data
    from experiments.config import ConfigError, load_config
    from experiments.hardware import choose_device, choose_precision, describe_device
    from experiments.runs import RunError

    begun, failed = time.monotonic(), False
    config = load_config("stage1", request.overrides)
    build_data(config)  # a wrong name is no matter of one row
    trainer = config.trainer
    precision = trainer["precision"] or choose_precision(trainer["accelerator"])
    clock = "wall" if request.clock is time.perf_counter else "processor time"
    quick = ", QUICK: to see that all works, not to quote" if request.quick else ""
    device = describe_device(choose_device(trainer["accelerator"]))
    print(f"{device}, {precision}, {clock}, {request.rounds} rounds{quick}")
    print(cells(*HEADER), flush=True)
    for row in chosen:
        module, function = ROWS[row]
        try:
            measured = getattr(importlib.import_module(f"experiments.{module}"), function)
            lines: list[Line] = measured(request)
        except (ConfigError, DataError, RunError, OSError) as error:
            print(cells(row, "not measured", str(error)), flush=True)
            failed = True
            continue
        print("\n".join(show(line) for line in lines), flush=True)
    print(f"measured in {(time.monotonic() - begun) / 60:.1f} minutes")
    return int(failed)


if __name__ == "__main__":
    sys.exit(run(main, by_ctrl_c="stopped"))
