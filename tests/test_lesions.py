"""Lesion folders: what is read, attached, written and chosen, and every mistake by its row."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules import lesions
from datamodules.index import DataError
from datamodules.lesions import Lesion, attach_lesions, choose_lesions, write_lesions

HEIGHT, WIDTH = 20, 30


SQUARE = np.zeros((HEIGHT, WIDTH), np.uint8)
SQUARE[4:9, 6:11] = 255
WHITE = SQUARE * 0 + 255


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

    def attach(*rows, mask=SQUARE):
        if rows:
            folder.mkdir()
            (folder / "lesions.csv").write_text("\n".join(["image,mask,lesion_type", *rows]))
            for name, pixels in {"m.png": mask, "n.png": SQUARE}.items():
                Image.fromarray(pixels).save(folder / name)
        return attach_lesions(table, folder, root)

    return attach


def test_what_is_written_is_read_and_attached(attach, folder, root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (HEIGHT, WIDTH)).save(root / "a/image1.png", exif=exif)  # turned upright
    masks = {"a/image1.png": SQUARE[::-1], "a/image2.png": SQUARE}
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
    ("row", "message"),
    [
        ("d/image1.png,m.png,", r"unknown image d/image1\.png"),
        ("a/image2.png,gone.png,", r"the mask gone\.png cannot be read"),
        ("b/image1.png,m.png,", r"b/image1\.png is labelled normal but has a lesion"),
        ("a/image2.png,./n.png,", r"the mask n\.png is listed twice"),
        ("MURA-v1.1/a/image1.png,m.png,", r"the image a/image1\.png is listed twice"),
        ("a/image2.png,,", "no mask is given"),
    ],
)
def test_a_wrong_row_is_named(attach, row, message):
    with pytest.raises(DataError, match=r"lesions\.csv, row 3: " + message):
        attach("a/image1.png,n.png,", row)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (SQUARE * 0, "is empty"),
        (SQUARE // 255, "holds the grey value 1. Fix: use 0"),
        (WHITE, "covers the whole image: is it inverted"),
        (np.dstack([WHITE] * 3 + [SQUARE]), "has see-through pixels. Fix: flatten it"),
        (SQUARE.T, "is 20x30 px: expected 30x20 px, as its image is upright"),
    ],
)
def test_a_wrong_mask_is_named(attach, mask, message):
    with pytest.raises(DataError, match=rf"row 2: the mask m\.png {message}"):
        attach("a/image1.png,m.png,", mask=mask)


def test_writing_leaves_all_or_nothing(folder, tmp_path, monkeypatch):
    def broken():
        yield Lesion("a.png", SQUARE)
        yield Lesion("b.png", SQUARE // 255)

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"mask of b\.png: holds the grey value 1"):
        write_lesions(folder, broken())
    with monkeypatch.context() as patch:
        patch.setattr(lesions.Path, "write_bytes", full)
        with pytest.raises(DataError, match="cannot be written .No space left on device"):
            write_lesions(folder, [Lesion("a.png", SQUARE)])
    assert list(tmp_path.iterdir()) == []
    write_lesions(folder, [Lesion("a.png", SQUARE)])
    with pytest.raises(DataError, match="already exists"):
        write_lesions(folder, [Lesion("a.png", SQUARE)])


def test_the_choice_grows_by_patients_and_body_parts_in_turn():
    """Train images with a mask, the same whatever the order of the table."""
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 60, 400)
    pool = pd.DataFrame({"patient": patients.astype(str)})
    pool["path"] = pool.index.astype(str) + ".png"
    pool["body_part"] = np.array(["elbow", "hand", "wrist"])[patients % 3]
    pool["split"] = rng.choice(["train", "val", "test"], 400, p=[0.8, 0.1, 0.1])
    pool["lesion_mask"] = np.where(rng.random(400) < 0.5, "/m.png", "")
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


@pytest.mark.parametrize(("labels", "folds", "patients"), [("11", 2, 2), ("110", 3, 2)])
def test_a_fold_leaves_both_classes_in_train(labels, folds, patients):
    names = [f"p{row}" if label == "1" else "healthy" for row, label in enumerate(labels)]
    table = pd.DataFrame({"label": list(map(int, labels)), "split": "train", "patient": names})
    rows = np.flatnonzero(table["label"])
    with pytest.raises(DataError, match=rf"lesions\.folds={folds}: .* are of {patients} patients"):
        lesions.leave_out_fold(table, rows, folds, 0, 0)
