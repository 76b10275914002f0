"""Time the code beside what people would use instead: ``python -m experiments.bench --help``.

Ours and its peers take turns, so that noise meets them alike. A step is what training does to a
batch: move it, losses, backward, optimiser; without loading, validation or averaging. Peers are
written plainly and get no handicap (docs/performance.md). Exit status: 0 done, 1 a peer could not
be measured (named), 2 the request cannot be carried out.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils import benchmark, data
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]  # no type hints
from torchvision.transforms import InterpolationMode, v2  # type: ignore[import-untyped]

from datamodules.files import write_text
from experiments import build
from experiments.command import answered, build_parser
from experiments.config import load_config
from experiments.evaluation.statistics import auroc, estimate, patient_weights
from lightning_modules.stage1 import Stage1Classifier

FULL = ["data.image_size=320", "data.count=400"]
QUICK = ["data.image_size=64", "data.count=80", "data.batch_size=8"]
TURN = 0.2  # seconds at least: within it a GPU's steps queue up, as in training
PEAK = "matrix peak"  # what the device can do at most: a column, no row
Row = dict[str, Any]


class Case(NamedTuple):
    """What is timed, and the images (or resamples) of a call; TF32 of cuBLAS and of cuDNN."""

    call: Callable[[], object]
    amount: float
    tf32: tuple[bool, bool] = (False, True)  # PyTorch's defaults, as in training


class Bench:
    """What all rows share: a training batch, and the stopwatch."""

    def __init__(self, words: list[str], rounds: int, turn: float, cpu: bool) -> None:
        # A worker's processor time would not be counted.
        self.words = words + ["trainer.accelerator=cpu", "data.num_workers=0"] * cpu
        self.rounds, self.turn, self.cpu = rounds, turn, cpu
        self.missing: list[str] = []
        config = load_config("stage1", self.words)
        accelerator = config.trainer["accelerator"]
        self.device = build.choose_device(accelerator)
        self.cuda = self.device.type == "cuda"
        precision = config.trainer["precision"] or build.choose_precision(accelerator)
        self.dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
        device = build.describe_device(self.device)
        self.machine = {"device": device, "torch": torch.__version__, "precision": precision}
        self.data = build.build_data(config)
        self.data.prepare_data()
        self.data.setup()
        self.batch = next(iter(self.data.train_dataloader()))
        torch.backends.cudnn.benchmark = True  # the search for fast kernels, as in training
        if cpu:
            cv2.setNumThreads(0)

    def compare(
        self, row: str, ours: Case, peers: dict[str, Case], unit: str = "images/s"
    ) -> list[Row]:
        """A row for each peer, all by turns."""
        memory, calls = None, {}
        if self.cuda:
            ours.call()  # cuDNN's search takes memory of its own
            torch.cuda.reset_peak_memory_stats()
            ours.call()
            memory = torch.cuda.max_memory_allocated() / 1e6
        cases = {"ours": ours, **peers}
        for name, case in cases.items():
            try:
                calls[name] = max(1, round(self.turn / self.seconds(case)))
            except RuntimeError as error:  # out of memory, or no compiler for torch.compile
                if name == "ours":
                    raise
                self.missing.append(f"{row} beside {name}: {error}")
        turns = [
            {name: cases[name].amount / self.seconds(cases[name], calls[name]) for name in calls}
            for _ in range(self.rounds)
        ]
        speeds = pd.DataFrame(turns)
        own = speeds.pop("ours")
        ratios = speeds.rdiv(own, axis="index").quantile([0.5, 0, 1])
        spreads = ratios.set_axis(["ratio", "low", "high"]).to_dict()
        share = spreads.pop(PEAK, {}).get("ratio")
        common = {"row": row, "value": own.median(), "unit": unit}
        common |= {"share_of_peak": share, "peak_memory_mb": memory}
        return [common | {"beside": peer} | spread for peer, spread in spreads.items()]

    def seconds(self, case: Case, calls: int = 1) -> float:
        """Mean of a warm turn."""
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = case.tf32
        timer = benchmark.Timer(
            "call()",
            timer=time.process_time if self.cpu else benchmark.timer,  # the latter waits for a GPU
            globals={"call": case.call},
            num_threads=1 if self.cpu else torch.get_num_threads(),  # waiting is processor time too
        )
        return timer.timeit(calls).mean

    def peak(self, ours: Case) -> Case:
        """A large product, with the images whose operations these are."""
        with FlopCounterMode(display=False) as flops:
            ours.call()
        side = 8192 if self.cuda else 2048
        one, other = torch.randn(2, side, side, device=self.device).to(self.dtype)
        images = ours.amount * 2 * side**3 / flops.get_total_flops()
        # Our float32 convolutions may take TF32: so may the product.
        return Case(lambda: torch.mm(one, other), images, (True, True))

    def network(self, stage: str = "stage1", plain: bool = False) -> Stage1Classifier:
        """A stage's network as it begins; ``plain``: contiguous."""
        torch.manual_seed(0)
        module = build.build_module(load_config(stage, self.words), self.data).to(self.device)
        return module if plain else module.to(memory_format=torch.channels_last)

    def step(self, stage: str = "stage1", compiled: bool = False, plain: bool = False) -> Case:
        """A step as it is trained; ``plain``: contiguous and without autocast."""
        module = self.network(stage, plain)
        if compiled:
            module.encoder.compile()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
        mixed = self.dtype == torch.bfloat16 and not plain

        def take() -> None:
            batch = self.data.transfer_batch_to_device(self.batch, self.device, 0)
            batch = self.data.on_after_batch_transfer(batch, 0)
            # Without a cache of cast weights, as Lightning has it.
            with torch.autocast(self.device.type, torch.bfloat16, mixed, cache_enabled=False):
                if plain:
                    loss = torch.nn.functional.cross_entropy(module(batch["image"]), batch["label"])
                else:
                    loss = module.losses(batch)[0]["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return Case(take, len(self.batch["label"]))


def step(bench: Bench) -> list[Row]:
    """Stage 1's step beside plain code of the same network."""
    ours, plain = bench.step(), bench.step(plain=True)
    peers = {PEAK: bench.peak(ours), "plain float32": plain._replace(tf32=(False, False))}
    if bench.cuda:
        peers["TF32"] = plain._replace(tf32=(True, True))
        peers["torch.compile"] = bench.step(compiled=True)
    return bench.compare("step", ours, peers)


def stages(bench: Bench) -> list[Row]:
    """Steps of stages 2 and 3 beside one of stage 1."""
    first, rows = bench.step(), []
    for stage in ("stage2", "stage3"):
        ours = bench.step(stage)
        rows += bench.compare(stage, ours, {PEAK: bench.peak(ours), "stage 1 step": first})
    return rows


def batches(bench: Bench) -> list[Row]:
    """Training batches from the cache beside ImageFolder's of the same files, and the step."""
    loader: Any = bench.data.train_dataloader()
    batch, workers = bench.data.batch_size, bench.data.num_workers
    images = 5 * max(1, workers) * batch  # so that filling the pipeline weighs little
    loader.sampler.rows = np.resize(loader.sampler.rows, images)
    size, table = bench.data.recipe.image_size, bench.data.table
    train = {str(bench.data.root / path) for path in table["path"][table["split"] == "train"]}
    steps = [
        v2.Resize(size=None, max_size=size),
        v2.CenterCrop(size),  # pads what is smaller: the letterbox
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(10, (0.05, 0.05), (0.9, 1.1), interpolation=InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.1, contrast=0.1),
        v2.PILToTensor(),
    ]
    files = ImageFolder(
        bench.data.root,
        v2.Compose(steps),
        loader=lambda path: Image.open(path).convert("L"),  # faster than RGB, and than tensors
        is_valid_file=train.__contains__,
        allow_empty=True,  # its classes are not ours, which costs no time
    )
    order = data.RandomSampler(files, replacement=True, num_samples=images)
    lasting: Any = {"persistent_workers": workers > 0, "pin_memory": bench.cuda}
    plain = data.DataLoader(files, batch, sampler=order, num_workers=workers, **lasting)
    ours = Case(lambda: deque(loader, maxlen=0), images)
    theirs = Case(lambda: deque(plain, maxlen=0), images)
    peers = {"ImageFolder and torchvision": theirs, "stage 1 step": bench.step()}
    return bench.compare("data", ours, peers)


def maps(bench: Bench) -> list[Row]:
    """Probability, CAM and PCAM of a batch beside the plain forward pass, in float32."""
    module = bench.network().eval()
    image = bench.batch["image"].to(bench.device, torch.float32)
    without_graph = torch.inference_mode()
    ours = Case(without_graph(lambda: module.explain(image)), len(image))
    forward = Case(without_graph(lambda: module(image)), len(image))
    return bench.compare("maps", ours, {"plain forward pass": forward})


def evaluation(bench: Bench) -> list[Row]:
    """AUROC in resamples of patients, as many as in MURA's test split, beside scikit-learn."""
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]  # no type hints

    rng = np.random.default_rng(0)
    patient, label = rng.integers(0, 783, 3197), rng.integers(0, 2, 3197)
    score, weights = label + rng.normal(size=3197), patient_weights(patient)
    ours = Case(lambda: estimate(auroc(score, label), weights), len(weights))
    theirs = Case(lambda: roc_auc_score(label, score, sample_weight=weights[0]), 1)
    return bench.compare("evaluation", ours, {"scikit-learn": theirs}, "resamples/s")


