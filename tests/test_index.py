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


def table(patients: int = 200, seed: int = 0) -> pd.DataFrame:
    """Patients with one to five images each, a third abnormal."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "path": f"{patient}/{view}.png",
            "label": int(patient % 3 == 0),
            "patient": f"p{patient}",
            "study": f"p{patient}",
            "body_part": "hand",
            "split": "train",
            "lesion_mask": "",
            "lesion_type": "",
            "hardware": -1,
        }
        for patient in range(patients)
        for view in range(rng.integers(1, 6))
    ]
    return pd.DataFrame(rows)


def test_groups_keep_patients_apart_and_both_classes_near_their_share():
    drawn = assign_groups(table(), seed=0)
    check_patients_apart(drawn, "made up")
    share = drawn.groupby(["label", "split"]).size() / drawn.groupby("label").size()
    for label in (0, 1):
        assert share[label, "train"] == pytest.approx(0.7, abs=0.03)
        assert share[label, "val"] == pytest.approx(0.1, abs=0.03)
        assert share[label, "test"] == pytest.approx(0.2, abs=0.03)


def test_groups_are_drawn_by_the_seed_alone():
    rows = table()
    again = assign_groups(rows.sample(frac=1, random_state=1), seed=0).sort_index()
    assert (assign_groups(rows, seed=0)["split"] == again["split"]).all()
    assert (assign_groups(rows, seed=0)["split"] != assign_groups(rows, seed=1)["split"]).any()


def test_val_takes_a_tenth_of_train_and_leaves_test():
    rows = table()
    rows.loc[rows["patient"].isin([f"p{n}" for n in range(50)]), "split"] = "test"
    drawn = assign_val(rows, seed=0)
    assert (drawn["split"] == "test").equals(rows["split"] == "test")
    train = rows["split"] == "train"
    assert (drawn.loc[train, "split"] == "val").mean() == pytest.approx(0.1, abs=0.02)
    check_patients_apart(drawn, "made up")


def test_a_patient_in_two_splits_is_named_with_both_images():
    rows = assign_groups(table(), seed=0)
    rows.loc[rows.index[rows["patient"] == "p4"][:1], "split"] = "train"
    rows.loc[len(rows)] = {
        **rows[rows["patient"] == "p4"].iloc[0],
        "path": "x.png",
        "split": "test",
    }
    with pytest.raises(DataError, match=r"p4 in train \(4/0\.png\) and test \(x\.png\)"):
        check_patients_apart(rows, "made up")


def test_by_image_leaks_and_says_nothing_itself():
    drawn = assign_by_image(table(), seed=0)
    assert drawn.groupby("patient")["split"].nunique().max() > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "has label 2; use 0"),
        ({"path": "0/0.png"}, r"0/0\.png is listed"),
        ({"split": "test"}, "the train split holds no images"),
    ],
)
def test_says_what_is_wrong_with_a_table(change, message):
    rows = assign_groups(table(), seed=0)
    for name, value in change.items():
        rows.loc[rows["split"] == "train" if name == "split" else rows.index[-2:], name] = value
    with pytest.raises(DataError, match=message):
        check_index(rows, "made up")


def test_a_split_of_one_class_is_an_error():
    rows = assign_groups(table(), seed=0)
    rows = rows[(rows["split"] != "val") | (rows["label"] == 0)]
    with pytest.raises(DataError, match="the val split holds only normal images"):
        check_index(rows, "made up")


def test_limit_keeps_both_classes():
    limited = limit_split(assign_groups(table(), seed=0), 10)
    counts = limited.groupby(["split", "label"]).size()
    assert (counts == 5).all()
    assert len(counts) == 6
