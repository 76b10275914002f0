"""Importing lesions: what is written and printed, each mistake, raters, and being interrupted."""

from __future__ import annotations

import re
import shlex
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments import import_lesions
from experiments.build import build_data
from experiments.config import load_config
from tests.lesion_files import (
    BOX,
    HEIGHT,
    ONE,
    OTHER,
    PIXELS,
    WIDTH,
    box,
    coco,
    coco_of,
    image,
    save,
)
from tests.test_decode import XMP_APP, app, jpeg_with

RIGHT = coco_of((ONE, [BOX]))


def assert_matches(text, pattern):
    assert re.search(pattern, text), text


# What is written ----------------------------------------------------------------------------------


def test_masks_table_and_sheet_are_written_and_the_data_set_takes_them(importing):
    names = [ONE, OTHER, image(102, split="valid")]
    assert importing.run(coco_of(*((name, [BOX]) for name in names))) == 0
    assert importing.table()["image"].tolist() == names
    assert set(importing.table()["lesion_type"]) == {"fracture"}
    files = sorted(path.name for path in importing.out.iterdir())
    assert files == ["import.csv", "lesions.csv", "masks", "sheet.png"]
    for name in names:
        np.testing.assert_array_equal(importing.mask(name), box())
    about = importing.table("import.csv")
    assert about["share"].tolist() == [round(80 / 1200, 6)] * 3
    assert about["weak"].tolist() == [1, 1, 1]  # a polygon, but of a box's four corners
    assert about["split"].iloc[2] == "test"
    printed, out, root = importing.printed(), importing.out, importing.root
    assert "3 listed, 0 of them without a mark; 3 matched, 0 of them left out" in printed
    assert f'make stage3 DATA=mura ROOT={root} RUN=lesions ARGS="lesions.path={out}"' in printed
    words = ["data.name=mura", f"data.root={root}", f"lesions.path={out}"]
    table = build_data(load_config("stage3", words)).checked_index()
    assert table["path"][table["lesion_mask"] != ""].tolist() == names


def test_several_sheets_are_numbered(importing, monkeypatch):
    monkeypatch.setattr("experiments.annotation.sheet.ROWS", 1)
    monkeypatch.setattr("experiments.annotation.sheet.COLUMNS", 2)
    assert importing.run(coco_of(*((image(patient), [BOX]) for patient in (2, 4, 6)))) == 0
    assert "import.csv, sheet-1.png to sheet-2.png" in importing.printed()
    assert (importing.out / "sheet-2.png").is_file()


def test_the_outline_is_on_the_sheet_in_the_lesions_place(importing):
    assert importing.run(coco_of((ONE, [[*BOX, 10, 8, 11, 8]]))) == 0
    sheet = np.array(Image.open(importing.out / "sheet.png")).astype(int)
    green = (sheet[..., 1] - sheet[..., 0] > 60) & (sheet[..., 1] - sheet[..., 2] > 60)
    rows, columns = np.nonzero(green)
    scale, left, top = 220 / WIDTH, 8, 8 + (220 - 220 * HEIGHT / WIDTH) / 2
    ends = [columns.min(), columns.max(), rows.min(), rows.max()]
    wanted = [left + 10 * scale, left + 20 * scale, top + 5 * scale, top + 13 * scale]
    assert ends == pytest.approx(wanted, abs=4)


def test_masks_of_train_alone_are_cross_fitted(importing):
    words = ["data.name=mura", f"data.root={importing.root}"]
    table = build_data(load_config("stage3", words)).checked_index()
    train = table["path"][(table["split"] == "train") & (table["label"] == 1)].tolist()
    assert importing.run(coco_of(*((name, [BOX]) for name in train))) == 0
    printed = importing.printed()
    assert "all masks lie in train: no map can be judged" in printed
    folds = f"lesions.path={importing.out} lesions.folds=5 lesions.fold=0"
    assert f'RUN=lesions-fold0 ARGS="{folds}"' in printed


