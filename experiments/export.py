"""Write a trained network as an ONNX file: ``python -m experiments.export RUN --out FILE.onnx``.

docs/predict.md says what the file holds; a model card, FILE.md, is written beside it.
Exit status: 0 done, 2 the request cannot be carried out.
"""

import sys
from pathlib import Path

from experiments.command import answered, build_parser


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("export", "Write a network as an ONNX file.", None)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory or checkpoint")
    parser.add_argument("--out", type=Path, metavar="FILE.onnx", required=True)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    options = parser.parse_args(words)

    from experiments.prediction.exporting import export

    export(options.run, options.out, options.force)
    return 0


if __name__ == "__main__":
    sys.exit(main())
