"""Importing lesions: what is written and printed, each mistake, and raters."""

from __future__ import annotations

import re
import shlex
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments import import_lesions, select_lesions
from experiments.build import build_data
from experiments.config import load_config
from tests import lesion_files
from tests.lesion_files import BOX, HEIGHT, ONE, OTHER, PIXELS, WIDTH, box, coco_of, image

RIGHT = coco_of((ONE, [BOX]))


def test_masks_table_and_sheets_are_written_and_the_data_set_takes_them(importing, monkeypatch):
    names = [ONE, OTHER, image(102, split="valid")]
    assert importing.run(coco_of(*((name, [BOX]) for name in names))) == 0
    assert importing.table()["image"].tolist() == names
    np.testing.assert_array_equal(importing.mask(names[2]), box())
    about = importing.table("import.csv")[["split", "labels", "share", "weak"]]
    assert about.iloc[2].tolist() == ["test", "fracture", round(80 / 1200, 6), 0]
    printed, out, root = importing.printed(), importing.out, importing.root
    assert "3 listed, 0 of them without a mark; 3 matched, 0 of them left out" in printed
    assert f'make fractures DATA=mura ROOT={root} RUN=lesions ARGS="lesions.path={out}"' in printed
    words = ["data.name=mura", f"data.root={root}", f"lesions.path={out}"]
    table = build_data(load_config("stage3", words)).checked_index()
    assert table["path"][table["lesion_mask"] != ""].tolist() == names
    # Masks of train alone are cross-fitted; several sheets are numbered.
    monkeypatch.setattr("experiments.annotation.importing.ROWS", 1)
    train = table["path"][(table["split"] == "train") & (table["label"] == 1)].tolist()
    again = importing.out = out.with_name("again")
    assert importing.run(coco_of(*((name, [BOX]) for name in train))) == 0
    printed = importing.printed()
    assert "all masks lie in train: no map can be judged" in printed
    folds = f"lesions.path={again} lesions.folds=5 lesions.fold=0"
    assert f'RUN=again-fold0 ARGS="{folds}"' in printed
    assert "import.csv, sheet-1.png to sheet-2.png" in printed
    assert (again / "sheet-2.png").is_file()


def test_the_outline_is_on_the_sheet_in_the_lesions_place(importing):
    assert importing.run(coco_of((ONE, [[*BOX, 10, 8, 11, 8]]))) == 0
    sheet = np.array(Image.open(importing.out / "sheet.png")).astype(int)
    green = (sheet[..., 1] - sheet[..., 0] > 60) & (sheet[..., 1] - sheet[..., 2] > 60)
    rows, columns = np.nonzero(green)
    scale, left, top = 220 / WIDTH, 8, 8 + (220 - 220 * HEIGHT / WIDTH) / 2
    ends = [columns.min(), columns.max(), rows.min(), rows.max()]
    wanted = [left + 10 * scale, left + 20 * scale, top + 5 * scale, top + 13 * scale]
    assert ends == pytest.approx(wanted, abs=4)


def test_the_next_command_brings_a_folder_of_any_name_to_training(importing, tmp_path):
    """Typed in a shell, and passed on by make: what training is given at last."""
    name = "it's \"$HOME`"
    assert importing.run(RIGHT, out=tmp_path / name) == 0
    line = importing.printed().strip().splitlines()[-1].split("next     ")[1]
    makefile = tmp_path / "makefile"
    makefile.write_text("fractures:\n\t@printf '%s\\n' $(ARGS)\n")
    line = line.replace("make ", f"make -s -f {shlex.quote(str(makefile))} ", 1)
    given = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
    assert given.splitlines()[0] == f"lesions.path={tmp_path / name}"


