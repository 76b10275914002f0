"""A job is preempted by USR1 five times, once before it trains, and a rank of it is killed once.

A stage 3 of two ranks must end as one that nobody disturbed: every step once and on the same images
(after the kill those since the last save twice), the same weights and figures, one run for W&B.
"""

from __future__ import annotations

import re

from tests.cluster import slurm
from tests.cluster.slurm import Scene, each_step_once, say, wait_in_job
from tests.runs import same_results

# What happens at which step; 0: while the job starts. An epoch has 9 steps: 17 is one before an
# epoch's last, so that the signal comes in its last step or in validation; 32 is some steps after a
# save.
FULL = [("USR1", 4), ("USR1", 0), ("USR1", 12), ("USR1", 17), ("KILL", 32), ("USR1", 38)]
SHORT = [("USR1", 4)]


def perform(scene: Scene, nodes: int, plan: list[tuple[str, int]]) -> None:
    """Train once undisturbed, once disturbed; both must come to the same."""
    scene.prepare_data()
    play(scene, nodes, plan)
    check_steps(scene, plan)
    check_results(scene)


def submit(scene: Scene, name: str, nodes: int) -> str:
    """Submit the stage 3 run ``name`` of two ranks; the job's id."""
    cluster = ["--gpus=0", "--cpus=1", "--time=60", f"--nodes={nodes}", f"--ranks={2 // nodes}"]
    root = f"run.root={scene.folder / name}"
    words = ["stage3", *cluster, *scene.words, root]
    given = scene.run("experiments.submit", *words, **scene.recording(name))
    scene.jobs.append(given.split()[1])
    return scene.jobs[-1]


def play(scene: Scene, nodes: int, plan: list[tuple[str, int]]) -> None:
    job = submit(scene, "whole", nodes)
    slurm.wait_for_end(job, "COMPLETED")
    say(f"undisturbed: {scene.latest('whole')} steps")
    jobs = [submit(scene, "cut", nodes)]
    for kind, step in plan:
        job = jobs[-1]
        wait_for_step(scene, job, step)
        before = scene.latest("cut")
        if kind == "USR1":
            slurm.preempt(job)
        else:
            slurm.kill(job, rank=1)
            slurm.wait_for_end(job, "FAILED")
            jobs.append(submit(scene, "cut", nodes))
        say(f"{kind} after step {before}: went to step {scene.latest('cut')}")
    slurm.wait_for_end(jobs[-1], "COMPLETED")
    restarts = [int(slurm.show(job)["Restarts"]) for job in jobs]
    assert sum(restarts) == sum(kind == "USR1" for kind, _ in plan), restarts
    for job, count in zip(jobs, restarts, strict=True):
        (log,) = (scene.folder / "cut" / "slurm").glob(f"*-{job}.log")
        restarted = re.findall(r"restart (\d+):", log.read_text())
        assert restarted == [str(go) for go in range(count + 1)], f"{log}: {restarted}"
    say(f"requeued {sum(restarts)} times, each log whole, the job COMPLETED")


def wait_for_step(scene: Scene, job: str, step: int) -> None:
    """Until the run has made ``step``; 0: until both ranks of a new go have their handlers up."""

    def is_there() -> bool:
        if step:
            return scene.latest("cut") >= step
        return sum(map(slurm.hears_usr1, slurm.ranks(job).values())) == 2

    wait_in_job(job, f"step {step}", is_there)


def check_steps(scene: Scene, plan: list[tuple[str, int]]) -> None:
    """Every step once, on the images and with the loss of the undisturbed run."""
    goes = scene.goes("cut")
    # A job that was stopped while it started made no step and no notes.
    kinds = [kind for kind, step in plan if step]
    assert len(goes) == len(kinds) + 1, f"{len(goes)} goes made steps"
    killed = [go.began for go, kind in zip(goes, kinds, strict=False) if kind == "KILL"]
    ranks = each_step_once(goes, killed)
    assert ranks == each_step_once(scene.goes("whole"))
    say(f"{len(ranks[0])} steps of {len(ranks)} ranks, images and losses as undisturbed")


def check_results(scene: Scene) -> None:
    """Weights, optimiser and figures of both runs are equal to the last bit; W&B has one id."""
    run = scene.run_directory("cut")
    same_results(scene.run_directory("whole"), run)
    identity = (run / "wandb_id").read_text().strip()
    assert {file.stem for file in run.glob("wandb/offline-run-*/*.wandb")} == {f"run-{identity}"}
    say("weights, optimiser and metrics.csv equal to the last bit, one run for W&B")
