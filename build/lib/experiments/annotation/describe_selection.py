"""What choosing what to annotate prints: what was chosen, what it is worth, what comes next."""

from __future__ import annotations

import argparse
import shlex

import pandas as pd

from datamodules.radiographs import RadiographDataModule
from experiments.annotation.describe_import import index_words
from experiments.annotation.look import Observer
from experiments.config import Config


def describe(
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


def describe_outlines(counts: list[int], observer: Observer, chosen: pd.DataFrame) -> str:
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


def next_command(
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
    elif arguments.run:
        lines += [
            "note     Masks of val and test judge: chosen by a run they are no fair sample, and "
            "figures on them hold",
            "         for images that it is unsure of. Choose those at random, without --run.",
        ]
    words = [f"data.name={data.name}", f"data.root={data.root}", *index_words(config)]
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
