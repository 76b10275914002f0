"""The index table, its CSVs and lesion folders: what is read and chosen, mistakes by their row."""

from itertools import pairwise
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules import index, lesions
from datamodules.index import DataError, assign_groups, read_csv
from datamodules.lesions import Lesion, attach_lesions, choose_lesions, write_lesions
from tests.annotation_samples import HEIGHT, WIDTH, square


@pytest.fixture
def rows():
    """Two hundred patients with one to five images each, a third abnormal."""
    rng = np.random.default_rng(0)
    views = np.repeat(np.arange(200), rng.integers(1, 6, 200))
    names = [f"p{patient}" for patient in views]
    table = pd.DataFrame({"patient": names, "study": names, "label": (views % 3 == 0).astype(int)})
    table["path"] = [f"{patient}/{place}.png" for place, patient in enumerate(views)]
    about = {"split": "train", "lesion_mask": "", "lesion_type": "", "hardware": -1}
    return table.assign(body_part="hand", **about)


def test_groups_keep_patients_apart_and_both_classes_near_their_share(rows):
    drawn = assign_groups(rows, seed=0)
    index.check_patients_apart(drawn, "made up")
    share = pd.crosstab(drawn["label"], drawn["split"], normalize="index")
    shares = share[["train", "val", "test"]].to_numpy()
    assert shares == pytest.approx(np.array([[0.7, 0.1, 0.2]] * 2), abs=0.03)
    again = assign_groups(rows.sample(frac=1, random_state=1), seed=0).sort_index()
    assert (drawn["split"] == again["split"]).all(), "whatever the order of the table"
    assert (drawn["split"] != assign_groups(rows, seed=1)["split"]).any()
    limited = index.limit_split(drawn, 10).groupby(["split", "label"]).size()
    assert limited.tolist() == [5] * 6


@pytest.mark.parametrize(
    ("where", "column", "value", "message"),
    [
        ("index == 7", "label", 2, r"/7\.png \(label 2\). Fix: correct"),
        ("index == 7", "path", "0/0.png", r"each path once, .* got 0/0\.png"),
        ("split == 'train'", "split", "test", "train split holds no images"),
        ("split == 'val' and label", "split", "test", "val split holds only normal images"),
        ("path == '0/1.png'", "split", "test", r"that of train \(0/0\.png\) and test \(0/1\.png\)"),
    ],
)
def test_a_faulty_table_is_refused(rows, where, column, value, message):
    rows = assign_groups(rows, seed=0)
    rows.loc[rows.query(where).index, column] = value
    check = index.check_patients_apart if "path ==" in where else index.check_index
    with pytest.raises(DataError, match=message):
        check(rows, "made up")


