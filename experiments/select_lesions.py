"""Choose what to annotate: ``python -m experiments.import_lesions --select N --out DIR ...``.

Draws N abnormal images, spread over patients, body parts and studies, and writes a package to
``--out`` that CVAT, Label Studio and LabelMe open (docs/select_lesions.md): by ``data.seed`` at
random, or, with ``--run RUN_DIR``, by that run's uncertainty and coverage
(experiments/choose_images.py). ``--split`` says of which images (train; all: of train, val and
test), ``--masked`` also takes those that have a mask already, ``--outlines`` adds what the run's
map shows as outlines to begin with.

Exit status: 0 done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command import run as run_command
from experiments.evaluate import is_setting

if TYPE_CHECKING:  # packages may be missing: main says so
    import pandas as pd

    from datamodules.radiographs import RadiographDataModule
    from experiments.config import Config
    from experiments.look import Observer

log = logging.getLogger(__name__)

# Keys of data.* that decide on the index beside the name and the root.
OF_THE_INDEX = ("seed", "count", "limit", "split")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what belongs to ``--select`` (``--out`` and ``key=value`` words are the command's)."""
    group = parser.add_argument_group("choosing what to annotate")
    group.add_argument(
        "--select", type=int, metavar="N", help="write N images to annotate instead of importing"
    )
    group.add_argument(
        "--run", type=Path, metavar="RUN_DIR", help="choose by what this run is unsure of"
    )
    group.add_argument(
        "--split", choices=["train", "val", "test", "all"], default="train", help="(train)"
    )
    group.add_argument(
        "--masked", action="store_true", help="also choose images that have a mask already"
    )
    group.add_argument(
        "--outlines", action="store_true", help="add what the run's map shows as outlines"
    )


def given(arguments: argparse.Namespace) -> str:
    """An option that belongs to ``--select`` and is given, or ""."""
    for name, default in (("run", None), ("split", "train"), ("masked", False)):
        if getattr(arguments, name) != default:
            return f"--{name}"
    return "--outlines" if arguments.outlines else ""


