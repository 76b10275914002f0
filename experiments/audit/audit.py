"""The saliency audit: do maps depend on what was learned, agree across seeds, matter to the score?

Nothing passes or fails by a threshold. Each figure has a yardstick from the same images, and
differs from it where the 95 % interval of the paired difference (bootstrap over patients) excludes
0. The tables are printed, all results are written as ``audit.json``.
"""

import functools
import itertools
import json
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from datamodules.files import write_text
from experiments.audit import interventions
from experiments.audit import maps as audit_maps
from experiments.audit.maps import Maps, Sample, alike, beside_floor, draw_sample, make_maps, paired
from experiments.build import open_run
from experiments.evaluation.compare import group
from experiments.evaluation.describe import show, table
from experiments.evaluation.methods import EDGE_MAP, MapMethod
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Difference, estimate, mean, patient_weights
from experiments.evaluation.store import plain
from lightning_modules.stage1 import ABNORMAL

Results = dict[str, Any]
# What is printed of the cascade, its first, middle and last step: audit.json holds every one.
PRINTED = ("FC layer random", "upper half random", "all random")


def audit_all(judged: Sequence[Evaluation], peers: Sequence[MapMethod], images: int | None) -> None:
    """Audit runs on the same images, and runs that differ in the seed alone with one another.

    ``peers`` are map methods beside those of networks that classify; at most ``images`` abnormal
    ones are looked at.
    """
    for seeds in group(judged):
        audits = [_audit(run, peers, images or audit_maps.IMAGES) for run in seeds.runs]
        if len(audits) > 1:
            methods = audit_repeatability([maps for *_, maps in audits], audits[0][0])
            shared = {"runs": [run.folder.name for run in seeds.runs], "methods": methods}
            for _, results, _ in audits:
                results["repeatability"] = shared
        for run, (sample, results, _) in zip(seeds.runs, audits, strict=True):
            print(f"{run.folder}:\n{describe_audit(results, len(sample.patient))}", flush=True)
            about = {
                "images": len(sample.patient),
                "patients": len(set(sample.patient)),
                "draws": interventions.DRAWS,
                "compared_every": audit_maps.GRID,
                "top": audit_maps.TOP,
                "shares": interventions.SHARES,
                "early": interventions.EARLY,
            }
            path, content = run.target / "audit.json", plain({**run.about, **about, **results})
            write_text(path, json.dumps(content, indent=2) + "\n")
            print(f"  written  {path}")


def _audit(
    run: Evaluation, peers: Sequence[MapMethod], images: int
) -> tuple[Sample, Results, Maps]:
    """All tests of one run alone, and its maps."""
    opened = open_run(run.folder / "checkpoints" / str(run.about["checkpoint"]))
    opened.config = run.config  # with today's paths
    module, sample = opened.module, draw_sample(opened.data, str(run.about["split"]), images)
    # Edges know nothing of the network: what a test says of them, it says of any picture.
    methods = [*(peers if module.classifies else ()), EDGE_MAP]
    print(f"audit of {run.folder}: {len(sample.patient)} images", flush=True)  # takes minutes
    maps = make_maps(module, methods, sample.batch)
    results: Results = {"cascade": interventions.audit_cascade(module, methods, sample, maps)}
    if module.classifies:
        results["perturbation"] = interventions.audit_perturbation(module, sample, maps)
        if "swapped_masked_probability" in run.table:
            results["leak"] = audit_leak(run.table)
    return sample, results, maps


def audit_repeatability(runs: Sequence[Maps], sample: Sample) -> dict[str, Results]:
    """How similar the maps of two or more runs are that differ in the seed alone.

    Of each method, by measure: ``alike``, the mean over pairs of runs; ``floor``, the other run's
    map of another image; ``excess`` (paired); and ``pairs``, the mean of each pair.
    """
    results = {}
    for name in runs[0]:
        pairs = list(itertools.combinations([run[name] for run in runs], 2))
        floors = [alike(*pair, sample.other) for pair in pairs]
        beside = beside_floor({"": [alike(*pair) for pair in pairs]}, floors, sample)
        results[name] = {
            "alike": beside["steps"][""],
            "floor": beside["floor"],
            "excess": beside["excess"][""],
            "pairs": beside["draws"][""],
        }
    return results


