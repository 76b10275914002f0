"""Decoded, letterboxed images in one memory-mapped file, built once, in parallel, atomically.

A cache is a folder ``<cache_dir>/<source>-<key>`` that holds the checked index (``index.csv``), the
pixels (``images.u8``, ``masks.u8``: raw uint8 squares), how they came in (``geometry.npz``), of
which files (``stamps.json``) and ``meta.json``, written last. The key covers the settings and small
files that shaped the content; the folder gets its name only when everything in it has reached the
disk, so that a half-written cache is never used.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from datamodules.decode import decode, decode_noted, read_content
from datamodules.files import locked, usable_cores
from datamodules.geometry import Geometry, content_box, letterbox, to_square
from datamodules.index import COLUMNS, DataError, hash_pixels

log = logging.getLogger(__name__)

# Raised whenever the meaning of a cached pixel changes, so that older caches are built anew.
FORMAT = 2
# Images that could not be read, with the reason.
UNREADABLE = "unreadable.csv"
# Size and time of each image and mask, readable or not, taken before it was read.
STAMPS = "stamps.json"


@dataclass(frozen=True)
class Recipe:
    """What turns an original into a cached square; part of the key."""

    image_size: int
    crop: str = "none"
    contrast: str = "none"

    def geometry(self, image: np.ndarray) -> Geometry:
        """Choose the box of an upright image (H, W) that is kept and where it goes."""
        height, width = image.shape
        box = content_box(image) if self.crop == "content" else None
        return letterbox(height, width, self.image_size, box)

    def apply(self, image: np.ndarray) -> tuple[np.ndarray, Geometry]:
        """Return the cached square (size, size) uint8 of an upright image and its geometry."""
        geometry = self.geometry(image)
        square = to_square(image, geometry, self.image_size)
        return _contrast(square, geometry, self.contrast), geometry


def _contrast(square: np.ndarray, geometry: Geometry, method: str) -> np.ndarray:
    """Spread the grey values inside the letterbox; the bars stay black."""
    if method == "none":
        return square
    g = geometry
    inside = np.s_[g.top : g.top + g.inner_height, g.left : g.left + g.inner_width]
    inner = square[inside]
    if method == "clahe":
        inner = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(
            np.ascontiguousarray(inner)
        )
    low, high = np.percentile(inner, (1.0, 99.5))
    stretched = (inner.astype(np.float32) - low) * (255.0 / max(high - low, 1.0))
    result = square.copy()
    result[inside] = np.clip(np.rint(stretched), 0, 255).astype(np.uint8)
    return result


class PixelCache:
    """An opened cache: the index table and the squares that belong to its rows.

    Attributes:
        table: the checked index, one row an image.
        images: (slots, S, S) uint8 memory map; row i of the table lies in slot ``slot[i]``.
        masks: (M, S, S) uint8 memory map, 255 = lesion; row i's mask is ``mask_slot[i]``, -1 =
        none. geometry: (N, 10) int32, see ``Geometry``.
        image_hash: hash of what each image shows, as decoded, at original size.
        mask_hash: the same of the lesion masks.
    """

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        size = meta["image_size"]
        self.image_hash, self.mask_hash = meta["image_hash"], meta["mask_hash"]
        self.table = pd.read_csv(folder / "index.csv", dtype=COLUMNS, keep_default_na=False)
        arrays = np.load(folder / "geometry.npz")
        self.slot, self.mask_slot = arrays["slot"], arrays["mask_slot"]
        self.geometry = arrays["geometry"]
        self.images = _open_squares(folder / "images.u8", meta["images"], size)
        self.masks = _open_squares(folder / "masks.u8", meta["masks"], size)

    def image(self, row: int) -> np.ndarray:
        """The cached square (S, S) uint8 of an index row."""
        return self.images[self.slot[row]]

    def mask(self, row: int) -> np.ndarray | None:
        """The cached lesion mask (S, S) uint8 of an index row, None where there is none."""
        slot = self.mask_slot[row]
        return None if slot < 0 else self.masks[slot]

    def geometry_of(self, row: int) -> Geometry:
        """How the row's image came into the cache."""
        return Geometry(*(int(value) for value in self.geometry[row]))


