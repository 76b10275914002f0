"""MURA: a small tree like the real one, and each way in which a real one goes wrong."""

from __future__ import annotations

import logging
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules.index import DataError, check_index, check_patients_apart
from datamodules.lesions import Lesion, write_lesions
from datamodules.mura import MuraDataModule, find_mura, read_mura_tree
from datamodules.options import Data, Lesions

STUDIES = {  # split, part, patient, study, label -> images
    ("train", "HAND", 1, 1, "positive"): 2,
    ("train", "HAND", 1, 2, "negative"): 1,
    ("train", "WRIST", 1, 1, "negative"): 3,
    ("train", "ELBOW", 2, 1, "positive"): 1,
    ("valid", "ELBOW", 9, 1, "negative"): 2,
    ("valid", "SHOULDER", 10, 1, "positive"): 1,
}


def build(parent, studies=STUDIES, archive="MURA-v1.1"):
    """Write a MURA tree as unpacked: CSVs without header, studies with a slash at the end."""
    root = parent / archive
    for split in ("train", "valid"):
        images, labels = [], []
        for (where, part, patient, study, label), count in studies.items():
            if where != split:
                continue
            folder = f"{split}/XR_{part}/patient{patient:05d}/study{study}_{label}"
            (root / folder).mkdir(parents=True)
            labels.append(f"{archive}/{folder}/,{int(label == 'positive')}")
            for number in range(1, count + 1):
                Image.new("L", (12, 10)).save(root / folder / f"image{number}.png")
                images.append(f"{archive}/{folder}/image{number}.png")
        (root / f"{split}_image_paths.csv").write_text("\n".join(images) + "\n")
        (root / f"{split}_labeled_studies.csv").write_text("\n".join(labels) + "\n")
    return root


@pytest.fixture
def mura(tmp_path):
    return build(tmp_path)


def edit(csv, old, new):
    text = csv.read_text()
    assert old in text
    csv.write_text(text.replace(old, new, 1))


def test_every_image_has_its_label_patient_study_part_and_split(mura):
    table = read_mura_tree(mura).set_index("path")
    assert len(table) == 10
    row = table.loc["train/XR_HAND/patient00001/study1_positive/image2.png"]
    assert (row.label, row.patient, row.body_part, row.split) == (
        1,
        "patient00001",
        "hand",
        "train",
    )
    row = table.loc["valid/XR_ELBOW/patient00009/study1_negative/image1.png"]
    assert (row.label, row.patient, row.body_part, row.split) == (
        0,
        "patient00009",
        "elbow",
        "test",
    )
    assert table["study"].nunique() == len(STUDIES)  # study1 of hand and of wrist are two studies
    assert table.groupby("study")["label"].nunique().eq(1).all()


def test_the_folder_above_serves_too(mura):
    above = read_mura_tree(mura.parent)
    assert above["path"].tolist() == [f"MURA-v1.1/{path}" for path in read_mura_tree(mura)["path"]]
    assert all((mura.parent / path).is_file() for path in above["path"])


def test_the_folder_may_be_renamed(mura):
    renamed = mura.rename(mura.parent / "radiographs")
    assert len(read_mura_tree(renamed)) == 10


def test_windows_line_ends_blank_lines_and_byte_order_mark(mura):
    for csv in mura.glob("*.csv"):
        text = csv.read_text()
        csv.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode())
    assert len(read_mura_tree(mura)) == 10


def test_files_of_macos_and_surplus_images(mura, caplog):
    study = mura / "train/XR_HAND/patient00001/study1_positive"
    (study / "._image1.png").write_bytes(b"\x00\x05\x16\x07")
    (study / ".DS_Store").write_bytes(b"x")
    assert len(read_mura_tree(mura)) == 10
    assert caplog.text == ""
    (study / "image7.png").write_bytes(b"x")
    assert len(read_mura_tree(mura)) == 10
    assert "1 images stand in no CSV and are not used" in caplog.text
    assert "study1_positive/image7.png" in caplog.text


def test_rows_of_macos_files_are_left_out_with_a_notice(mura, caplog):
    csv = mura / "train_image_paths.csv"
    row = "MURA-v1.1/train/XR_HAND/patient00001/study1_positive/"
    csv.write_text(csv.read_text() + f"{row}._image1.png\n")
    assert len(read_mura_tree(mura)) == 10
    assert "rows that name ._* files (macOS leftovers), left out: 1" in caplog.text


def test_a_labelled_study_without_image_is_announced(mura, caplog):
    csv = mura / "train_labeled_studies.csv"
    csv.write_text(csv.read_text() + "MURA-v1.1/train/XR_HAND/patient00077/study1_positive/,1\n")
    read_mura_tree(mura)
    assert "1 labelled studies have no image" in caplog.text


