"""Predict on a person's images: find them, look at what is new, print what came of it."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

from callbacks.panels import encode
from datamodules.decode import JPEG, PNG, decode_noted, is_dicom, read_content
from datamodules.dicom import read_dicom
from datamodules.files import usable_cores
from datamodules.geometry import Geometry
from datamodules.index import DataError, digest
from experiments.evaluation.judge import one_thread
from experiments.prediction.folder import NOTE, ROWS, PredictionFolder, Row
from experiments.prediction.network import CLASSES, Trained, load_trained
from experiments.prediction.pictures import draw, secondary_capture
from experiments.runs import RunError
from lightning_modules.attention import has_peak, peak

LISTED = 5
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
# Largest longer side of the image in an overlay and in a Secondary Capture, pixels.
OVERLAY, CAPTURE = 1024, 2048


def predict(run: Path, places: Sequence[Path], out: Path, methods: str | None, dicom: bool) -> int:
    """Predict on all images in files and folders; return the exit status.

    ``methods``: the maps to write, with commas; None: all; ``dicom``: Secondary Captures of DICOM.
    """
    inputs, left_out = find_inputs(places)
    if dicom and find_spec("highdicom") is None:
        raise RunError("--dicom needs highdicom. Fix: pip install 'decision-basis[dicom]'")
    trained = load_trained(run)
    names = list(dict.fromkeys((methods or ",".join(trained.map_thresholds)).split(",")))
    if unknown := [name for name in names if name not in trained.map_thresholds]:
        there = ", ".join(trained.map_thresholds)
        raise RunError(f"--methods {methods}: expected maps of {there}, got {', '.join(unknown)}")
    about = {
        "run": str(trained.run.folder),
        **trained.run.identity,
        "inputs": [str(place.absolute()) for place in places],
        "methods": names,
        "dicom": dicom,
        "best_map": trained.run.module.best_map,
        **(trained.fitted._asdict() if trained.fitted else {"threshold": None}),
        "map_thresholds": trained.map_thresholds,
        "undecided_maps": trained.undecided_maps,
        "decided_by": trained.decided_by,
        "notes": [*trained.notes, "for research only, not for diagnosis"],
    }
    with contextlib.closing(PredictionFolder(out, about)) as folder:
        folder.settle(inputs)
        waiting = [item for item in inputs if item.path not in folder.rows]
        _describe(trained, len(inputs), len(inputs) - len(waiting), left_out)
        _look(trained, folder, waiting)
        folder.finish(trained.fitted.study_threshold if trained.fitted else None)
        _report(trained, folder, len(waiting))
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
            name = str(PurePosixPath(label, file.relative_to(top)))
            if name in inputs:
                raise RunError(f"two inputs are called {name}. Fix: an --out of its own for each")
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
        start = handle.read(132)  # all that is_dicom needs
    return start.startswith((PNG, JPEG)) or is_dicom(start)


class Seen(NamedTuple):
    """A decoded image ``(H, W)``, and how it came into the network's square ``(S, S)``; uint8."""

    row: Row
    image: np.ndarray
    square: np.ndarray
    geometry: Geometry


def _look(trained: Trained, folder: PredictionFolder, inputs: Sequence[Row]) -> None:
    """Predict on images, a batch at a time: memory does not grow with their number."""
    size = trained.run.config.data.batch_size
    decode, finish = partial(_decode, trained), partial(_finish, trained, folder)
    cv2.setNumThreads(0)  # the threads here are enough; OpenCV's own would only compete
    bar = tqdm(total=len(inputs), desc="images", unit=" images", leave=False, disable=None)
    with bar, ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(inputs), size):
            batch = list(pool.map(decode, inputs[start : start + size]))
            if seen := [each for each in batch if isinstance(each, Seen)]:
                squares = np.stack([each.square for each in seen])
                with one_thread():
                    probability, maps = trained.explain(squares)
                of_each = [{name: maps[name][i] for name in maps} for i in range(len(seen))]
                done = pool.map(finish, seen, probability.tolist(), of_each)
            folder.add([each if isinstance(each, Row) else next(done) for each in batch])
            bar.update(len(batch))


