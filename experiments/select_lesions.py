"""Choose what to annotate: ``python -m experiments.select_lesions --count N --out DIR ...``.

Draws N abnormal images, at random or by a run's uncertainty, and writes a package that CVAT, Label
Studio and LabelMe open (docs/lesions.md). Exit status: 0 done, 2 the request cannot be carried out.
"""

import sys
from pathlib import Path

from experiments.command import answered, build_parser, parse


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("select_lesions", "Choose images to draw lesions on.", "key=value")
    add = parser.add_argument
    add("--count", type=int, metavar="N", required=True, help="images to choose")
    add("--out", type=Path, metavar="DIR", required=True, help="the package to be written")
    add("--run", type=Path, metavar="RUN_DIR", help="choose by what this run is unsure of")
    splits = ["train", "val", "test", "all"]
    add("--split", choices=splits, default="train", help="whose images, masks follow them (train)")
    add("--masked", action="store_true", help="also choose images that have a mask already")
    add("--outlines", action="store_true", help="add what the run's map shows as outlines")
    options, places, settings = parse(parser, words)
    if places:
        parser.error(f"{places[0]} is no key=value word; name a run with --run")

    from experiments.annotation import choosing

    return choosing.run(options, settings)


if __name__ == "__main__":
    sys.exit(main())
