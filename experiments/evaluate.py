"""Judge runs, or a folder of maps: ``python -m experiments.evaluate RUN_DIR... [key=value ...]``.

A stage (stage1) stands for its latest run. Writes ``evaluation/<split>/`` into each run directory
and prints the figures: docs/evaluation.md, docs/audit.md. Exit status: 0 done, 2 the request cannot
be carried out.
"""

import argparse
import os
import sys
from pathlib import Path

from experiments.command import answered, build_parser, parse


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("evaluate", "Judge runs, or a folder of maps, on val or test.")
    add = parser.add_argument
    add("--split", choices=["test", "val", "left_out"], default="test")
    add("--no-baselines", action="store_true", help="judge the network's own maps only")
    add("--compare", action="store_true", help="compare the runs and their maps")
    add("--maps", type=Path, metavar="DIR", help="judge this folder of maps")
    add("--out", type=Path, metavar="PATH", help="where --compare or --maps writes its results")
    add("--peers", metavar="NAMES", help="other map methods: quick, all, or names with commas")
    add("--audit", action="store_true", help="audit the maps (docs/audit.md)")
    add("--audit-images", type=int, metavar="N", help="abnormal images (64)")
    options, places, settings = parse(parser, words)
    audit_images = options.audit_images is not None
    of_runs = options.compare or options.audit or audit_images or options.peers
    if options.maps and (places or of_runs or options.no_baselines or options.split == "left_out"):
        parser.error("--maps judges a folder of maps: of the others only --split and --out fit it")
    if options.out and not options.compare and not options.maps:
        parser.error("--out is where --compare or --maps writes: add one of them")
    if options.compare and options.out and not options.out.name:
        parser.error(f"--out {options.out} names no file. Fix: add a name, such as comparison")
    if audit_images and (not options.audit or options.audit_images < 2):
        parser.error("--audit-images needs --audit, and two or more")
    return judge(options, places, settings)


def judge(options: argparse.Namespace, places: list[str], settings: list[str]) -> int:
    """Judge runs (or maps) one after the other, write and print each; then compare and audit."""
    from experiments.build import open_run
    from experiments.evaluation import compare, describe, folder, methods, run, store
    from experiments.runs import choose_runs

    def keep(evaluation: run.Evaluation) -> run.Evaluation:
        # Printed first: the figures cost minutes, and are shown where they cannot be written.
        print(describe.describe(evaluation), end="", flush=True)
        store.write(evaluation)
        print(f"  written  {evaluation.target}", flush=True)
        return evaluation

    if options.maps:
        keep(folder.evaluate_maps(options.maps, options.split, settings, options.out))
        return 0
    runs, peers = choose_runs(places, settings), methods.choose(options.peers)
    trivial = None if options.no_baselines else run.Baselines()
    evaluations = [
        keep(run.evaluate(open_run(place, settings), options.split, peers, trivial))
        for place in runs
    ]
    if options.compare:
        compared = compare.compare_runs(evaluations)
        print(f"\n{compared.short}", flush=True)
        beside = Path(os.path.normpath(evaluations[0].folder / ".." / ".."))
        out = options.out or beside / f"comparison-{options.split}"
        print(f"written  {', '.join(map(str, compare.write_comparison(compared, out)))}")
    if options.audit:
        from experiments.audit.audit import audit_all

        audit_all(evaluations, peers, options.audit_images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
