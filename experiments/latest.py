"""The latest trained run of each stage, for ``make evaluate report``.

``python -m experiments.latest [--stages "stage1 stage2"] [data.name=...] [run.root=...]
[run.name=...]`` prints run directories as words for a shell; other words are passed over. Exit
status: 0 printed, 2 there is none.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

DEFAULTS = {"data.name": "phantom", "run.root": "runs", "run.name": "*"}


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.latest")
    parser.add_argument("--stages", type=str.split, help="all of them unless given")
    options, others = parser.parse_known_args(words)
    values = DEFAULTS | dict(word.split("=", 1) for word in others if "=" in word)
    place = Path(values["run.root"]).expanduser() / values["data.name"]
    runs = []
    for stage in options.stages or ("stage1", "stage2", "stage3"):
        if best := [*place.glob(f"{stage}/{values['run.name']}/checkpoints/best.ckpt")]:
            runs.append(str(max(best, key=lambda path: path.stat().st_mtime).parents[1]))
    if not runs:
        there = " ".join(f"{run}/" for run in sorted(place.glob("stage*/*/"))) or "none"
        wanted = place / " ".join(options.stages or "*") / values["run.name"]
        print(f"no trained run {wanted}; there are: {there}", file=sys.stderr)
        print(f"to train one: make stage1 DATA={place.name}", file=sys.stderr)
        return 2
    print(shlex.join(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
