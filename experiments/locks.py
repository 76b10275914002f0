"""Who trains in a run directory: a lock that the kernel frees when its owner dies."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

# Record locks: unlike flock's, forked loader processes do not keep them when their parent is
# killed, and they hold over NFS. A process never meets its own.
NAME = ".lock"


def take(handle: IO[str]) -> bool:
    """Lock an open file as long as this process has it open; False where another one holds it.

    Raises:
        OSError: the file system knows no locks.
    """
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # either, says POSIX
        return False
    return True


def is_training(folder: Path) -> bool:
    """Whether another process trains in a run directory."""
    try:
        with (folder / NAME).open("r+") as handle:
            return not take(handle)
    except OSError:  # no such file, or nothing is known
        return False