def test_an_example_comes_back_as_the_phantoms_own_masks(importing, tmp_path):
    words = [f"data.root={tmp_path / 'phantom'}", "data.count=60"]
    example, own = tmp_path / "example.json", tmp_path / "phantom" / "lesions"
    assert import_lesions.main(["--example", "9", "--out", str(example), *words]) == 0
    assert "9 lesions of 9 patients" in importing.printed()
    assert import_lesions.main([str(example), "--out", str(importing.out), *words]) == 0
    types = pd.read_csv(own / "lesions.csv").set_index("image")["lesion_type"]
    rows = importing.table().set_index("image")["lesion_type"]
    assert len(rows) == 9
    assert rows.equals(types[rows.index])
    for name in rows.index:
        wanted = np.array(Image.open(own / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(importing.mask(name), wanted)
    # The folder of masks itself is a source, too.
    assert import_lesions.main([str(own / "masks"), "--out", str(tmp_path / "all"), *words]) == 0
    assert len(pd.read_csv(tmp_path / "all" / "lesions.csv")) == len(types)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([(OTHER, [BOX, [5, 5, 25, 25, 25, 5, 5, 25]])], r"annotation 3: .* near \(15, 15\)"),
        ([(OTHER, [BOX, [5, 5, 9, 9]])], "wrong entry: 1, nothing of their images is taken"),
        ([(image(1), [BOX])], f"{image(1)} is labelled normal but has a lesion marked"),
        ([(OTHER, [BOX]), (f"MURA-v1.1/{OTHER}", [BOX])], f"{OTHER} is listed twice, also in "),
        ([("train/extra.png", [BOX])], "extra.png is no image of .* that the index lists"),
        ([("nobody.png", [BOX])] * 60, "unknown image: 60\n(  .*\n){50}  and 10 more\n"),
    ],
)
def test_a_wrong_mark_keeps_its_image_out(importing, entries, message):
    lesion_files.save(importing.root / "train" / "extra.png")
    assert importing.run(coco_of((ONE, [BOX]), *entries)) == 1
    assert re.search(message, importing.printed())
    assert importing.pixels() == {ONE: PIXELS}


XMP = b'<rdf:Description tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/>'


def jpeg(**about):
    return lambda path: Image.new("L", (WIDTH, HEIGHT)).save(path, "JPEG", **about)


@pytest.mark.parametrize(
    ("prepare", "size", "status", "message"),
    [
        (None, (60, 80), 2, "size in the file is 80x60 px: expected 40x30 px, as its"),
        # The raw frame of a turned image; a turn that is not in EXIF is not applied.
        (6, (WIDTH, HEIGHT), 2, "Fix: draw it on the original, not turned by 90 degrees"),
        (6, (HEIGHT, WIDTH), 0, "masks    1"),
        (jpeg(xmp=XMP), (WIDTH, HEIGHT), 2, "not turned by 90 degrees"),
        (jpeg(exif=b"Exif\0\0garbage"), (HEIGHT, WIDTH), 0, "masks    1"),
        (3, (HEIGHT, WIDTH), 0, "    its EXIF orientation is 3: the file does not tell"),
    ],
)
def test_the_size_tells_the_frame_that_was_drawn_in(importing, prepare, size, status, message):
    if callable(prepare):
        prepare(importing.root / ONE)
    elif prepare:
        lesion_files.save(importing.root / ONE, orientation=prepare)
    assert importing.run(coco_of((ONE, [BOX]), size=size)) == status
    assert message in importing.printed()
    assert status or importing.mask().shape == (HEIGHT, WIDTH)


ONES = box() // 255
VOID = np.maximum(box(9, 4, 20, 13) - box(), ONES)


