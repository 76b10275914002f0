"""A folder of anybody's maps is judged as a run's own are, and refused with what to do."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules.index import DataError
from experiments import evaluate
from experiments.build import open_run
from experiments.evaluation.folder import choose_rows, find_maps, read_map
from tests.lesion_files import put

IMAGES = ["hand/p1/image1.jpg", "wrist/p1/image1.png"]
ONE = f"{IMAGES[0]}.cam.png"


def test_maps_are_known_by_the_names_that_predict_gives(tmp_path):
    names = [ONE, f"{IMAGES[1]}.cam.npy", f"{IMAGES[0]}.grad-cam++.npy"]
    put(tmp_path, dict.fromkeys([*names, ".DS_Store", "hand/p1/._image1.png"], b""))
    cam, two, other = (tmp_path / name for name in names)
    expected = {"cam": {IMAGES[0]: cam, IMAGES[1]: two}, "grad-cam++": {IMAGES[0]: other}}
    assert find_maps(tmp_path, IMAGES) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([ONE, ONE.replace("png", "npy")], r"cam\.npy and \S+cam\.png are both maps of hand/p1/im"),
        ([ONE, "image1.png.cam.png"], r"1 other files \(image1\.png\.cam\.png\) .*Fix: .*hand"),
        ([f"{IMAGES[0]}.lesion.png"], "1 other files"),  # columns of the results
        ([], r"0 other files \(\) and maps of 0 methods\. Fix: call each map as .* as hand"),
    ],
)
def test_a_folder_that_is_not_clear_is_refused(tmp_path, names, message):
    put(tmp_path, dict.fromkeys(names, b""))
    with pytest.raises(DataError, match=message):
        find_maps(tmp_path, IMAGES)


# Two of each kind: with a lesion mask, abnormal without, normal.
TABLE = pd.DataFrame({"path": ["m1", "m2", "a1", "a2", "n1", "n2"], "label": [1, 1, 1, 1, 0, 0]})
TABLE = TABLE.assign(lesion_mask=["mask.png"] * 2 + [""] * 4, split="test")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("m1 m2 a1 a2 n1 n2", ""),
        ("m1 m2", ""),
        ("m1 a1 a2 n1 n2", "1 of the 2 images with a lesion mask in test, such as m2. Fix"),
        ("m1 m2 a1 a2 n2", "1 of the 2 normal images in test, such as n1. Fix: make them, or"),
        ("m1 m2 a1", "1 of the 2 abnormal images without a lesion mask in test, such as a2"),
    ],
)
def test_images_without_a_mask_may_all_lack_a_map(images, message):
    files = {"mine": dict.fromkeys(images.split())}
    if not message:
        assert TABLE["path"][choose_rows(files, TABLE)].tolist() == images.split()
        files["other"] = dict.fromkeys(images.split()[1:])
        message = "mine and other: no map of 1 of the 2 images with a lesion mask in test, such as"
    with pytest.raises(DataError, match=re.escape(message)):
        choose_rows(files, TABLE)


SIZE = 30, 40
EYE = np.eye(*SIZE)
VALUES = (np.random.default_rng(0).integers(0, 256, SIZE) / 255).astype(np.float32)  # of 8 bits
BYTES = np.rint(VALUES * 255).astype(np.uint8)
DARK = cv2.imencode(".png", np.zeros(SIZE, np.uint8))[1].tobytes()


def written(folder, name, content):
    """A file with these bytes, or this array."""
    if name.endswith(".npy") and not isinstance(content, bytes):
        np.save(folder / name, content)
    else:
        put(folder, {name: content})
    return folder / name


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a.png", BYTES),
        ("a.png", np.rint(VALUES * 65535).astype(np.uint16)),
        *(("a.npy", VALUES.astype(kind)) for kind in ("<f4", ">f8")),
        ("a.npy", VALUES + 5e-7 * (2 * (VALUES > 0.5) - 1)),  # rounding is cut
    ],
)
def test_a_map_is_read(tmp_path, name, stored):
    path = written(tmp_path, name, stored)
    if stored is BYTES:  # a map is stored upright, whatever else its file says
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        Image.fromarray(BYTES).save(path, exif=exif)
    values = read_map(path, SIZE)
    assert values.dtype == np.float32
    assert 0 <= values.min() <= values.max() <= 1
    assert np.abs(values - VALUES).max() <= 1e-6


WRONG = "expected floating point of 40x30 px (width x height), as its image is upright, got"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.full(SIZE, np.nan), "expected values in [0, 1], got nan to nan. Fix: scale"),
        ("a.npy", EYE.astype(np.uint8), f"{WRONG} uint8 of the shape (30, 40). Fix: make it of"),
        ("a.npy", np.zeros((40, 30)), f"{WRONG} float64 of the shape (40, 30)"),
        ("a.npy", b"", "is no .npy of numbers (No data left in file). Fix: np.save"),
        ("a.npy", np.full(SIZE, None), "is no .npy of numbers"),  # a pickle, not loaded
        ("a.png", DARK[:-20], "damaged image (the PNG is cut short or"),
        ("a.png", np.zeros((*SIZE, 3), np.uint8), "expected grey of 8 or 16 bits of 40x30 px"),
        ("a.png", BYTES[:15, :20], "expected grey of 8 or 16 bits of 40x30 px (width x height)"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_map(path, SIZE)


@pytest.fixture(scope="module")
def tiny(trained):
    """Words of ``data.*`` for 80 phantom images."""
    return [word for word in trained.words if word.startswith("data.")]


@pytest.fixture(scope="module")
def data(trained):
    return open_run(trained.stage1).data


@pytest.fixture
def maps(data, tmp_path):
    """Maps that are the lesion masks themselves, as 8-bit PNG; dark on all other images."""
    for row in [*data.rows_of("val"), *data.rows_of("test")]:
        path, mask = file_of(tmp_path / "maps", data, row), data.original_mask(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        dark = np.zeros(data.original_size(row), np.uint8)
        cv2.imwrite(str(path), dark if mask is None else mask)
    return tmp_path / "maps"


def file_of(folder, data, row):
    return folder / f"{data.table['path'][row]}.mine.png"


def judge(folder, tiny, *words):
    """Run the command; the status."""
    return evaluate.main(["--maps", str(folder), *tiny, *words])


def test_perfect_maps_get_perfect_figures(maps, tiny, data, capsys):
    assert judge(maps, tiny) == 0
    figures = json.loads((maps.with_name("maps.evaluation") / "test/summary.json").read_text())
    ones = ("hit", "hit_near", "pixel_ap", "iou", "dice", "iou_otsu", "iou_bound", "energy")
    for name in (*ones, "box_bound", "shown_abnormal"):
        assert figures[f"mine/{name}"] == 1, name
    assert figures["mine/shown_normal"] == 0
    test = data.table.iloc[data.rows_of("test")]
    assert figures["images"] == len(test)
    assert figures["lesions"] == (test.lesion_mask != "").sum()
    out = capsys.readouterr().out
    assert re.search(r"    hit rate +1\.00", out)
    assert max(len(line) for line in out.splitlines() if str(maps) not in line) <= 100


def test_maps_of_lesions_in_test_alone_have_no_threshold(maps, tiny, data, tmp_path, capsys):
    normal = [row for row in data.rows_of("test") if data.table["label"][row] == 0]
    for row in [*data.rows_of("val"), *normal]:
        file_of(maps, data, row).unlink()
    assert judge(maps, tiny, "--out", str(tmp_path / "results")) == 0
    assert not maps.with_name("maps.evaluation").exists()
    out = capsys.readouterr().out
    assert "NOTE no map of a lesion in val: no threshold of a map can be tuned" in out
    assert f"no map of the {len(normal)} normal images in test: what is shown there is null" in out
    figures = json.loads((tmp_path / "results/test/summary.json").read_text())
    for name in ("iou", "dice", "shown_normal", "shown_abnormal"):
        assert figures[f"mine/{name}"] is None, name
    for name in ("hit", "pixel_ap", "iou_otsu", "iou_bound", "energy"):
        assert figures[f"mine/{name}"] == 1, name
    assert figures["fitted"]["maps"]["mine"]["threshold"] is None


def test_what_cannot_be_judged_is_named_and_nothing_is_written(maps, tiny, data, capsys):
    mura = [*(word for word in tiny if "count" not in word), "data.name=mura"]  # without masks
    paths = [file_of(maps, data, row) for row in data.rows_of("test")[:4]]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-20])
    first = f"error: maps of 4 of 16 test images cannot be used, such as\n  {paths[0]}: damaged"
    for words, message in ((tiny, first), (mura, "no image in test has a lesion mask. Fix: les")):
        assert judge(maps, words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") in (1, 4)  # three of them
    assert not maps.with_name("maps.evaluation").exists()
