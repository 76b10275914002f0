"""Bring lesions of your own: ``python -m experiments.import_lesions SOURCE... --out DIR``.

Reads what people annotated with (docs/lesions.md lists the formats), finds each image in the data
set that ``data.name=... data.root=...`` name, checks everything and writes ``DIR``, a lesion folder
for ``lesions.path``, with ``import.csv`` (what came from where) and contact sheets to look at. All
mistakes are listed, the sound images are written; ``--strict`` writes nothing where there is one.
Several sources are several raters.

``--select N --out DIR`` chooses images to annotate instead (experiments/select_lesions.py),
``--example N --out FILE.json`` writes N of the data set's own lesions (phantom, FracAtlas) as an
annotation tool would, to try it on.

Exit status: 0 done, 1 something was left out (listed), 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command import answered
from experiments.command import run as run_command
from experiments.evaluate import is_setting
from experiments.select_lesions import add_arguments, given, select

if TYPE_CHECKING:  # packages may be missing: main says so
    import pandas as pd

    from datamodules.radiographs import RadiographDataModule
    from experiments.annotation.importing import Found
    from experiments.config import Config

RATERS = ("union", "majority", "intersection")


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.import_lesions",
        description="Turn what people annotated into a lesion folder.",
    )
    parser.add_argument("words", nargs="*", metavar="SOURCE | key=value", help="files or folders")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the lesion folder to be written")
    parser.add_argument("--format", metavar="NAME", help="of the sources, else it is recognised")
    parser.add_argument("--mapping", type=Path, metavar="FILE.csv", help="header name,image")
    parser.add_argument(
        "--labels", action="append", metavar="NAME,NAME", help="only marks of these classes"
    )
    parser.add_argument("--raters", choices=RATERS, help="how several make one mask (union)")
    parser.add_argument("--strict", action="store_true", help="one mistake, and nothing is written")
    parser.add_argument("--example", type=int, metavar="N", help="write an annotation file to try")
    add_arguments(parser)
    arguments = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    from experiments.config import load_config

    overrides = [word for word in arguments.words if is_setting(word)]
    sources = [Path(word) for word in arguments.words if word not in overrides]
    check_options(arguments)
    for path in leftovers(arguments.out):
        print(
            f"NOTE {path} is left of a command that was killed, or of one that is at work; if "
            "none is, remove it",
            file=sys.stderr,
        )
    if arguments.select is not None:
        return select(arguments, sources, overrides)
    config = load_config("stage3", overrides)
    check_request(arguments, sources, config)
    if arguments.example is not None:
        from experiments.annotation.example import write_example

        print(write_example(config, arguments.example, arguments.out))
        again = shlex.join([str(arguments.out), "--out", "my-lesions", *overrides])
        print(f"next     python -m experiments.import_lesions {again}")
        return 0
    return import_all(arguments, sources, config)


def leftovers(out: Path | None) -> list[Path]:
    """Folders beside ``out`` that were to become it; another node may be filling one just now."""
    if out is None or not out.parent.is_dir():
        return []
    draft = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{32}}\.part")
    return sorted(path for path in out.parent.iterdir() if draft.fullmatch(path.name))


def check_options(arguments: argparse.Namespace) -> None:
    """Raise a DataError where options of the three ways to run the command are mixed."""
    from datamodules import DataError

    other = "--select" if arguments.select is not None else ""
    other = other or ("--example" if arguments.example is not None else "")
    for option in ("--format", "--mapping", "--labels", "--raters", "--strict"):
        if other and getattr(arguments, option[2:]):
            raise DataError(f"{option} is of an import, {other} is none: leave one of them out")
    if arguments.select is not None and arguments.example is not None:
        raise DataError("--select and --example are two things: leave one of them out")
    if arguments.select is None and (option := given(arguments)):
        raise DataError(f"{option} belongs to --select: add --select N, or leave it out")


def check_request(arguments: argparse.Namespace, sources: list[Path], config: Config) -> None:
    """Raise a DataError where words lack or contradict each other."""
    from datamodules import DataError

    if arguments.out is None:
        raise DataError("--out DIR is missing: name the lesion folder to be written")
    if arguments.out.exists() or arguments.out.is_symlink():
        raise DataError(f"{arguments.out} already exists; remove it first, or choose another --out")
    if arguments.example is not None:
        if sources:
            raise DataError(f"--example reads no source: leave {sources[0]} out, or --example")
        return
    if not sources:
        raise DataError("name what is to be imported: an annotation file, or a folder of them")
    if absent := [source for source in sources if not source.exists()]:
        raise DataError(f"{absent[0]} does not exist: give an annotation file or a folder of them")
    for source in sources:
        if all((source / name).is_file() for name in ("mapping.csv", "selected.csv")):
            raise DataError(
                f"{source} is a package to draw on; give what was drawn: annotations.xml (CVAT), "
                f"the exported JSON (Label Studio) or {source / 'images'} (LabelMe)"
            )
    if len({source.resolve() for source in sources}) < len(sources):
        raise DataError("a source is given twice; several sources are several raters")
    if config.lesions.path is not None:
        raise DataError(
            "lesions.path is what an import makes: leave it out, --out names the folder"
        )


def import_all(arguments: argparse.Namespace, sources: list[Path], config: Config) -> int:
    """Read, match, check, write and print; return the exit status."""
    from datamodules import DataError
    from datamodules.annotations import READERS, recognise
    from experiments.annotation.describe_import import (
        describe,
        describe_faults,
        describe_moved,
        images_said,
        next_command,
    )
    from experiments.annotation.importing import import_marks
    from experiments.annotation.matching import read_mapping

    if arguments.format not in (None, *READERS):
        raise DataError(f"--format {arguments.format} is none of {', '.join(READERS)}")
    mapping = read_mapping(arguments.mapping) if arguments.mapping else None
    try:
        formats = {source: arguments.format or recognise(source) for source in sources}
    except DataError as error:
        hint = " (--format NAME)" if "say which" in str(error) else ""
        raise DataError(f"{error}{hint}") from error
    read = {str(source): READERS[name](source) for source, name in formats.items()}
    data, table = read_index(config)
    folder = arguments.mapping and arguments.mapping.parent
    moved = describe_moved(folder, table, data.root) if folder else ""
    labels = arguments.labels or ()
    drawn = [str(source) for source, name in formats.items() if name == "masks"]
    raters = arguments.raters or "union"
    found = import_marks(read, table, data.root, mapping, labels, raters, drawn)
    if found.faults:
        print(describe_faults(found.faults), file=sys.stderr, flush=True)
    if config.data.name == "phantom" and any(f.kind == "unknown image" for f in found.faults):
        drawn_by = f"data.seed={data.seed} data.count={config.data.count}"
        print(
            f"NOTE the phantom drawn is that of {drawn_by}: is it the one that was annotated?",
            file=sys.stderr,
        )
    print(", ".join(f"{source} ({name})" for source, name in formats.items()))
    print(describe(found, table, config, raters))
    if moved:
        print(moved)
    count = len(found.faults)
    mistakes = f"{count} mistake{'s' if count > 1 else ''}, listed above"
    if found.faults and arguments.strict:
        raise DataError(f"nothing is written (--strict): {mistakes}")
    if not found.images:
        raise DataError(f"nothing is written: {mistakes if count else 'no image has a mark'}")
    written = write(arguments.out, found, table, data.root)
    print(f"  written  {arguments.out}/: {', '.join(written)}")
    print(f"  next     {next_command(config, arguments.out, found.images, table)}")
    if found.faults:
        print(f"left out: {mistakes}; written: {images_said(len(found.images))}", file=sys.stderr)
    return 1 if found.faults else 0


def read_index(config: Config) -> tuple[RadiographDataModule, pd.DataFrame]:
    """The data module and its index table, without lesions; no cache is built."""
    from datamodules.lesions import write_lesions
    from experiments.build import build_data

    with tempfile.TemporaryDirectory() as folder:
        # An empty lesion folder: the masks that a source brings are neither drawn nor needed.
        none = Path(folder) / "none"
        write_lesions(none, [])
        config.lesions.path = str(none)
        try:
            data = build_data(config)
            data.prepare_source()
            return data, data.checked_index()
        finally:
            config.lesions.path = None


def write(out: Path, found: Found, table: pd.DataFrame, root: Path) -> list[str]:
    """Write the lesion folder, whole or not at all; return what lies in it."""
    from datamodules.lesions import CSV, Lesion, write_lesions
    from experiments.annotation.describe_import import in_cell
    from experiments.annotation.sheet import write_sheets
    from experiments.annotation.table import cells, import_table

    sheets: list[str] = []

    def finish(draft: Path) -> None:
        import_table(found.images, table).to_csv(draft / "import.csv", index=False)
        sheets.extend(write_sheets(draft, cells(found.images, table, root, draft)))

    lesions = (
        Lesion(image.image, image.mask(), in_cell("+".join(image.labels))) for image in found.images
    )
    write_lesions(out, lesions, finish)
    pages = sheets if len(sheets) == 1 else [f"{sheets[0]} to {sheets[-1]}"]
    return [CSV, "masks/", "import.csv", *pages]


if __name__ == "__main__":
    sys.exit(run_command(main, undone_by_sigterm=True))