@pytest.mark.parametrize("name", ["a$b", "it's $HOME", 'x"`y`', "plain"])
def test_the_next_command_brings_a_folder_of_any_name_to_training(importing, tmp_path, name):
    """Typed in a shell, and passed on by make: what training is given at last."""
    assert importing.run(RIGHT, out=tmp_path / name) == 0
    line = importing.printed().strip().splitlines()[-1].split("next     ")[1]
    makefile = tmp_path / "makefile"
    makefile.write_text("stage3:\n\t@printf '%s\\n' $(ARGS)\n")
    line = line.replace("make ", f"make -s -f {shlex.quote(str(makefile))} ", 1)
    said = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[0] == f"lesions.path={tmp_path / name}"


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("frac\x1b[2Jture\ud800", "frac?[2Jture?"),  # moves no cursor
        ('=HYPERLINK("http://x.org","y")', '\'=HYPERLINK("http://x.org","y")'),  # no formula
    ],
)
def test_a_class_may_be_any_text(importing, label, kind):
    categories = [{"id": 1, "name": label}]
    assert importing.run(coco({"segmentation": [BOX]}, categories=categories)) == 0
    assert f"marks    {kind.removeprefix(chr(39))} 1" in importing.printed()
    assert importing.table()["lesion_type"].tolist() == [kind]
    assert importing.table("import.csv")["labels"].tolist() == [kind]