@pytest.fixture
def read(tmp_path):
    def read(text, encoding="utf-8"):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        return read_csv(tmp_path / "t.csv", ["image", "mask"])

    return read


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image,mask\r\n\r\na/1.png,m.png\r\n", "utf-8-sig"),
        ("image\tmask\tsize\r\na/1.png\tm.png\t1,5 cm\r\n", "utf-16"),
        ('image , mask,size\na\\1.png,m.png,"1,5 cm"\n , ,\n', "utf-8"),
        ("a;image;b;mask;size,x\n;a/1.png;;m.png;\n", "utf-8"),
    ],
)
def test_a_spreadsheet_may_write_the_csv(read, text, encoding):
    rows = read(text, encoding)
    assert rows[["image", "mask"]].to_numpy().tolist() == [["a/1.png", "m.png"]]
    assert rows.get("size", pd.Series("")).iloc[0] == ("1,5 cm" if "1,5" in text else "")
    line = next(n for n, line in enumerate(text.splitlines(), 1) if "1.png" in line)
    assert rows.index.tolist() == [line]


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("", "utf-8", "cannot be read as CSV"),
        ("image|mask\na|b\n", "utf-8", r"lacks the column 'image'.*semicolons or tabs\)"),
        ("image;mask\na;b;c\n", "utf-8", r"more fields than.* holds one \(';'\) in quotes"),
        ("image,mask\nRöhre,m.png\n", "cp1252", "cannot be read .* Fix: save it as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(read, text, encoding, message):
    with pytest.raises(DataError, match=rf"t\.csv: .*{message}"):
        read(text, encoding)


def test_a_text_of_several_lines_is_no_row(read):
    rows = read('sep=,\nimage,mask\na.png,"fell;\nno fracture, no effusion, or so"\nb.png,\n')
    assert rows["image"].to_dict() == {3: "a.png", 4: "b.png"}


def test_the_first_wrong_row_and_missing_files_are_named(read):
    rows = read("image,mask\na,\n{b},x\n,\n{b},\n")
    checks = {"never": rows["image"] == "q", "{image!r} of {mask}": rows["image"] == "{b}"}
    with pytest.raises(DataError, match=r"^t\.csv, row 3: '\{b\}' of x$"):
        index.check_rows("t.csv", rows, {**checks, "late": rows["mask"] == ""})
    listed = pd.Series(["a.png", "b.png", "c.png"], index=range(2, 5))
    index.check_files("t.csv", listed, [True] * 3)
    with pytest.raises(DataError, match=r"2 of 3 images .* row 3: b\.png; row 4: c\.png\. Fix"):
        index.check_files("t.csv", listed, [True, False, False])


SQUARE = square()
WHITE = SQUARE * 0 + 255


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "MURA-v1.1"
    for name in ("a/image1.png", "a/image2.png", "b/image1.png", "c/image1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (WIDTH, HEIGHT)).save(root / name)
    return root


@pytest.fixture
def attach(root, tmp_path):
    """Attach the folder's lesions, or these rows, to three images, the last one normal."""
    paths = ["a/image1.png", "a/image2.png", "b/image1.png"]
    table, folder = pd.DataFrame({"path": paths, "label": [1, 1, 0]}), tmp_path / "lesions"

    def attach(*rows, mask=SQUARE):
        if rows:
            folder.mkdir()
            (folder / "lesions.csv").write_text("\n".join(["image,mask,lesion_type", *rows]))
            for name, pixels in {"m.png": mask, "n.png": SQUARE}.items():
                Image.fromarray(pixels).save(folder / name)
        return attach_lesions(table, folder, root)

    return attach


def test_what_is_written_is_read_and_attached(attach, tmp_path, root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (HEIGHT, WIDTH)).save(root / "a/image1.png", exif=exif)  # turned upright
    masks = {"a/image1.png": SQUARE[::-1], "a/image2.png": SQUARE}
    made = [Lesion(name, mask, f"type {name[-5]}") for name, mask in masks.items()]
    assert write_lesions(tmp_path / "lesions", made[::-1]) == 2
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


def test_a_folder_may_have_the_name_of_the_root(tmp_path):
    name = "x/x/image1.png"
    (tmp_path / name).parent.mkdir(parents=True)
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / name)
    write_lesions(tmp_path / "lesions", [Lesion("x/image1.png", SQUARE, "")])
    table = pd.DataFrame({"path": ["x/image1.png"], "label": [1]})
    assert attach_lesions(table, tmp_path / "lesions", tmp_path / "x")["lesion_mask"][0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("d/image1.png,m.png,", r"unknown image d/image1\.png"),
        ("/proc/version,m.png,", "unknown image /proc/version"),  # a file, but not below root
        ("a/image2.png,gone.png,", r"the mask gone\.png cannot be read"),
        ("b/image1.png,m.png,", r"b/image1\.png is labelled normal but has a lesion"),
        ("a/image2.png,./n.png,", r"the mask n\.png is listed twice"),
        ("MURA-v1.1/a/image1.png,m.png,", r"the image a/image1\.png is listed twice"),
        ("a/image2.png,,", "no mask is given"),
        (SQUARE * 0, r"the mask m\.png is empty"),
        (SQUARE // 255, "holds the grey value 1. Fix: use 0"),
        (WHITE, r"covers 100\.0 % of the image and most of its border: is it inverted"),
        (255 - SQUARE, "is it inverted"),
        (np.dstack([WHITE] * 3 + [SQUARE]), "has see-through pixels. Fix: flatten it"),
        (SQUARE.T, "is 20x30 px: expected 30x20 px, as its image is upright"),
    ],
)
def test_a_wrong_row_or_mask_is_named(attach, wrong, message):
    row, mask = (wrong, SQUARE) if isinstance(wrong, str) else ("a/image2.png,m.png,", wrong)
    with pytest.raises(DataError, match=rf"lesions\.csv, row 3: .*{message}"):
        attach("a/image1.png,n.png,", row, mask=mask)


def test_writing_leaves_all_or_nothing(tmp_path):
    def broken():
        yield Lesion("a.png", SQUARE)
        yield Lesion("b.png", SQUARE // 255)

    folder = tmp_path / "lesions"
    with pytest.raises(DataError, match=r"mask of b\.png: holds the grey value 1"):
        write_lesions(folder, broken())
    full = Mock(side_effect=OSError(28, "No space left"))
    with pytest.raises(DataError, match="cannot be written .No space left"):
        write_lesions(folder, [Lesion("a.png", SQUARE)], finish=full)
    assert list(tmp_path.iterdir()) == []
    write_lesions(folder, [Lesion("a.png", SQUARE)])
    with pytest.raises(DataError, match="already exists"):
        write_lesions(folder, [Lesion("a.png", SQUARE)])


def test_the_choice_grows_by_patients_and_body_parts_in_turn():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 60, 400)
    pool = pd.DataFrame({"patient": patients.astype(str)})
    pool["path"] = pool.index.astype(str) + ".png"
    pool["body_part"] = np.array(["elbow", "hand", "wrist"])[patients % 3]
    pool["split"] = rng.choice(["train", "val", "test"], 400, p=[0.8, 0.1, 0.1])
    pool["lesion_mask"] = np.where(rng.random(400) < 0.5, "/m.png", "")
    pool["lesion_type"] = ""
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
