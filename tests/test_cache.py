"""The cache: built once, atomically; masks go in and maps come back to the pixel; augmentation."""

import os
import random
import shutil
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import pytest

from datamodules import cache
from datamodules.augmentation import Augmenter
from datamodules.cache import PixelCache, Recipe
from datamodules.decode import decode
from datamodules.geometry import content_box, from_square, letterbox, to_square
from datamodules.index import DataError
from datamodules.options import Augmentation

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
    def build(policy="error", index=lambda table: table):
        cache.build(tmp_path / "cache/a", lambda: index(table), tmp_path, RECIPE, policy)
        return PixelCache(tmp_path / "cache/a")

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


def test_images_to_judge_by_that_are_in_train_too_are_counted(build, table, tmp_path, caplog):
    table.loc[:, "split"] = ["train", "train", "val", "val", "test", "test"]
    for one, other in ((0, 2), (1, 5), (3, 4)):  # two that may judge do no harm
        image = cv2.imread(str(tmp_path / f"{one}.png"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(tmp_path / f"{other}.png"), image)
    table["lesion_mask"], table.loc[5, "label"] = "", 0
    opened, train = build(), (table["split"] == "train").to_numpy()
    assert [opened.leaks(train), opened.leaks(train & (table.index != 1))] == [2, 1]
    assert "2 images of val or test are also in train, pixel for pixel (such as 2.p" in caplog.text
    assert "2 images are both normal and abnormal, under two names (such as 1.png)" in caplog.text


def test_is_built_once_and_a_damaged_one_again(build, folder):
    folder.with_name(".a.0123.partial").mkdir(parents=True)  # what a killed build left
    build()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["a", "a.lock"]
    written = (folder / "images.u8").stat().st_mtime_ns
    build()
    assert (folder / "images.u8").stat().st_mtime_ns == written
    os.truncate(folder / "images.u8", 100)
    assert len(build().images) == 6


def test_unreadable_images_are_named_and_notes_shown(build, folder, tmp_path, caplog):
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


@pytest.mark.parametrize(("top", "result"), [(45, "cuts its lesion"), (60, "its lesion away. Fix")])
def test_a_lesion_that_the_crop_cuts_is_told(table, tmp_path, caplog, monkeypatch, top, result):
    crop = (0, top, 40, 20)  # lesions: rows 30 to 59
    monkeypatch.setattr(cache, "content_box", lambda image: crop)
    with pytest.raises(DataError, match=result) if top == 60 else nullcontext():
        cache.build(tmp_path / "a", lambda: table, tmp_path, Recipe(64, "content"), "error")
    assert top == 60 or f"3 images have a note:\n  1.png: data.crop=content {result}" in caplog.text


def invert(path):
    cv2.imwrite(str(path), 255 - decode(path))


@pytest.mark.parametrize(
    ("name", "change", "hashes", "images"),
    [
        ("5.png", lambda path: shutil.move(path.with_name("whole"), path), "image mask", 6),
        ("0.png", invert, "image", 5),
        ("3_mask.png", invert, "mask", 5),
        ("0.png", os.utime, "", 5),  # a copy: hashes are of what is shown
        ("0.png", Path.unlink, "image", 4),
    ],
)
def test_what_changed_is_cached_anew(build, tmp_path, caplog, name, change, hashes, images):
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


def test_a_cache_survives_what_cannot_be_built_anew_but_is_not_used(build, folder, monkeypatch):
    build()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "locked", Mock(side_effect=OSError(30, "Read-only file system")))
        build()  # a fresh one needs no lock
        invert(folder.parents[1] / "0.png")
        with pytest.raises(DataError, match=r"Read-only file system.*data\.cache_dir"):
            build()
    with pytest.raises(DataError, match=r"0\.png is not there"):
        build(index=Mock(side_effect=DataError("0.png is not there")))
    assert cache.is_whole(folder)


def test_a_full_disk_leaves_nothing_half(build, folder, monkeypatch):
    monkeypatch.setattr(cache.os, "pwrite", lambda *_: 7)  # a short write without an error
    with pytest.raises(DataError, match=r"cannot write the cache .*data.cache_dir"):
        build()
    assert [path.suffix for path in folder.parent.iterdir()] == [".lock"]


def test_contrast_stretch_uses_the_range_inside_the_letterbox():
    image = np.random.default_rng(0).integers(100, 140, (40, 64)).astype(np.uint8)
    square, geometry = Recipe(64, contrast="stretch").apply(image)
    inner = square[geometry.top : geometry.top + geometry.inner_height]
    assert (inner.min(), inner.max()) == (0, 255)
    assert (square[: geometry.top] == 0).all()


NOISE = np.random.default_rng(0).integers(0, 255, (200, 300)).astype(np.uint8)


