"""Use a trained network on your own images: ``predict RUN_DIR|CKPT INPUT... --out DIR``.

For research only. docs/predict.md says what is written into DIR; the same command again resumes.
Exit status: 0 done, 1 some inputs failed (their rows say why), 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.command import answered


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

    from experiments.prediction.predicting import predict

    return predict(options.run, options.inputs, options.out, options.methods, options.dicom)


if __name__ == "__main__":
    sys.exit(main())