def test_an_example_comes_back_as_the_phantoms_own_masks(importing, tmp_path):
    words = [f"data.root={tmp_path / 'phantom'}", "data.count=80"]
    example, own = tmp_path / "example.json", tmp_path / "phantom" / "lesions"
    assert import_lesions.main(["--example", "12", "--out", str(example), *words]) == 0
    assert "12 lesions of 12 patients" in importing.printed()
    assert import_lesions.main([str(example), "--out", str(importing.out), *words]) == 0
    types = pd.read_csv(own / "lesions.csv").set_index("image")["lesion_type"]
    rows = importing.table()
    assert len(rows) == 12
    for name, kind in zip(rows["image"], rows["lesion_type"], strict=True):
        wanted = np.array(Image.open(own / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(importing.mask(name), wanted)
        assert kind == types[name]
    # The folder of masks itself is a source, too.
    assert import_lesions.main([str(own / "masks"), "--out", str(tmp_path / "all"), *words]) == 0
    assert len(pd.read_csv(tmp_path / "all" / "lesions.csv")) == len(types)


# Mistakes -----------------------------------------------------------------------------------------

EIGHT = [5, 5, 25, 25, 25, 5, 5, 25]


@pytest.mark.parametrize(
    ("entries", "messages"),
    [
        ([(OTHER, [[100, 5, 120, 5, 120, 20]])], ["annotation 2: .*outside the 40x30 px image"]),
        ([(OTHER, [[30, 5, 90, 5, 90, 20]])], ["most of it lies outside the 40x30.*scaled"]),
        ([(OTHER, [EIGHT])], [r"its outline crosses itself near \(15, 15\)"]),
        ([(OTHER, [[0, 0, 40, 0, 40, 30, 0, 30]])], ["the whole image is marked: is the mask"]),
        ([(OTHER, [BOX, [5, 5, 9, 9]])], ["wrong entry: 1, nothing of their images is taken"]),
        ([(image(1), [BOX])], [f"{image(1)} is labelled normal but has a lesion marked"]),
        (
            [(OTHER, [BOX]), (f"MURA-v1.1/{OTHER}", [BOX]), ("nobody.png", [BOX])],
            [f"{OTHER} is listed twice, also in ", "unknown image: 1\n", "left out: 2 mistakes"],
        ),
        ([(OTHER, [EIGHT, [99, 5, 120, 5, 120, 20]])], ["wrong mark: 2\n"]),
    ],
)
def test_a_wrong_mark_keeps_its_image_out(importing, entries, messages):
    assert importing.run(coco_of((ONE, [BOX]), *entries)) == 1
    printed = importing.printed()
    for message in messages:
        assert_matches(printed, message)
    assert importing.pixels() == {ONE: PIXELS}


def jpeg(exif):
    return lambda path: path.write_bytes(jpeg_with(np.zeros((HEIGHT, WIDTH), np.uint8), exif))


@pytest.mark.parametrize(
    ("prepare", "size", "status", "said"),
    [
        (None, (60, 80), 2, "it is 80x60 px in the file, the upright image 40x30 px"),
        (None, (WIDTH, HEIGHT), 2, "it seems turned by 90 degrees"),
        # The raw frame of a turned image; a turn that is not in EXIF is not applied.
        (6, (WIDTH, HEIGHT), 2, "the tool ignored the EXIF orientation 6"),
        (6, (HEIGHT, WIDTH), 0, "masks    1"),
        (jpeg(XMP_APP), (WIDTH, HEIGHT), 2, "the tool applied XMP's orientation 6"),
        (jpeg(XMP_APP), (HEIGHT, WIDTH), 0, "masks    1"),
        (jpeg(app(0xE1, b"Exif\0\0garbage")), (HEIGHT, WIDTH), 0, "masks    1"),
        (3, (HEIGHT, WIDTH), 0, "NOTE look at 1 image, import.csv"),
    ],
)
def test_the_size_tells_the_frame_that_was_drawn_in(importing, prepare, size, status, said):
    if callable(prepare):
        prepare(importing.root / ONE)
    elif prepare:
        save(importing.root / ONE, orientation=prepare)
    assert importing.run(coco_of((ONE, [BOX]), size=size)) == status
    assert said in importing.printed()
    assert status or importing.mask().shape == (HEIGHT, WIDTH)
    if prepare == 3:
        assert "XMP or EXIF orientation is 3" in importing.table("import.csv")["notes"][0]


def test_what_stands_out_a_little_is_cut_off_with_a_note(importing):
    assert importing.run(coco_of((ONE, [[30, 5, 46, 5, 46, 12, 30, 12]]))) == 0
    np.testing.assert_array_equal(importing.mask(), box(30, 5, 39, 12))
    note = importing.table("import.csv")["notes"][0]
    assert note == "annotation 1 cut off at the image's edge, 6 px beyond it"


def void():
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8) * (box(9, 4, 20, 13) > 0)
    return Image.fromarray(np.where(box() > 0, 1, mask).astype(np.uint8), "L").convert("P")


@pytest.mark.parametrize(
    ("masks", "status", "messages"),
    [
        ({ONE: box(), OTHER: 0 * box(), image(1): 0 * box()}, 1, [f"{OTHER}: its mask is empty"]),
        ({ONE: 255 - box()}, 2, ["93.3 % of the image and most of its border are marked: is the"]),
        (
            {ONE: void()},
            2,
            ["of several classes", "in Pascal VOC 255 is the void"],
        ),
    ],
)
def test_a_mask_that_is_no_lesion_is_a_mistake(importing, masks, status, messages):
    for name, mask in masks.items():
        path = importing.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(path)
    assert importing.run(importing.source, "--format", "masks") == status
    printed = importing.printed()
    assert all(message in printed for message in messages)
    assert ("empty, full or inverted mask: 1\n" in printed) == (len(messages) == 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.json"], "absent.json does not exist"),
        ([], "name an annotation file to import"),
        (["SOURCE", "SOURCE"], "a source is given twice"),
        (["SOURCE", "--format", "dxf"], "--format dxf is none of masks, coco, "),
        (["PLAIN"], r"in no format that is known \(.*; say which, .* \(--format NAME\)"),
        (["EXTRA"], "but the index leaves it out"),
        (["SOURCE", "--labels", "fractur"], "--labels 'fractur': .*there are 'fracture' labels"),
        (["SOURCE", "--mapping", "no.csv"], "--mapping no.csv: there is no such file"),
        (["SOURCE", "lesions.path=x"], "lesions.path is what an import makes"),
        (["SOURCE", "data.nam=mura"], "data.nam"),
        (["SOURCE", "--out", "TAKEN"], "already exists; remove it first, or choose another --out"),
        (["--example", "5"], "data.name=mura has no lesion masks of its own"),
        (["SOURCE", "--example", "5"], "--example reads no source"),
        (["--example", "5", "--strict"], "--strict is of an import, --example is none"),
        (["PACKAGE"], "is a package to draw on; give what was drawn: annotations.xml .CVAT"),
        (["export.zip"], "unpack it, and give the file or folder in it"),
        (["a.seg.nrrd"], "save a volume's slice as PNG"),
        (["mask.tif"], "if these are masks, save them as PNG"),
        (["mask.jpg"], "JPEG smears their edges"),
    ],
)
def test_what_cannot_be_carried_out_is_said(importing, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    source = importing.put({"a.json": RIGHT})
    save(importing.root / "train" / "extra.png")
    importing.put({"extra.json": coco_of(("train/extra.png", [BOX])), "plain.md": "# none\n"})
    for name in ("selected.csv", "mapping.csv"):
        importing.put({f"package/{name}": "name,image\n"})
    for name in ("export.zip", "a.seg.nrrd", "mask.tif", "mask.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8II*\x00")
    (tmp_path / "taken").mkdir()
    files = {"SOURCE": source, "PLAIN": importing.source / "plain.md", "TAKEN": tmp_path / "taken"}
    files |= {"EXTRA": importing.source / "extra.json", "PACKAGE": importing.source / "package"}
    given = [str(files.get(word, word)) for word in words]
    to = [] if "--out" in words else ["--out", str(importing.out)]
    data = ["data.name=mura", f"data.root={importing.root}"]
    assert import_lesions.main([*given, *to, *data]) == 2
    assert_matches(importing.printed(), message)
    assert not importing.out.exists()
    assert [*(tmp_path / "taken").iterdir()] == []
