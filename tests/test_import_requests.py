"""Importing lesions: requests, odd files, names in spreadsheets and shells, being killed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments import command
from tests.lesion_files import BOX, HEIGHT, WIDTH, build, image, run_import, save, write_coco

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "lesions"


@pytest.fixture
def run(root, out):
    """Run the command on the small tree; its exit status."""
    return partial(run_import, root, out)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("export.zip", b"PK\x03\x04", "unpack it, and give the file or folder in it"),
        ("Segmentation.seg.nrrd", b"NRRD0004", "a volume is not read; save each image's mask"),
        ("mask.tif", b"II*\x00", "if these are masks, save them as PNG"),
        ("mask.jpg", b"\xff\xd8", "JPEG smears their edges"),
    ],
)
def test_what_cannot_be_read_is_told_what_to_do(run, tmp_path, capsys, name, data, message):
    source = tmp_path / "folder" / name
    source.parent.mkdir()
    source.write_bytes(data)
    for given in (source, source.parent):
        assert run(given) == 2
        assert message in capsys.readouterr().err


def test_a_package_is_not_what_was_drawn(run, tmp_path, capsys):
    package = tmp_path / "package"
    assert run_import(tmp_path / "MURA-v1.1", package, "--select", "3") == 0
    assert run(package) == 2
    assert "is a package to draw on; give what was drawn: annotations.xml (CVAT)" in (
        capsys.readouterr().err
    )


def test_a_package_remembers_its_settings_and_the_import_compares_splits(
    run, root, out, tmp_path, capsys
):
    package = tmp_path / "package"
    words = ["--select", "12", "--split", "all", "data.seed=3", "data.unreadable=skip"]
    assert run_import(root, package, *words) == 0
    said = f"data.root={root} data.seed=3 data.unreadable=skip\n"
    assert capsys.readouterr().out.endswith(said)
    assert (
        "        data.name=mura data.seed=3 data.unreadable=skip data.root=/path/to/the/data\n"
        in (package / "README.txt").read_text()
    )
    names = pd.read_csv(package / "mapping.csv")["name"]
    source = write_coco(tmp_path / "a.json", *((name, [BOX]) for name in names))
    mapping = ["--mapping", package / "mapping.csv"]
    assert run(source, *mapping, "data.seed=3") == 0
    assert "of another split" not in capsys.readouterr().out
    assert run_import(root, tmp_path / "other", source, *mapping) == 0
    assert "NOTE of another split than when chosen (selected.csv): " in capsys.readouterr().out


def test_what_was_drawn_on_an_image_is_not_taken_for_another_under_its_name(root, tmp_path, capsys):
    package, out = tmp_path / "package", tmp_path / "lesions"
    assert run_import(root, package, "--select", "3") == 0
    row = pd.read_csv(package / "selected.csv").iloc[0]
    source = write_coco(tmp_path / "a.json", (row["name"], [BOX]))
    words = [source, "--mapping", package / "mapping.csv"]
    assert run_import(root, tmp_path / "first", *words) == 0
    save(root / row["image"], seed=99)
    capsys.readouterr()
    assert run_import(root, out, *words) == 2
    assert f"1 image replaced since chosen, such as {root / row['image']}; choose" in (
        capsys.readouterr().err
    )
    assert not out.exists()


def test_labels_may_be_set_apart_by_blanks(run, out, tmp_path):
    source = write_coco(tmp_path / "a.json", (image(2), [BOX]))
    content = json.loads(source.read_text())
    content["images"].append(content["images"][0] | {"id": 9, "file_name": image(4)})
    content["annotations"].append(
        content["annotations"][0] | {"id": 9, "image_id": 9, "category_id": 2}
    )
    content["categories"].append({"id": 2, "name": "lytic"})
    source.write_text(json.dumps(content))
    assert run(source, "--labels", "lytic, fracture") == 0
    assert pd.read_csv(out / "lesions.csv")["lesion_type"].tolist() == ["fracture", "lytic"]


def test_a_label_is_no_formula_to_a_spreadsheet(run, out, tmp_path):
    formula = '=HYPERLINK("http://x.org","y")'
    source = write_coco(tmp_path / "a.json", (image(2), [BOX]))
    source.write_text(source.read_text().replace('"fracture"', json.dumps(formula)))
    assert run(source) == 0
    assert pd.read_csv(out / "lesions.csv")["lesion_type"].tolist() == ["'" + formula]
    assert pd.read_csv(out / "import.csv")["labels"].tolist() == ["'" + formula]


@pytest.mark.parametrize("name", ["a$b", "it's $HOME", 'x"`y`', "plain"])
def test_the_next_command_brings_a_folder_of_any_name_to_training(root, tmp_path, capsys, name):
    """Typed in a shell, and passed on by make: what training is given at last."""
    source = write_coco(tmp_path / "a.json", (image(2), [BOX]))
    assert run_import(root, tmp_path / name, source) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1].split("next     ")[1]
    makefile = tmp_path / "makefile"
    makefile.write_text("stage3:\n\t@printf '%s\\n' $(ARGS)\n")
    line = line.replace("make ", f"make -s -f {shlex.quote(str(makefile))} ", 1)
    said = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[0] == f"lesions.path={tmp_path / name}"


def test_an_inverted_mask_is_a_mistake(run, tmp_path, capsys):
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[5:13, 10:20] = 0
    save_mask(tmp_path, Image.fromarray(mask))
    assert run(tmp_path / "masks") == 2
    error = capsys.readouterr().err
    assert "empty, full or inverted mask: 1\n" in error
    assert "93.3 % of the image and most of its border are marked: is the mask inverted?" in error


def test_the_void_of_a_palette_is_no_lesion(run, tmp_path, capsys):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:14, 9:21] = 255
    mask[5:13, 10:20] = 1
    picture = Image.fromarray(mask, "L").convert("P")
    save_mask(tmp_path, picture)
    assert run(tmp_path / "masks") == 2
    said = capsys.readouterr().err
    assert "holds 1 and 255: of several classes" in said
    assert "in Pascal VOC 255 is the void around objects" in said


def save_mask(folder, picture):
    path = folder / "masks" / image(2)
    path.parent.mkdir(parents=True)
    picture.save(path)


def test_a_folder_that_a_killed_import_left_is_named(run, out, tmp_path, capsys):
    draft = tmp_path / f".{out.name}.{'0' * 32}.part"
    draft.mkdir()
    (tmp_path / f".{out.name}2.{'0' * 32}.part").mkdir()
    assert run(write_coco(tmp_path / "a.json", (image(2), [BOX]))) == 0
    error = capsys.readouterr().err
    assert error.count("NOTE") == 1
    assert f"NOTE {draft} is left of a command that was killed, or of one that is at work" in error
    assert draft.is_dir()


def test_sigterm_leaves_nothing_half_written(run, out, tmp_path, monkeypatch, capsys):
    def killed(draft, _):
        assert (draft / "lesions.csv").is_file()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("experiments.annotation.importing.write_sheets", killed)
    source = write_coco(tmp_path / "a.json", (image(2), [BOX]))
    before, usual = sorted(tmp_path.iterdir()), signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="143"):
            command.run(lambda: run(source), undone_by_sigterm=True)
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert "SIGTERM: stopped, nothing is left half written" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