def audit_leak(rows: pd.DataFrame) -> Results:
    """Whether the masked pass reads the class off the mask (stages 2 and 3).

    ``swapped``: under the other class's map. ``excess`` is its accuracy less that of ``answer``,
    the commoner class, for all images (paired).
    """
    weights = patient_weights(rows["patient"].to_numpy())
    label = (rows["label"] == ABNORMAL).to_numpy()
    masked = (rows["masked_probability"] > 0.5).to_numpy()
    swapped = (rows["swapped_masked_probability"] > 0.5).to_numpy()
    answer = label.mean() > 0.5
    right, constant = swapped == label, label == answer
    return {
        "images": len(rows),
        "masked_accuracy": estimate(mean(masked == label), weights),
        "swapped_accuracy": estimate(mean(right), weights),
        "one_answer": estimate(mean(constant), weights),
        "answer": "abnormal" if answer else "normal",
        "excess": paired(right.astype(float), constant.astype(float), weights),
        "swapped_abnormal": {
            "abnormal": float(pd.Series(swapped[label]).mean()),
            "normal": float(pd.Series(swapped[~label]).mean()),
        },
    }


def describe_audit(results: Results, images: int) -> str:
    """All tests of a run as tables; ``differs`` compares a figure with its yardstick."""
    cell = functools.partial(show, between=", ")
    lines = [
        f"  audit on {images} abnormal images, 95 % intervals (docs/audit.md); differs: whether",
        "  the interval of the paired difference from the yardstick excludes 0; -: undefined",
    ]
    for measure, title in (("rank", "rank correlation"), ("ssim", "SSIM")):
        rows = [["map", "another image's map", *PRINTED]]
        for name, one in results["cascade"].items():
            steps = list(one["steps"].values())
            values = [one["floor"], steps[0], steps[len(steps) // 2], steps[-1]]
            rows.append([name, *(cell(value[measure]) for value in values)])
        lines.append(f"  {title} with the trained network's map, weights random from the top:")
        lines += table(rows)
    until = ", ".join(f"{name}: {above_until(one)}" for name, one in results["cascade"].items())
    until = f"  more similar than another image's map until what is random: {until}"
    lines += textwrap.wrap(until, 100, subsequent_indent="    ")
    if "perturbation" in results:
        ways = "go (low is good) or come (high is good)"
        lines.append(f"  mean score while the first 10 % of the pixels {ways}:")
        beside = ["from random", "from edges"]
        rows = [["map", "deletion", *beside, "insertion", *beside]]
        for name, one in results["perturbation"].items():
            rows.append([name])
            for way in ("deletion", "insertion"):
                less = {rival: differs(value) for rival, value in one["less"][way].items()}
                rivals = (interventions.RANDOM, interventions.EDGES)
                rows[-1] += [cell(one[way]), *(less.get(rival, "") for rival in rivals)]
        lines += table(rows)
    if "repeatability" in results:
        runs, methods = (results["repeatability"][key] for key in ("runs", "methods"))
        lines.append(f"  maps of runs that differ in the seed: {', '.join(runs)}")
        beside = ["another image's", "differs"]
        rows = [["map", "rank correlation", *beside, "IoU, top 5 %", *beside]]
        for name, one in methods.items():
            rows.append([name])
            for measure in ("rank", "iou"):
                rows[-1] += [cell(one[kind][measure]) for kind in ("alike", "floor")]
                rows[-1].append(differs(one["excess"][measure]))
        lines += table(rows)
    if "leak" in results:
        leak = results["leak"]
        heads = ["masked accuracy", "other class's map", f"always {leak['answer']}", "differs"]
        figures = [cell(leak[k]) for k in ("masked_accuracy", "swapped_accuracy", "one_answer")]
        lines.append("  accuracy of the masked pass: does it read the image or the mask?")
        lines += table([heads, [*figures, differs(leak["excess"])]])
    return "\n".join(lines)


def differs(value: Difference) -> str:
    """Higher or lower than the yardstick, no, or ``-`` where that is undefined."""
    if value.low != value.low:
        return "-"
    return "higher" if value.low > 0 else "lower" if value.high < 0 else "no"


def above_until(result: Results) -> str:
    """The last step of the cascade at which a map is more similar than another image's map.

    In rank correlation or SSIM; ``-`` where that is undefined. A step that does not concern a map,
    as the decoder does not concern CAM, changes nothing and is not named.
    """
    excess = result["excess"]
    if result["unchanged"]:
        return "does not read the network"
    if all(differs(step["rank"]) == "-" for step in excess.values()):
        return "-"
    pairs = itertools.pairwise([None, *excess])
    steps = [name for before, name in pairs if not before or excess[name] != excess[before]]
    signs = {name: {differs(excess[name][m]) for m in ("rank", "ssim")} for name in steps}
    above = [name for name in steps if "higher" in signs[name]]
    if not above:
        return "nothing"
    return "all layers" if above[-1] == steps[-1] else above[-1]
