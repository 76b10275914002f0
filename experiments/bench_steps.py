"""Rows of training steps: stage 1 beside plain code, stages 2 and 3 beside stage 1, and GAIN.

A step is what training does: move the batch, losses, backward, optimiser; without loading,
validation and the average of the weights. All steps see the same batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench_peers import gain_loss, plain_loss, two_passes_loss
from experiments.bench_table import Line, Request, median, ratios, take_turns
from experiments.build import build_data, build_module
from experiments.config import load_config
from experiments.hardware import choose_device, choose_precision

FASTER = "attention.gradient=convolution"  # an option that changes roundings
HALF = "attention.shrink=2"  # an option that changes results
PEAK = 2048  # side of the matrices that show what the machine's bf16 units can do
Step = Callable[[], object]


class Bench(NamedTuple):
    """Data and configuration words that all steps share."""

    data: Any
    batch: dict[str, Tensor]
    device: torch.device
    bf16: bool


@functools.lru_cache(maxsize=1)
def prepare(words: tuple[str, ...], stage: str = "stage1") -> Bench:
    """Data, set up, and a batch of it as ``stage`` has it: from stage 3 on with lesion masks.

    Raises:
        ConfigError: the configuration is wrong.
        DataError: the data is.
    """
    config = load_config(stage, list(words))
    accelerator = config.trainer["accelerator"]
    precision = config.trainer["precision"] or choose_precision(accelerator)
    data = build_data(config)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    return Bench(data, batch, choose_device(accelerator), precision.startswith("bf16"))


def step(request: Request) -> list[Line]:
    """Stage 1 beside the same network in contiguous float32, and beside the matrix peak."""
    bench = prepare(tuple(request.overrides))
    size = f"{bench.data.recipe.image_size} px, batch {bench.data.batch_size}"
    ours, flops = stage_step("stage1", request, bench)
    plain = make_step(network("stage1", request, bench), plain_loss, bench, bf16=False)
    multiply = peak_step(bench)
    seconds = take_turns(
        {"ours": ours, "plain": plain, "peak": multiply}, request.rounds, request.clock
    )
    images = bench.data.batch_size
    work = 2 * PEAK**3
    return [
        Line(
            f"stage 1 step, {size}",
            speed(images, seconds["ours"]),
            f"contiguous float32: {speed(images, seconds['plain'])}",
            ratios(seconds["plain"], seconds["ours"]),
            ">= 4",
        ),
        Line(
            f"  its {flops / 1e9:.0f} GFLOP beside the matrix peak",
            f"{flops / median(seconds['ours']) / 1e9:.0f} GFLOP/s",
            f"{'bf16' if bench.bf16 else 'float32'} {PEAK} x {PEAK}: "
            f"{work / median(seconds['peak']) / 1e9:.0f} GFLOP/s",
            ratios(seconds["peak"], seconds["ours"], flops / work),
            ">= 0.6",
        ),
        Line(
            "  the most that this peak allows",
            "",
            "stage 1 at the peak, beside contiguous float32",
            ratios(seconds["plain"], seconds["peak"], work / flops),
        ),
    ]


def stages(request: Request) -> list[Line]:
    """Steps of stages 2 and 3 and of two plain passes, in steps of stage 1."""
    bench = prepare(tuple(request.overrides), "stage3")
    passes = network("stage1", request, bench, torch.channels_last)
    passes.encoder.stem[0].fast_gradient = True  # a floor is the least
    floor = make_step(passes, two_passes_loss, bench, bench.bf16)
    steps: dict[str, Step] = {
        name: stage_step(name, request, bench)[0] for name in ("stage1", "stage2", "stage3")
    }
    fast = replace(request, overrides=[*request.overrides, FASTER])
    steps |= {f"{name}-fast": stage_step(name, fast, bench)[0] for name in ("stage2", "stage3")}
    seconds = take_turns({**steps, "floor": floor}, request.rounds, request.clock)
    first = f"stage 1 step: {milliseconds(seconds['stage1'])}"

    def line(what: str, name: str, wanted: str = "", below: str = "stage1") -> Line:
        beside = first if below == "stage1" else f"the floor: {milliseconds(seconds[below])}"
        found = ratios(seconds[name], seconds[below])
        return Line(what, milliseconds(seconds[name]), beside, found, wanted)

    return [
        line("stage 2 step / stage 1 step", "stage2", "<= 2.2"),
        line(f"  with {FASTER}", "stage2-fast", "<= 2.2"),
        line("stage 3 step / stage 1 step", "stage3", "<= 2.6"),
        line(f"  with {FASTER}", "stage3-fast", "<= 2.6"),
        line("  floor: two passes and an input gradient", "floor"),
        line("  stage 2 step / floor", "stage2", below="floor"),
        line("  stage 3 step / floor", "stage3", below="floor"),
    ]


def gain(request: Request) -> list[Line]:
    """Stage 2, as it is and with each option that makes it faster, beside GAIN as published."""
    bench = prepare(tuple(request.overrides))
    published = make_step(network("stage1", request, bench), gain_loss, bench, bf16=False)
    steps: dict[str, Step] = {"gain": published}
    ways = {"stage 2 step": [], f"  with {FASTER}": [FASTER], f"  and {HALF}": [FASTER, HALF]}
    for name, words in ways.items():
        asked = replace(request, overrides=[*request.overrides, *words])
        steps[name] = stage_step("stage2", asked, bench)[0]
    seconds = take_turns(steps, request.rounds, request.clock)
    images = bench.data.batch_size
    return [
        Line(
            name,
            speed(images, seconds[name]),
            f"GAIN by create_graph, float32: {speed(images, seconds['gain'])}",
            ratios(seconds["gain"], seconds[name]),
            ">= 3" if not words else "",
        )
        for name, words in ways.items()
    ]


def stage_step(stage: str, request: Request, bench: Bench) -> tuple[Step, float]:
    """A step of a stage as it is trained, and its floating-point operations."""
    module = network(stage, request, bench, torch.channels_last)

    def loss(module: Any, batch: dict[str, Tensor]) -> Tensor:
        return cast(Tensor, module.losses(batch)[0]["loss"])

    taken = make_step(module, loss, bench, bench.bf16)
    with FlopCounterMode(display=False) as counter:
        taken()
    return taken, float(counter.get_total_flops())


def network(
    stage: str,
    request: Request,
    bench: Bench,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Any:
    """A stage's network as it begins, in training mode."""
    config = load_config(stage, request.overrides)
    torch.manual_seed(config.seed)
    module = build_module(config, bench.data)
    return module.to(bench.device).to(memory_format=memory_format).train()


