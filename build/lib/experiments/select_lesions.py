"""Choose what to annotate: ``python -m experiments.import_lesions --select N --out DIR ...``.

Draws N abnormal images, spread over patients, body parts and studies, and writes a package to
``--out`` that CVAT, Label Studio and LabelMe open (docs/select_lesions.md): by ``data.seed`` at
random, or, with ``--run RUN_DIR``, by that run's uncertainty and coverage
(experiments/annotation/choosing.py). ``--split`` says of which images (train; all: of train, val
and test), ``--masked`` also takes those that have a mask already, ``--outlines`` adds what the
run's map shows as outlines to begin with.

Exit status: 0 done, 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # packages may be missing: main says so
    import pandas as pd

    from datamodules.radiographs import RadiographDataModule
    from experiments.config import Config

log = logging.getLogger(__name__)


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
        "--split",
        choices=["train", "val", "test", "all"],
        default="train",
        help="whose images, masks follow them (train)",
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


def select(arguments: argparse.Namespace, sources: list[Path], overrides: list[str]) -> int:
    """Choose, write and print; return the exit status.

    Args:
        arguments: ``out`` and what :func:`add_arguments` adds.
        sources: Words that are no ``key=value``: there must be none.
        overrides: ``key=value`` words.

    Raises:
        ConfigError: a word is wrong.
        DataError: the data or the request is.
        RunError: the run that chooses is.
        OSError: the package cannot be written.
    """
    import numpy as np

    from datamodules import DataError
    from experiments.annotation.choosing import choose_images
    from experiments.annotation.describe_import import index_words
    from experiments.annotation.describe_selection import describe, describe_outlines, next_command
    from experiments.annotation.look import look_at, maps_of, open_observer
    from experiments.annotation.outlines import outline
    from experiments.annotation.package import check_new, write_package
    from experiments.config import load_config

    if sources:
        raise DataError(f"--select imports nothing: leave {sources[0]} out, or --select")
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
    if not len(places):
        raise DataError("none of the abnormal images could be read; check data.root")
    chosen = pool.iloc[places].rename(columns={"path": "image"})
    chosen["reason"] = np.where(unsure, "uncertain", "certain") if look else "random"
    drawn, maker = None, ""
    if arguments.outlines and observer:
        maker = f"{observer.module.stage} {observer.method}"
        maps = maps_of(observer, chosen.index.to_numpy())
        drawn = [outline(shown, observer.threshold) for shown in maps]
    words = [f"data.name={data.name}", *index_words(config)]
    write_package(arguments.out, data.root, chosen, drawn, maker, words)
    print(describe(pool, chosen, arguments, data))
    if drawn is not None and observer:
        print(describe_outlines([len(polygons) for polygons in drawn], observer, chosen))
    print(next_command(arguments, config, data, chosen))
    return 0


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
    from datamodules.lesions import LEFT_OUT

    wanted = SPLITS if split == "all" else (split,)
    # What a run with folds leaves out of training is of train to others.
    table = table.assign(split=table["split"].replace(LEFT_OUT, "train"))
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
    from datamodules.decode import decode
    from datamodules.files import usable_cores
    from experiments.annotation.choosing import choose_images

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