@pytest.mark.parametrize(
    ("masks", "status", "message"),
    [
        ((box(), 0 * box()), 0, f"without a mark: 1 image, such as\n  {OTHER}: its lesion is not"),
        ((255 - box(), box()), 1, "93.3 % of the image and most of its border are marked: is the"),
        # The void of one mask is no lesion, nor beside classes of others.
        ((ONES, VOID), 2, "of several classes"),
        ((box(), ONES), 2, "holds 1 and 255: of several classes"),
    ],
)
def test_a_mask_that_is_no_lesion_is_not_taken(importing, masks, status, message):
    pictures = [Image.fromarray(mask).convert("P") for mask in masks]
    source = importing.put(dict(zip((ONE, OTHER), pictures, strict=True)))
    assert importing.run(source, "--format", "masks") == status
    assert message in importing.printed()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.json"], "absent.json: cannot be read"),
        ([], "expected annotation files or --example N"),
        (["SOURCE", "--format", "dxf"], "--format dxf is none of masks, coco, "),
        (["plain.md"], r"in no format that is known \(.*unpack archives, save masks as PNG"),
        (["SOURCE", "--labels", "fractur"], "--labels 'fractur': .*there are 'fracture' labels"),
        (["SOURCE", "lesions.path=x"], "lesions.path is what an import makes"),
        (["SOURCE", "--out", "taken"], "already exists. Fix: remove it, or choose another --out"),
        (["--example", "5"], "data.name=mura has no lesion masks of its own"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(importing, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    source = importing.put({"a.json": RIGHT})
    (tmp_path / "taken").mkdir()
    (tmp_path / "plain.md").write_text("# none\n")
    given = [str(source) if word == "SOURCE" else word for word in words]
    to = [] if "--out" in words else ["--out", str(importing.out)]
    data = ["data.name=mura", f"data.root={importing.root}"]
    assert import_lesions.main([*given, *to, *data]) == 2
    printed = importing.printed()
    assert re.search(message, printed), printed
    assert not importing.out.exists()
    assert [*(tmp_path / "taken").iterdir()] == []


@pytest.mark.parametrize(
    ("boxes", "how", "columns"),
    [
        ((10, 14), "union", (10, 23)),
        ((10, 14), "majority", (14, 19)),
        ((10, 14, 18), "majority", (14, 23)),
        ((10, 25), "majority", ()),
    ],
)
def test_raters_are_joined_and_compared(importing, boxes, how, columns):
    shares = [(100 * left / WIDTH, 500 / HEIGHT, 900 / WIDTH, 700 / HEIGHT) for left in boxes]
    regions = [lesion_files.region(at=at) for at in shares]
    own = [{"completed_by": f"{n}@clinic.org", "result": [r]} for n, r in enumerate(regions)]
    task = lesion_files.studio({"image": ONE}, annotations=own)
    assert importing.run(task, "--raters", how) == (0 if columns else 2)
    printed = importing.printed()
    if not columns:
        assert "no pixel is left by the majority of 2 raters" in printed
        return
    np.testing.assert_array_equal(importing.mask(), box(columns[0], 5, columns[1], 12))
    assert f"several raters marked 1 image; joined by {how}" in printed
    # 6 of 14 columns are shared; each rater has 10.
    assert re.search(r"rater 1 and rater 2 +1 +0\.429 +0\.600", printed)
    assert "clinic" not in printed + importing.table("import.csv").to_csv()


def test_several_sources_are_several_raters(importing):
    one = importing.put({"anna.json": coco_of((ONE, [BOX]), (OTHER, [BOX]))})
    other = importing.put({"ben.json": RIGHT})
    assert importing.run(one, other, "--raters", "intersection") == 0
    assert re.search(r"anna.json and .*ben.json +1 +1\.000 +1\.000", importing.printed())
    assert list(importing.pixels()) == [ONE, OTHER]


def test_an_import_compares_images_and_splits_with_the_package(importing, tmp_path):
    package = tmp_path / "package"
    data = ["data.name=mura", f"data.root={importing.root}", "data.seed=3"]
    words = ["--count", "12", "--split", "all", "--out", str(package), "data.unreadable=skip"]
    assert select_lesions.main([*words, *data]) == 0
    assert importing.printed().endswith(" data.seed=3 data.unreadable=skip\n")
    kept = "        data.name=mura data.seed=3 data.unreadable=skip data.root=/path/to/the/data\n"
    assert kept in (package / "README.txt").read_text()
    rows = pd.read_csv(package / "selected.csv")
    source = importing.put({"a.json": coco_of(*((name, [BOX]) for name in rows["name"]))})
    mapping = ["--mapping", package / "mapping.csv"]
    assert importing.run(source, *mapping, "data.seed=3") == 0
    assert "of another split" not in importing.printed()
    assert importing.run(source, *mapping, out=tmp_path / "other") == 0
    assert "NOTE of another split than when chosen (selected.csv): " in importing.printed()
    # What was drawn on an image is not taken for another under its name.
    lesion_files.save(importing.root / rows["image"][0], seed=99)
    assert importing.run(source, *mapping, out=tmp_path / "third") == 2
    assert f"{importing.root / rows['image'][0]} was replaced since" in importing.printed()
    assert not (tmp_path / "third").exists()
