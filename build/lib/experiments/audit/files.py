"""``evaluate --audit``: audits of runs that have just been judged, into ``audit.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from experiments.audit.audit import DRAWS, GRID, audit_repeatability, audit_run
from experiments.audit.perturbation import EARLY, SHARES
from experiments.audit.sample import IMAGES, Maps, Sample, draw_sample
from experiments.audit.similarity import TOP
from experiments.audit.words import describe_audit
from experiments.build import open_run
from experiments.evaluation.baselines import Edges
from experiments.evaluation.comparison import group
from experiments.evaluation.judge import classifies
from experiments.evaluation.methods import MapMethod
from experiments.evaluation.run import Evaluation
from experiments.evaluation.store import plain
from experiments.runs import RunError

SEED = 0  # draws the images


def audit_all(
    judged: Sequence[Evaluation], peers: Sequence[MapMethod], images: int | None = None
) -> None:
    """Audit runs on the same images; print each audit and write it beside the run's summary.

    Runs that differ in the seed alone are also compared with one another.

    Args:
        judged: The runs, as judged.
        peers: Map methods beside the networks' own; a network that does not classify has none.
        images: How many abnormal images at most; None: :data:`audit.IMAGES`.

    Raises:
        RunError: The split has too few abnormal images, or a folder cannot be written.
    """
    for seeds in group(judged):
        audits: list[tuple[Evaluation, Sample, dict[str, Any], Maps]] = []
        for run in seeds.runs:
            audits.append((run, *_audit(run, peers, images or IMAGES)))
        if len(audits) > 1:
            sample = audits[0][1]
            repeated = {
                "runs": [run.folder.name for run, *_ in audits],
                "methods": audit_repeatability([maps for *_, maps in audits], sample),
            }
            for *_, found, _ in audits:
                found["repeatability"] = repeated
        for run, sample, found, _ in audits:
            count = len(sample.patient)
            print(f"{run.folder}:\n{describe_audit(found, count)}", flush=True)
            _write(run, sample, found)


def _audit(
    run: Evaluation, peers: Sequence[MapMethod], images: int
) -> tuple[Sample, dict[str, Any], Maps]:
    opened = open_run(run.folder / "checkpoints" / str(run.about["checkpoint"]))
    opened.config = run.config  # with today's paths
    data, module = opened.data, opened.module
    # Edges know nothing of the network: what a test says of them, it says of any picture.
    methods = [*(peers if classifies(module) else ()), Edges()]
    try:
        sample = draw_sample(data, str(run.about["split"]), images, SEED)
        module = module.to(sample.batch["image"].device)
        return sample, *audit_run(module, methods, sample, run.table)
    except ValueError as error:
        raise RunError(f"{run.folder}: {error}") from error


def _write(run: Evaluation, sample: Sample, found: dict[str, Any]) -> None:
    path = run.target / "audit.json"
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
    try:
        path.write_text(json.dumps(plain({**about, **found}), indent=2) + "\n")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror})") from error
    print(f"  written  {path}")
