"""Bring lesions of your own: ``python -m experiments.import_lesions SOURCE... --out DIR``.

Reads what people annotated with, finds each image in the data set, and writes ``DIR``, a folder for
``lesions.path``; docs/lesions.md tells all. Exit status: 0 done, 1 something was left out (listed),
2 the request cannot be carried out.
"""

import runpy
import sys
from pathlib import Path

from experiments.command import answered, build_parser, parse


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    words = sys.argv[1:] if words is None else words
    if any(word.startswith("--select") for word in words):  # until 0.2: a command of its own now
        sys.argv[1:] = [word.replace("--select", "--count", 1) for word in words]
        runpy.run_module("experiments.select_lesions", run_name="__main__")
    about = "Turn what people annotated into a lesion folder."
    parser = build_parser("import_lesions", about, "SOURCE")
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", required=True, help="the lesion folder to be written")
    add("--format", metavar="NAME", help="of the sources, else it is recognised")
    add("--mapping", type=Path, metavar="FILE.csv", help="header name,image")
    add("--labels", action="append", metavar="NAME,NAME", help="only marks of these classes")
    raters = ("union", "majority", "intersection")
    add("--raters", choices=raters, help="how several make one mask (union)")
    add("--strict", action="store_true", help="one mistake, and nothing is written")
    add("--example", type=int, metavar="N", help="write N lesions of the data set as FILE.json")
    options, places, settings = parse(parser, words)

    from experiments.annotation import importing

    return importing.run(options, places, settings)


if __name__ == "__main__":
    sys.exit(main())
