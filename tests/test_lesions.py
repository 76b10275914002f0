"""Lesion folders: what is read, attached, written and chosen, and every mistake by its row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules import duplicates, files, lesions
from datamodules.index import DataError
from datamodules.lesions import (
    Lesion,
    attach_lesions,
    choose_lesions,
    leave_out_fold,
    read_lesions,
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
    (root / "a" / "list.csv").write_text("a/image1.png\n")
    return root


@pytest.fixture
def table():
    return pd.DataFrame(
        {"path": ["a/image1.png", "a/image2.png", "b/image1.png"], "label": [1, 1, 0]}
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "lesions"


def write(folder, *rows, header="image,mask,lesion_type", masks=None):
    folder.mkdir()
    (folder / "lesions.csv").write_text("\n".join([header, *rows]) + "\n")
    for name, mask in (masks or {"m.png": square(), "n.png": square(1)}).items():
        Image.fromarray(mask).save(folder / name)


def test_what_is_written_is_read_and_attached(root, table, folder):
    written = write_lesions(
        folder,
        [Lesion("a/image2.png", square(), "fracture"), Lesion("a/image1.png", square(9, 2, 3))],
    )
    assert written == 2
    attached = attach_lesions(table, folder, root)
    assert attached["lesion_type"].tolist() == ["", "fracture", ""]
    assert attached["lesion_mask"][2] == ""
    for row, mask in ((0, square(9, 2, 3)), (1, square())):
        np.testing.assert_array_equal(np.array(Image.open(attached["lesion_mask"][row])), mask)
    assert "lesion_mask" not in table.columns


def test_no_lesions_at_all_are_fine(root, table, folder):
    assert write_lesions(folder, []) == 0
    assert (attach_lesions(table, folder, root)["lesion_mask"] == "").all()


def test_paths_may_carry_the_name_of_the_root(root, table, folder):
    write(folder, "MURA-v1.1/a/image1.png,m.png,metal", "./a/image2.png,n.png,")
    assert attach_lesions(table, folder, root)["lesion_type"].tolist() == ["metal", "", ""]


@pytest.mark.parametrize("link", [False, True])
def test_an_image_may_be_spelled_otherwise(root, table, folder, tmp_path, caplog, link):
    (tmp_path / "link").symlink_to(root)
    absolute = tmp_path / "link" if link else root
    write(folder, f"{absolute}/a/image1.png,m.png,metal", "b/..//a/./image2.png,n.png,lytic")
    assert attach_lesions(table, folder, root)["lesion_type"].tolist() == ["metal", "lytic", ""]


def test_lesion_type_blank_lines_and_windows_line_ends_are_optional(root, table, folder):
    folder.mkdir()
    (folder / "lesions.csv").write_bytes(b"\xef\xbb\xbfimage,mask\r\n\r\na/image1.png,m.png\r\n")
    Image.fromarray(square()).save(folder / "m.png")
    assert read_lesions(folder).index.tolist() == [3]
    assert attach_lesions(table, folder, root)["lesion_mask"][0].endswith("m.png")


def test_masks_of_images_that_the_index_left_out_are_announced(root, table, folder, caplog):
    write(folder, "c/image1.png,m.png,", "a/image1.png,n.png,")
    attached = attach_lesions(table, folder, root)
    assert (attached["lesion_mask"] != "").sum() == 1
    assert "1 masks are of images that the index left out" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["d/image1.png,m.png,"], r"row 2: unknown image d/image1\.png"),
        (["a/list.csv,m.png,"], r"row 2: unknown image a/list\.csv"),
        (["../lesions/n.png,m.png,"], r"row 2: unknown image \.\./lesions/n\.png"),
        ([f"{'x' * 300}.png,m.png,"], r"row 2: unknown image x{300}\.png"),
        (
            [f"a/image1.png,{'x' * 300}.png,"],
            r"row 2: the mask .*x{300}\.png does not exist; add it \(its name may be too long",
        ),
        (
            ["a/image1.png,m.png,", "a/image2.png,../lesions//m.png,"],
            r"row 3: the mask \.\./lesions//m\.png is listed twice \(row 2: m\.png\)",
        ),
        (
            ["a/image1.png,m.png,", "MURA-v1.1/a/image1.png,n.png,"],
            r"row 3: the image a/image1\.png is listed twice \(row 2",
        ),
        (["image1.png,m.png,"], r"row 2: unknown image image1\.png"),
        (["b/image1.png,m.png,"], r"row 2: b/image1\.png is labelled normal but has a lesion mask"),
        (
            ["a/image1.png,m.png,", "a/image2.png,gone.png,"],
            r"row 3: the mask .*gone\.png does not",
        ),
        (["a/image1.png,m.png,", "a/image2.png,m.png,"], r"row 3: the mask m\.png is listed twice"),
        (
            ["a/image1.png,m.png,", "a/image1.png,n.png,"],
            r"row 3: the image a/image1\.png is listed",
        ),
        (["a/image1.png,,"], r"row 2: no mask is given"),
        ([",m.png,"], r"row 2: no image is given"),
    ],
)
def test_a_wrong_row_is_named(root, table, folder, rows, message):
    write(folder, *rows)
    with pytest.raises(DataError, match=r"lesions\.csv, " + message):
        attach_lesions(table, folder, root)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), r"row 2: the mask .*m\.png is empty"),
        (square() // 255, r"row 2: the mask .*m\.png holds the grey value 1; use 0"),
        (square(0, 0, WIDTH), r"row 2: the mask .*m\.png covers the whole image: is it inverted"),
        (
            np.dstack([square() * 0 + 255] * 3 + [square()]),
            r"row 2: the mask .*m\.png has see-through pixels; flatten it",
        ),
        (
            np.dstack([square() * 0 + 255, square()]),
            r"row 2: the mask .*m\.png has see-through pixels; flatten it",
        ),
        (
            square(shape=(WIDTH, HEIGHT)),
            r"row 2: the mask .*m\.png is 20x30 px, .* upright 30x20 px",
        ),
    ],
)
def test_a_wrong_mask_is_named(root, table, folder, mask, message):
    write(folder, "a/image1.png,m.png,", masks={"m.png": mask})
    with pytest.raises(DataError, match=message):
        attach_lesions(table, folder, root)


def test_an_alpha_channel_that_hides_nothing_is_fine(root, table, folder):
    opaque = np.dstack([square()] * 3 + [square() * 0 + 255])
    write(folder, "a/image1.png,m.png,", masks={"m.png": opaque})
    assert attach_lesions(table, folder, root)["lesion_mask"][0]


def test_a_link_to_the_mask_of_another_image_is_the_same_mask(root, table, folder):
    write(folder, "a/image1.png,m.png,", "a/image2.png,link.png,")
    (folder / "link.png").symlink_to("m.png")
    with pytest.raises(DataError, match=r"row 3: the mask link\.png is listed twice"):
        attach_lesions(table, folder, root)


def test_the_size_is_that_of_the_upright_image(root, table, folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (WIDTH, HEIGHT)).save(root / "a/image1.png", exif=exif)
    write(folder, "a/image1.png,m.png,", masks={"m.png": square(shape=(WIDTH, HEIGHT))})
    assert attach_lesions(table, folder, root)["lesion_mask"][0]


def test_a_folder_without_csv_or_column(tmp_path, folder):
    with pytest.raises(DataError, match=r"lesions\.path=.* holds no lesions\.csv"):
        read_lesions(tmp_path)
    write(folder, header="file,mask")
    with pytest.raises(DataError, match="lacks the column 'image'"):
        read_lesions(folder)
    (folder / "lesions.csv").write_text("")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_lesions(folder)


@pytest.mark.parametrize("rows", [["a/image1.png,m.png,lytic,"], ["a/image1.png,m.png,,,"] * 2])
def test_a_comma_at_the_end_of_each_row_is_named(folder, rows):
    write(folder, *rows)
    with pytest.raises(DataError, match=r"lesions\.csv: its rows have more fields than the header"):
        read_lesions(folder)


@pytest.mark.parametrize("encoding", ["utf-16-le", "cp1252"])
def test_a_csv_in_another_encoding_is_named(folder, encoding):
    write(folder, "a/image1.png,m.png,Röhre")
    csv = folder / "lesions.csv"
    csv.write_bytes(csv.read_text().encode(encoding))
    with pytest.raises(DataError, match=r"lesions\.csv: is no UTF-8 text .*save it as UTF-8"):
        read_lesions(folder)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image;mask;lesion_type\r\na/image1.png;m.png;1,5 cm\r\n", "utf-8"),
        ("image\tmask\tlesion_type\na/image1.png\tm.png\t1,5 cm\n", "utf-8-sig"),
        ("image\tmask\tlesion_type\r\na/image1.png\tm.png\t1,5 cm\r\n", "utf-16"),
        ('"image";"mask";"lesion_type"\n"a/image1.png";"m.png";"1,5 cm"\n\n', "utf-8"),
        ('image , mask,lesion_type\na\\image1.png,.\\m.png,"1,5 cm"\n , ,\n', "utf-8"),
        ("sep=;\r\nimage;mask\r\na/image1.png;m.png\r\n", "utf-8"),  # as Excel writes and reads it
        ('"sep=,"\nimage,mask\na/image1.png,m.png\n', "utf-16"),
        ("a;image;b;mask;lesion_type,x\n;a/image1.png;;m.png;\n", "utf-8"),
        ("image,mask,lesion_type;by;with\na/image1.png,m.png,\n", "utf-8"),
    ],
)
def test_a_spreadsheet_may_write_the_csv(root, table, folder, text, encoding):
    """Semicolons, tabs, "Unicode text", backslashes: the header settles what separates."""
    write(folder)
    (folder / "lesions.csv").write_bytes(text.encode(encoding))
    rows = read_lesions(folder)
    assert rows["image"].tolist() == ["a/image1.png"]
    assert rows["lesion_type"].iloc[0] in ("1,5 cm", "")
    assert attach_lesions(table, folder, root)["lesion_mask"][0].endswith("m.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image|mask\na|b\n", r"\(or with semicolons or tabs\), not 'image\|mask'"),
        ("sep=,\nimage,mask\na;b\n", "row 3: no mask is given"),
        ("image,mask\na;b\n", "row 2: no mask is given, or not separated as the header"),
        ("image;mask\na,b\n", "row 2: no mask is given, or not separated as the header"),
        ("image;mask\na;b;c\n", r"put a field that holds one \(';'\) in quotes"),
    ],
)
def test_a_separator_that_is_none_is_named_as_the_cause(folder, text, message):
    write(folder)
    (folder / "lesions.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_lesions(folder)


def test_threads_are_as_many_as_usable_cores(root, table, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(3)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    asked = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads):
            asked.append(threads)
            super().__init__(threads)

    monkeypatch.setattr(lesions, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(duplicates, "ThreadPoolExecutor", Pool)
    write(folder, "a/image1.png,m.png,")
    attach_lesions(table, folder, root)
    duplicates.near_duplicates([root / "a/image1.png"])
    (tmp_path / "cpu.max").write_text("150000 100000\n")  # a container of 1.5 cores
    duplicates.near_duplicates([root / "a/image1.png"])
    (tmp_path / "cpu.max").write_text("max 100000\n")
    duplicates.near_duplicates([root / "a/image1.png"])
    assert asked == [3, 3, 2, 3]
    monkeypatch.delattr("os.sched_getaffinity")
    assert files.usable_cores() == 64


def test_writing_leaves_all_or_nothing(folder, tmp_path):
    def broken():
        yield Lesion("a.png", square())
        raise DataError("the second is wrong")

    with pytest.raises(DataError, match="the second is wrong"):
        write_lesions(folder, broken())
    assert list(tmp_path.iterdir()) == []
    write_lesions(folder, [Lesion("a.png", square())])
    with pytest.raises(DataError, match="already exists"):
        write_lesions(folder, [Lesion("a.png", square())])


def test_a_full_disk_is_an_error_and_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lesions.Path, "write_bytes", full)
    with pytest.raises(DataError, match="cannot be written .No space left on device"):
        write_lesions(folder, [Lesion("a.png", square())])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lesion", "message"),
    [
        (Lesion("a.png", square() * 0), "mask of a.png: is empty"),
        (Lesion("a.png", square() // 255), "mask of a.png: holds the grey value 1"),
        (Lesion("a.png", square().astype(float)), "mask of a.png: must be uint8"),
        (Lesion("../a.png", square()), "does not lie below data.root"),
    ],
)
def test_no_unusable_mask_is_written(folder, lesion, message):
    with pytest.raises(ValueError, match=message):
        write_lesions(folder, [lesion])


# The lesion subset --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    count = 400
    patients = rng.integers(0, 60, count)
    parts = np.array(["elbow", "hand", "wrist"])[patients % 3]
    return pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(count)],
            "patient": [f"p{number}" for number in patients],
            "body_part": parts,
            "split": rng.choice(["train", "val", "test"], count, p=[0.8, 0.1, 0.1]),
            "lesion_mask": np.where(rng.random(count) < 0.5, "/m.png", ""),
        }
    )


def test_only_train_images_with_a_mask_are_chosen(pool):
    chosen = pool.iloc[choose_lesions(pool, 50, 0)]
    assert len(chosen) == 50
    assert set(chosen["split"]) == {"train"}
    assert (chosen["lesion_mask"] != "").all()


def test_a_smaller_choice_is_part_of_a_larger_one(pool):
    sizes = [set(choose_lesions(pool, count, 3)) for count in (0, 10, 50, 100, 10_000)]
    assert [len(chosen) for chosen in sizes[:4]] == [0, 10, 50, 100]
    for smaller, larger in pairwise(sizes):
        assert smaller <= larger
    usable = (pool["split"] == "train") & (pool["lesion_mask"] != "")
    assert sizes[-1] == set(np.flatnonzero(usable))


def test_patients_take_turns_and_body_parts_are_spread(pool):
    usable = pool[(pool["split"] == "train") & (pool["lesion_mask"] != "")]
    patients = usable["patient"].nunique()
    first = pool.iloc[choose_lesions(pool, patients, 0)]
    assert first["patient"].is_unique
    second = pool.iloc[choose_lesions(pool, 30, 0)]
    assert second["body_part"].value_counts().tolist() == [10, 10, 10]


def test_the_choice_depends_on_the_seed_and_not_on_the_order(pool):
    chosen = set(pool.iloc[choose_lesions(pool, 40, 0)]["path"])
    shuffled = pool.sample(frac=1, random_state=1)
    assert set(shuffled.iloc[choose_lesions(shuffled, 40, 0)]["path"]) == chosen
    assert set(pool.iloc[choose_lesions(pool, 40, 1)]["path"]) != chosen


def test_a_fold_that_takes_all_of_a_class_out_of_train_is_refused(pool):
    rows = choose_lesions(pool, 50, 0)
    few = pool.assign(label=(pool["lesion_mask"] != "").astype(int)).iloc[rows]
    few = few.drop_duplicates("patient").reset_index(drop=True)
    with pytest.raises(DataError, match="without fold 0 train holds only abnormal images"):
        leave_out_fold(few, np.arange(len(few)), 2, 0, 0)
    normal = few[:9].assign(label=0, lesion_mask="", patient="healthy")
    both = pd.concat([few[:1], normal], ignore_index=True)
    both.loc[1, ["label", "lesion_mask", "patient"]] = [1, "/n.png", "p60"]
    left = leave_out_fold(both, np.array([0, 1]), 2, 0, 0)
    assert left["split"].value_counts().to_dict() == {"train": 9, "left_out": 1}
    both.loc[both["label"] == 1, "split"] = ["train", "val"]
    with pytest.raises(DataError, match=r"lesions\.folds=1: without fold 0 .* only normal images"):
        leave_out_fold(both, np.array([0]), 1, 0, 0)
