"""Choose what to annotate: ``python -m experiments.select_lesions --count N --out DIR ...``.

Draws N abnormal images, spread over patients, body parts and studies, and writes a package to
``--out`` that CVAT, Label Studio and LabelMe open (docs/lesions.md): by ``data.seed`` at
random, or, with ``--run RUN_DIR``, by that run's uncertainty and coverage
(experiments/annotation/choosing.py).

Exit status: 0 done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.command import answered, build_parser, parse
from experiments.command import run as run_command


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("select_lesions", "Choose images to draw lesions on.", "key=value")
    parser.add_argument("--count", type=int, metavar="N", required=True, help="images to choose")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="the package to be written"
    )
    parser.add_argument(
        "--run", type=Path, metavar="RUN_DIR", help="choose by what this run is unsure of"
    )
    parser.add_argument(
        "--split",
        choices=["train", "val", "test", "all"],
        default="train",
        help="whose images, masks follow them (train)",
    )
    parser.add_argument(
        "--masked", action="store_true", help="also choose images that have a mask already"
    )
    parser.add_argument(
        "--outlines", action="store_true", help="add what the run's map shows as outlines"
    )
    options, places, settings = parse(parser, words)
    if places:
        parser.error(f"{places[0]} is no key=value word; name a run with --run")

    from experiments.annotation import choosing

    return choosing.run(options, settings)


if __name__ == "__main__":
    sys.exit(run_command(main, undone_by_sigterm=True))