@pytest.mark.parametrize(
    ("deeper", "message"),
    [
        ("MURA-v1.1/train", r"too deep; did you mean data\.root=.*MURA-v1\.1\?"),
        ("MURA-v1.1/train/XR_HAND", r"too deep; did you mean data\.root=.*MURA-v1\.1\?"),
        ("..", r"too high; did you mean data\.root=.*MURA-v1\.1\?"),
        ("nowhere", r"is no folder; give the folder MURA-v1\.1"),
        ("empty", r"no MURA here, it lacks train_image_paths\.csv, train_labeled_studies\.csv"),
    ],
)
def test_a_wrong_root_is_explained(tmp_path, deeper, message):
    (tmp_path / "given").mkdir()
    build(tmp_path / "given")
    (tmp_path / "given" / "empty").mkdir()
    root = tmp_path if deeper == ".." else tmp_path / "given" / deeper
    if deeper == "empty":  # beside, not inside: nothing above it is MURA
        root = tmp_path / "given" / "empty"
    with pytest.raises(DataError, match=message):
        read_mura_tree(root)


def test_two_copies_are_ambiguous(tmp_path):
    build(tmp_path)
    build(tmp_path, archive="MURA-v1.1-copy")
    with pytest.raises(DataError, match=r"several copies of MURA \(MURA-v1\.1, MURA-v1\.1-copy\)"):
        find_mura(tmp_path)


