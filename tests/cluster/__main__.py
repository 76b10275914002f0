"""The scenes on a real SLURM: ``python -m tests.cluster [--nodes N] [--short | --sweep]``.

Without an option a training is preempted again and again (``preempting``). With ``--sweep`` the
tasks of an array share a sweep and are stopped and killed (``sweeping``), and W&B's agent starts a
trial of two ranks (``agent``). ``run.sh`` brings the cluster up and down around it. Exit status: 0
all held, 1 something did not (what).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster import agent, preempting, sweeping
from tests.cluster.slurm import Failure, Scene, say


def main() -> int:
    """Play the scenes and check them; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster")
    parser.add_argument("--nodes", type=int, choices=[1, 2], default=1, help="virtual nodes")
    parser.add_argument("--short", action="store_true", help="one preemption only")
    parser.add_argument("--sweep", action="store_true", help="an array of jobs, and W&B's agent")
    parser.add_argument("--folder", type=Path, help="keep everything there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        scene = Scene(folder, epochs=2 if arguments.short or arguments.sweep else 5)
        try:
            if arguments.sweep:
                sweeping.perform(scene)
                agent.perform(scene)
            else:
                plan = preempting.SHORT if arguments.short else preempting.FULL
                preempting.perform(scene, arguments.nodes, plan)
        except (Failure, AssertionError) as error:
            say(f"FAILED  {error}")
            for log in sorted(folder.glob("*/slurm/*.log")):
                print(f"--- {log}\n{log.read_text()[-4000:]}")
            return 1
        finally:
            subprocess.run(["scancel", *scene.jobs], capture_output=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
