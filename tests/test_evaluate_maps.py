"""A folder of anybody's maps is judged as a run's own are, and refused with what to do."""

from __future__ import annotations

import json
import re
import shutil
import struct

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from datamodules.index import DataError
from experiments import evaluate
from experiments.build import build_data, open_run
from experiments.config import load_config
from experiments.evaluation.folder import choose_rows, find_maps, read_map

IMAGES = ["hand/p1/image1.jpg", "hand/p2/image1.jpg", "wrist/p1/image1.png"]
ONE = f"{IMAGES[0]}.cam.png"


def put(folder, *names):
    """Empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_maps_are_known_by_the_names_that_predict_gives(tmp_path):
    maps = tmp_path / "maps"
    names = {image: f"{image}.cam.png" for image in IMAGES[:2]}
    put(maps, *names.values(), f"{IMAGES[0]}.grad-cam++.npy", ".DS_Store", "hand/p1/._image1.png")
    put(tmp_path, "elsewhere/image1.png.cam.npy")
    (maps / "wrist").mkdir()
    (maps / "wrist" / "p1").symlink_to(tmp_path / "elsewhere")
    files = find_maps(maps, IMAGES)
    assert {image: str(path.relative_to(maps)) for image, path in files["cam"].items()} == {
        **names,
        IMAGES[2]: "wrist/p1/image1.png.cam.npy",
    }
    assert list(files["grad-cam++"]) == IMAGES[:1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([ONE, ONE.replace("png", "npy")], r"cam\.npy and \S+cam\.png are both maps of hand/p1/im"),
        (
            [ONE, "image1.png.cam.png"],
            r"1 files of no image, such as image1\.png\.cam\.png\. Fix: .*hand",
        ),
        ([f"{IMAGES[0]}.lesion.png"], "files of no image"),  # columns of the results
        (
            [],
            r"maps holds no file\. Fix: call each map as its image below data\.root, such as hand",
        ),
    ],
)
def test_a_folder_that_is_not_clear_is_refused(tmp_path, names, message):
    (tmp_path / "maps").mkdir()
    put(tmp_path / "maps", *names)
    with pytest.raises(DataError, match=message):
        find_maps(tmp_path / "maps", IMAGES)


# Two of each kind: with a lesion mask, abnormal without, normal.
TABLE = pd.DataFrame(
    {
        "path": [f"{kind}{number}" for kind in "man" for number in (1, 2)],
        "label": [1, 1, 1, 1, 0, 0],
        "lesion_mask": ["mask.png"] * 2 + [""] * 4,
        "split": "test",
    }
)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("m1 m2 a1 a2 n1 n2", ""),
        ("m1 m2 n1 n2", ""),
        ("m1 m2", ""),
        (
            "m1 a1 a2 n1 n2",
            "map of 1 of the 2 images with a lesion mask in test, such as m2. Fix",
        ),
        (
            "m1 m2 a1 a2 n2",
            "1 of the 2 normal images in test, such as n1. Fix: make them, or",
        ),
        ("m1 m2 a1", "of 1 of the 2 abnormal images without a lesion mask in test, such as a2"),
    ],
)
def test_images_without_a_mask_may_all_lack_a_map(images, message):
    files = {"mine": dict.fromkeys(images.split())}
    if not message:
        assert TABLE["path"][choose_rows(files, TABLE)].tolist() == images.split()
        files["other"] = dict.fromkeys(images.split()[1:])
        message = "only one of mine and other has a map of m1; methods are compared on the same"
    with pytest.raises(DataError, match=re.escape(message)):
        choose_rows(files, TABLE)


SIZE = 30, 40
EYE = np.eye(*SIZE)
VALUES = (np.random.default_rng(0).integers(0, 256, SIZE) / 255).astype(np.float32)  # of 8 bits
BYTES = np.rint(VALUES * 255).astype(np.uint8)
DARK = cv2.imencode(".png", np.zeros(SIZE, np.uint8))[1].tobytes()
HEADER = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {SIZE}}}\n".encode()


def npy(header):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def written(folder, name, content):
    """A file with these bytes, or this array."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        cv2.imwrite(str(path), content)
    return path


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a.png", BYTES),
        ("a.png", np.rint(VALUES * 65535).astype(np.uint16)),
        *(("a.npy", VALUES.astype(kind)) for kind in ("<f4", ">f4", "<f8")),
        ("a.npy", VALUES[None]),
        ("a.npy", np.asfortranarray(VALUES)),
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
        ("a.npy", np.where(EYE, np.inf, 0), "expected values in [0, 1], got 0 to inf"),
        ("a.npy", EYE * 255, "expected values in [0, 1], got 0 to 255"),
        ("a.npy", EYE.astype(np.uint8), f"{WRONG} uint8 of the shape (30, 40). Fix: make it of"),
        ("a.npy", np.zeros((40, 30)), f"{WRONG} float64 of the shape (40, 30)"),
        ("a.npy", npy(HEADER.replace(b"30", b"160000")), "is no .npy file of numbers (mmap"),
        ("a.npy", b"", "is no .npy file of numbers (No data left in file). Fix: np.save"),
        ("a.npy", np.full(SIZE, None), "is no .npy file of numbers"),  # a pickle, not loaded
        ("a.png", b"", "the file is empty"),
        ("a.png", npy(HEADER), "damaged image"),
        ("a.png", DARK[:-20], "damaged image (the PNG is cut short or"),
        ("a.png", DARK[:50] + b"?" + DARK[51:], "damaged image (the PNG is cut short or"),
        ("a.png", np.zeros((*SIZE, 3)), "expected grey of 8 or 16 bits of 40x30 px"),
        ("a.png", EYE[:15, :20], "expected grey of 8 or 16 bits of 40x30 px (width x height), as"),
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
def data(tiny):
    data = build_data(load_config("stage1", tiny))
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def perfect(data, tmp_path_factory):
    """Maps that are the lesion masks themselves, as 8-bit PNG; dark on all other images."""
    folder = tmp_path_factory.mktemp("perfect") / "maps"
    for row in [*data.rows_of("val"), *data.rows_of("test")]:
        mask = data.original_mask(row)
        file_of(folder, data, row).parent.mkdir(parents=True, exist_ok=True)
        dark = np.zeros(data.original_size(row), np.uint8)
        cv2.imwrite(str(file_of(folder, data, row)), dark if mask is None else mask)
    return folder


