"""Decoded, letterboxed images in one memory-mapped file, built once, in parallel, atomically.

A cache is a folder: the checked index (``index.csv``), pixels (``images.u8``, ``masks.u8``: raw
uint8 squares), how they came in (``geometry.npz``), of which files (``stamps.json``).
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from datamodules.decode import decode, decode_noted, read_content
from datamodules.files import locked, usable_cores, whole_folder
from datamodules.geometry import Geometry, content_box, letterbox, to_square
from datamodules.index import COLUMNS, DataError, digest, hash_rows

log = logging.getLogger(__name__)

Check = Callable[[pd.DataFrame], pd.DataFrame]
FORMAT = 4  # raised whenever files are read otherwise, or what is cached changes its meaning

LEAKS = "%d images of val or test are also in train, pixel for pixel (%s): figures are too good"
TWO_LABELS = "%d images are both normal and abnormal, under two names (%s): correct the wrong label"


@dataclass(frozen=True)
class Recipe:
    """What turns an original into a cached square; part of the key."""

    image_size: int
    crop: str = "none"
    contrast: str = "none"

    def apply(self, image: np.ndarray) -> tuple[np.ndarray, Geometry]:
        """Return the square (size, size) uint8 of an upright image and its geometry."""
        box = content_box(image) if self.crop == "content" else None
        height, width = image.shape
        geometry = letterbox(height, width, self.image_size, box)
        square = to_square(image, geometry, self.image_size)
        if self.contrast != "none":
            square[geometry.inside] = _spread(square[geometry.inside], self.contrast)
        return square, geometry


def _spread(inner: np.ndarray, method: str) -> np.ndarray:
    """Spread the grey values inside the letterbox over the whole range."""
    if method == "clahe":
        equaliser = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))
        inner = equaliser.apply(np.ascontiguousarray(inner))
    low, high = np.percentile(inner, (1.0, 99.5))
    stretched = (inner.astype(np.float32) - low) * (255.0 / max(high - low, 1.0))
    return np.clip(np.rint(stretched), 0, 255).astype(np.uint8)


class PixelCache:
    """An opened cache: the index table, and the squares and hashes that belong to its rows."""

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        self.image_hash: str = meta["image_hash"]  # of what the images show, at original size
        self.mask_hash: str = meta["mask_hash"]
        self.table = pd.read_csv(folder / "index.csv", dtype=COLUMNS, keep_default_na=False)
        arrays = np.load(folder / "geometry.npz")
        self.geometry = arrays["geometry"]  # (N, 10) int32, see Geometry
        self._shown = arrays["shown"]  # (N,), the same where the pixels are
        # Row i's image lies in slot[i], its mask in mask_slot[i] (-1: none).
        self.slot, self.mask_slot = arrays["slot"], arrays["mask_slot"]
        side = meta["image_size"]
        self.images, self.masks = (  # (slots, S, S) uint8; in masks 255 = lesion
            np.memmap(folder / f"{kind}.u8", np.uint8, "r", shape=(meta[kind], side, side))
            if meta[kind]  # an empty file cannot be mapped
            else np.zeros((0, side, side), np.uint8)
            for kind in ("images", "masks")
        )

    def leaks(self, train: np.ndarray) -> int:
        """How many images outside ``train``, bool (N,), show the pixels of one in it."""
        return int(np.isin(self._shown[~train], self._shown[train]).sum())

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


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` holds a finished cache whose files have the sizes that were written."""
    try:
        files = json.loads((folder / "meta.json").read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError):
        return False


