"""``experiments.train`` that writes down every step: rank, step, images, loss.

RECORD names the folder. FREEZE=1 keeps BatchNorm at its running statistics, so that an
image's loss does not depend on the images that share its rank.
"""

import json
import os
import sys
from pathlib import Path

from pytorch_lightning import Callback
from torch import nn

from experiments import train
from experiments.training import loop


class Recorder(Callback):
    """A line a step and rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if os.environ.get("FREEZE"):
            for module in pl_module.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        line = {
            "step": trainer.global_step,
            "images": batch["index"].tolist(),
            "sums": batch["image"].double().sum((1, 2, 3)).tolist(),
            "loss": float(loss),
        }
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as handle:
            handle.write(json.dumps(line) + "\n")


def steps(folder: Path) -> list[list[dict]]:
    """The recorded steps of each rank."""
    return [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("rank*.jsonl"))
    ]


if __name__ == "__main__":
    theirs = loop.build_callbacks
    folder = Path(os.environ["RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    # Before RunCheckpoints, the last: a step that is saved is recorded.
    loop.build_callbacks = lambda *given: [Recorder(folder), *theirs(*given)]
    sys.exit(train.main(sys.argv[1:]))