@pytest.fixture
def maps(perfect, tmp_path):
    """A copy of them, to change."""
    return shutil.copytree(perfect, tmp_path / "maps")


def file_of(folder, data, row):
    return folder / f"{data.table['path'][row]}.mine.png"


def masked(data, split):
    return [row for row in data.rows_of(split) if data.table["lesion_mask"][row]]


def judge(folder, tiny, *words):
    """Run the command; the status."""
    return evaluate.main(["--maps", str(folder), *tiny, *words])


def summary(folder, split="test"):
    text = (folder.with_name(f"{folder.name}.evaluation") / split / "summary.json").read_text()
    return json.loads(text)


@pytest.mark.parametrize("split", ["test", "val"])
def test_perfect_maps_get_perfect_figures(perfect, tiny, data, capsys, split):
    assert judge(perfect, tiny, "--split", split) == 0
    figures = summary(perfect, split)
    ones = ("hit", "hit_near", "pixel_ap", "iou", "dice", "iou_otsu", "iou_bound", "energy")
    for name in (*ones, "box_bound", "shown_abnormal"):
        assert figures[f"mine/{name}"] == 1, name
    assert figures["mine/shown_normal"] == 0
    assert figures["images"] == len(data.rows_of(split))
    assert figures["lesions"] == len(masked(data, split))
    out = capsys.readouterr().out
    assert re.search(r"    hit rate +1\.00", out)
    assert max(len(line) for line in out.splitlines() if str(perfect) not in line) <= 100


