"""Use a trained network on your own images: ``predict RUN_DIR|CKPT INPUT... --out DIR``.

INPUTs are files and folders: PNG, JPEG (EXIF orientation applied), 8 and 16 bit, DICOM. Writes
``predictions.csv`` (a row an input), ``maps/``, ``overlays/`` and, of studies, ``studies.csv`` into
DIR (docs/predict.md says what each holds). ``--methods pcam,cam`` writes only these maps.
``--dicom`` also writes each DICOM input's overlay as a DICOM Secondary Capture. Nothing is
overwritten: the same command again does what is missing, another one needs another DIR.

For research only: nothing here is a diagnosis.

Exit status: 0 done, 1 some inputs failed (their rows say why), 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command import run as run_command

if TYPE_CHECKING:  # packages may be missing: main says so
    from experiments.prediction.folder import PredictionFolder, Row
    from experiments.prediction.inputs import Found, Input
    from experiments.prediction.network import Trained
    from experiments.prediction.overlay import Overlay
    from experiments.prediction.stream import Writer

LISTED = 5
# Smallest and largest longer side of a Secondary Capture, pixels.
CAPTURE = 480, 2048


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.predict", description="Use a trained network on your images."
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR|CKPT", help="whose network is used")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="files and folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    parser.add_argument("--methods", metavar="NAMES", help="maps that are written, with commas")
    parser.add_argument(
        "--dicom", action="store_true", help="also write DICOM Secondary Captures of DICOM inputs"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from datamodules import DataError
    from experiments.config import ConfigError
    from experiments.prediction.inputs import readable
    from experiments.runs import RunError

    try:
        return predict(given.run, given.inputs, given.out, given.methods, given.dicom)
    except (ConfigError, DataError, RunError) as error:
        print(readable(f"error: {error}"), file=sys.stderr)
    except OSError as error:
        where = readable(error.filename or given.out)
        print(f"error: {where}: {error.strerror}; the same command goes on", file=sys.stderr)
    return 2


def predict(run: Path, words: list[Path], out: Path, methods: str | None, dicom: bool) -> int:
    """Look at all inputs, write and print; return the exit status."""
    from experiments.prediction.folder import PredictionFolder
    from experiments.prediction.inputs import find_inputs, readable
    from experiments.prediction.network import load_trained
    from experiments.runs import RunError, find_checkpoint

    find_checkpoint(run)  # raises now, not after a walk through many folders
    found = find_inputs(words, out)
    if all(item.error for item in found.inputs):
        listed = "\n  ".join(f"{item.file}: {item.error}" for item in found.inputs[:LISTED])
        raise RunError(f"nothing to look at:\n  {listed}")
    if dicom:
        check_highdicom()
    trained = load_trained(run)
    chosen = choose_methods(trained, methods)
    with contextlib.closing(PredictionFolder(out, about(trained, words, chosen, dicom))) as folder:
        kept = folder.settle(found.inputs)
        waiting = [item for item in found.inputs if item.name not in folder.rows]
        print(readable(describe(trained, found, len(found.inputs) - len(waiting))), flush=True)
        start = time.monotonic()
        look(trained, waiting, folder, chosen, capture_writer(trained, folder) if dicom else None)
        fitted = trained.fitted
        with_studies = folder.finish(
            [*found.inputs, *kept], fitted.study_threshold if fitted else None
        )
        seconds = time.monotonic() - start
        return report(trained, len(kept), folder, with_studies, dicom, len(waiting), seconds)


def check_highdicom() -> None:
    """Raise a RunError where the extra that writes DICOM is not installed."""
    from importlib.util import find_spec

    from experiments.runs import RunError

    if find_spec("highdicom") is None:
        raise RunError("--dicom needs highdicom: pip install 'decision-basis[dicom]'")


def choose_methods(trained: Trained, names: str | None) -> list[str]:
    """The maps of ``--methods``: all that the network was taught unless told."""
    from experiments.runs import RunError

    chosen = list(dict.fromkeys((names or ",".join(trained.map_methods)).split(",")))
    unknown = [name for name in chosen if name not in trained.map_methods]
    if unknown:
        raise RunError(
            f"--methods {names}: {', '.join(map(repr, unknown))} is no map of this network; it has "
            f"{', '.join(trained.map_methods)}"
        )
    return chosen


def about(trained: Trained, words: list[Path], methods: list[str], dicom: bool) -> dict[str, Any]:
    """What ``about.json`` keeps: whose predictions these are, and by which thresholds."""
    from experiments.prediction.inputs import readable

    return {
        "run": readable(trained.folder),
        "checkpoint": trained.checkpoint.name,
        "checkpoint_hash": trained.hashes["checkpoint"],
        "stage": trained.stage,
        "data": trained.data,
        "inputs": [readable(word) for word in words],
        "methods": methods,
        "dicom": dicom,
        "best_map": trained.best_map,
        **(trained.fitted._asdict() if trained.fitted else {"threshold": None}),
        "map_thresholds": trained.map_thresholds,
        "undecided_maps": trained.undecided_maps,
        "decided_by": trained.decided_by,
        "notes": [*trained.notes, "for research only, not for diagnosis"],
    }


def describe(trained: Trained, found: Found, done: int) -> str:
    """What a person wants to know before waiting."""
    fitted = trained.fitted
    decision = "none: this network was taught lesion masks alone"
    if fitted is not None:
        decision = (
            f"abnormal above {fitted.threshold:.3f}, a study above {fitted.study_threshold:.3f} "
            f"({trained.decided_by})"
        )
    lines = [
        f"network    {trained.stage} on {trained.data}, {trained.recipe.image_size} px, "
        f"{trained.checkpoint}",
        f"decision   {decision}",
        f"images     {len(found.inputs):,}" + (f", {done:,} of them done before" if done else ""),
    ]
    if found.left_out:
        most = sorted(found.left_out.items(), key=lambda each: (-each[1], each[0]))[:LISTED]
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in most)
        lines.append(f"left out   {found.left_out.total():,}: {kinds}")
    return "\n".join([*lines, *trained.notes])


def look(
    trained: Trained,
    inputs: list[Input],
    folder: PredictionFolder,
    methods: list[str],
    also: Writer | None,
) -> None:
    """Look at all inputs; a bar on a terminal."""
    from tqdm import tqdm

    from experiments.prediction.stream import predict_all

    with tqdm(total=len(inputs), desc="images", unit=" images", leave=False, disable=None) as bar:
        for count in predict_all(trained, inputs, folder, methods, also):
            bar.update(count)


def capture_writer(trained: Trained, folder: PredictionFolder) -> Writer:
    """Writes the overlay of a DICOM input as a Secondary Capture."""
    from datamodules import DataError
    from datamodules.decode import is_dicom
    from datamodules.dicom import read_dicom
    from experiments.prediction.capture import encode, secondary_capture
    from experiments.prediction.stream import drawn

    derivation = (
        f"{trained.best_map.upper()} map of a neural network ({trained.stage}, trained on "
        f"{trained.data}) over the source image; research use only, not for diagnosis"
    )

    def write(item: Input, shown: Overlay) -> None:
        data = item.file.read_bytes()
        if not is_dicom(data):
            return
        picture = drawn(item, shown, *CAPTURE, beside=False)[..., ::-1]
        try:
            made = secondary_capture(
                read_dicom(data, item.file), picture, trained.hashes["checkpoint"], derivation
            )
        except ValueError as error:
            raise DataError(f"{item.file}: {error}") from None
        name = f"{item.name}.{trained.best_map}.dcm"
        folder.write("dicom", name, encode(made, item.file))

    return write


def report(
    trained: Trained,
    gone: int,
    folder: PredictionFolder,
    with_studies: bool,
    dicom: bool,
    looked_at: int,
    seconds: float,
) -> int:
    """Print what was found, on all rows of the table; return the exit status."""
    from experiments.prediction.folder import NOTE
    from experiments.prediction.inputs import readable

    rows = list(folder.rows.values())
    failed = [row for row in rows if row.failed]
    said = [f"{len(rows):,} images"]
    if trained.fitted is not None:
        calls = Counter(row.predicted_abnormal for row in rows)
        said.append(f"{calls[1]:,} called abnormal, {calls[0]:,} normal")
    said.append(failures(failed))
    if noted := sum(NOTE in row.error for row in rows):
        said.append(f"{noted:,} with a note in the column error")
    if looked_at:
        said.append(f"{looked_at:,} of them now, {looked_at / max(seconds, 1e-3):.1f} a second")
    else:
        said.append("all done before: nothing to do (what failed is tried again once changed)")
    print(f"done       {'; '.join(said)}")
    if gone:
        print(f"gone       {gone:,} of these images are no longer there; their rows are kept")
    names = ["predictions.csv", *(["studies.csv"] if with_studies else []), "maps/", "overlays/"]
    captured = (folder.folder / "dicom").is_dir()
    names += ["dicom/"] if captured else []
    if dicom and not captured and not any(row.answered for row in failed):
        print("captures   none was made: --dicom makes them of DICOM inputs alone")
    print(f"written    {readable(folder.folder)}: {', '.join(names)}")
    print("For research only, not for diagnosis: read the overlays beside the limits of the run.")
    if not failed:
        return 0
    listed = "\n  ".join(f"{row.path}: {row.error}" for row in failed[:LISTED])
    more = f"\n  and {len(failed) - LISTED:,} more, see the table" if len(failed) > LISTED else ""
    print(f"failed     {len(failed):,} of {len(rows):,}:\n  {listed}{more}", file=sys.stderr)
    return 1


def failures(failed: list[Row]) -> str:
    """How many rows have no prediction, and of how many others something was not made."""
    from experiments.prediction.stream import NO_OVERLAY

    asked = [row for row in failed if row.answered]
    plain = sum(NO_OVERLAY in row.error for row in asked)
    counts = {
        "unreadable": len(failed) - len(asked),
        "without a Secondary Capture": len(asked) - plain,
        "without an overlay": plain,
    }
    return ", ".join(f"{many:,} {kind}" for kind, many in counts.items() if many) or "0 failed"


if __name__ == "__main__":
    sys.exit(run_command(main))
