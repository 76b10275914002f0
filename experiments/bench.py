"""Time a training step of each stage: ``python -m experiments.bench [--rounds N] [key=value ...]``.

The stages' steps take turns in one process, so that a busy machine slows all of them alike, and
stages are compared by the ratio of their times in the same round. A step is what training does:
move the batch, losses, backward, optimiser; without loading, validation and the average of the
weights. Exit status: 0 done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from experiments.command import run

WARM_UP = 3  # steps a stage that are not counted: memory and kernels are chosen in them


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench", description="Time a step of each stage."
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each stage, in turn")
    arguments = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from datamodules import DataError
    from experiments.config import ConfigError
    from experiments.schema import STAGES

    try:
        if arguments.rounds < 1:
            raise ConfigError(f"--rounds={arguments.rounds}: give at least 1")
        prepared = {stage: prepare(stage, arguments.overrides) for stage in STAGES}
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print(*dict.fromkeys(text for text, _ in prepared.values()), sep="\n")
    steps = {stage: step for stage, (_, step) in prepared.items()}
    print(describe(take_turns(steps, arguments.rounds)))
    return 0


def prepare(stage: str, overrides: list[str]) -> tuple[str, Callable[[], object]]:
    """What a step is made of, in words, and a function that takes one, always on the same batch.

    Raises:
        ConfigError: the configuration is wrong.
        DataError: the data is.
    """
    import torch

    from experiments.build import build_data, build_module
    from experiments.config import load_config
    from experiments.hardware import choose_device, choose_precision, describe_device

    config = load_config(stage, overrides)
    accelerator = config.trainer["accelerator"]
    device = choose_device(accelerator)
    precision = config.trainer["precision"] or choose_precision(accelerator)
    data = build_data(config)
    data.prepare_data()
    data.setup()
    torch.manual_seed(config.seed)
    module = build_module(config, data).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.optimizer.learning_rate)
    loaded = next(iter(data.train_dataloader()))

    def step() -> None:
        batch = {name: value.to(device) for name, value in loaded.items()}
        batch = data.on_after_batch_transfer(batch, 0)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision.startswith("bf16")):
            loss = cast(Any, module).losses(batch)[0]["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    images = f"{data.batch_size} images of {data.recipe.image_size} px"
    return f"{images}, {precision}, {describe_device(device)}", step


def take_turns(
    steps: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.monotonic
) -> dict[str, list[float]]:
    """Seconds of each step in each round.

    Example:
        >>> ticks = iter(range(100))
        >>> take_turns({"a": lambda: None, "b": lambda: next(ticks)}, 2, lambda: next(ticks))
        {'a': [1, 1], 'b': [2, 2]}
    """
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begun = clock()
            step()
            seconds[name].append(clock() - begun)
    return seconds


def describe(seconds: dict[str, list[float]]) -> str:
    """A line a stage: the median step, and how many steps of the first stage it costs.

    Example:
        >>> print(describe({"stage1": [0.06, 0.05, 0.07], "stage2": [0.12, 0.15, 0.14]}))
        stage1      60 ms a step (50 to 70)
        stage2     140 ms a step (120 to 150), 2.00 stage1 steps (2.00 to 3.00)
    """
    first, *_ = seconds
    lines = []
    for name, taken in seconds.items():
        low, middle, high = (1000 * f(taken) for f in (min, statistics.median, max))
        line = f"{name} {middle:7.0f} ms a step ({low:.0f} to {high:.0f})"
        if name != first:
            ratios = [own / theirs for own, theirs in zip(taken, seconds[first], strict=True)]
            line += (
                f", {statistics.median(ratios):.2f} {first} steps "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