def _open_squares(path: Path, count: int, size: int) -> np.ndarray:
    if count == 0:
        return np.zeros((0, size, size), dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(count, size, size))


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` holds a finished cache whose files have the sizes that were written."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return bool(meta["image_hash"] and meta["mask_hash"]) and all(
            (folder / name).stat().st_size == size for name, size in meta["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def cache_key(parts: dict[str, object]) -> str:
    """Twelve hex digits over everything that shapes the cache."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def build(
    folder: Path,
    build_index: Callable[[], pd.DataFrame],
    root: Path,
    recipe: Recipe,
    on_unreadable: str,
    check: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table,
) -> None:
    """Build the cache in ``folder``, unless it is of today's files; processes wait for each other.

    ``check`` sees the rows whose images could be read, before they are kept.

    Raises:
        DataError: images cannot be decoded and ``on_unreadable`` is "error", or the disk is full.
    """
    fault = _fault(folder, root)
    if not fault:
        return  # also where the folder is read-only
    if folder.exists():
        log.warning("%s %s; it is built anew", folder, fault)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not _fault(folder, root):
                return
            table = build_index()  # where that fails, nothing is lost
            if folder.exists():
                shutil.rmtree(folder)
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                _fill(partial, table, root, recipe, on_unreadable, check)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"the disk of {folder.parent} is full; free space, or set data.cache_dir to a "
                "folder on another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise DataError(
                f"cannot write the cache to {folder.parent} ({error.strerror}); set "
                "data.cache_dir to a folder that you may write to"
            ) from error
        raise DataError(
            f"cannot keep a cache in {folder.parent} ({error}); set data.cache_dir to another "
            "folder"
        ) from error


def _fault(folder: Path, root: Path) -> str:
    """What keeps the cache in ``folder`` from being used, "" where nothing does."""
    if not is_whole(folder):
        return "is damaged"
    noted = json.loads((folder / STAMPS).read_text())
    now = _stamps(root, list(noted))
    away = not any(now[name] for name in noted if not os.path.isabs(name))
    changed = [name for name in noted if now[name] != noted[name] and (now[name] or not away)]
    if not changed:
        if away:
            log.warning("%s: no image is there; they are taken from %s, as they were", root, folder)
        return ""
    count = f"{len(changed):,} of {len(noted):,}"
    return f"is out of date ({count} images and masks changed, such as {changed[0]})"


def _stamps(root: Path, files: list[str]) -> dict[str, str]:
    """Size and time of each of ``files`` (below ``root`` or absolute), "" where it is missing."""

    def stamp(name: str) -> str:
        try:
            stat = os.stat(os.path.join(root, name))
        except OSError:
            return ""
        return f"{stat.st_size} {stat.st_mtime_ns}"

    # Network file systems answer slowly but in parallel; a job a file would cost more than it asks.
    parts = [files[start::32] for start in range(32)]
    with ThreadPoolExecutor(32) as pool:
        found = pool.map(lambda part: [(name, stamp(name)) for name in part], parts)
        return dict(itertools.chain.from_iterable(found))


def _fill(
    folder: Path,
    table: pd.DataFrame,
    root: Path,
    recipe: Recipe,
    on_unreadable: str,
    check: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    square = recipe.image_size**2
    mask_slot = np.full(len(table), -1, dtype=np.int64)
    with_mask = np.flatnonzero(table["lesion_mask"] != "")
    mask_slot[with_mask] = np.arange(len(with_mask))
    _check_space(folder, (len(table) + len(with_mask)) * square)
    paths, masks = table["path"].tolist(), table["lesion_mask"].tolist()
    stamps = _stamps(root, [*paths, *filter(None, masks)])
    geometry = np.zeros((len(table), len(Geometry._fields)), dtype=np.int32)
    errors: dict[int, str] = {}
    seen, drawn, notes = ([""] * len(table) for _ in range(3))

    def convert(row: int, images: int, mask_file: int) -> None:
        try:
            image, note = decode_noted(read_content(root / paths[row]), root / paths[row])
        except DataError as error:
            errors[row] = str(error)
            return
        notes[row] = f"{paths[row]}: {note}" if note else ""
        seen[row] = f"{image.shape} {hashlib.sha256(image.tobytes()).hexdigest()}"
        pixels, place = recipe.apply(image)
        geometry[row] = place
        # Plain writes instead of a memory map: a full disk is an error here, there a SIGBUS.
        _write_at(images, pixels, row * square)
        if masks[row]:
            mask = decode(Path(masks[row]))
            if mask.shape != image.shape:
                raise DataError(
                    f"{masks[row]} is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                    f"{paths[row]} {image.shape[1]} x {image.shape[0]}; draw it on the "
                    "upright original image"
                )
            solid = np.where(mask > 127, 255, 0).astype(np.uint8)
            drawn[row] = hashlib.sha256(solid.tobytes()).hexdigest()
            pixels = to_square(solid, place, recipe.image_size)
            _write_at(mask_file, pixels, int(mask_slot[row]) * square)

    cv2.setNumThreads(0)  # the threads here are enough; OpenCV's own would only compete
    with (
        (folder / "images.u8").open("wb") as images,
        (folder / "masks.u8").open("wb") as mask_file,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        jobs = pool.map(
            lambda row: convert(row, images.fileno(), mask_file.fileno()), range(len(table))
        )
        progress = tqdm(
            jobs, total=len(table), desc="caching images", unit=" images", leave=False, disable=None
        )
        for _ in progress:
            pass
        images.truncate(len(table) * square)
        mask_file.truncate(len(with_mask) * square)
        os.fsync(images.fileno())
        os.fsync(mask_file.fileno())
    if noted := [note for note in notes if note]:
        log.warning("%d images have a note:\n  %s", len(noted), "\n  ".join(noted[:5]))
    kept = _report_unreadable(table, errors, on_unreadable, folder)
    check(table.iloc[kept]).to_csv(folder / "index.csv", index=False)
    np.savez(folder / "geometry.npz", slot=kept, mask_slot=mask_slot[kept], geometry=geometry[kept])
    (folder / STAMPS).write_text(json.dumps(stamps))
    for name in ("index.csv", "geometry.npz", STAMPS):
        with (folder / name).open("rb") as written:
            os.fsync(written.fileno())
    meta = {
        "image_size": recipe.image_size,
        "images": len(table),
        "masks": len(with_mask),
        "image_hash": hash_pixels(table.assign(drawn=seen).iloc[kept]),
        "mask_hash": hash_pixels(table.assign(drawn=drawn).iloc[kept]),
        "files": {
            path.name: path.stat().st_size for path in folder.iterdir() if path.name != "meta.json"
        },
    }
    with (folder / "meta.json").open("w") as handle:
        json.dump(meta, handle)
        handle.flush()
        os.fsync(handle.fileno())


def _write_at(file: int, pixels: np.ndarray, offset: int) -> None:
    """Write at a place; the last write before a disk is full may be short without an error."""
    if os.pwrite(file, pixels.tobytes(), offset) != pixels.nbytes:
        raise OSError(errno.ENOSPC, "No space left on device")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def _report_unreadable(
    table: pd.DataFrame, errors: dict[int, str], on_unreadable: str, folder: Path
) -> np.ndarray:
    """Row numbers of the images that could be read; errors are raised or listed."""
    if errors:
        shown = "\n  ".join(errors[row] for row in sorted(errors)[:5])
        if on_unreadable == "error":
            raise DataError(
                f"{len(errors)} of {len(table)} images cannot be read:\n  {shown}\n"
                "Replace them, or leave them out with data.unreadable=skip"
            )
        bad = sorted(errors)
        left_out = table.iloc[bad][["path"]].assign(reason=[errors[row] for row in bad])
        left_out.to_csv(folder / UNREADABLE, index=False)
        log.warning(
            "%d of %d images cannot be read and are left out (unreadable.csv in the cache):\n  %s",
            len(errors),
            len(table),
            shown,
        )
    return np.setdiff1d(np.arange(len(table)), list(errors))