ROWS = {"step": step, "stages": stages, "data": batches, "maps": maps, "evaluation": evaluation}


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("bench", "Time the code beside what people would use instead.", None)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"over {FULL}")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma between; all")
    parser.add_argument("--rounds", type=int, help="turns of each timing (7; quick: 2)")
    parser.add_argument("--cpu", action="store_true", help="processor time of one thread")
    parser.add_argument("--quick", action="store_true", help="tiny data, few turns: not to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    asked = parser.parse_intermixed_args(words)
    rounds, turn, base = (2, 0.0, QUICK) if asked.quick else (7, TURN, FULL)
    if unknown := {*asked.rows.split(",")} - ROWS.keys():
        parser.error(f"--rows: expected some of {', '.join(ROWS)}, got {', '.join(unknown)}")
    bench = Bench([*base, *asked.overrides], asked.rounds or rounds, turn, asked.cpu)
    print(", ".join(f"{key} {value}" for key, value in bench.machine.items()))
    rows = []
    for name in asked.rows.split(","):
        measured = ROWS[name](bench)
        rows += measured
        table = pd.DataFrame(measured).dropna(axis="columns", how="all")
        print("\n" + table.to_string(index=False, float_format="%.3f"), flush=True)
    if asked.json:
        write_text(asked.json, json.dumps(bench.machine | {"rows": rows}, indent=2) + "\n")
    sys.stderr.writelines(f"not measured: {reason}\n" for reason in bench.missing)
    return int(bool(bench.missing))


if __name__ == "__main__":
    sys.exit(main())