def test_maps_of_lesions_in_test_alone_have_no_threshold(maps, tiny, data, capsys):
    normal = [row for row in data.rows_of("test") if data.table["label"][row] == 0]
    for row in [*data.rows_of("val"), *normal]:
        file_of(maps, data, row).unlink()
    assert judge(maps, tiny) == 0
    out = capsys.readouterr().out
    assert "NOTE no map of a lesion in val: no threshold of a map can be tuned" in out
    assert f"no map of the {len(normal)} normal images in test: what is shown there is null" in out
    figures = summary(maps)
    for name in ("iou", "dice", "shown_normal", "shown_abnormal"):
        assert figures[f"mine/{name}"] is None, name
    for name in ("hit", "pixel_ap", "iou_otsu", "iou_bound", "energy"):
        assert figures[f"mine/{name}"] == 1, name
    assert figures["fitted"]["maps"]["mine"]["threshold"] is None


def test_results_lie_where_they_are_wanted(maps, tiny, tmp_path, capsys):
    assert judge(maps, tiny, "--out", str(maps / "results")) == 2
    assert "lies in the folder of maps" in capsys.readouterr().err
    results = tmp_path / "results" / "test"
    (results / "maps.npz").mkdir(parents=True)
    assert judge(maps, tiny, "--out", str(results.parent)) == 2
    printed = capsys.readouterr()
    assert "hit rate" in printed.out
    assert "written" not in printed.out
    assert "results/test cannot be written" in printed.err
    (results / "maps.npz").rmdir()
    assert judge(maps, tiny, "--out", str(results.parent)) == 0
    assert (results / "summary.json").is_file()
    assert not maps.with_name("maps.evaluation").exists()


def test_faulty_and_missing_maps_are_named_and_nothing_is_written(maps, tiny, data, capsys):
    paths = [file_of(maps, data, row) for row in masked(data, "test")[-4:]]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-20])
    assert judge(maps, tiny) == 2
    error = capsys.readouterr().err
    assert f" test images cannot be used, such as\n  {paths[0]}: damaged image" in error
    assert error.startswith("error: maps of 4 of ")
    assert error.count("\n") == 4  # three of them
    paths[-1].unlink()
    assert judge(maps, tiny) == 2
    lacking = data.table["path"][masked(data, "test")[-1]]
    assert f"images with a lesion mask in test, such as {lacking}" in capsys.readouterr().err
    assert not maps.with_name("maps.evaluation").exists()


def test_where_there_are_no_lesion_masks_nothing_is_judged(maps, tiny, capsys):
    """The phantom's tree as MURA has no masks."""
    words = [*(word for word in tiny if "count" not in word), "data.name=mura"]
    assert judge(maps, words) == 2
    assert "no image in test has a lesion mask. Fix: lesions.path" in capsys.readouterr().err


@pytest.mark.slow
def test_a_runs_own_maps_get_its_own_figures(trained, tiny, tmp_path):
    run = trained.copy("stage1", tmp_path)
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    opened = open_run(run)
    data = opened.data
    for split in ("val", "test"):
        for batch in data.evaluation_dataloader(split):
            with torch.inference_mode():
                _, maps = opened.module.explain(data.on_after_batch_transfer(batch, 0)["image"])
            for place, row in enumerate(batch["index"].tolist()):
                shown = data.to_original(maps["pcam"][place, 0].numpy(), row).clip(0, 1)
                path = tmp_path / "maps" / f"{data.table['path'][row]}.pcam.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), np.rint(shown * 65535).astype(np.uint16))
    own = json.loads((run / "evaluation" / "test" / "summary.json").read_text())
    columns = pd.read_csv(run / "evaluation" / "test" / "images.csv").set_index("path")
    assert judge(tmp_path / "maps", tiny) == 0
    figures = summary(tmp_path / "maps")
    names = [name for name in figures if name.startswith("pcam/")]
    assert len(names) > 20
    for name in names:
        assert figures[name] == pytest.approx(own[name], abs=2e-3), name
        interval = figures["intervals"][name]
        assert interval == pytest.approx(own["intervals"][name], abs=2e-3)
    table = pd.read_csv(tmp_path / "maps.evaluation" / "test" / "images.csv")
    for name in ("pcam_hit", "pcam_peak_x", "pcam_peak_y"):
        assert table[name].equals(columns.loc[table["path"], name].reset_index(drop=True)), name