def centre_of(image):
    """Centre of mass (x, y) in pixel centres."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((x * (image / image.sum())).sum()), float((y * (image / image.sum())).sum())


@pytest.mark.parametrize("shape", [(454, 373), (373, 454), (512, 512), (89, 512), (31, 20)])
@pytest.mark.parametrize("crop", [False, True])
def test_a_disc_comes_back_where_it_was_as_the_affine_states(shape, crop):
    """A mask through the square and back keeps its centre to half a pixel of the coarser grid."""
    height, width = shape
    box = (width // 8, height // 6, width * 3 // 4, height * 3 // 4) if crop else None
    g = letterbox(height, width, 320, box)
    centre = (width // 8 + width * 3 // 8 + 1, height // 6 + height * 3 // 8 - 1)
    mask = cv2.circle(np.zeros(shape, np.uint8), centre, max(3, min(shape) // 12), 255, -1)
    square, (x, y) = to_square(mask, g, 320), centre_of(mask)
    # Pixel centres lie at +0.5: resizing moves x + 0.5 to (x + 0.5) * scale.
    expected = (
        (x + 0.5 - g.crop_left) * g.inner_width / g.crop_width - 0.5 + g.left,
        (y + 0.5 - g.crop_top) * g.inner_height / g.crop_height - 0.5 + g.top,
    )
    assert centre_of(square) == pytest.approx(expected, abs=0.1)
    back = from_square(square, g)
    assert back.shape == shape
    assert centre_of(back) == pytest.approx((x, y), abs=0.25)
    both, either = (back > 127) & (mask > 127), (back > 127) | (mask > 127)
    assert both.sum() / either.sum() > 0.85


def test_content_box_finds_the_limb_on_grey_film_and_else_keeps_all():
    """A bright limb on film of grey 35 with a bar below; the marker is left out."""
    image = np.full((454, 373), 35, np.uint8)
    image[100:300, 150:250], image[440:] = 120, 255
    cv2.putText(image, "L", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 2)
    left, top, width, height = content_box(image)
    assert (left, top) == pytest.approx((135, 85), abs=15)
    assert (left + width, top + height) == pytest.approx((265, 315), abs=15)
    body = cv2.GaussianBlur(np.arange(300, dtype=np.uint8)[None] // 2 + NOISE // 4, (9, 9), 0)
    for whole in (body, *(np.full((60, 80), value, np.uint8) for value in (0, 128, 255))):
        assert content_box(whole) == (0, 0, *whole.shape[::-1])  # without film or content


def test_the_mask_moves_with_the_image():
    """A bright square is its own mask: they still agree afterwards, whatever the draw."""
    square = np.zeros((64, 64), np.uint8)
    square[20:36, 28:50] = 255
    augment = Augmenter(Augmentation(brightness=0, contrast=0), 0)
    for row in range(20):
        image, mask = augment(square, square.copy(), 0, row)
        assert np.abs(image.astype(int) - mask.astype(int)).max() <= 1
        assert 0.5 * 16 * 22 < (mask > 127).sum() < 1.6 * 16 * 22


@pytest.mark.parametrize(
    "strength",
    [
        Augmentation(noise=0.05),
        Augmentation(rotate=180, scale=0.5, shift=0.5, flip=1.0, contrast=1.0),
        Augmentation(flip=0.0, rotate=0.0, scale=0.0),
        Augmentation(True, 0, 0, 0, 0, 0, 0, 0),
    ],
)
def test_augmentation_is_what_compose_makes_of_seed_epoch_and_image(strength):
    """To the bit, whatever was augmented before."""
    augment, image = Augmenter(strength, 3), NOISE[:64, :48]
    compose = A.Compose(augment.steps)
    for row in range(25):
        mask = image.copy() if row % 2 else None
        changed, moved = augment(image, mask, 1, row)
        seed = int(np.random.SeedSequence((3, 1, row)).generate_state(1)[0])
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        compose.py_random = random.Random()  # its own draw, whether to do anything
        targets = {} if mask is None else {"mask": mask}
        wanted = compose(image=image[..., None], **targets)
        assert (changed == wanted["image"][..., 0]).all()
        assert mask is None or (moved == wanted["mask"]).all()


def test_augmentations_are_drawn_independently():
    """A flipped film may be brighter or darker, moved to either side."""
    drawn, augment = [], Augmenter(Augmentation(rotate=0, scale=0), 0)
    for row in range(400):
        augment(NOISE[:64, :48], None, 0, row)
        flip, move, grey = (step.params for step in augment.steps)
        drawn.append([bool(flip), *move["matrix"][:2, 2], grey["alpha"], grey["beta"]])
    assert np.abs(np.corrcoef(np.array(drawn, float).T) - np.eye(5)).max() < 0.2
