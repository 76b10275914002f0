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

STAGES = ["stage1", "stage2", "stage3"]
DEFAULTS = {"data.name": "phantom", "run.root": "runs", "run.name": "*"}


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.latest")
    parser.add_argument("--stages", type=str.split, default=[], help="all of them unless given")
    options, others = parser.parse_known_args(words)
    values = DEFAULTS | dict(word.split("=", 1) for word in others if "=" in word)
    source, name = values["data.name"], values["run.name"]
    place = Path(values["run.root"]).expanduser() / source
    for stage in options.stages:
        if stage not in STAGES:
            print(f"STAGE={stage} is none of {', '.join(STAGES)}", file=sys.stderr)
            return 2
    runs = []
    for stage in options.stages or STAGES:
        found = place.glob(f"{stage}/*/checkpoints/best.ckpt")
        trained = [best for best in found if name in ("*", best.parts[-3])]
        if trained:
            runs.append(str(max(trained, key=lambda best: best.stat().st_mtime).parents[1]))
    if not runs:
        wanted = place / (" ".join(options.stages) or "*") / name
        there = " ".join(f"{run}/" for run in sorted(place.glob("stage*/*/"))) or "none"
        print(f"no trained run {wanted}; there are: {there}", file=sys.stderr)
        print(f"to train one: make stage1 DATA={source}", file=sys.stderr)
        return 2
    print(shlex.join(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
