"""Use a trained network on your own images: ``predict RUN_DIR|CKPT INPUT... --out DIR``.

For research only. docs/predict.md says what is written into DIR; the same command again resumes.
Exit status: 0 done, 1 some inputs failed (their rows say why), 2 the request cannot be carried out.
"""

import sys
from pathlib import Path

from experiments.command import answered, build_parser


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("predict", "Use a trained network on your images.", None)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_DIR|CKPT", help="whose network is used")
    add("inputs", type=Path, nargs="+", metavar="INPUT", help="files and folders")
    add("--out", type=Path, required=True, metavar="DIR", help="where results go")
    add("--methods", metavar="NAMES", help="maps that are written, with commas")
    add("--dicom", action="store_true", help="also write DICOM Secondary Captures of DICOM inputs")
    options = parser.parse_args(words)

    from experiments.prediction.predicting import predict

    return predict(options.run, options.inputs, options.out, options.methods, options.dicom)


if __name__ == "__main__":
    sys.exit(main())
