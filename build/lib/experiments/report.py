"""One page on runs, for people: ``python -m experiments.report RUN_DIR... --out DIR``.

Writes ``DIR/report.html``, a single file that opens from disk without a network: what the maps are
worth in one sentence, pictures chosen by a rule, every method with its interval, curves, and how
to get there again. DIR is ``report`` beside the stages' folders unless told. Figures are those that
``experiments.evaluate`` left in the run directories; where there are none, or older ones than the
checkpoint, the run is judged now. Runs that differ in the seed alone are joined by their mean.

The page holds radiographs of the data: check the data's terms before it is passed on, or leave them
out with ``--no-images``, which needs no data at all. ``key=value`` words may change paths.

Exit status: 0 done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from experiments.command import answered
from experiments.command import run as run_command
from experiments.evaluate import check_different, is_setting

NAME = "report.html"
# In the head of every page: a file without it is somebody else's and is not overwritten.
MARK = '<meta name="generator" content="decision-basis experiments.report">'


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description="Write a page on runs, for people."
    )
    parser.add_argument("runs", nargs="*", metavar="RUN_DIR", help="run directories or checkpoints")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where {NAME} goes")
    parser.add_argument("--split", choices=["test", "val", "left_out"], default="test")
    parser.add_argument("--no-images", action="store_true", help="leave all radiographs out")
    given = sys.argv[1:] if words is None else words
    arguments = parser.parse_intermixed_args(given)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from experiments.runs import RunError, find_checkpoint

    overrides = [word for word in arguments.runs if is_setting(word)]
    runs = [Path(word) for word in arguments.runs if word not in overrides]
    if not runs:
        missing = [f"; {word} does not exist: taken for key=value" for word in overrides]
        raise RunError("name a run directory, such as runs/phantom/stage1/seed0" + "".join(missing))
    check_different(runs)
    folder = find_checkpoint(runs[0])[0]
    out = arguments.out or Path(os.path.normpath(folder / ".." / ".." / "report"))
    page = own_page(out)  # raises now, not after minutes of judging

    from experiments.evaluation.stored import check_one_data_set, judged
    from experiments.reporting.page import write_page

    found = judged(runs, arguments.split, overrides)
    check_one_data_set(found)
    shown = write_page(page, found, given, images=not arguments.no_images)
    print(f"written  {page} ({page.stat().st_size / 1e6:.1f} MB), to be opened in a browser")
    if shown and found[0].about["data"] != "phantom":
        print(
            f"It holds {shown} radiographs: keep it where they may lie, and check your data's "
            "terms before you pass it on; --no-images leaves them out"
        )
    return 0


def own_page(out: Path) -> Path:
    """The page's path in ``out``, which is made.

    Raises:
        RunError: It cannot be written, or a file of somebody else's is there.
    """
    from experiments.runs import RunError

    page, trial = out / NAME, out / f".{NAME}.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
        ours = not page.exists() or MARK.encode() in page.read_bytes()[:4096]
    except OSError as error:
        raise RunError(
            f"--out {out} cannot be written ({error.strerror}); name a folder that can"
        ) from error
    if not ours:
        raise RunError(f"{page} was not written by this command; name another --out")
    return page


if __name__ == "__main__":
    sys.exit(run_command(main))
