"""Fetch timm's weights of an encoder: ``python -m experiments.weights timm:resnet50 --out FILE``.

For machines without a network: run it where there is one, and train with ``model.weights=FILE``.
Without ``--out`` they stay in Hugging Face's cache, where ``model.weights=imagenet`` finds them.
"""

import sys
from pathlib import Path

from experiments.command import answered, build_parser


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = build_parser("weights", "Fetch pretrained weights.", places=None)
    parser.add_argument("encoder", metavar="timm:NAME", help="as model.encoder")
    parser.add_argument("--out", type=Path, help="copy of the file, .safetensors as a rule")
    options = parser.parse_args(words)
    from datamodules.files import whole_file
    from experiments.runs import file_hash
    from experiments.training.pretrained import fetch
    from lightning_modules.timm_encoder import published

    file, licence = fetch(options.encoder), published(options.encoder).license
    if options.out:
        with whole_file(options.out) as partial:
            partial.write_bytes(file.read_bytes())
    print(f"{options.out or file}\nlicence {licence or 'not stated'}, SHA-256 {file_hash(file)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
