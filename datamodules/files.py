"""Write whole or not at all, hold a lock, count cores: how the house meets the file system."""

import contextlib
import errno
import fcntl
import math
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it gets its name when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut could leave the new name on an empty file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all; names of files that are no UTF-8 survive."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def whole_folder(path: Path, alone: bool = False) -> Iterator[Path]:
    """An empty folder beside ``path`` to fill; it gets its name when the block ends without error.

    ``alone``: the caller holds a lock, so that what killed processes left is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.partial") if alone else ():
        shutil.rmtree(left, ignore_errors=True)
    # A name that no other process has, on any node that shares the disk.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Wait for an exclusive lock on the file ``path``; the kernel frees a dead owner's.

    False on a network file system without locks: others may be in the block, too.
    """
    with path.open("w") as handle:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            alone = False
        yield alone


def take(handle: IO[str]) -> bool:
    """Lock an open file for as long as this process has it open; False if another one holds it.

    A record lock: it holds over NFS, and loader processes do not keep that of a killed parent.
    """
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # either, says POSIX
        return False
    return True


def are_files(paths: Iterable[Path]) -> list[bool]:
    """Whether each of ``paths`` is a file: network file systems answer slowly but in parallel."""
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(os.path.isfile, paths))


def usable_cores() -> int:
    """Threads worth starting: the cores that affinity and a container's quota leave, at least 1."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such system, or "max": no quota
        quota, period = CPU_QUOTA.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)
