"""One page on runs, for people: ``python -m experiments.report RUN_DIR... --out DIR``.

Writes ``DIR/report.html``, a single file that opens from disk without a network: what the maps are
worth in one sentence, pictures chosen by a rule, every method with its interval, curves, and how
to get there again. DIR is ``report`` beside the stages' folders unless named. Figures are those
that ``experiments.evaluate`` left in the run directories; where there are none, or older ones than
the checkpoint, the run is judged now. Runs that differ in the seed alone are joined by their mean.

The page holds radiographs of the data: check the data's terms before you pass it on, or leave them
out with ``--no-images``, which needs no data at all. ``key=value`` words may change paths.

Exit status: 0 done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.command import answered, build_parser, parse, run


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("report", "Write a page on runs, for people.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where report.html goes")
    parser.add_argument("--split", choices=["test", "val", "left_out"], default="test")
    parser.add_argument("--no-images", action="store_true", help="leave all radiographs out")
    words = sys.argv[1:] if words is None else words
    options, places, settings = parse(parser, words)

    from experiments.reporting.page import report

    runs, images = [Path(place) for place in places], not options.no_images
    page, radiographs = report(runs, options.split, settings, options.out, words, images)
    print(f"written  {page} ({page.stat().st_size / 1e6:.1f} MB), to be opened in a browser")
    if radiographs:
        print(
            f"It holds {radiographs} radiographs: keep it where they may lie, and check your "
            "data's terms before you pass it on; --no-images leaves them out"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