def make_step(
    module: Any, loss_of: Callable[[Any, dict[str, Tensor]], Tensor], bench: Bench, bf16: bool
) -> Step:
    """A function that takes a step, always on the same batch."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)

    def take() -> None:
        batch = {name: value.to(bench.device) for name, value in bench.batch.items()}
        batch = bench.data.on_after_batch_transfer(batch, 0)
        # Without a cache of cast weights, as Lightning has it.
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            loss = loss_of(module, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronise(bench.device)

    return take


def peak_step(bench: Bench) -> Step:
    """A product of two square matrices, in bf16 where training uses it."""
    kind = torch.bfloat16 if bench.bf16 else torch.float32
    one, other = (torch.randn(PEAK, PEAK, device=bench.device).to(kind) for _ in range(2))

    def take() -> None:
        torch.mm(one, other)
        synchronise(bench.device)

    return take


def synchronise(device: torch.device) -> None:
    """Wait for a GPU, which works behind Python's back."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def speed(images: int, seconds: list[float]) -> str:
    """Images a second, such as ``37.2 images/s``."""
    value = images / median(seconds)
    return f"{value:,.1f} images/s" if value < 100 else f"{value:,.0f} images/s"


def milliseconds(seconds: list[float]) -> str:
    """Such as ``430 ms``."""
    return f"{1000 * median(seconds):,.0f} ms"
