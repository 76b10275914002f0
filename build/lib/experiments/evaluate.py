"""Judge runs: ``python -m experiments.evaluate RUN_DIR... [--split SPLIT] [key=value ...]``.

SPLIT is test (unless told), val, or left_out: what cross-fitting kept out of training.

Each image of val and of the split is seen once, by the best checkpoint, in float32, in one process;
everything that is fitted or tuned comes from val. Writes ``evaluation/<split>/`` into the run
directory (docs/evaluation.md says what) and prints the figures. ``--no-baselines`` leaves the
trivial maps out. ``--compare`` also compares the runs with one another, runs that differ in the
seed alone joined, and their maps; it is written beside the stages' folders, or to ``--out PATH``.
``--peers NAMES`` also judges other people's map methods on the same network (names in
experiments/evaluation/peers.py, with commas, ``quick``, or ``all`` with the two slow ones);
``--audit`` asks whether the maps can be believed (docs/audit.md), on ``--audit-images N`` abnormal
images.

``--maps DIR data.name=... data.root=...`` judges a folder of anybody's maps instead, without a
network: docs/maps.md.

Exit status: 0 done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command import answered
from experiments.command import run as run_command

if TYPE_CHECKING:  # packages may be missing: main says so
    from experiments.evaluation.methods import MapMethod
    from experiments.evaluation.run import Evaluation


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate", description="Judge runs on val or test."
    )
    parser.add_argument("runs", nargs="*", metavar="RUN_DIR", help="run directories or checkpoints")
    parser.add_argument("--split", choices=["test", "val", "left_out"], default="test")
    parser.add_argument(
        "--no-baselines", action="store_true", help="judge the network's own maps only"
    )
    parser.add_argument("--compare", action="store_true", help="compare the runs and their maps")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="judge this folder of maps")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="where the comparison or what --maps finds goes"
    )
    parser.add_argument("--peers", metavar="NAMES", help="quick, all, or names with commas")
    parser.add_argument("--audit", action="store_true", help="audit the maps (docs/audit.md)")
    parser.add_argument("--audit-images", type=int, metavar="N", help="abnormal images (64)")
    arguments = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from experiments.runs import RunError

    overrides = [word for word in arguments.runs if is_setting(word)]
    runs = [Path(word) for word in arguments.runs if word not in overrides]
    if arguments.maps is not None:
        return judge_folder(arguments, runs, overrides)
    if not runs:
        missing = [f"; {word} does not exist: taken for key=value" for word in overrides]
        raise RunError("name a run directory, such as runs/phantom/stage1/seed0" + "".join(missing))
    if arguments.out and not arguments.compare:
        raise RunError(
            "--out says where a comparison is written, or what --maps finds: add one of them"
        )
    if arguments.audit_images is not None and not arguments.audit:
        raise RunError("--audit-images is of the audit: add --audit")
    if arguments.audit_images is not None and arguments.audit_images < 2:
        raise RunError(f"--audit-images {arguments.audit_images}: two or more are needed")
    if arguments.compare or arguments.audit:
        check_different(runs)
    if arguments.compare and arguments.out:
        from experiments.evaluation.comparison import comparison_paths

        comparison_paths(arguments.out)  # raises now, not after minutes of judging
    methods = choose_peers(arguments.peers)
    found = evaluate_all(runs, arguments.split, overrides, not arguments.no_baselines, methods)
    if arguments.compare:
        compare_all(found, arguments.out)
    if arguments.audit:
        from experiments.audit.files import audit_all

        audit_all(found, methods, arguments.audit_images)
    return 0


def is_setting(word: str) -> bool:
    """Whether a word is ``key=value``: a run's path may hold "=", a key never holds "/"."""
    return "=" in word and "/" not in word.partition("=")[0] and not Path(word).exists()


def check_different(runs: list[Path]) -> None:
    """Raise a RunError if two words mean the same run, which is no pair to compare."""
    from experiments.runs import RunError, find_checkpoint

    known: dict[Path, Path] = {}
    for run in runs:
        folder = find_checkpoint(run)[0].resolve()
        if folder in known:
            raise RunError(f"{known[folder]} and {run} are of one run; name one of them")
        known[folder] = run


def choose_peers(names: str | None) -> list[MapMethod]:
    """The methods of ``--peers``: quick, all, or names with commas."""
    if names is None:
        return []
    from experiments.evaluation.peers import PEERS, SLOW, peers

    quick = [name for name in PEERS if name not in SLOW]
    return peers({"quick": quick, "all": list(PEERS)}.get(names, names.split(",")))


def evaluate_all(
    runs: list[Path], split: str, overrides: list[str], trivial: bool, methods: list[MapMethod]
) -> list[Evaluation]:
    """Judge runs one after the other; write and print each."""
    from experiments.evaluation.describe import describe
    from experiments.evaluation.run import Shared, evaluate
    from experiments.evaluation.store import write

    shared: Shared = {}
    judged = []
    for run in runs:
        found = evaluate(run, split, overrides, trivial, shared, methods)
        # Printed first: the figures cost minutes, and are shown where they cannot be written.
        print(describe(found), flush=True)
        write(found)
        print(f"  written  {found.target}", flush=True)
        judged.append(found)
    return judged


def compare_all(judged: list[Evaluation], out: Path | None) -> None:
    """Compare runs that have just been judged: never with the figures of an older network."""
    from experiments.evaluation.comparison import compare_runs, write_comparison

    found = compare_runs(judged)
    print(f"\n{found.short}", flush=True)
    beside = Path(os.path.normpath(judged[0].folder / ".." / ".."))
    paths = write_comparison(found, out or beside / f"comparison-{judged[0].about['split']}")
    print(f"written  {', '.join(map(str, paths))}")


def judge_folder(arguments: argparse.Namespace, runs: list[Path], overrides: list[str]) -> int:
    """Judge a folder of anybody's maps; write, print and return the exit status."""
    from experiments.evaluation.describe_maps import describe_maps
    from experiments.evaluation.folder import evaluate_maps
    from experiments.evaluation.store import write
    from experiments.runs import RunError

    if runs:
        raise RunError(f"--maps judges a folder of maps, not runs: leave {runs[0]} out, or --maps")
    if arguments.compare:
        raise RunError("--compare is of runs; methods in one folder of maps stand side by side")
    if arguments.peers or arguments.audit or arguments.audit_images is not None:
        raise RunError(
            "--peers, --audit and --audit-images ask a network, and a folder of maps has none"
        )
    if arguments.no_baselines:
        raise RunError("--no-baselines is of runs: no baseline is judged with --maps; leave it out")
    if arguments.split == "left_out":
        raise RunError("--maps goes with --split test or val: a folder of maps has no folds")
    found = evaluate_maps(arguments.maps, arguments.split, overrides, arguments.out)
    print(describe_maps(found), flush=True)
    write(found)
    print(f"  written  {found.target}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