def test_version_1_0_is_refused_with_its_reason(tmp_path):
    build(tmp_path, archive="MURA-v1.0")
    with pytest.raises(DataError, match=r"MURA v1\.0, which Stanford withdrew .* patient data"):
        read_mura_tree(tmp_path)
    other = tmp_path / "old" / "MURA-v1.0"
    other.mkdir(parents=True)
    (other / "train.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"MURA v1\.0, which Stanford withdrew"):
        find_mura(other.parent)


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("kind", ["image_paths", "labeled_studies"])
def test_a_missing_csv_is_named(mura, split, kind):
    (mura / f"{split}_{kind}.csv").unlink()
    with pytest.raises(DataError, match=rf"{split}_{kind}\.csv is missing; unpack"):
        read_mura_tree(mura)


def test_missing_files_are_counted_and_shown(mura):
    gone = sorted((mura / "train").rglob("*.png"))[:5]
    for path in gone:
        path.unlink()
    with pytest.raises(DataError, match="5 of 10 images that the CSVs list are missing") as caught:
        read_mura_tree(mura)
    assert len(re.findall(r"image\d\.png", str(caught.value))) == 3
    assert "; and 2 more; unpack the archive again" in str(caught.value)


def test_a_row_without_file_is_named_with_its_csv_and_line(mura):
    csv = mura / "valid_image_paths.csv"
    csv.write_text("\n\n" + csv.read_text())  # blank lines count as an editor counts them
    for path in (
        "XR_ELBOW/patient00009/study1_negative",
        "XR_SHOULDER/patient00010/study1_positive",
    ):
        (mura / "valid" / path / "image1.png").unlink()
    message = (
        r"2 of 10 images that the CSVs list are missing: "
        r"valid_image_paths\.csv, row 3: valid/XR_ELBOW/.*/image1\.png is not there; "
        r"valid_image_paths\.csv, row 5: valid/XR_SHOULDER/.*/image1\.png is not there; unpack"
    )
    with pytest.raises(DataError, match=message):
        read_mura_tree(mura)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_csvs_are_named(mura, content):
    for csv in mura.glob("*.csv"):
        csv.write_text(content)
    with pytest.raises(DataError, match=r"train_labeled_studies\.csv is empty; unpack the MURA"):
        read_mura_tree(mura)


def test_a_csv_of_macos_files_alone_holds_no_image(mura):
    row = "MURA-v1.1/valid/XR_ELBOW/patient00009/study1_negative/._image1.png\n"
    (mura / "valid_image_paths.csv").write_text(row)
    with pytest.raises(DataError, match=r"valid_image_paths\.csv: no image stands in it; unpack"):
        read_mura_tree(mura)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_csv_in_another_encoding_is_named(mura, encoding):
    csv = mura / "train_image_paths.csv"
    csv.write_bytes(csv.read_text().encode(encoding))
    with pytest.raises(
        DataError, match=r"train_image_paths\.csv: is no UTF-8 text \(.*\); save it as UTF-8"
    ):
        read_mura_tree(mura)


@pytest.mark.parametrize(("separator", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-16")])
def test_the_csvs_may_come_from_a_spreadsheet(mura, separator, encoding):
    wanted = read_mura_tree(mura)
    for csv in mura.glob("*.csv"):
        text = csv.read_text().replace(",", separator).replace("/", "\\")
        csv.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    pd.testing.assert_frame_equal(read_mura_tree(mura), wanted)


def test_a_csv_that_may_not_be_read_is_named(mura, monkeypatch):
    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    with pytest.raises(DataError, match=r"studies\.csv: cannot be read \(Permission denied\)"):
        read_mura_tree(mura)


def test_a_missing_study_folder_counts_its_images(mura):
    study = mura / "train/XR_WRIST/patient00001/study1_negative"
    study.rename(mura / "elsewhere")
    with pytest.raises(DataError, match=r"3 of 10 images .* XR_WRIST|3 of 10 images"):
        read_mura_tree(mura)


@pytest.mark.parametrize(
    ("csv", "old", "new", "message"),
    [
        ("train_labeled_studies.csv", "positive/,1", "positive/,2", r"row 1: label '2' of .*use 0"),
        ("train_labeled_studies.csv", "positive/,1", "positive/,", r"row 1: label '' of"),
        (
            "train_labeled_studies.csv",
            "negative/,0",
            "negative/,1",
            r"row 2: label 1 contradicts the folder MURA-v1\.1/train/XR_HAND/.*study2_negative",
        ),
        (
            "valid_labeled_studies.csv",
            "MURA-v1.1/valid/XR_ELBOW/patient00009/study1_negative/,0\n",
            "",
            r"valid_image_paths\.csv, row 1: the study valid/XR_ELBOW/.* has no row in",
        ),
        (
            "train_image_paths.csv",
            "MURA-v1.1/train",
            "path\nMURA-v1.1/train",
            r"row 1: 'path' is no",
        ),
        ("train_image_paths.csv", "image2.png", "", r"row 2: .* is a folder"),
        (
            "train_image_paths.csv",
            "train/XR_HAND",
            "valid/XR_HAND",
            r"row 1: .* in the split 'valid'",
        ),
        ("train_image_paths.csv", "patient00001", "../patient00001", r"row 1: .* is no MURA path"),
    ],
)
def test_a_wrong_row_is_named(mura, csv, old, new, message):
    edit(mura / csv, old, new)
    with pytest.raises(DataError, match=message):
        read_mura_tree(mura)


def test_a_patient_in_both_splits_is_named(tmp_path):
    build(tmp_path, {**STUDIES, ("valid", "HAND", 1, 3, "positive"): 1})
    with pytest.raises(DataError, match=r"patient00001 in train \(.*\) and test \("):
        check_patients_apart(read_mura_tree(tmp_path), "mura")


# The data module ----------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    labels = ("positive", "negative")
    return build(
        tmp_path,
        {
            (split, "HAND", first + number, 1, labels[number % 2]): 2
            for split, first, count in (("train", 0, 40), ("valid", 100, 10))
            for number in range(count)
        },
    )


def module(root, lesions_path=None, **options):
    return MuraDataModule(Data(root=str(root), **options), Lesions(path=lesions_path))


def test_val_is_a_patient_grouped_tenth_of_train_and_test_the_official_valid(many):
    table = check_index(module(many).build_index(), "mura")
    check_patients_apart(table, "mura")
    assert table["split"].value_counts().to_dict() == {"train": 72, "val": 8, "test": 20}
    assert (table["path"].str.startswith("valid/") == (table["split"] == "test")).all()
    assert (table["lesion_mask"] == "").all()
    assert (table["hardware"] == -1).all()


@pytest.mark.parametrize(
    ("split", "gone", "found", "lacking"),
    [
        ("train", "positive", "negative", "positive"),
        ("valid", "positive", "negative", "positive"),
        ("valid", "negative", "positive", "negative"),
    ],
)
def test_an_official_split_of_one_class_is_named(many, split, gone, found, lacking):
    for csv in many.glob(f"{split}_*.csv"):
        lines = csv.read_text().splitlines(keepends=True)
        csv.write_text("".join(line for line in lines if gone not in line))
    message = (
        rf"{split}_labeled_studies\.csv: all studies with images are {found}, but the official "
        rf"{split} split needs both classes; .* add {lacking} studies .* {split}_image_paths\.csv"
    )
    with pytest.raises(DataError, match=message) as caught:
        module(many).build_index()
    assert "seed" not in str(caught.value)  # no seed changes an official split
    assert len(module(many, split="image").build_index()) in (60, 90)  # it is not used there


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("prefix", ["", "MURA-v1.1/"])
def test_one_lesion_folder_serves_either_root(many, tmp_path, above, prefix):
    image = "train/XR_HAND/patient00000/study1_positive/image1.png"
    mask = np.zeros((10, 12), np.uint8)
    mask[2:4, 3:7] = 255
    write_lesions(tmp_path / "lesions", [Lesion(prefix + image, mask, "fracture")])
    root = many.parent if above else many
    table = module(root, lesions_path=str(tmp_path / "lesions")).build_index()
    (row,) = table[table["lesion_mask"] != ""].itertuples()
    assert row.path == ("MURA-v1.1/" if above else "") + image
    assert row.lesion_type == "fracture"


def test_the_fingerprint_is_the_four_csvs(many):
    files = module(many.parent).fingerprint()
    assert sorted(path.name for path in files) == sorted(path.name for path in many.glob("*.csv"))
    assert all(path.is_file() for path in files)
    assert len(module(many / "train").fingerprint()) == 4  # build_index explains the wrong root


def test_a_clean_tree_gives_no_notice(many, caplog):
    caplog.set_level(logging.INFO)
    module(many).build_index()
    assert caplog.text == ""