def _decode(trained: Trained, row: Row) -> Seen | Row:
    try:
        data = read_content(Path(row.file))
        row = row._replace(content_hash=digest(data))
        image, note = decode_noted(data, Path(row.file))
        square, geometry = trained.fit(image)
    except DataError as error:
        return row._replace(error=_reason(error, row))
    row = row._replace(error=f"{NOTE}{note}" if note else "")
    return Seen(row, image, square, geometry)


def _finish(
    trained: Trained,
    folder: PredictionFolder,
    seen: Seen,
    probability: float,
    maps: dict[str, np.ndarray],
) -> Row:
    """The row of an image; its maps and the pictures of the best one are written.

    No name of a file or a patient is drawn. A map that nowhere reaches its threshold gets no cross:
    its peak is no evidence.
    """
    row, run, fitted, words = seen.row, trained.run, trained.fitted, list[str]()
    best, methods = run.module.best_map, folder.about["methods"]
    wanted = {name: maps[name] for name in {*methods, best}}
    prediction = trained.answer(probability, wanted, seen.geometry)
    heat = prediction.maps[best]
    for method in methods:
        grey = cv2.convertScaleAbs(prediction.maps[method], alpha=255)  # rounds
        folder.write("maps", f"{row.path}.{method}.png", encode(grey))
    if fitted is not None:
        called = CLASSES.index(str(prediction.decision))
        row = row._replace(probability_abnormal=probability, predicted_abnormal=called)
        decided = f"called {prediction.decision} (threshold {fitted.threshold:.2f})"
        words.append(f"abnormal {probability:.2f}: {decided}")
    threshold, cross, pointing = trained.map_thresholds[best], None, torch.from_numpy(heat)
    shows = f"nothing reaches {threshold:.2f}"
    if bool(has_peak(pointing[None, None])):
        x, y = (int(value) for value in peak(pointing[None, None])[0].tolist())
        row = row._replace(map_peak_x=x, map_peak_y=y)
        if heat.max() >= threshold:
            cross, shows = (x, y), f"outlined from {threshold:.2f}, cross at the peak"
    words.append(f"{best.upper()} map, {run.config.stage.replace('stage', 'stage ')}: {shows}")
    picture = partial(draw, seen.image, heat, threshold, cross, words)
    folder.write("overlays", f"{row.path}.{best}.png", encode(picture(OVERLAY, True)))
    data = Path(row.file).read_bytes() if folder.about["dicom"] else b""
    if is_dicom(data):
        series = str(run.identity["checkpoint_hash"])
        how = f"{best.upper()} map of a neural network ({trained.title}) over the source image; "
        how += "research use only, not for diagnosis"
        try:
            source, rgb = read_dicom(data, Path(row.file)), picture(CAPTURE, False)[..., ::-1]
            capture = secondary_capture(source, rgb, series, how)
            folder.write("dicom", f"{row.path}.{best}.dcm", capture)
        except DataError as error:  # the prediction stands
            return row._replace(error=f"{_reason(error, row)} {row.error}".rstrip())
    return row


def _reason(error: DataError, row: Row) -> str:
    """One line without the file's name, which the row has already."""
    return " ".join(str(error).removeprefix(f"{row.file}: ").split())


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
    print(*lines, *trained.notes, sep="\n", flush=True)


def _report(trained: Trained, folder: PredictionFolder, new: int) -> None:
    rows = folder.rows.values()
    failed = [f"{row.path}: {row.error}" for row in rows if row.failed]
    calls = Counter(row.predicted_abnormal for row in rows)
    called = f"; {calls[1]:,} called abnormal, {calls[0]:,} normal" if trained.fitted else ""
    now = f"{new:,} of them now" if new else "all done before: nothing to do"
    print(f"done       {len(rows):,} images{called}; {len(failed):,} failed; {now}")
    print(f"written    {folder.folder}: predictions.csv, maps/, overlays/ and more")
    print("For research only, not for diagnosis: read the overlays beside the limits of the run.")
    if failed:
        lines = "\n  ".join(failed[:LISTED])
        print(f"failed     {len(failed):,} of {len(rows):,}:\n  {lines}", file=sys.stderr)
