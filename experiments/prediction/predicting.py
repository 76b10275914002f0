"""Predict on a person's images: find them, look at what is new, print what came of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.decode import DICOM, DICOM_AT, IMAGE_SUFFIXES, JPEG, PNG, is_dicom
from experiments.prediction.folder import ROWS, PredictionFolder, Row
from experiments.prediction.network import Trained, load_trained
from experiments.prediction.stream import Predictor
from experiments.runs import RunError

LISTED = 5
SUFFIXES = (*IMAGE_SUFFIXES, ".dcm", ".dicom")


def predict(run: Path, places: Sequence[Path], out: Path, methods: str | None, dicom: bool) -> int:
    """Predict on all images in files and folders; return the exit status.

    ``methods``: the maps to write, with commas, or all; ``dicom``: Secondary Captures of DICOM.
    """
    inputs, left_out = find_inputs(places)
    if dicom and find_spec("highdicom") is None:
        raise RunError("--dicom needs highdicom. Fix: pip install 'decision-basis[dicom]'")
    trained = load_trained(run)
    names = list(dict.fromkeys((methods or ",".join(trained.map_thresholds)).split(",")))
    if unknown := [name for name in names if name not in trained.map_thresholds]:
        there = ", ".join(trained.map_thresholds)
        raise RunError(f"--methods {methods}: expected maps of {there}, got {', '.join(unknown)}")
    request = {"inputs": [str(place) for place in places], "methods": names, "dicom": dicom}
    with contextlib.closing(PredictionFolder(out, _about(trained, request))) as folder:
        changed, gone = folder.settle(inputs)
        waiting = [item for item in inputs if item.path not in folder.rows]
        _describe(trained, len(inputs), len(inputs) - len(waiting), left_out)
        if changed:
            print(f"changed    {changed:,} of these images since: predicted again", flush=True)
        Predictor(trained, folder, names, dicom).run(waiting)
        folder.finish(trained.fitted.study_threshold if trained.fitted else None)
        now = f"{len(waiting):,} of them now" if waiting else "all done before: nothing to do"
        _report(trained, folder, now, gone)
        return int(any(row.failed for row in folder.rows.values()))


def find_inputs(places: Sequence[Path]) -> tuple[list[Row], Counter[str]]:
    """Find the images in files and folders; count what was left out of folders, by kind.

    An input is called by its POSIX path below the folder; with several, after the folder's name.
    """
    inputs: dict[str, Row] = {}
    left_out: Counter[str] = Counter()
    for place in places:
        if not place.exists():
            raise RunError(f"{place}: there is no such file or folder")
        top = place if place.is_dir() else place.parent
        files = list(_walk(place, left_out)) if place.is_dir() else [place]
        if not files:
            raise RunError(f"{place}: no PNG, JPEG or DICOM file in this folder")
        label = top.resolve().name if len(places) > 1 else ""
        for file in files:
            path = PurePosixPath(label, file.relative_to(top))
            name, number = str(path), 1
            while name in inputs:  # folders of equal names
                number += 1
                name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
            inputs[name] = Row(name, file=str(file.absolute()))
    return list(inputs.values()), left_out


def _walk(top: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Images below a folder; links are followed, each folder is visited once."""

    def refuse(error: OSError) -> None:
        raise error  # a folder that cannot be read is no folder without images

    visited: set[Path] = set()
    for folder, folders, files in os.walk(top, onerror=refuse, followlinks=True):
        here = Path(folder).resolve()
        if here in visited or ROWS in files:
            left_out.update(["earlier predictions"] if ROWS in files else [])
            folders.clear()
            continue
        visited.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(folder, name) for name in sorted(files)):
            hidden = file.name.startswith(".")
            if not hidden and _is_image(file):
                yield file
            else:
                left_out["hidden" if hidden else file.suffix.lower() or "no suffix"] += 1


def _is_image(file: Path) -> bool:
    """By suffix or content; not the table of contents of a DICOM medium."""
    if file.suffix.lower() in SUFFIXES:
        return True  # also a link to nowhere: its row says so
    if not file.is_file() or file.name.upper() == "DICOMDIR":
        return False
    with file.open("rb") as handle:
        start = handle.read(DICOM_AT + len(DICOM))
    return start.startswith((PNG, JPEG)) or is_dicom(start)


def _about(trained: Trained, request: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": str(trained.run.folder),
        **trained.run.identity,
        **request,
        "best_map": trained.run.module.best_map,
        **(trained.fitted._asdict() if trained.fitted else {"threshold": None}),
        "map_thresholds": trained.map_thresholds,
        "undecided_maps": trained.undecided_maps,
        "decided_by": trained.decided_by,
        "notes": [*trained.notes, "for research only, not for diagnosis"],
    }


def _describe(trained: Trained, images: int, done: int, left_out: Counter[str]) -> None:
    decision = "none: this network was taught lesion masks alone"
    if fitted := trained.fitted:
        decision = f"abnormal above {fitted.threshold:.3f}, a study above "
        decision += f"{fitted.study_threshold:.3f} ({trained.decided_by})"
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in left_out.most_common(LISTED))
    lines = [
        f"network    {trained.title}, {trained.recipe.image_size} px, {trained.run.checkpoint}",
        f"decision   {decision}",
        f"images     {images:,}" + (f", {done:,} of them done before" if done else ""),
        *([f"left out   {left_out.total():,}: {kinds}"] if kinds else []),
    ]
    print("\n".join([*lines, *trained.notes]), flush=True)


def _report(trained: Trained, folder: PredictionFolder, now: str, gone: int) -> None:
    rows = list(folder.rows.values())
    failed = [f"{row.path}: {row.error}" for row in rows if row.failed]
    parts = [f"{len(rows):,} images"]
    if trained.fitted is not None:
        calls = Counter(row.predicted_abnormal for row in rows)
        parts.append(f"{calls[1]:,} called abnormal, {calls[0]:,} normal")
    print(f"done       {'; '.join([*parts, f'{len(failed):,} failed', now])}")
    if gone:
        print(f"gone       {gone:,} of these images are no longer there; their rows are kept")
    print(f"written    {folder.folder}: predictions.csv, maps/, overlays/ and more")
    print("For research only, not for diagnosis: read the overlays beside the limits of the run.")
    if failed:
        more = [f"and {len(failed) - LISTED:,} more, see the table"] if failed[LISTED:] else []
        lines = "\n  ".join([*failed[:LISTED], *more])
        print(f"failed     {len(failed):,} of {len(rows):,}:\n  {lines}", file=sys.stderr)
