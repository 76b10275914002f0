"""The index table's checks and splits."""

import numpy as np
import pandas as pd
import pytest

from datamodules.index import (
    DataError,
    assign_by_image,
    assign_groups,
    assign_val,
    check_index,
    check_patients_apart,
    limit_split,
)


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
    check_patients_apart(drawn, "made up")
    share = drawn.groupby(["label", "split"]).size() / drawn.groupby("label").size()
    for label in (0, 1):
        for split, wanted in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
            assert share[label, split] == pytest.approx(wanted, abs=0.03)


def test_groups_are_drawn_by_the_seed_alone(rows):
    again = assign_groups(rows.sample(frac=1, random_state=1), seed=0).sort_index()
    assert (assign_groups(rows, seed=0)["split"] == again["split"]).all()
    assert (assign_groups(rows, seed=0)["split"] != assign_groups(rows, seed=1)["split"]).any()


def test_val_takes_a_tenth_of_train_and_leaves_test(rows):
    rows.loc[rows["patient"].isin([f"p{n}" for n in range(50)]), "split"] = "test"
    drawn = assign_val(rows, seed=0)
    assert (drawn["split"] == "test").equals(rows["split"] == "test")
    train = rows["split"] == "train"
    assert (drawn.loc[train, "split"] == "val").mean() == pytest.approx(0.1, abs=0.02)
    check_patients_apart(drawn, "made up")


def test_a_patient_in_two_splits_is_named_with_both_images(rows):
    moved = rows.assign(split=rows["path"].eq("0/0.png").map({True: "test", False: "train"}))
    with pytest.raises(DataError, match=r"p0 in test \(0/0\.png\) and train \(0/1\.png\)"):
        check_patients_apart(moved, "made up")
    assert assign_by_image(rows, seed=0).groupby("patient")["split"].nunique().max() > 1


@pytest.mark.parametrize(
    ("where", "column", "value", "message"),
    [
        (lambda rows: rows.index == 7, "label", 2, r"/7\.png has label 2. Fix: use 0"),
        (lambda rows: rows.index == 7, "path", "0/0.png", r"0/0\.png is listed more than once"),
        (lambda rows: rows["split"] == "train", "split", "test", "train split holds no images"),
        (
            lambda rows: (rows["split"] == "val") & (rows["label"] == 1),
            *("split", "test", "val split holds only normal images"),
        ),
    ],
)
def test_a_faulty_table_is_refused(rows, where, column, value, message):
    rows = assign_groups(rows, seed=0)
    rows.loc[where(rows), column] = value
    with pytest.raises(DataError, match=message):
        check_index(rows, "made up")


def test_limit_keeps_both_classes(rows):
    counts = limit_split(assign_groups(rows, seed=0), 10).groupby(["split", "label"]).size()
    assert counts.tolist() == [5] * 6
