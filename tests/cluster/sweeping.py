"""``make sweep`` as an array: two tasks share the trials, are preempted, killed and cancelled.

The shipped sweep file, five lambdas. One task is preempted by USR1 in its trial, the other one is
killed in its own; the first comes back, takes over what was left, and is cancelled in the middle of
a trial. The same command again must end the sweep: every lambda trained to its end once, every
step once (after the kill those since the last save twice), no trial in two tasks at a time.
"""

from __future__ import annotations

import itertools
import sys
from typing import NamedTuple

import matplotlib.image
import pandas as pd

from tests.cluster import slurm
from tests.cluster.slurm import Scene, each_step_once, say, wait_in_job

LAMBDAS = (0, 0.3, 1, 3, 10)  # of experiments/sweep_lambda.yaml
RUNS = {value: f"lambda{float(value)}-seed0" for value in LAMBDAS}
NAME = "sweep"


class Latest(NamedTuple):
    """A trial that a task has trained."""

    began: float
    value: float
    step: int


def perform(scene: Scene) -> None:
    """Sweep, disturb it, end it by the same command and look at what is there."""
    scene.prepare_data()
    check_trials(scene, play(scene))
    check_results(scene)


def submit(scene: Scene) -> list[str]:
    """Submit the array; its tasks as SLURM names them."""
    settings = [*scene.words, f"run.root={scene.folder / NAME}", "logger.wandb=off"]
    words = ["make", "sweep", f"PYTHON={sys.executable}", f"ARGS={' '.join(settings)}"]
    array = scene.sbatch(NAME, "--array=0-1", "experiments/slurm/sweep.sbatch", *words)
    return [f"{array}_0", f"{array}_1"]


def play(scene: Scene) -> list[float]:
    """Disturb both tasks and start again; returns when the goes began that were killed."""
    doomed, lucky = submit(scene)
    for task in (doomed, lucky):
        wait_in_job(task, "step 3", lambda task=task: trained_by(scene, task).step >= 3)
    slurm.preempt(lucky)
    slurm.crash(slurm.show(doomed)["JobId"])
    slurm.wait_for_end(doomed, "FAILED")
    killed = trained_by(scene, doomed)
    say(f"USR1 to a task, SIGKILL of all of the other one: left {killed}")

    def goes_on() -> bool:
        done = any(scene.latest(NAME, run) == steps(scene) for run in RUNS.values())
        return done and 3 <= trained_by(scene, lucky).step < steps(scene)

    wait_in_job(lucky, "a second trial after it came back", goes_on)
    slurm.call("scancel", lucky)
    slurm.wait_for_end(lucky, "CANCELLED")
    cancelled = trained_by(scene, lucky)
    say(f"the first came back, ended a trial and was cancelled: left {cancelled}")
    for task in submit(scene):
        slurm.wait_for_end(task, "COMPLETED")
    return [killed.began, cancelled.began]


def steps(scene: Scene) -> int:
    """Of a whole run: 18 an epoch, on one rank."""
    return 18 * scene.epochs


def trained_by(scene: Scene, task: str) -> Latest:
    """What a task trains, or has trained last."""
    job = slurm.show(task)["JobId"]
    goes = [(go, value) for value in LAMBDAS for go in scene.goes(NAME, RUNS[value])]
    own = [Latest(go.began, value, go.steps[0][-1]["step"]) for go, value in goes if go.job == job]
    return max(own, default=Latest(0, -1, 0))


def check_trials(scene: Scene, cut_off: list[float]) -> None:
    """Each lambda trained to its end once, each step once, nothing by two tasks at a time."""
    every = {value: scene.goes(NAME, RUNS[value]) for value in LAMBDAS}
    for value, goes in every.items():
        (steps_made,) = each_step_once(goes, cut_off)
        assert len(steps_made) == steps(scene), f"lambda {value}: {len(steps_made)} steps"
        for before, go in itertools.pairwise(goes):
            assert before.ended < go.began, f"lambda {value}: two tasks at a time"
        for go in goes:
            assert f"loss.lambda_lesion={value}" in go.words[0], go.words
        ends = sum(go.steps[0][-1]["step"] == steps(scene) for go in goes)
        assert ends == 1, f"lambda {value} was trained to its end {ends} times"
    count = sum(map(len, every.values()))
    assert count == len(LAMBDAS) + 3, f"{count} goes"
    say(f"{len(LAMBDAS)} lambdas in {count} goes, each step once")


def check_results(scene: Scene) -> None:
    folder = scene.folder / NAME / "phantom" / "sweeps" / "sweep_lambda"
    table = pd.read_csv(folder / "results.csv")
    assert table["loss.lambda_lesion"].tolist() == list(LAMBDAS)
    assert table["state"].tolist() == ["done"] * len(LAMBDAS), table["state"]
    assert table["val/fcn/pixel_ap"].notna().all()
    assert matplotlib.image.imread(folder / "plot.png").std() > 0.05
    say(f"results.csv and plot.png hold {len(LAMBDAS)} trials, each done")
