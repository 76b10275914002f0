"""The cache: built once, atomically, with a clear word where it cannot be."""

import errno
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from datamodules import cache
from datamodules.cache import PixelCache, Recipe
from datamodules.decode import decode
from datamodules.geometry import from_square
from datamodules.index import DataError

RECIPE = Recipe(64)


@pytest.fixture
def table(tmp_path):
    """Six images of different sizes, the odd ones with a lesion mask."""
    rng = np.random.default_rng(0)
    for number in range(6):
        size = (90 + 7 * number, 120 - 9 * number)
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 255, size).astype(np.uint8))
        mask = np.zeros(size, np.uint8)
        mask[30:60, 20:50] = 255
        cv2.imwrite(str(tmp_path / f"{number}_mask.png"), mask)
    masks = [str(tmp_path / f"{number}_mask.png") if number % 2 else "" for number in range(6)]
    table = pd.DataFrame({"path": [f"{number}.png" for number in range(6)], "lesion_mask": masks})
    return table.reindex(columns=list(cache.COLUMNS), fill_value="1").astype(cache.COLUMNS)


@pytest.fixture
def build(table, tmp_path):
    def build(policy="error", name="cache/a", index=lambda table: table):
        cache.build(tmp_path / name, lambda: index(table), tmp_path, RECIPE, policy)
        return PixelCache(tmp_path / name)

    return build


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "a"


def test_rows_masks_and_geometry_belong_together(build, table, tmp_path):
    opened = build()
    assert opened.table.to_dict() == table.to_dict()
    for row in range(6):
        square, geometry = RECIPE.apply(decode(tmp_path / f"{row}.png"))
        assert (opened.image(row) == square).all()
        assert opened.geometry_of(row) == geometry
        assert (opened.mask(row) is None) == (row % 2 == 0)
        if row % 2:
            back = from_square(np.asarray(opened.mask(row)), geometry) > 127
            mask = decode(tmp_path / f"{row}_mask.png") > 127
            assert (back & mask).sum() > 0.95 * mask.sum()


def test_is_built_once_and_a_damaged_one_again(build, folder):
    """A truncated file is noticed by its size, and what a killed build left is thrown away."""
    folder.with_name(".a.0123.partial").mkdir(parents=True)
    build()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["a", "a.lock"]
    written = (folder / "images.u8").stat().st_mtime_ns
    build()
    assert (folder / "images.u8").stat().st_mtime_ns == written
    os.truncate(folder / "images.u8", 100)
    assert len(build().images) == 6


def test_unreadable_images_are_named_and_notes_shown(build, folder, tmp_path, caplog):
    """With "error" none is used; with "skip" the others are, and the list is kept."""
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "4.png").write_bytes(b"no image")
    deep = decode(tmp_path / "2.png").astype(np.uint16) * 16
    deep[:12, :12] = 65535  # a marker at full scale
    cv2.imwrite(str(tmp_path / "2.png"), deep)
    with pytest.raises(DataError, match=r"(?s)2 images.*1\.png.*4\.png.*data.unreadable=skip"):
        build()
    assert not folder.exists()
    caplog.clear()
    opened = build("skip")
    assert caplog.messages[0].startswith("1 images have a note:\n  2.png: ")
    assert opened.table["path"].tolist() == ["0.png", "2.png", "3.png", "5.png"]
    assert (opened.image(2) == RECIPE.apply(decode(tmp_path / "3.png"))[0]).all()
    assert opened.mask(2) is not None
    assert pd.read_csv(folder / "unreadable.csv")["path"].tolist() == ["1.png", "4.png"]


def invert(path):
    cv2.imwrite(str(path), 255 - decode(path))


@pytest.mark.parametrize(
    ("name", "change", "hashes", "images"),
    [
        ("5.png", lambda path: shutil.move(path.with_name("whole"), path), "image mask", 6),
        ("0.png", invert, "image", 5),
        ("3_mask.png", invert, "mask", 5),
        ("0.png", os.utime, "", 5),  # a copy
        ("0.png", Path.unlink, "image", 4),
    ],
)
def test_what_changed_beneath_the_cache_builds_it_anew(
    build, tmp_path, caplog, name, change, hashes, images
):
    """Squares are of today's files; a hash changes with what is shown, not with a file's time."""
    shutil.copy(tmp_path / "5.png", tmp_path / "whole")
    (tmp_path / "5.png").write_bytes(b"no image")
    before = build("skip")
    assert len(before.table) == 5
    change(tmp_path / name)
    caplog.clear()
    after = build("skip")
    assert "is out of date (images or masks changed) or damaged; it is built anew" in caplog.text
    assert len(after.table) == images
    for row, path in enumerate(after.table["path"]):
        assert (after.image(row) == RECIPE.apply(decode(tmp_path / path))[0]).all()
    assert (before.image_hash != after.image_hash) == ("image" in hashes)
    assert (before.mask_hash != after.mask_hash) == ("mask" in hashes)
    caplog.clear()
    build("skip")
    assert "out of date" not in caplog.text


def test_a_cache_survives_what_cannot_be_built_anew_but_is_not_used(build, folder, monkeypatch):
    """A fresh one is, also where the disk is read-only."""

    def lacks(table):
        raise DataError("0.png is not there")

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    build()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "locked", read_only)
        build()
        invert(folder.parents[1] / "0.png")
        with pytest.raises(DataError, match=r"Read-only file system.*data\.cache_dir"):
            build()
    with pytest.raises(DataError, match=r"0\.png is not there"):
        build(index=lacks)
    assert cache.is_whole(folder)


def test_the_mask_hash_is_of_what_is_drawn_and_not_of_the_file(build, table, tmp_path):
    first, mask = build(), decode(tmp_path / "1_mask.png")
    moved = table.loc[1, "lesion_mask"] = str(tmp_path / "moved.PNG")
    cv2.imwrite(moved, mask, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    assert build(name="b").mask_hash == first.mask_hash


def test_a_full_disk_leaves_nothing_half(build, folder, monkeypatch):
    """The last write may be short without an error."""
    monkeypatch.setattr(cache.os, "pwrite", lambda *_: 7)
    with pytest.raises(DataError, match=r"cannot write the cache .*data.cache_dir"):
        build()
    assert [path.suffix for path in folder.parent.iterdir()] == [".lock"]


def test_contrast_stretch_uses_the_range_inside_the_letterbox():
    """Bars stay black; the content spans the range."""
    image = np.random.default_rng(0).integers(100, 140, (40, 64)).astype(np.uint8)
    square, geometry = Recipe(64, contrast="stretch").apply(image)
    inner = square[geometry.top : geometry.top + geometry.inner_height]
    assert (inner.min(), inner.max()) == (0, 255)
    assert (square[: geometry.top] == 0).all()
