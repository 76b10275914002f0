"""Run the audits of judged runs, print each as tables, and write ``audit.json``."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from datamodules.files import write_text
from experiments.audit.audit import DRAWS, EDGES, GRID, RANDOM, audit_repeatability, audit_run
from experiments.audit.perturbation import EARLY, SHARES
from experiments.audit.sample import IMAGES, Maps, Sample, draw_sample
from experiments.audit.similarity import TOP
from experiments.build import open_run
from experiments.evaluation.compare import group
from experiments.evaluation.describe import show, table
from experiments.evaluation.methods import EDGE_MAP, MapMethod
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Difference
from experiments.evaluation.store import plain
from experiments.runs import RunError

# What is printed of the cascade: audit.json holds every step.
PRINTED = {"fc": "FC layer random", "stages.2.0": "last stage, too", "stem": "all layers"}


def audit_all(
    judged: Sequence[Evaluation], peers: Sequence[MapMethod], images: int | None = None
) -> None:
    """Audit runs on the same images, and runs that differ in the seed alone with one another.

    Args:
        judged: the runs, as judged.
        peers: map methods beside the networks' own; a network that does not classify has none.
        images: abnormal images at most; None: :data:`sample.IMAGES`.
    """
    for seeds in group(judged):
        audits = [(run, *_audit(run, peers, images or IMAGES)) for run in seeds.runs]
        if len(audits) > 1:
            repeated = {
                "runs": [run.folder.name for run, *_ in audits],
                "methods": audit_repeatability([maps for *_, maps in audits], audits[0][1]),
            }
            for *_, results, _ in audits:
                results["repeatability"] = repeated
        for run, sample, results, _ in audits:
            print(f"{run.folder}:\n{describe_audit(results, len(sample.patient))}", flush=True)
            _write(run, sample, results)


def _audit(
    run: Evaluation, peers: Sequence[MapMethod], images: int
) -> tuple[Sample, dict[str, Any], Maps]:
    opened = open_run(run.folder / "checkpoints" / str(run.about["checkpoint"]))
    opened.config = run.config  # with today's paths
    # Edges know nothing of the network: what a test says of them, it says of any picture.
    methods = [*(peers if opened.module.classifies else ()), EDGE_MAP]
    try:
        sample = draw_sample(opened.data, str(run.about["split"]), images)
        return sample, *audit_run(opened.module, methods, sample, run.table)
    except ValueError as error:
        raise RunError(f"{run.folder}: {error}") from error


def _write(run: Evaluation, sample: Sample, results: dict[str, Any]) -> None:
    about = {
        **run.about,
        "images": len(sample.patient),
        "patients": len(set(sample.patient)),
        "draws": DRAWS,
        "compared_every": GRID,
        "top": TOP,
        "shares": SHARES,
        "early": EARLY,
    }
    path = run.target / "audit.json"
    try:
        write_text(path, json.dumps(plain({**about, **results}), indent=2) + "\n")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror})") from error
    print(f"  written  {path}")


def describe_audit(results: dict[str, Any], images: int) -> str:
    """All tests of a run as tables; ``differs`` compares a figure with its yardstick."""
    lines = [
        f"  audit on {images} abnormal images, 95 % intervals (docs/audit.md); differs: whether",
        "  the interval of the paired difference from the yardstick excludes 0; -: undefined",
        *_cascade(results["cascade"]),
    ]
    if "perturbation" in results:
        lines += _perturbation(results["perturbation"])
    if "repeatability" in results:
        lines += _repeatability(results["repeatability"])
    if "leak" in results:
        leak = results["leak"]
        figures = [show(leak[k], between=", ") for k in ("masked_accuracy", "swapped_accuracy")]
        heads = ["masked accuracy", "other class's map", f"always {leak['answer']}", "differs"]
        one_answer = show(leak["one_answer"], between=", ")
        lines += ["  accuracy of the masked pass: does it read the image or the mask?"]
        lines += table([heads, [*figures, one_answer, differs(leak["excess"])]])
    return "\n".join(lines)


def differs(value: Difference) -> str:
    """Higher or lower than the yardstick, no, or ``-`` where that is undefined.

    Example:
        >>> [differs(Difference(0.2, low, 0.3, 0.0, 0.1)) for low in (0.1, -0.1, float("nan"))]
        ['higher', 'no', '-']
    """
    if value.low != value.low:
        return "-"
    return "higher" if value.low > 0 else "lower" if value.high < 0 else "no"


def above_until(result: dict[str, Any]) -> str:
    """The last step of the cascade at which a map is more similar than another image's map.

    In rank correlation or SSIM; ``-`` where that is undefined. A step that does not concern a map,
    as the decoder does not concern CAM, changes nothing and is not named.
    """
    excess = result["excess"]
    if result["unchanged"]:
        return "does not read the network"
    if all(differs(step["rank"]) == "-" for step in excess.values()):
        return "-"
    steps = [
        name
        for before, name in itertools.pairwise([None, *excess])
        if before is None or excess[name] != excess[before]
    ]
    above = [
        name for name in steps if "higher" in {differs(excess[name][m]) for m in ("rank", "ssim")}
    ]
    if not above:
        return "nothing"
    return "all layers" if above[-1] == steps[-1] else above[-1]


def _cascade(results: dict[str, Any]) -> list[str]:
    lines = []
    for measure, title in (("rank", "rank correlation"), ("ssim", "SSIM")):
        rows = [["map", "another image's map", *PRINTED.values()]]
        for name, result in results.items():
            values = [result["floor"], *(result["steps"][step] for step in PRINTED)]
            cells = [show(value[measure], between=", ") for value in values]
            rows.append([name, *cells])
        lines.append(f"  {title} with the trained network's map, weights random from the top:")
        lines += table(rows)
    until = ", ".join(f"{name}: {above_until(result)}" for name, result in results.items())
    until = f"  more similar than another image's map until what is random: {until}"
    return [*lines, *textwrap.wrap(until, 100, subsequent_indent="    ")]


def _perturbation(results: dict[str, Any]) -> list[str]:
    rows = [
        ["map", "deletion", "from random", "from edges", "insertion", "from random", "from edges"]
    ]
    for name, result in results.items():
        row = [name]
        for way in ("deletion", "insertion"):
            less = result["less"][way]
            row.append(show(result[way], between=", "))
            row += [differs(less[rival]) if rival in less else "" for rival in (RANDOM, EDGES)]
        rows.append(row)
    head = (
        "  mean score while the first 10 % of the pixels go (low is good) or come (high is good):"
    )
    return [head, *table(rows)]


def _repeatability(results: dict[str, Any]) -> list[str]:
    heads = ["rank correlation", "another image's", "differs"]
    rows = [["map", *heads, "IoU, top 5 %", *heads[1:]]]
    for name, result in results["methods"].items():
        row = [name]
        for measure in ("rank", "iou"):
            row += [show(result[kind][measure], between=", ") for kind in ("alike", "floor")]
            row.append(differs(result["excess"][measure]))
        rows.append(row)
    return [f"  maps of runs that differ in the seed: {', '.join(results['runs'])}", *table(rows)]
