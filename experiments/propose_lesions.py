"""Propose lesions: ``python -m experiments.propose_lesions RUN_DIR --out DIR``.

A stage 3 run draws the lesion of each abnormal train image that it had no mask of; ``DIR`` is for
``lesions.proposals`` of another run, which learns from both (docs/lesions.md). Exit status: 0 done,
2 the request cannot be carried out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.command import answered, build_parser, parse


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("propose_lesions", "Draw lesions by a run, for other runs to learn from.")
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", required=True, help="the folder to be written")
    options, places, settings = parse(parser, words)
    if len(places) != 1:
        parser.error(f"expected one run, got {len(places)}")

    from experiments.annotation import proposing

    return proposing.run(Path(places[0]), options.out, settings)


if __name__ == "__main__":
    sys.exit(main())
