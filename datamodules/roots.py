"""Find a data set near the folder that a user gave as ``data.root``, to say what was meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datamodules.index import DataError


def look_around(root: Path, is_it: Callable[[Path], bool]) -> DataError | None:
    """Return an error that names the data set's folder where ``root`` is too deep or too high.

    Args:
        root: The folder that was given.
        is_it: Tells whether a folder is the data set's own.

    Returns:
        The error to raise; None where nothing is found near by.
    """
    for parent in root.resolve().parents:
        if is_it(parent):
            return DataError(f"data.root={root} is too deep; did you mean data.root={parent}?")
    near = folders(root)[:100]  # only a hint: do not walk all of a large disk for it
    for folder in [*near, *(inner for child in near for inner in folders(child)[:100])]:
        if is_it(folder):
            return DataError(f"data.root={root} is too high; did you mean data.root={folder}?")
    return None


def folders(folder: Path) -> list[Path]:
    """Sub-folders in order of their names; none where they may not be listed."""
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []
