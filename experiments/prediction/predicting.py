"""Predict on a person's images: find them, look at what is new, print what came of it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.prediction.folder import NOTE, PredictionFolder, readable
from experiments.prediction.inputs import find_inputs
from experiments.prediction.network import Trained, load_trained
from experiments.prediction.stream import Predictor
from experiments.runs import RunError, find_checkpoint

LISTED = 5


def predict(run: Path, places: Sequence[Path], out: Path, methods: str | None, dicom: bool) -> int:
    """Predict on all images in files and folders; return the exit status.

    ``methods`` are the maps that are written, with commas, or None for all; with ``dicom``, DICOM
    inputs also get Secondary Captures.
    """
    find_checkpoint(run)  # raises now, not after a walk through many folders
    inputs, left_out = find_inputs(places, out)
    if all(item.error for item in inputs):
        listed = "".join(f"\n  {item.file}: {item.error}" for item in inputs[:LISTED])
        raise RunError(f"nothing to look at:{listed}")
    if dicom and find_spec("highdicom") is None:
        raise RunError("--dicom needs highdicom. Fix: pip install 'decision-basis[dicom]'")
    trained = load_trained(run)
    names = list(dict.fromkeys((methods or ",".join(trained.map_thresholds)).split(",")))
    if unknown := [name for name in names if name not in trained.map_thresholds]:
        there = ", ".join(trained.map_thresholds)
        raise RunError(f"--methods {methods}: expected maps of {there}, got {', '.join(unknown)}")
    request = {"inputs": [readable(place) for place in places], "methods": names, "dicom": dicom}
    with contextlib.closing(PredictionFolder(out, _about(trained, request))) as folder:
        changed, gone = folder.settle(inputs)
        waiting = [item for item in inputs if item.path not in folder.rows]
        _describe(trained, len(inputs), len(inputs) - len(waiting), left_out)
        if changed:
            print(f"changed    {changed:,} of these images since: predicted again", flush=True)
        start = time.monotonic()
        Predictor(trained, folder, names, dicom).run(waiting)
        folder.finish(trained.fitted.study_threshold if trained.fitted else None)
        speed = len(waiting) / max(time.monotonic() - start, 1e-3)
        now = f"{len(waiting):,} of them now, {speed:.1f} a second"
        nothing = "all done before: nothing to do (what failed is tried again once changed)"
        _report(trained, folder, now if waiting else nothing, gone)
        return int(any(row.failed for row in folder.rows.values()))


def _about(trained: Trained, request: dict[str, Any]) -> dict[str, Any]:
    """What ``about.json`` keeps: whose predictions these are, and by which thresholds."""
    run = trained.run
    return {
        "run": readable(run.folder),
        "checkpoint": run.checkpoint.name,
        "checkpoint_hash": run.identity["checkpoint_hash"],
        "stage": run.config.stage,
        "data": run.config.data.name,
        **request,
        "best_map": run.module.best_map,
        **(trained.fitted._asdict() if trained.fitted else {"threshold": None}),
        "map_thresholds": trained.map_thresholds,
        "undecided_maps": trained.undecided_maps,
        "decided_by": trained.decided_by,
        "notes": [*trained.notes, "for research only, not for diagnosis"],
    }


def _describe(trained: Trained, images: int, done: int, left_out: Counter[str]) -> None:
    """Print what a person wants to know before waiting."""
    fitted, decision = trained.fitted, "none: this network was taught lesion masks alone"
    if fitted is not None:
        decision = f"abnormal above {fitted.threshold:.3f}, a study above "
        decision += f"{fitted.study_threshold:.3f} ({trained.decided_by})"
    lines = [
        f"network    {trained.title}, {trained.recipe.image_size} px, {trained.run.checkpoint}",
        f"decision   {decision}",
        f"images     {images:,}" + (f", {done:,} of them done before" if done else ""),
    ]
    if left_out:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in left_out.most_common(LISTED))
        lines.append(f"left out   {left_out.total():,}: {kinds}")
    print(readable("\n".join([*lines, *trained.notes])), flush=True)


def _report(trained: Trained, folder: PredictionFolder, now: str, gone: int) -> None:
    """Print what the whole table holds; failures go to stderr."""
    rows = list(folder.rows.values())
    failed = [row for row in rows if row.failed]
    answered = sum(row.answered for row in failed)
    counts = {
        "unreadable": len(failed) - answered,
        "without a Secondary Capture or overlay": answered,
    }
    parts = [f"{len(rows):,} images"]
    if trained.fitted is not None:
        calls = Counter(row.predicted_abnormal for row in rows)
        parts.append(f"{calls[1]:,} called abnormal, {calls[0]:,} normal")
    parts.append(", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n) or "0 failed")
    if noted := sum(NOTE in row.error for row in rows):
        parts.append(f"{noted:,} with a note in the column error")
    print(f"done       {'; '.join([*parts, now])}")
    if gone:
        print(f"gone       {gone:,} of these images are no longer there; their rows are kept")
    outputs = ("predictions.csv", "studies.csv", "maps/", "overlays/", "dicom/")
    written = [name for name in outputs if (folder.folder / name).exists()]
    print(f"written    {readable(folder.folder)}: {', '.join(written)}")
    print("For research only, not for diagnosis: read the overlays beside the limits of the run.")
    if failed:
        listed = [f"{row.path}: {row.error}" for row in failed[:LISTED]]
        if len(failed) > LISTED:
            listed.append(f"and {len(failed) - LISTED:,} more, see the table")
        lines = "\n  ".join(listed)
        print(f"failed     {len(failed):,} of {len(rows):,}:\n  {lines}", file=sys.stderr)
