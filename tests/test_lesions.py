"""Lesion folders: what is read, attached, written and chosen, and every mistake by its row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules import lesions
from datamodules.index import DataError
from datamodules.lesions import (
    Lesion,
    attach_lesions,
    choose_lesions,
    leave_out_fold,
    write_lesions,
)

HEIGHT, WIDTH = 20, 30


def square(top=4, left=6, side=5, shape=(HEIGHT, WIDTH)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "MURA-v1.1"
    for name in ("a/image1.png", "a/image2.png", "b/image1.png", "c/image1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (WIDTH, HEIGHT)).save(root / name)
    return root


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "lesions"


@pytest.fixture
def attach(root, folder):
    """Attach the folder's lesions, or these rows, to three images, the last one normal."""
    paths = ["a/image1.png", "a/image2.png", "b/image1.png"]
    table = pd.DataFrame({"path": paths, "label": [1, 1, 0]})

    def attach(*rows, mask=None):
        if rows:
            folder.mkdir()
            text = "\n".join(["image,mask,lesion_type", *rows])
            (folder / "lesions.csv").write_text(text)
            Image.fromarray(square() if mask is None else mask).save(folder / "m.png")
            Image.fromarray(square(1)).save(folder / "n.png")
        return attach_lesions(table, folder, root)

    return attach


def test_what_is_written_is_read_and_attached(attach, folder):
    masks = {"a/image1.png": square(9, 2, 3), "a/image2.png": square()}
    made = [Lesion(name, mask, f"type {name[-5]}") for name, mask in masks.items()]
    assert write_lesions(folder, made[::-1]) == 2
    attached = attach()
    assert attached["lesion_type"].tolist() == ["type 1", "type 2", ""]
    assert attached["lesion_mask"][2] == ""
    for path, mask in zip(attached["lesion_mask"], masks.values(), strict=False):
        np.testing.assert_array_equal(np.array(Image.open(path)), mask)


def test_an_image_may_be_spelled_otherwise_or_left_out_of_the_index(attach, caplog):
    rows = ["MURA-v1.1/a/image1.png,m.png,metal", "b/.././a/image2.png,n.png,", "c/image1.png,o,"]
    attached = attach(*rows)
    assert attached["lesion_type"].tolist() == ["metal", "", ""]
    assert attached["lesion_mask"][1].endswith("n.png")
    assert "1 masks are of images left out, such as c/image1.png" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["d/image1.png,m.png,"], r"row 2: unknown image d/image1\.png"),
        (
            ["a/image1.png,m.png,", "a/image2.png,gone.png,"],
            r"row 3: the mask gone\.png cannot be read",
        ),
        (["b/image1.png,m.png,"], r"row 2: b/image1\.png is labelled normal but has a lesion"),
        (["a/image1.png,m.png,", "a/image2.png,./m.png,"], r"row 3: the mask m\.png is listed"),
        (["a/image1.png,m.png,", "MURA-v1.1/a/image1.png,n.png,"], "row 3: the image a/image1.p"),
        (["a/image1.png,,"], r"row 2: no mask is given"),
        ([",m.png,"], r"row 2: no image is given"),
    ],
)
def test_a_wrong_row_is_named(attach, rows, message):
    with pytest.raises(DataError, match=r"lesions\.csv, " + message):
        attach(*rows)


WHITE = square() * 0 + 255


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (square() * 0, "is empty"),
        (square() // 255, "holds the grey value 1. Fix: use 0"),
        (WHITE, "covers the whole image: is it inverted"),
        (np.dstack([WHITE] * 3 + [square()]), "has see-through pixels. Fix: flatten it"),
        (square(shape=(WIDTH, HEIGHT)), "is 20x30 px: expected 30x20 px, as its image is upright"),
    ],
)
def test_a_wrong_mask_is_named(attach, mask, message):
    with pytest.raises(DataError, match=rf"row 2: the mask m\.png {message}"):
        attach("a/image1.png,m.png,", mask=mask)


def test_the_size_is_that_of_the_upright_image(attach, root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (WIDTH, HEIGHT)).save(root / "a/image1.png", exif=exif)
    assert attach("a/image1.png,m.png,", mask=square(shape=(WIDTH, HEIGHT)))["lesion_mask"][0]


def test_writing_leaves_all_or_nothing(folder, tmp_path, monkeypatch):
    def broken():
        yield Lesion("a.png", square())
        raise DataError("the second is wrong")

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="the second is wrong"):
        write_lesions(folder, broken())
    with pytest.raises(DataError, match="mask of a.png: holds the grey value 1"):
        write_lesions(folder, [Lesion("a.png", square() // 255)])
    with monkeypatch.context() as patch:
        patch.setattr(lesions.Path, "write_bytes", full)
        with pytest.raises(DataError, match="cannot be written .No space left on device"):
            write_lesions(folder, [Lesion("a.png", square())])
    assert list(tmp_path.iterdir()) == []
    write_lesions(folder, [Lesion("a.png", square())])
    with pytest.raises(DataError, match="already exists"):
        write_lesions(folder, [Lesion("a.png", square())])


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 60, 400)
    return pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(400)],
            "patient": [f"p{number}" for number in patients],
            "body_part": np.array(["elbow", "hand", "wrist"])[patients % 3],
            "split": rng.choice(["train", "val", "test"], 400, p=[0.8, 0.1, 0.1]),
            "lesion_mask": np.where(rng.random(400) < 0.5, "/m.png", ""),
        }
    )


def test_the_choice_grows_by_patients_and_body_parts_in_turn(pool):
    """Train images with a mask, the same whatever the order of the table."""
    sizes = [set(choose_lesions(pool, count, 3)) for count in (0, 10, 50, 100, 10_000)]
    assert [len(chosen) for chosen in sizes[:4]] == [0, 10, 50, 100]
    for smaller, larger in pairwise(sizes):
        assert smaller <= larger
    usable = (pool["split"] == "train") & (pool["lesion_mask"] != "")
    assert sizes[-1] == set(np.flatnonzero(usable))
    first = pool.iloc[choose_lesions(pool, pool[usable]["patient"].nunique(), 0)]
    assert first["patient"].is_unique
    thirty = pool.iloc[choose_lesions(pool, 30, 0)]
    assert thirty["body_part"].value_counts().tolist() == [10, 10, 10]
    shuffled = pool.sample(frac=1, random_state=1)
    assert set(shuffled.iloc[choose_lesions(shuffled, 30, 0)]["path"]) == set(thirty["path"])
    assert set(pool.iloc[choose_lesions(pool, 30, 1)]["path"]) != set(thirty["path"])


@pytest.mark.parametrize(
    ("labels", "folds", "patients"), [("11", 2, 2), ("10", 1, 1), ("110", 3, 2), ("1100", 2, None)]
)
def test_a_fold_leaves_both_classes_in_train(labels, folds, patients):
    names = [f"p{row}" if label == "1" else "healthy" for row, label in enumerate(labels)]
    table = pd.DataFrame({"label": list(map(int, labels)), "split": "train", "patient": names})
    rows = np.flatnonzero(table["label"])
    if patients is None:
        left = leave_out_fold(table, rows, folds, 0, 0)["split"].tolist()
        assert sorted(left[:2]) == ["left_out", "train"]
        assert left[2:] == ["train", "train"]
        return
    with pytest.raises(DataError, match=rf"lesions\.folds={folds}: .* are of {patients} patients"):
        leave_out_fold(table, rows, folds, 0, 0)
