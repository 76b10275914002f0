"""CSVs as people and spreadsheets write them, and rows and files that are wrong in them."""

from __future__ import annotations

import pandas as pd
import pytest

from datamodules.index import DataError
from datamodules.tables import check_files, check_rows, read_csv


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
        ("image;mask;size\r\na/1.png;m.png;1,5 cm\r\n", "utf-8"),
        ("image\tmask\tsize\na/1.png\tm.png\t1,5 cm\n", "utf-8-sig"),
        ("image\tmask\tsize\r\na/1.png\tm.png\t1,5 cm\r\n", "utf-16"),
        ('"image";"mask";"size"\n"a/1.png";"m.png";"1,5 cm"\n\n', "utf-8"),
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
        ("file,mask\n", "utf-8", "lacks the column 'image'"),
        ("", "utf-8", "cannot be read as CSV"),
        ("image|mask\na|b\n", "utf-8", r"semicolons or tabs\), got 'image\|mask'"),
        ("image;mask\na;b;c\n", "utf-8", r"more fields than.*separator \(';'\) in quotes"),
        ("image,mask\nRöhre,m.png\n", "cp1252", "cannot be read .* Fix: save it as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(read, text, encoding, message):
    with pytest.raises(DataError, match=rf"t\.csv: .*{message}"):
        read(text, encoding)


def test_the_first_wrong_row_of_the_first_check_is_named(read):
    rows = read("image,mask\na,\n{b},x\n,\n{b},\n")
    checks = {"never": rows["image"] == "q", "{image!r} of {mask}": rows["image"] == "{b}"}
    with pytest.raises(DataError, match=r"^t\.csv, row 3: '\{b\}' of x$"):
        check_rows("t.csv", rows, {**checks, "late": rows["mask"] == ""})


def test_files_are_compared_with_the_rows(caplog):
    listed = pd.Series(["a.png", "b.png", "c.png", "d.png", "e.png"], index=range(2, 7))
    check_files("t.csv", listed, [*listed, "f.PNG", "notes.txt"])
    assert "t.csv: 1 images are not listed and not used: f.PNG" in caplog.text
    message = r"4 of 5 images .* row 3: b\.png; row 4: c\.png; row 5: d\.png\. Fix"
    with pytest.raises(DataError, match=message):
        check_files("t.csv", listed, ["a.png"])
