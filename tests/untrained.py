"""A run directory without a training: random weights, for tests of what uses a trained network."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from datamodules.sources import SOURCES
from experiments.build import open_run
from experiments.config import load_config, save_config
from tests.stages import network, settled

EPOCH = 4
FITTED = {
    "threshold": 0.4,
    "study_threshold": 0.45,
    "temperature": 1.5,
    "maps": {"cam": {"threshold": 0.2}, "pcam": {"threshold": 0.3}, "fcn": {"threshold": None}},
}


def make_run(root: Path, stage: str = "stage3", source: str = "phantom", words=()) -> Path:
    """Write ``config.yaml`` and ``checkpoints/best.ckpt``; the data set is nowhere."""
    folder = root / source / stage / "seed0"
    (folder / "checkpoints").mkdir(parents=True)
    config = load_config(
        stage,
        [f"data.name={source}", f"data.root={root / 'nowhere'}", "data.batch_size=5", *words],
    )
    config.data.image_size = 64
    save_config(config, folder / "config.yaml")
    torch.manual_seed(0)
    module = settled(network(stage, *words)).eval()
    with torch.no_grad():
        top = module.raw_maps(module.unmasked_pass(torch.randn(8, 1, 64, 64)))["pcam"].max()
    module.map_scale.fill_(float(top))
    content = {
        "stage": stage,
        "epoch": EPOCH - 1,
        "global_step": 1,
        "max_epochs": EPOCH,
        "loops": {"fit_loop": {}},
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        SOURCES[source].__qualname__: dict.fromkeys(("index_hash", "image_hash", "mask_hash"), "x"),
    }
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder


def judge(folder: Path, **changes) -> Path:
    """Write an evaluation's summary of the run, as far as thresholds are concerned."""
    path = folder / "evaluation" / "test" / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"run": str(folder), **open_run(folder).identity}
    path.write_text(json.dumps({**known, "fitted": FITTED, **changes}))
    return folder