def main(words: list[str] | None = None) -> int:
    """Run the command on its own; return its exit status."""
    parser = argparse.ArgumentParser(description="Choose what to annotate.")
    add_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("words", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    overrides = [word for word in arguments.words if is_setting(word)]
    sources = [Path(word) for word in arguments.words if word not in overrides]
    return select(arguments, sources, overrides)


def select(arguments: argparse.Namespace, sources: list[Path], overrides: list[str]) -> int:
    """Choose, write and print; return the exit status.

    Args:
        arguments: ``out`` and what :func:`add_arguments` adds.
        sources: Words that are no ``key=value``: there must be none.
        overrides: ``key=value`` words.
    """
    from datamodules import DataError
    from experiments.config import ConfigError
    from experiments.runs import RunError

    try:
        if sources:
            raise DataError(f"--select imports nothing: leave {sources[0]} out, or --select")
        _select(arguments, overrides)
    except (ConfigError, DataError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _select(arguments: argparse.Namespace, overrides: list[str]) -> None:
    import numpy as np

    from datamodules import DataError
    from experiments.annotation_package import check_new, write_package
    from experiments.choose_images import choose_images
    from experiments.config import load_config
    from experiments.look import look_at, maps_of, open_observer
    from experiments.outlines import outline

    if arguments.out is None:
        raise DataError("--select needs --out DIR, the folder of the package")
    if arguments.select is None or arguments.select < 1:
        raise DataError(f"--select {arguments.select}: choose one image or more")
    if arguments.outlines and arguments.run is None:
        raise DataError("--outlines are what a run's map shows: add --run RUN_DIR")
    check_new(arguments.out)
    observer = look = None
    if arguments.run is not None:
        observer = open_observer(arguments.run, overrides)
        config, data, table = observer.config, observer.data, observer.data.table
    else:
        config = load_config("stage1", overrides)
        data, table = _index(config)
    pool = _pool(table, arguments.split, arguments.masked)
    if observer:
        look = look_at(observer, pool.index.to_numpy())
        pool["probability_abnormal"] = look.probability
    else:
        pool = _readable(pool, arguments.select, data)
    places, unsure = choose_images(pool, arguments.select, data.seed, look)
    chosen = pool.iloc[places].rename(columns={"path": "image"})
    chosen["reason"] = np.where(unsure, "uncertain", "certain") if look else "random"
    drawn, maker = None, ""
    if arguments.outlines and observer:
        maker = f"{observer.module.stage} {observer.method}"
        maps = maps_of(observer, chosen.index.to_numpy())
        drawn = [outline(shown, observer.threshold) for shown in maps]
    write_package(arguments.out, data.root, chosen, drawn, maker, data.name)
    print(_describe(pool, chosen, arguments, data))
    if drawn is not None and observer:
        print(_describe_outlines([len(polygons) for polygons in drawn], observer, chosen))
    print(_next(arguments, config, data, chosen))


def _index(config: Config) -> tuple[RadiographDataModule, pd.DataFrame]:
    """The data module and its index table; no image is decoded, no cache built."""
    from datamodules import DataError
    from experiments.build import build_data

    data = build_data(config)
    data.prepare_source()
    if not data.root.is_dir():
        raise DataError(f"data.root={data.root} is no folder; give the data set's own folder")
    return data, data.checked_index()


def _pool(table: pd.DataFrame, split: str, masked: bool) -> pd.DataFrame:
    """The abnormal images of the split, and which of them are not to be chosen (``masked``)."""
    from datamodules import DataError
    from datamodules.index import SPLITS

    wanted = SPLITS if split == "all" else (split,)
    pool = table[(table["label"] == 1) & table["split"].isin(wanted)]
    pool = pool.assign(masked=False if masked else pool["lesion_mask"] != "")
    pool["probability_abnormal"] = float("nan")
    if pool["masked"].all():
        where = "train, val and test" if split == "all" else split
        raise DataError(
            f"all {len(pool):,} abnormal images of {where} have a lesion mask already; another "
            "--split may have some without, --masked chooses from these (for a second rater, or "
            "to try this out)"
        )
    return pool


def _readable(pool: pd.DataFrame, count: int, data: RadiographDataModule) -> pd.DataFrame:
    """The pool without images that would be chosen but cannot be read, where those are skipped.

    (A run's cache has left them out already.)
    """
    from concurrent.futures import ThreadPoolExecutor

    from datamodules import DataError
    from datamodules.decode import decode, usable_cores
    from experiments.choose_images import choose_images

    def fault(path: str) -> str:
        try:
            decode(data.root / path)
        except DataError as error:
            return str(error)
        return ""

    tried: dict[str, str] = {}
    with ThreadPoolExecutor(usable_cores()) as workers:
        while data.on_unreadable == "skip":
            places, _ = choose_images(pool, count, data.seed)
            new = [path for path in pool["path"].iloc[places] if path not in tried]
            tried |= zip(new, workers.map(fault, new), strict=True)
            faults = [tried[path] for path in new if tried[path]]
            if not faults:
                break
            log.warning("left out, it cannot be read: %s", "\n".join(faults))
            pool = pool[~pool["path"].isin([path for path in new if tried[path]])]
    return pool


def _describe(
    pool: pd.DataFrame,
    chosen: pd.DataFrame,
    arguments: argparse.Namespace,
    data: RadiographDataModule,
) -> str:
    """What was chosen, and where it lies."""
    free = pool[~pool["masked"]]
    kind = "" if arguments.masked else " without a lesion mask"
    where = "train, val and test" if arguments.split == "all" else arguments.split
    how = f"at random (data.seed={data.seed})"
    if arguments.run:
        unsure = int((chosen["reason"] == "uncertain").sum())
        how = f"by {arguments.run}: {unsure} of the half that it is less sure of"
    lines = [
        f"chosen   {len(chosen):,} of {len(free):,} abnormal images{kind} in {where}, {how}",
        f"         of {chosen['patient'].nunique():,} {data.patients_are} and "
        f"{chosen['study'].nunique():,} studies; {_counts(chosen['body_part'])}",
    ]
    if arguments.split == "all":
        lines.append(f"         {_counts(chosen['split'])}")
    if len(chosen) < arguments.select:
        lines.append(f"         there are no {arguments.select:,}: these are all")
    lines.append(f"written  {arguments.out}: open README.txt there, it says how in each tool")
    return "\n".join(lines)


def _describe_outlines(counts: list[int], observer: Observer, chosen: pd.DataFrame) -> str:
    """What the outlines are, and what they do to a rater."""
    origin = "tuned on val" if observer.tuned else "no val masks have tuned one"
    lines = [
        f"outlines {sum(counts):,} on {sum(count > 0 for count in counts):,} images, where "
        f"{observer.method} reaches {observer.threshold:.2f} ({origin})",
        "",
        "CAUTION  The outlines are the network's and bias whoever draws: masks that begin with "
        "them agree",
        "         with its maps more than they should. One that is left as it is becomes a mask.",
    ]
    judges = chosen["split"].isin(["val", "test"]).sum()
    if judges:
        lines.append(
            f"         {judges} of these images are of val or test: masks drawn so must not judge "
            "this run;"
        )
        lines.append("         choose them again without --outlines")
    return "\n".join(lines) + "\n"


def _next(
    arguments: argparse.Namespace,
    config: Config,
    data: RadiographDataModule,
    chosen: pd.DataFrame,
) -> str:
    """What the masks will be good for, and the command after drawing."""
    lines = []
    if set(chosen["split"]) == {"train"}:
        lines += [
            "note     Masks follow their image's split: these will train stage 3 (at most "
            "lesions.count) and judge",
            "         no map. --split all chooses from val and test, too; or cross-fit with "
            "lesions.folds=5.",
        ]
    words = [f"data.name={data.name}", f"data.root={data.root}"]
    for key in OF_THE_INDEX:
        if getattr(config.data, key) != getattr(type(config.data)(), key):
            words.append(f"data.{key}={getattr(config.data, key)}")
    mapping = shlex.quote(str(arguments.out / "mapping.csv"))
    lines += [
        "next     draw, export, and bring the masks back:",
        "",
        f"python -m experiments.import_lesions EXPORT --out LESIONS --mapping {mapping} "
        f"{shlex.join(words)}",
    ]
    return "\n".join(lines)


def _counts(names: pd.Series) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in names.value_counts().items())


if __name__ == "__main__":
    sys.exit(run_command(main))
