"""MURA: a small tree like the real one, and each way in which a real one goes wrong."""

import numpy as np
import pandas as pd
import pytest

from datamodules.index import DataError, check_index, check_patients_apart
from datamodules.lesions import Lesion, write_lesions
from datamodules.mura import CSVS, MuraDataModule, read_mura_tree
from datamodules.options import Data, Lesions
from tests.archives import mura_tree

STUDIES = {  # split, part, patient, study, label -> images
    ("train", "HAND", 1, 1, "positive"): 2,
    ("train", "HAND", 1, 2, "negative"): 1,
    ("train", "WRIST", 1, 1, "negative"): 3,
    ("train", "ELBOW", 2, 1, "positive"): 1,
    ("valid", "ELBOW", 9, 1, "negative"): 2,
    ("valid", "SHOULDER", 10, 1, "positive"): 1,
}
IMAGES, LABELS = "train_image_paths.csv", "train_labeled_studies.csv"
HAND = "MURA-v1.1/train/XR_HAND/patient00001/study1_positive/"


@pytest.fixture
def mura(tmp_path):
    return mura_tree(tmp_path, STUDIES)


def test_every_image_has_its_label_patient_study_part_and_split(mura):
    table = read_mura_tree(mura).set_index("path")
    assert len(table) == 10
    rows = table[["label", "patient", "body_part", "split"]]
    hand, elbow = HAND.partition("/")[2], "valid/XR_ELBOW/patient00009/study1_negative/"
    assert rows.loc[hand + "image2.png"].tolist() == [1, "patient00001", "hand", "train"]
    assert rows.loc[elbow + "image1.png"].tolist() == [0, "patient00009", "elbow", "test"]
    assert table["study"].nunique() == len(STUDIES)  # study1 of hand and of wrist are two studies


def test_the_folder_above_a_new_name_and_csvs_of_windows_serve_too(mura):
    above, table = read_mura_tree(mura.parent), read_mura_tree(mura)
    assert above["path"].tolist() == [f"MURA-v1.1/{path}" for path in table["path"]]
    for root in (mura, mura.parent):
        data = MuraDataModule(Data(root=str(root)))
        assert data.fingerprint() == [mura / csv for csv in CSVS]
    renamed = mura.rename(mura.parent / "radiographs")
    for csv in renamed.glob("*.csv"):
        csv.write_bytes(csv.read_text().replace("\n", "\r\n\r\n").encode("utf-8-sig"))
    pd.testing.assert_frame_equal(read_mura_tree(renamed), table)


def test_a_wrong_root_is_explained(mura):
    mura_tree(mura.parent, STUDIES, archive="copy")
    for root in (mura / "train", mura.parent):
        with pytest.raises(DataError, match=r"expected train_image_paths.csv, .* unpacked"):
            read_mura_tree(root)


@pytest.mark.parametrize(
    ("csv", "old", "new", "message"),
    [
        (LABELS, "negative/,0", "negative/,1", r"row 2: the label of .*study2_negative/,1 is not"),
        (LABELS, f"{HAND},1\n", "", rf"{IMAGES}, row 1: the study train/XR_HAND/.* has no row in"),
        (IMAGES, "MURA-v1.1/train", "path\nMURA-v1.1/train", "row 1: expected .*, got 'path'"),
        (IMAGES, "train/XR_HAND", "valid/XR_HAND", "row 1: expected MURA-v1.1/train/.*, got"),
        (LABELS, "MURA-v1.1", "MURA-v1.0", r"row 1: this is MURA v1\.0, which Stanford withdrew"),
        (LABELS, None, "\n \n", f"{LABELS} is missing or empty. Fix: unpack"),
        (IMAGES, "image2.png", "", r"1 of 7 images that it lists are missing, such as row 2"),
    ],
)
def test_a_wrong_row_is_named(mura, csv, old, new, message):
    text = (mura / csv).read_text()
    assert old is None or old in text
    (mura / csv).write_text(text.replace(old, new, 1) if old else new)
    with pytest.raises(DataError, match=message):
        read_mura_tree(mura)


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("prefix", ["", "MURA-v1.1/"])
def test_val_is_a_tenth_of_train_and_one_lesion_folder_serves_either_root(tmp_path, above, prefix):
    words = ("positive", "negative")
    patients = [("train" if number < 40 else "valid", number) for number in range(50)]
    root = mura_tree(tmp_path, {(s, "HAND", n, 1, words[n % 2]): 2 for s, n in patients})
    image = "train/XR_HAND/patient00000/study1_positive/image1.png"
    mask = np.zeros((10, 12), np.uint8)
    mask[2:4, 3:7] = 255
    write_lesions(tmp_path / "lesions", [Lesion(prefix + image, mask, "fracture")])
    data = Data(root=str(root.parent if above else root))
    table = MuraDataModule(data, Lesions(path=str(tmp_path / "lesions"))).build_index()
    (row,) = table[table["lesion_mask"] != ""].itertuples()
    assert row.path == ("MURA-v1.1/" if above else "") + image
    assert row.lesion_type == "fracture"
    table = check_index(table, "mura")
    check_patients_apart(table, "mura")
    assert table["split"].value_counts().to_dict() == {"train": 72, "val": 8, "test": 20}
    assert (table["path"].str.contains("valid/") == (table["split"] == "test")).all()
    assert set(table["hardware"]) == {-1}
