"""Sweep without a server: ``python -m experiments.sweep FILE.yaml [key=value ...]``.

FILE has W&B's format, such as experiments/sweep_lambda.yaml; key=value holds for every trial
(docs/cluster.md). Exit status: 0 done, 1 some trials failed (named), 2 the request cannot be
carried out, 130 and 143 stopped by Ctrl-C and SIGTERM; the same command goes on.
"""

import sys

from experiments.command import answered, build_parser, parse


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("sweep", "Train over a W&B sweep file, or go on.", "FILE")
    parser.add_argument("--count", type=int, metavar="N", help="train N trials at most, then end")
    options, files, settings = parse(parser, words)
    if len(files) != 1:
        parser.error(f"expected one sweep file, got {', '.join(files) or 'none'}")
    if options.count is not None and options.count < 1:
        parser.error(f"--count {options.count}: expected a whole number, at least 1")
    from experiments.cluster.sweeping import sweep

    return sweep(files[0], settings, options.count)


if __name__ == "__main__":
    sys.exit(main())
