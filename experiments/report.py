"""One page on runs, for people: ``python -m experiments.report RUN_DIR... --out DIR``.

A stage (stage1) stands for its latest run. Writes ``DIR/report.html`` (docs/evaluation.md); DIR is
``report`` beside the stages' folders unless named.
The page holds radiographs: check the data's terms before you pass it on, or use ``--no-images``.
Exit status: 0 done, 2 the request cannot be carried out.
"""

import sys
from pathlib import Path

from experiments.command import answered, build_parser, parse


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("report", "Write a page on runs, for people.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where report.html goes")
    parser.add_argument("--split", choices=["test", "val", "left_out"], default="test")
    parser.add_argument("--no-images", action="store_true", help="leave all radiographs out")
    words = sys.argv[1:] if words is None else words
    options, places, settings = parse(parser, words)

    from experiments.reporting.page import gather, page_of, write_page
    from experiments.runs import choose_runs

    runs = choose_runs(places, settings)
    words = [*map(str, runs), *(word for word in words if word not in places)]
    page = page_of(runs, options.out)
    content = gather(runs, options.split, settings, images=not options.no_images)
    write_page(page, words=words, **content)
    print(f"written  {page} ({page.stat().st_size / 1e6:.1f} MB), to be opened in a browser")
    if (count := len(content["cases"])) and content["source"].shows_people:
        terms = "check your data's terms before you pass it on; --no-images leaves them out"
        print(f"It holds {count} radiographs: {terms}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