def build(
    folder: Path,
    build_index: Callable[[], pd.DataFrame],
    root: Path,
    recipe: Recipe,
    on_unreadable: str,
    check: Check = lambda table: table,
) -> None:
    """Build the cache in ``folder``, unless it is of today's files; processes wait for each other.

    Images that cannot be read are a DataError where ``on_unreadable`` is "error", else left out;
    ``check`` sees the rows that are left.
    """
    if _is_current(folder, root):
        return  # also where the folder is read-only
    if folder.exists():
        log.warning(
            "%s is out of date (images or masks changed) or damaged; it is built anew", folder
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")) as alone:
            if _is_current(folder, root):
                return
            table = build_index()  # where that fails, nothing is lost
            shutil.rmtree(folder, ignore_errors=True)
            with whole_folder(folder, alone) as partial:
                _fill(partial, table, root, recipe, on_unreadable, check)
    except OSError as error:
        if _is_current(folder, root):  # without locks: another process was first
            return
        raise DataError(
            f"cannot write the cache to {folder.parent} ({error.strerror or error}). Fix: make "
            "room and write access there, or set data.cache_dir to another folder"
        ) from error


def _is_current(folder: Path, root: Path) -> bool:
    """Whether ``folder`` holds a finished cache of today's images and masks."""
    if not is_whole(folder):
        return False
    stamps = json.loads((folder / "stamps.json").read_text())
    return _stamps(root, list(stamps)) == stamps


def _stamps(root: Path, files: list[str]) -> dict[str, str]:
    """Size and time of each of ``files`` (below ``root`` or absolute), "" where it is missing."""

    def stamp(name: str) -> str:
        try:
            stat = os.stat(os.path.join(root, name))
        except OSError:
            return ""
        return f"{stat.st_size} {stat.st_mtime_ns}"

    with ThreadPoolExecutor(32) as pool:  # network file systems answer slowly but in parallel
        return dict(zip(files, pool.map(stamp, files), strict=True))


def _fill(
    folder: Path, table: pd.DataFrame, root: Path, recipe: Recipe, on_unreadable: str, check: Check
) -> None:
    masked = (table["lesion_mask"] != "").to_numpy()
    mask_slot = np.where(masked, np.cumsum(masked) - 1, -1)
    stamps = _stamps(root, [*table["path"], *table["lesion_mask"][masked]])  # before any is read
    rows = _write_squares(folder, table, mask_slot, root, recipe)
    if len(noted := rows[rows["note"] != ""]):
        notes = "\n  ".join(noted["path"][:5] + ": " + noted["note"][:5])
        log.warning("%d images have a note:\n  %s", len(noted), notes)
    if len(lost := rows.loc[rows["error"] != "", ["path", "error"]]):
        examples = "\n  ".join([f"{len(lost)} images cannot be read:", *lost["error"][:5]])
        if on_unreadable == "error":
            raise DataError(f"{examples}\nFix: replace them, or set data.unreadable=skip")
        here = lost["error"][lost["error"].str.contains("Permission denied|pip install")]
        if len(here):  # no fault of the file: once mended it must be read
            raise DataError(f"{len(here)} images cannot be read here:\n  {here.iloc[0]}")
        log.warning("left out (all in unreadable.csv in the cache): %s", examples)
        lost.rename(columns={"error": "reason"}).to_csv(folder / "unreadable.csv", index=False)
    kept = np.flatnonzero(rows["error"] == "")
    rows = rows.iloc[kept]
    check(table.iloc[kept]).to_csv(folder / "index.csv", index=False)
    geometry = np.array(rows["geometry"].tolist(), dtype=np.int32)
    places, shown = mask_slot[kept], pd.factorize(rows["image"])[0]
    file = folder / "geometry.npz"
    np.savez(file, slot=kept, mask_slot=places, geometry=geometry, shown=shown)
    (folder / "stamps.json").write_text(json.dumps(stamps))
    images, masks = (
        rows.rename(columns={kind: "drawn"}).query("drawn != ''")[["path", "drawn"]]
        for kind in ("image", "mask")
    )
    # The same pixels: under another name, or another patient's.
    same, path = rows["image"], rows["path"]
    judges = (table["split"].iloc[kept] != "train").to_numpy()
    labels = table["label"].iloc[kept].groupby(same.to_numpy()).transform("nunique").to_numpy()
    wrong = (LEAKS, judges & same.isin(same[~judges])), (TWO_LABELS, labels > 1)
    for warning, where in wrong:
        if where.any():
            log.warning(warning, where.sum(), f"such as {path[where].iloc[0]}")
    meta = {
        "image_size": recipe.image_size,
        "images": len(table),
        "masks": int(masked.sum()),
        "image_hash": hash_rows(images),
        "mask_hash": hash_rows(masks),
        "files": {path.name: path.stat().st_size for path in folder.iterdir()},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    for path in folder.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())


def _write_squares(
    folder: Path, table: pd.DataFrame, mask_slot: np.ndarray, root: Path, recipe: Recipe
) -> pd.DataFrame:
    """Write ``images.u8`` and ``masks.u8``; what became of each image, and hashes of its pixels."""
    square, count, masks = recipe.image_size**2, len(table), int((mask_slot >= 0).sum())

    def write(file: IO[bytes], slot: int, pixels: np.ndarray) -> None:
        # Not a memory map: a full disk is an error here, there a SIGBUS. The last write before it
        # may be short without an error.
        if os.pwrite(file.fileno(), pixels.tobytes(), slot * square) != square:
            raise OSError(errno.ENOSPC, "No space left on device")

    def convert(slot: int, path: str, mask_path: str, mask_slot: int) -> tuple[Any, ...]:
        try:
            image, note = decode_noted(read_content(root / path), root / path)
        except DataError as error:
            return path, None, "", "", "", str(error)
        pixels, geometry = recipe.apply(image)
        write(image_file, slot, pixels)
        image_hash, mask_hash = f"{image.shape} {digest(image.tobytes())}", ""
        if mask_path:
            mask = np.where(decode(Path(mask_path)) > 127, 255, 0).astype(np.uint8)
            mask_hash, inside = digest(mask.tobytes()), mask[geometry.kept]
            if not inside.any():
                cut = f"data.crop={recipe.crop} cuts its lesion away. Fix: data.crop=none"
                return path, None, "", "", "", f"{root / path}: {cut}"
            if np.count_nonzero(inside) < np.count_nonzero(mask):
                note = "; ".join(filter(None, (note, f"data.crop={recipe.crop} cuts its lesion")))
            write(mask_file, mask_slot, to_square(mask, geometry, recipe.image_size))
        return path, geometry, image_hash, mask_hash, note, ""

    cv2.setNumThreads(0)  # the threads here are enough; OpenCV's own would only compete
    columns = range(count), table["path"], table["lesion_mask"], mask_slot.tolist()
    with (
        (folder / "images.u8").open("wb") as image_file,
        (folder / "masks.u8").open("wb") as mask_file,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        made = pool.map(convert, *columns)
        rows = list(tqdm(made, "caching images", count, leave=False, unit=" images", disable=None))
        image_file.truncate(count * square)  # unreadable ones at the end were not written
        mask_file.truncate(masks * square)
    return pd.DataFrame(rows, columns=["path", "geometry", "image", "mask", "note", "error"])
