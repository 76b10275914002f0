"""W&B's agent in a SLURM job: a trial of two ranks, preempted once, against a stand-in server.

Both ranks of each go must have had the same command line; all of it is one run at the server.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from tests.cluster import slurm
from tests.cluster.slurm import Scene, each_step_once, say, wait_in_job
from tests.wandb_server import SHIPPED, WandbServer

NAME = "agent"
LAMBDA = 0.3
RUN = f"lambda{LAMBDA}-seed0"


def perform(scene: Scene) -> None:
    """Let the agent train, preempt it, and look at what ranks and server were told."""
    scene.prepare_data()
    sweep = yaml.safe_load(SHIPPED.read_text())
    words = [*scene.words, f"run.root={scene.folder / NAME}", "trainer.devices=2"]
    parameters = dict(word.split("=", 1) for word in [*words, "logger.wandb=online"])
    sweep["parameters"].update({key: {"value": value} for key, value in parameters.items()})
    parameters["loss.lambda_lesion"] = str(LAMBDA)
    arguments = {key: {"value": value} for key, value in parameters.items()}
    server = WandbServer(yaml.safe_dump(sweep), {"run_id": "run0", "args": arguments})
    play(scene, server)
    check_ranks(scene, parameters)
    check_server(server)


def play(scene: Scene, server: WandbServer) -> None:
    """Preempt the trial once; the agent that comes back is told to go on with it."""
    folder = str(scene.folder / NAME)
    variables = dict.fromkeys(("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"), folder)
    variables |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "false",  # nothing leaves this machine
    }
    words = ["wandb", "agent", "--count", "1", "entity/decision-basis/sweep7"]
    script = ["--ntasks-per-node=2", "experiments/slurm/sweep.sbatch"]
    job = scene.sbatch(NAME, *script, *words, **variables)
    wait_in_job(job, "step 4", lambda: scene.latest(NAME, RUN) >= 4)
    slurm.preempt(job)
    say(f"W&B's agent: USR1 stopped its trial at step {scene.latest(NAME, RUN)}")
    slurm.wait_for_end(job, "COMPLETED")
    assert slurm.show(job)["Restarts"] == "1"


def check_ranks(scene: Scene, parameters: dict[str, str]) -> None:
    """The same words on both ranks, each step once and on images of its own."""
    goes = scene.goes(NAME, RUN)
    assert len(goes) == 2, f"{len(goes)} goes"
    for go in goes:
        first, second = go.words
        assert first == second, go.words
        for key, value in parameters.items():
            assert first.count(f"{key}={value}") == 1, (key, first)
    each_step_once(goes)
    for mine, theirs in zip(*goes[0].steps, strict=True):
        assert set(mine["images"]).isdisjoint(theirs["images"])
    say(f"both ranks were started with the same {len(goes[0].words[0])} words, both times")


def check_server(server: WandbServer) -> None:
    """One run, of this sweep, with the figures of each epoch."""
    asked = server.asked("upsertBucket")
    assert {given["name"] for given in asked} == {"run0"}, asked
    assert {given["sweep"] for given in asked} >= {"sweep7"}
    assert any('"preempting":true' in body.replace(" ", "") for _, body in server.received)
    losses = [line for line in server.history("run0") if '"val/loss"' in line]
    assert len(losses) == 2, losses
    say(f"the server has one run of {len(losses)} epochs")
