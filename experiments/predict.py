"""Use a trained network on your own images: ``predict RUN_DIR|CKPT INPUT... --out DIR``.

INPUTs are files and folders: PNG, JPEG, DICOM. docs/predict.md says what is written into DIR.
Nothing is overwritten: the same command again does what is missing, another one needs another DIR.

For research only: nothing here is a diagnosis.

Exit status: 0 done, 1 some inputs failed (their rows say why), 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from experiments.command import answered
from experiments.command import run as run_command


@answered
def main(words: list[str] | None = None) -> int:
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
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from experiments.prediction.predicting import predict

    return predict(options.run, options.inputs, options.out, options.methods, options.dicom)


if __name__ == "__main__":
    sys.exit(run_command(main))
