"""An audit as a person reads it: a table and a sentence for each map method."""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

from experiments.audit.audit import EDGES, RANDOM
from experiments.evaluation import describe
from experiments.evaluation.statistics import Difference, Estimate

# What is printed of the cascade: audit.json holds every step.
SHOWN = ("fc", "stages.2.0", "stem")
HEADINGS = {"fc": "FC layer random", "stages.2.0": "last stage, too", "stem": "all layers"}
WAYS = ("deletion", "insertion")
NO_INTERVAL = "no interval, as of one patient: nothing can be said"


def describe_audit(found: dict[str, Any], images: int) -> str:
    """All tests of a run, a block of lines.

    Args:
        found: Of :func:`audit.audit_run`, perhaps with ``repeatability``.
        images: On how many images.
    """
    lines = [f"  audit on {images} abnormal images; 95 % intervals (docs/audit.md)"]
    lines += _cascade(found["cascade"])
    if "perturbation" in found:
        lines += _perturbation(found["perturbation"])
    if "repeatability" in found:
        lines += _repeatability(found["repeatability"])
    if "leak" in found:
        lines += _leak(found["leak"])
    return "\n".join(lines)


def show(result: Estimate | Difference) -> str:
    """A figure with its interval, whose ends may be negative."""
    return describe.show(result, between=", ")


def cascade_says(result: dict[str, Any]) -> str:
    """What the cascade found of one method, from its results in :func:`audit.audit_cascade`.

    "Like": the excess over another image's map, in rank correlation or SSIM, has an interval above
    0.
    """
    if result["unchanged"]:
        return "the same whatever the weights: does not read the network"
    excess = result["excess"]
    if all(_undefined(step["rank"]) for step in excess.values()):
        return "dark, or no other image to compare with: nothing can be said"
    like = [name for name, step in excess.items() if _above(step["rank"]) or _above(step["ssim"])]
    # A step that is none of a map's business (the decoder is none of CAM's) is not told of it.
    names = [
        name
        for before, name in itertools.pairwise([None, *excess])
        if before is None or excess[name] != excess[before]
    ]
    like = [name for name in like if name in names]
    if not like:
        return f"no more like it than another image's map once {names[0]} is random"
    if like[-1] == names[-1]:
        return "still like it with all weights random: in part it shows the image, not the learned"
    following = names[names.index(like[-1]) + 1]
    return f"like it until {like[-1]}, no more than another image's map from {following} on"


def perturbation_says(result: dict[str, Any]) -> str:
    """What deletion and insertion found of one method."""
    rivals = {RANDOM: "the random order", EDGES: "the edges"}
    if all(_undefined(value) for way in WAYS for value in result["less"][way].values()):
        return NO_INTERVAL
    parts = []
    for way in WAYS:
        less = result["less"][way]
        better, worse = (_below, _above) if way == "deletion" else (_above, _below)
        words = dict.fromkeys(less, "as")
        words |= {rival: "not comparable with" for rival in less if _undefined(less[rival])}
        words |= {rival: "better than" for rival in less if better(less[rival])}
        words |= {rival: "worse than" for rival in less if worse(less[rival])}
        said = " and ".join(
            f"{word} {' and '.join(rivals[rival] for rival in words if words[rival] == word)}"
            for word in dict.fromkeys(words.values())
        )
        parts.append(f"{way} {said}")
    return "; ".join(parts)


def repeatability_says(result: dict[str, Any]) -> str:
    """What another seed's run says of one method."""
    excess = result["excess"]
    if all(_undefined(excess[measure]) for measure in ("rank", "iou")):
        return "dark, or no other image to compare with: nothing can be said"
    words = {"rank": "whole map", "iou": "strongest 5 %"}
    like = [words[name] for name in words if _above(excess[name])]
    if not like:
        return "another seed's map is no more like it than that of another image"
    return f"comes again, more than another image's map, in its {' and '.join(like)}"


def leak_says(found: dict[str, Any]) -> str:
    """What the masked passes say of a leak."""
    if _undefined(found["excess"]):
        return NO_INTERVAL
    answer = f"answering {found['answer']} always"
    if _above(found["excess"]):
        return f"under the other class's map still better than {answer}: no leak seen"
    if _below(found["excess"]):
        return f"under the other class's map worse than {answer}: the answer follows the mask"
    return f"under the other class's map as {answer}: a leak, or a mask that hides the lesion"


def _cascade(found: dict[str, Any]) -> list[str]:
    lines = []
    for measure, title in (("rank", "rank correlation"), ("ssim", "SSIM")):
        rows = [["map", "another image's map", *(HEADINGS[step] for step in SHOWN)]]
        for name, result in found.items():
            values = [result["floor"], *(result["steps"][step] for step in SHOWN)]
            rows.append([name, *(show(value[measure]) for value in values)])
        lines.append(f"  {title} with the trained network's map, weights random from the top:")
        lines += describe.table(rows)
    return [*lines, *(_say(name, cascade_says(result)) for name, result in found.items())]


def _perturbation(found: dict[str, Any]) -> list[str]:
    head = (
        "  mean score while the first 10 % of the pixels go (low is good) or come (high is good):"
    )
    rows = [["map", "deletion", "less random order", "insertion", "less random order"]]
    for name, result in found.items():
        cells = []
        for way in WAYS:
            less = result["less"][way]
            cells += [show(result[way]), show(less[RANDOM]) if less else ""]
        rows.append([name, *cells])
    said = {name: perturbation_says(found[name]) for name in found if name != RANDOM}
    return [head, *describe.table(rows), *(_say(name, words) for name, words in said.items())]


def _repeatability(found: dict[str, Any]) -> list[str]:
    head = f"  maps of runs that differ in the seed: {', '.join(found['runs'])}"
    heads = ["map", "rank correlation", "another image's", "IoU, strongest 5 %", "another image's"]
    rows = [heads]
    for name, result in found["methods"].items():
        cells = [show(result[kind][m]) for m in ("rank", "iou") for kind in ("alike", "floor")]
        rows.append([name, *cells])
    said = {name: repeatability_says(result) for name, result in found["methods"].items()}
    return [head, *describe.table(rows), *(_say(name, words) for name, words in said.items())]


def _leak(found: dict[str, Any]) -> list[str]:
    return [
        f"  masked accuracy {show(found['masked_accuracy'])}, under the other class's map "
        f"{show(found['swapped_accuracy'])};",
        f"  with one answer for all {show(found['one_answer'])}",
        _say("leak", leak_says(found)),
    ]


def _above(value: Estimate | Difference) -> bool:
    return bool(value.low > 0)


def _below(value: Estimate | Difference) -> bool:
    return bool(value.high < 0)


def _undefined(value: Estimate | Difference) -> bool:
    return value.low != value.low


def _say(name: str, words: str) -> str:
    return textwrap.fill(f"    {name}: {words}", 100, subsequent_indent=" " * 6)
