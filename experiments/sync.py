"""Send W&B runs that were kept offline: ``python -m experiments.sync [FOLDER ...]``.

Looks below the folders (``runs`` unless told) for ``wandb/offline-run-*``. A run that was stopped
and resumed left several of them under one id: they are sent in their order and become one run at
W&B. What was sent is marked and not sent again. Exit status: 0 done or nothing to send, 1 some runs
were not sent (named), 2 nothing can be sent.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from experiments.command import run
from experiments.runs import is_training

EMPTY = 7  # bytes of a file that only has W&B's header


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sync", description="Send W&B runs that were kept offline."
    )
    parser.add_argument("folders", nargs="*", default=["runs"], help="where to look; runs")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, send nothing")
    arguments = parser.parse_args(words)
    folders = [Path(word).expanduser() for word in arguments.folders]
    for folder in folders:
        if not folder.is_dir():
            print(f"error: there is no folder {folder}; name where the runs lie", file=sys.stderr)
            return 2
    unsent, training = find_runs(folders)
    for folder in training:
        print(f"{folder}: a job trains here now; sync again when it is done")
    if not unsent:
        print(f"nothing to send below {', '.join(map(str, folders))}")
        return 0
    send = [sys.executable, "-m", "wandb", "sync"]
    if arguments.dry_run:
        print("\n".join(shlex.join([*send, *map(str, segments)]) for segments in unsent))
        return 0
    from experiments.training.wandb import has_api_key

    if not has_api_key():
        print(
            f"error: {len(unsent)} runs to send, but no W&B key: set WANDB_API_KEY or run 'wandb "
            "login', then the same command again",
            file=sys.stderr,
        )
        return 2
    # Offline mode, as set for compute nodes without internet, would keep sync at home, too.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    failed = []
    for segments in unsent:
        folder = segments[0].parents[1]
        count = f" ({len(segments)} parts)" if len(segments) > 1 else ""
        print(f"{folder}{count}", flush=True)
        subprocess.run([*send, *map(str, segments)], env=environment, check=False)
        # Not by its exit status, which is 0 for a wrong key.
        if not all(is_sent(segment) for segment in segments) and folder not in failed:
            failed.append(folder)
    if failed:
        print(
            f"error: not sent, see above: {', '.join(map(str, failed))}; the same command tries "
            "them again",
            file=sys.stderr,
        )
    return 1 if failed else 0


def find_runs(folders: list[Path]) -> tuple[list[list[Path]], list[Path]]:
    """What is to be sent, and run directories in which a training goes on.

    A run directory may hold several of W&B's runs, such as those of two sweeps.

    Returns:
        The unsent segments of each run in the order of their names, which begin with the time; and
        the run directories that are locked: a segment sent half would count as sent. W&B keeps no
        other order. Where nodes' clocks differ by more than a segment took, W&B gets a later one
        first: its plots, over trainer/global_step, are the same, its summary is of the last sent.
    """
    segments: dict[tuple[Path, str], list[Path]] = {}
    for folder in folders:
        for file in folder.rglob("wandb/offline-run-*/run-*.wandb"):
            if file.stat().st_size > EMPTY and not is_sent(file.parent):
                segments.setdefault((file.parents[2], file.stem), []).append(file.parent)
    training = {place for place, _ in segments if is_training(place)}
    unsent = [
        sorted(set(parts))
        for (place, _), parts in sorted(segments.items())
        if place not in training
    ]
    return unsent, sorted(training)


def is_sent(segment: Path) -> bool:
    """Whether W&B has marked a segment as sent."""
    return any(segment.glob("*.wandb.synced"))


if __name__ == "__main__":
    sys.exit(run(main))
