"""The cache: built once, atomically, with a clear word where it cannot be."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules import cache
from datamodules.cache import PixelCache, Recipe
from datamodules.decode import decode
from datamodules.geometry import from_square
from datamodules.index import DataError

RECIPE = Recipe(64)


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """Six images of different sizes, the odd ones with a lesion mask."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(6):
        size = (90 + 7 * number, 120 - 9 * number)
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 255, size).astype(np.uint8))
        mask_path = ""
        if number % 2:
            mask = np.zeros(size, np.uint8)
            mask[30:60, 20:50] = 255
            mask_path = str(tmp_path / f"{number}_mask.png")
            cv2.imwrite(mask_path, mask)
        rows.append(
            {
                "path": f"{number}.png",
                "label": number % 2,
                "patient": str(number),
                "study": str(number),
                "body_part": "hand",
                "split": "train",
                "lesion_mask": mask_path,
                "lesion_type": "",
                "hardware": -1,
            }
        )
    return tmp_path, pd.DataFrame(rows)


def build(source: tuple[Path, pd.DataFrame], folder: Path, policy: str = "error") -> PixelCache:
    """Build and open."""
    root, table = source
    cache.build(folder, lambda: table, root, RECIPE, policy)
    return PixelCache(folder)


def test_rows_masks_and_geometry_belong_together(
    source: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    """Each row reads its own image and mask; the mask comes back where it was drawn."""
    opened = build(source, tmp_path / "cache" / "a")
    root, table = source
    assert opened.table.to_dict() == table.to_dict()
    for row in range(6):
        original = cv2.imread(str(root / f"{row}.png"), 0)
        square, geometry = RECIPE.apply(original)
        assert (opened.image(row) == square).all()
        assert opened.geometry_of(row) == geometry
        mask = opened.mask(row)
        assert (mask is None) == (row % 2 == 0)
        if mask is not None:
            back = from_square(np.asarray(mask), geometry)
            drawn = cv2.imread(table["lesion_mask"][row], 0)
            assert np.logical_and(back > 127, drawn > 127).sum() > 0.95 * (drawn > 127).sum()


def test_is_built_once_and_a_damaged_one_again(
    source: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    """A whole cache is not touched; a truncated file is noticed by its size."""
    folder = tmp_path / "cache" / "a"
    build(source, folder)
    written = (folder / "images.u8").stat().st_mtime_ns
    build(source, folder)
    assert (folder / "images.u8").stat().st_mtime_ns == written
    os.truncate(folder / "images.u8", 100)
    assert not cache.is_whole(folder)
    assert len(build(source, folder).images) == 6


def test_a_build_that_was_killed_is_never_used(
    source: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    """What a killed process left beside the place is thrown away."""
    folder = tmp_path / "cache" / "a"
    left = folder.with_name("a.partial")
    left.mkdir(parents=True)
    (left / "meta.json").write_text("{}")
    assert not cache.is_whole(folder)
    build(source, folder)
    assert not left.exists()


def test_unreadable_images_are_all_named(source: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    """With "error" none is used; with "skip" the others are, and the list is kept."""
    root, _ = source
    (root / "1.png").write_bytes(b"")
    (root / "4.png").write_bytes(b"no image")
    folder = tmp_path / "cache" / "a"
    with pytest.raises(DataError, match=r"(?s)2 of 6 images.*1\.png.*4\.png.*data.unreadable=skip"):
        build(source, folder)
    assert not folder.exists()
    opened = build(source, folder, "skip")
    assert opened.table["path"].tolist() == ["0.png", "2.png", "3.png", "5.png"]
    assert (opened.image(2) == RECIPE.apply(cv2.imread(str(root / "3.png"), 0))[0]).all()
    assert opened.mask(2) is not None
    assert pd.read_csv(folder / "unreadable.csv")["path"].tolist() == ["1.png", "4.png"]


def test_images_that_are_not_shown_as_usual_are_named_in_one_line(
    source: tuple[Path, pd.DataFrame], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A 16-bit image with a marker at full scale."""
    deep = cv2.imread(str(source[0] / "2.png"), 0).astype(np.uint16) * 16
    deep[:12, :12] = 65535
    cv2.imwrite(str(source[0] / "2.png"), deep)
    build(source, tmp_path / "cache" / "a")
    (message,) = caplog.messages
    assert message.startswith("1 images have a note:\n  2.png: ")


def replace(path: Path, *, value: int = 9, turned: bool = False, stamp: int | None = None) -> None:
    """Put another JPEG, of one size in bytes, in the place of a file; ``stamp``: its time."""
    pixels = np.full((90, 120), value, np.uint8)
    pixels[:9] = 200
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.fromarray(pixels).save(path, "JPEG", exif=exif)
    if stamp is not None:
        os.utime(path, ns=(stamp, stamp))


def repaired(root: Path, table: pd.DataFrame) -> None:
    shutil.move(root / "whole", root / "5.png")


def inverted(root: Path, table: pd.DataFrame) -> None:
    cv2.imwrite(str(root / "0.png"), 255 - cv2.imread(str(root / "0.png"), 0))


def turned_in_exif(root: Path, table: pd.DataFrame) -> None:
    replace(root / "2.png", turned=True)


def older(root: Path, table: pd.DataFrame) -> None:
    size = (root / "2.png").stat().st_size
    replace(root / "2.png", value=9, turned=True, stamp=10**18)
    assert (root / "2.png").stat().st_size == size


def link_led_elsewhere(root: Path, table: pd.DataFrame) -> None:
    (root / "4.png").unlink()
    (root / "4.png").symlink_to(root / "0.png")


def mask_drawn_in_place(root: Path, table: pd.DataFrame) -> None:
    cv2.imwrite(table["lesion_mask"][3], 255 - cv2.imread(table["lesion_mask"][3], 0))


def copied(root: Path, table: pd.DataFrame) -> None:
    os.utime(root / "0.png")


def link_broken(root: Path, table: pd.DataFrame) -> None:
    (root / "4.png").unlink()
    (root / "4.png").symlink_to(root / "nowhere")


def deleted(root: Path, table: pd.DataFrame) -> None:
    (root / "0.png").unlink()


@pytest.mark.parametrize(
    ("change", "name", "hashes", "images"),
    [
        (repaired, "5.png", "image_hash mask_hash", 6),
        (inverted, "0.png", "image_hash", 5),
        (turned_in_exif, "2.png", "image_hash", 5),
        (older, "2.png", "image_hash", 5),
        (link_led_elsewhere, "4.png", "image_hash", 5),
        (mask_drawn_in_place, "3_mask.png", "mask_hash", 5),
        (copied, "0.png", "", 5),
        (link_broken, "4.png", "image_hash", 4),
        (deleted, "0.png", "image_hash", 4),
    ],
)
def test_what_changed_beneath_the_cache_builds_it_anew(
    source: tuple[Path, pd.DataFrame],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path, pd.DataFrame], None],
    name: str,
    hashes: str,
    images: int,
) -> None:
    """Squares are of today's files; a hash changes with what is shown, not with a file's time."""
    root, table = source
    shutil.copy(root / "5.png", root / "whole")
    (root / "5.png").write_bytes(b"no image")
    replace(root / "2.png")
    folder = tmp_path / "cache" / "a"
    before = build(source, folder, "skip")
    assert len(before.table) == 5
    caplog.clear()
    change(root, table)
    after = build(source, folder, "skip")
    assert f"{folder} is out of date (1 of 9 images and masks changed, such as " in caplog.text
    assert f"{name}); it is built anew" in caplog.text
    assert len(after.table) == images
    for row, path in enumerate(after.table["path"]):
        assert (after.image(row) == RECIPE.apply(decode(root / path))[0]).all()
    for key in ("image_hash", "mask_hash"):
        assert (getattr(before, key) != getattr(after, key)) == (key in hashes), key
    caplog.clear()
    assert len(build(source, folder, "skip").table) == images
    assert "out of date" not in caplog.text


def test_where_no_image_is_there_the_cache_goes_on(
    source: tuple[Path, pd.DataFrame], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is not mounted; one image that lacks among others is an error, and costs none."""
    root, _ = source
    folder = tmp_path / "cache" / "a"
    before = build(source, folder)
    (root / "0.png").unlink()

    def index() -> pd.DataFrame:
        raise DataError("0.png is not there")

    with pytest.raises(DataError, match=r"0\.png is not there"):
        cache.build(folder, index, root, RECIPE, "error")
    assert cache.is_whole(folder)
    for path in root.glob("?.png"):
        path.unlink()
    assert build(source, folder).image_hash == before.image_hash
    assert f"{root}: no image is there; they are taken from {folder}, as they were" in caplog.text
    mask_drawn_in_place(root, source[1])  # what is there is compared all the same
    with pytest.raises(DataError, match="is not there"):
        cache.build(folder, index, root, RECIPE, "error")


def test_a_stale_cache_that_cannot_be_written_is_not_used(
    source: tuple[Path, pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A fresh one is, also where the disk is read-only."""

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    folder = tmp_path / "cache" / "a"
    build(source, folder)
    monkeypatch.setattr(cache, "locked", read_only)
    assert len(build(source, folder).table) == 6
    inverted(*source)
    with pytest.raises(DataError, match=r"Read-only file system.*data\.cache_dir"):
        build(source, folder)
    assert "is out of date (1 of 9" in caplog.text


def test_the_mask_hash_is_of_what_is_drawn_and_where(
    source: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    """Neither of the file, its name nor its compression; a cache without one is built anew."""
    _, table = source
    first = build(source, tmp_path / "a")
    mask = cv2.imread(table["lesion_mask"][1], 0)
    moved = tmp_path / "moved.PNG"
    cv2.imwrite(str(moved), mask, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    table.loc[1, "lesion_mask"] = str(moved)
    assert build(source, tmp_path / "b").mask_hash == first.mask_hash
    cv2.imwrite(str(moved), cv2.dilate(mask, np.ones((3, 3))))
    assert build(source, tmp_path / "c").mask_hash != first.mask_hash
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    del meta["mask_hash"]
    (tmp_path / "a" / "meta.json").write_text(json.dumps(meta))
    assert build(source, tmp_path / "a").mask_hash != first.mask_hash


def test_a_mask_of_another_size_is_an_error(
    source: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    """It names both files' sizes."""
    cv2.imwrite(source[1]["lesion_mask"][3], np.full((10, 12), 255, np.uint8))
    with pytest.raises(DataError, match=r"12 x 10 pixels, its image 3\.png"):
        build(source, tmp_path / "cache" / "a")


def test_full_disk_is_said_and_nothing_half_is_left(
    source: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both before writing (too little space) and in its middle (ENOSPC)."""
    folder = tmp_path / "cache" / "a"

    def full(*_: object) -> int:
        return 7  # the last write before a full disk may be short without an error

    monkeypatch.setattr(cache.os, "pwrite", full)
    with pytest.raises(DataError, match=r"disk of .* is full.*data.cache_dir"):
        build(source, folder)
    monkeypatch.undo()
    usage = cache.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="is full"):
        build(source, folder)
    assert [path.suffix for path in folder.parent.iterdir()] == [".lock"]


def test_contrast_stretch_uses_the_range_inside_the_letterbox() -> None:
    """Bars stay black; the content spans the range."""
    image = np.random.default_rng(0).integers(100, 140, (40, 64)).astype(np.uint8)
    square, geometry = Recipe(64, contrast="stretch").apply(image)
    inner = square[geometry.top : geometry.top + geometry.inner_height]
    assert inner.min() == 0
    assert inner.max() == 255
    assert (square[: geometry.top] == 0).all()


def test_the_key_covers_what_shapes_the_cache() -> None:
    """Any part that differs gives another folder."""
    parts = {"source": "mura", "recipe": Recipe(320), "seed": 0}
    keys = {
        cache.cache_key(parts),
        cache.cache_key({**parts, "seed": 1}),
        cache.cache_key({**parts, "recipe": Recipe(320, crop="content")}),
    }
    assert len(keys) == 3
