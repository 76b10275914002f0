"""The index table's checks and splits, and the CSVs that it comes from."""

import numpy as np
import pandas as pd
import pytest

from datamodules import index
from datamodules.index import DataError, assign_groups, read_csv


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
    assert share[["train", "val", "test"]].to_numpy() == pytest.approx(
        np.array([[0.7, 0.1, 0.2]] * 2), abs=0.03
    )
    again = assign_groups(rows.sample(frac=1, random_state=1), seed=0).sort_index()
    assert (drawn["split"] == again["split"]).all(), "whatever the order of the table"
    assert (drawn["split"] != assign_groups(rows, seed=1)["split"]).any()


@pytest.mark.parametrize(
    ("where", "column", "value", "message"),
    [
        ("index == 7", "label", 2, r"/7\.png \(label 2\). Fix: correct"),
        ("index == 7", "path", "0/0.png", r"each path once, .* got 0/0\.png"),
        ("split == 'train'", "split", "test", "train split holds no images"),
        ("split == 'val' and label", "split", "test", "val split holds only normal images"),
    ],
)
def test_a_faulty_table_is_refused(rows, where, column, value, message):
    rows = assign_groups(rows, seed=0)
    rows.loc[rows.query(where).index, column] = value
    with pytest.raises(DataError, match=message):
        index.check_index(rows, "made up")


def test_a_patient_in_two_splits_is_named(rows):
    moved = rows.assign(split=rows["path"].eq("0/1.png").map({True: "test", False: "train"}))
    with pytest.raises(DataError, match=r"p0 in train \(0/0\.png\) and test \(0/1\.png\)"):
        index.check_patients_apart(moved, "made up")


def test_limit_keeps_both_classes(rows):
    counts = index.limit_split(assign_groups(rows, seed=0), 10).groupby(["split", "label"]).size()
    assert counts.tolist() == [5] * 6


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
    """Semicolons, tabs, "Unicode text", backslashes: the header settles what separates."""
    rows = read(text, encoding)
    assert rows[["image", "mask"]].to_numpy().tolist() == [["a/1.png", "m.png"]]
    assert rows.get("size", pd.Series("")).iloc[0] == ("1,5 cm" if "1,5" in text else "")
    line = next(n for n, line in enumerate(text.splitlines(), 1) if "1.png" in line)
    assert rows.index.tolist() == [line]


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("", "utf-8", "cannot be read as CSV"),
        ("image|mask\na|b\n", "utf-8", r"lacks the column 'image'.* got 'image\|mask'"),
        ("image;mask\na;b;c\n", "utf-8", r"more fields than.*separator \(';'\) in quotes"),
        ("image,mask\nRöhre,m.png\n", "cp1252", "cannot be read .* Fix: save it as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(read, text, encoding, message):
    with pytest.raises(DataError, match=rf"t\.csv: .*{message}"):
        read(text, encoding)


def test_the_first_wrong_row_and_missing_files_are_named(read):
    rows = read("image,mask\na,\n{b},x\n,\n{b},\n")
    checks = {"never": rows["image"] == "q", "{image!r} of {mask}": rows["image"] == "{b}"}
    with pytest.raises(DataError, match=r"^t\.csv, row 3: '\{b\}' of x$"):
        index.check_rows("t.csv", rows, {**checks, "late": rows["mask"] == ""})
    listed = pd.Series(["a.png", "b.png", "c.png"], index=range(2, 5))
    index.check_files("t.csv", listed, [*listed, "f.PNG"])
    with pytest.raises(DataError, match=r"2 of 3 images .* row 3: b\.png; row 4: c\.png\. Fix"):
        index.check_files("t.csv", listed, ["a.png"])
