"""A table of anybody's images: what it may hold, and each mistake by its row."""

from __future__ import annotations

import os
import re
import unicodedata

import numpy as np
import pandas as pd
import pytest

from datamodules.index import DataError, assign_groups, check_patients_apart
from datamodules.lesions import Lesion, write_lesions
from datamodules.options import Lesions
from experiments.config import ConfigError, load_config
from tests.archives import picture
from tests.films import HEADER, MASK, SPLITS, change, module, opened, write_png

ROW = "p0/1.png,1,Doe0,masks/1.png,,hand,train,,"  # row 3
PAIR = f"p0/0.png,0,Doe0,,,hand,train,,\n{ROW}"
STRAY = f"{ROW}\n{ROW}".replace(",hand", ',"hand', 1).replace(",hand", ',"hand"')
STUDIES = PAIR.replace(",,hand", ",7,hand").replace(",7,", ",07,", 1)
SEE_THROUGH = np.dstack([MASK, MASK, MASK, MASK])
MISTAKES = [
    # The file.
    ("table.csv", None, {}, r"table\.csv does not exist\. Fix: write it, with the header path,la"),
    ("table.csv", None, {"table": "my.csv"}, r"^my\.csv does not exist"),
    ("table.csv", "é".encode("latin-1"), {}, r"table\.csv: cannot be read .*as UTF-8"),
    ("table.csv", b"PK\3\4", {}, r"table\.csv: is a ZIP file or an Excel"),
    ("table.csv", HEADER.encode(), {}, r"table\.csv: there are no rows"),
    (ROW, f"{ROW},more,and", {}, r"table\.csv: cannot be read as CSV .*line 3.* in quotes"),
    # The header.
    ("path,label", "way,label", {}, r"no column path\. Fix: a header, and in it path or image_p"),
    ("path,label", "path,class", {}, r"no column label\. Fix: .* label or label_index or abnormal"),
    (
        "patient",
        "name",
        {},
        r"no column patient \(patient_id, .*\)\. Fix: add it, or say data\.pat",
    ),
    ("study", "Image", {}, r"the columns path and Image both mean path\. Fix: keep one"),
    ("study", "label", {}, r"the columns label and label\.1 both mean label\. Fix: keep one"),
    ("", "", {"patients": "image"}, r"a column patient, which data\.patients=image would not"),
    # A row.
    ("p0/1.png,1", ",1", {}, r"row 3: no path is given\. Fix: fill"),
    ("p0/1.png,1", "p0\\..\\..\\1.png,1", {}, r"row 3: \.\./1\.png is absolute or leads out"),
    (
        "p0/1.png,1",
        "C:\\1.png,1",
        {},
        r"row 3: C:/1\.png is absolute or leads out of data\.root\. Fix",
    ),
    ("p0/1.png,1", "p0/one.png,1", {}, r"1 of 20 images .* row 3: p0/one\.png\. Fix: paths rela"),
    ("p0/1.png,1", "p0,1", {}, r"1 of 20 images .* row 3: p0\. Fix: paths relative to data\.root="),
    ("p0/1.png,1", ".\\p0//0.png,1", {}, r"row 3: p0/0\.png is listed twice\. Fix: one row"),
    (ROW, ROW.replace("1,Doe", "Doe,1"), {}, r"row 3: p0/1\.png has an unknown label\. Fix: 0, n"),
    (ROW, ROW.replace("1,Doe", ",Doe"), {}, r"row 3: p0/1\.png has no label\. Fix: 0 \(normal\)"),
    (ROW, "p0/1.png", {}, r"row 3: p0/1\.png has no label"),
    ("1,Doe0", "1,", {}, r"row 3: p0/1\.png has no patient\. Fix: fill it in"),
    ("1,Doe0", "1,NaN", {}, r"row 3: p0/1\.png has no patient\. Fix: fill it in"),
    ("1,Doe0", "1,doe0", {}, r"row 3: p0/1\.png has a patient whose name is also spelt otherwise"),
    ("1,Doe0", "1,Doe\uff10", {}, r"row 3: p0/1\.png has a patient whose name is also spelt othe"),
    ("1,Doe0", '1,"1,2E+12"', {}, r"row 3: p0/1\.png has a patient that a spreadsheet rounded\."),
    (ROW, f'"{ROW}\n{ROW}"', {}, r"row 3: its quote ends in another row\. Fix: double the quotes"),
    (ROW, STRAY, {}, r"line 4: a quote is not closed, or text follows one .*Fix: double"),
    ("1,Doe0", "1,Doe0.0", {}, r"row 3: p0/1\.png has a patient whose name is also spelt othe"),
    (ROW, ROW.replace("train", "dev"), {}, r"row 3: p0/1\.png has no known split\. Fix: train, "),
    (ROW, ROW.replace("train", ""), {}, r"row 3: p0/1\.png has no known split.* or in none"),
    (ROW, ROW.replace("train", "test"), {}, r"row 3: p0/1\.png is in test, and row 2, of the sam"),
    (PAIR, STUDIES, {}, r"row 3: p0/1\.png has a study whose name is also spelt otherwise"),
    (ROW, f"{ROW}2", {}, r"row 3: p0/1\.png has unknown hardware\. Fix: 0, 1 or nothing"),
    # Splits.
    ("test", "val", {}, r"the test split holds no images\. Fix: both classes in each split, or no"),
    # A file.
    ("p0/1.png", b"GIF89a", {}, r"1 images cannot be read.*1\.png: expected a PNG, JPEG or DICOM"),
    # A mask.
    (ROW, ROW.replace("1,Doe", "0,Doe"), {}, r"row 3: p0/1\.png is labelled normal but has a les"),
    ("masks/1.png", "masks/3.png", {}, r"row 5: p1/3\.png has another image's mask\. Fix"),
    ("masks/1.png,", "masks/one.png,", {}, r"row 3: the mask masks/one\.png cannot be read"),
    ("masks/1.png", b"no PNG", {}, r"row 3: the mask masks/1\.png cannot be read"),
    ("masks/1.png", MASK[1:], {}, r"row 3: the mask masks/1\.png is 80x95 px: expected 80x96"),
    ("masks/1.png", MASK // 2, {}, r"row 3: the mask masks/1\.png holds the grey value 127\. Fix"),
    ("masks/1.png", MASK * 0, {}, r"row 3: the mask masks/1\.png is empty\. Fix: mark the lesion"),
    ("masks/1.png", MASK * 0 + 255, {}, r"row 3: the mask masks/1\.png covers 100"),
    ("masks/1.png", SEE_THROUGH, {}, r"row 3: the mask masks/1\.png has see-through pixels\. Fix"),
]


@pytest.mark.parametrize(("old", "new", "options", "message"), MISTAKES)
def test_a_mistake_is_one_line_with_its_row_and_the_fix(films, old, new, options, message):
    """A file is replaced or removed, or a text in the table by another one."""
    if new is None:
        (films / old).unlink()
    elif isinstance(new, bytes):
        (films / old).write_bytes(new)
    elif isinstance(new, np.ndarray):
        write_png(films / old, new)
    else:
        change(films, old, new)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        module(films, **options).prepare_data()
    assert "Fix: " in str(caught.value)
    assert str(caught.value).count("\n") <= 2 * ("cannot be read:" in str(caught.value))
    assert "Doe" not in str(caught.value), "names of patients stay in the file"


def test_letters_may_be_composed_otherwise_than_on_disk(films):
    one, two = (unicodedata.normalize(form, "p0/Röntgen.png") for form in ("NFC", "NFD"))
    (films / "p0/1.png").rename(films / one)
    change(films, "p0/1.png", two)
    assert one in module(films).build_index()["path"].tolist()


def test_stand_ins_for_patients(films):
    change(films, "patient", "nobody")
    change(films, ",train", ",")
    change(films, ",val", ",")
    change(films, ",test", ",")
    by_folder, by_image = (module(films, patients=kind) for kind in ("folder", "image"))
    table = by_folder.build_index()
    assert table["patient"].tolist() == [path.split("/")[0] for path in table["path"]]
    check_patients_apart(table, "films")
    assert (by_image.build_index()["patient"] == table["path"]).all()
    assert (by_folder.patients_are, by_image.patients_are) == ("folders", "images")
    assert by_folder.cache_folder != by_image.cache_folder
    change(films, ",,hand", ",visit,hand")
    with pytest.raises(DataError, match=r"row 2: p0/0\.png shares its study with other images"):
        by_image.build_index()
    change(films, "p0/", "")
    (films / "p0" / "0.png").rename(films / "0.png")
    with pytest.raises(DataError, match=r"row 2: 0\.png is in no patient's folder"):
        by_folder.build_index()
    for word in ("data.patients=folder", "data.table=t.csv"):
        with pytest.raises(ConfigError, match=rf"{word}: only .*data\.name=table"):
            load_config("stage1", ["data.name=mura", word])


ALIASES = {
    "path": "image_path image filename file PATH",
    "label": "label_index abnormal target Label",
    "mask": "mask_path lesion_mask",
    "patient": "patient_id subject PatientID patientid",
    "study": "study_id",
}


@pytest.mark.parametrize(
    ("ours", "other"), [(ours, one) for ours, some in ALIASES.items() for one in some.split()]
)
def test_columns_have_other_names(films, ours, other):
    wanted = module(films).build_index()
    change(films, HEADER, re.sub(rf"\b{ours}\b", other, HEADER))
    pd.testing.assert_frame_equal(module(films).build_index(), wanted)


@pytest.mark.parametrize("words", ["normal Abnormal", "NEGATIVE positive", "False True"])
@pytest.mark.parametrize(("sign", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-16")])
def test_the_table_may_be_written_otherwise(films, words, sign, encoding):
    wanted = module(films).build_index()
    rows = pd.read_csv(films / "table.csv", dtype=str, keep_default_na=False)
    rows["label"] = rows["label"].map(dict(zip("01", words.split(), strict=True)))
    rows["split"] = rows["split"].replace({"val": "Valid"})
    rows[["path", "mask"]] = rows[["path", "mask"]].apply(
        lambda cells: cells.str.replace("/", "\\")
    )
    rows["notes, of all, sorts, in, many, words"] = ""
    rows.to_csv(films.parent / "my.csv", index=False, sep=sign, encoding=encoding)
    (films / "table.csv").unlink()
    given = module(films, table=str(films.parent / "my.csv")).build_index()
    pd.testing.assert_frame_equal(given, wanted)


def test_what_is_not_read_is_named_once_and_what_is_optional_may_be_absent(films, caplog):
    rows = pd.read_csv(films / "table.csv", dtype=str, keep_default_na=False)
    rows = rows[["path", "label", "patient"]].assign(age="7", sex="F")
    rows.to_csv(films / "table.csv")
    tables = [module(films).build_index() for _ in range(2)]
    assert caplog.text.count("columns that are not read: Unnamed: 0, age, sex") == 1
    pd.testing.assert_frame_equal(*tables)
    table = tables[0]
    drawn = assign_groups(table, seed=0)["split"]
    assert (table["split"] == drawn).all()
    assert (table["study"] == table["path"]).all()
    same = {"body_part": "unknown", "lesion_mask": "", "lesion_type": "", "hardware": -1}
    assert table[[*same]].drop_duplicates().to_dict("records") == [same]


def test_given_splits_are_kept_and_a_missing_val_is_drawn_from_train(films):
    table = module(films).build_index()
    assert table["split"].tolist() == np.repeat(SPLITS, 2).tolist()
    change(films, "val", "train")
    drawn = module(films).build_index()["split"]
    assert set(drawn[:16]) == {"train", "val"}
    assert (drawn[16:] == "test").all()
    by_image = opened(module(films, split="image"))
    assert by_image.table.groupby("patient")["split"].nunique().max() > 1


def test_studies_that_each_patient_counts_from_1_are_not_joined(films):
    change(films, ",,hand", ",1,hand")
    studies = module(films).build_index()["study"]
    assert studies.tolist() == [f"Doe{number // 2}/1" for number in range(20)]


def test_lesions_path_replaces_masks_and_lesion_types_stay(films):
    change(films, ",train,,", ",train,lytic,1")
    write_lesions(films.parent / "own", [Lesion("p1/3.png", MASK, "sclerotic")])
    table = module(films, Lesions(path=str(films.parent / "own"))).build_index().set_index("path")
    assert table.index[table["lesion_mask"] != ""].tolist() == ["p1/3.png"]
    types = table["lesion_type"]
    assert (types["p0/1.png"], types["p1/3.png"], types["p9/19.png"]) == ("lytic", "sclerotic", "")
    assert table["hardware"][["p0/1.png", "p9/19.png"]].tolist() == [1, -1]


def test_folders_stand_for_a_table(folders):
    table = module(folders, patients="folder").build_index().set_index("path")
    assert len(table) == 20
    assert (table["label"] == table.index.str.startswith("abnormal/")).all()
    assert table["patient"][["normal/p3/6.png", "abnormal/p3/7.png"]].tolist() == ["p3", "p3"]
    masks = table["lesion_mask"]
    assert masks["abnormal/p2/5.png"] == str((folders / "masks/p2/5.png").resolve())
    assert (masks != "").sum() == 9
    (folders / "abnormal/p2/5.png").rename(folders / "abnormal/p2/1.2.840.5")  # a UID, no suffix
    (folders / "masks/p2/5.png").rename(folders / "masks/p2/1.2.840.5.PNG")
    assert module(folders, patients="folder").build_index()["lesion_mask"].ne("").sum() == 9
    first = module(folders, patients="folder").cache_folder
    write_png(folders / "normal" / "p3" / "new.png", picture(99))
    assert module(folders, patients="folder").cache_folder != first


@pytest.mark.parametrize(
    ("old", "new", "patients", "message"),
    [
        (
            "",
            "",
            "column",
            r"films: no column patient \(patient_id, .*\)\. Fix: add it, or say data\.pat",
        ),
        ("normal", "healthy", "image", r"films/normal: expected images in it\. Fix"),
        ("abnormal", "ill", "image", r"table\.csv does not exist.* or put .* normal and abnormal"),
        (
            "masks/p0/1.png",
            "masks/p0/0.png",
            "image",
            r"masks/p0/0\.png: no image in abnormal/ has",
        ),
        ("abnormal/p0/1.png", "abnormal/1.png", "folder", r"no image in abnormal/"),
        (
            "normal/p0/0.png",
            os.fsdecode(b"normal/\xfc.png"),
            "image",
            r"is not UTF-8\. Fix: rename",
        ),
        (
            "abnormal/p9/19.png",
            "abnormal/19.png",
            "folder",
            r"films: abnormal/19\.png is in no patient's folder",
        ),
        ("abnormal/p9/19.png", "abnormal/p0/1.jpg", "image", r"p0/1\.png has another image's mask"),
    ],
)
def test_mistakes_in_folders(folders, old, new, patients, message):
    if old:
        (folders / old).rename(folders / new)
    with pytest.raises(DataError, match=message):
        module(folders, patients=patients).build_index()
