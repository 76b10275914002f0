"""Which file is the map of which image, and what is said where that is not clear."""

from __future__ import annotations

import os
import re

import numpy as np
import pandas as pd
import pytest
from experiments.evaluation.foreign_maps import check_maps, choose_maps, find_maps

from datamodules.index import DataError

IMAGES = ["hand/p1/image1.jpg", "hand/p2/image1.jpg", "wrist/p1/image1.png"]


def put(folder, *names):
    """Empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def relative(found, folder):
    return {
        method: {image: path.relative_to(folder).as_posix() for image, path in files.items()}
        for method, files in found.items()
    }


@pytest.mark.parametrize("end", [".png", ".npy"])
def test_a_map_lies_where_its_image_lies(tmp_path, end):
    bare, whole = f"hand/p1/image1{end}", f"hand/p2/image1.jpg{end}"
    put(tmp_path, bare, whole, ".DS_Store", "hand/p1/._image1.png", ".hidden/image1.png")
    assert relative(find_maps(tmp_path, IMAGES), tmp_path) == {
        "map": {IMAGES[0]: bare, IMAGES[1]: whole}
    }


def test_predictions_of_several_methods_are_kept_apart(tmp_path):
    names = [f"{image}.{method}.png" for image in IMAGES for method in ("cam", "grad-cam++")]
    put(tmp_path, *names)
    found = relative(find_maps(tmp_path, IMAGES), tmp_path)
    assert found == {
        method: {image: f"{image}.{method}.png" for image in IMAGES}
        for method in ("cam", "grad-cam++")
    }


def test_links_are_followed_and_a_circle_ends(tmp_path):
    maps = tmp_path / "maps"
    put(tmp_path, "elsewhere/image1.npy")
    (maps / "hand").mkdir(parents=True)
    (maps / "hand" / "p1").symlink_to(tmp_path / "elsewhere")
    (maps / "hand" / "circle").symlink_to(maps)
    assert relative(find_maps(maps, IMAGES), maps) == {"map": {IMAGES[0]: "hand/p1/image1.npy"}}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["hand/p1/image1.png", "hand/p1/image1.npy"],
            r"hand/p1/image1\.npy and \S+hand/p1/image1\.png are both maps of hand/p1/image1\.jpg; "
            "keep one",
        ),
        (
            ["hand/p1/image1.png", "hand/p1/image1.jpg.cam.png"],
            r"hand/p1/image1\.png and \S+hand/p1/image1\.jpg\.cam\.png are both maps of "
            r"hand/p1/image1\.jpg; keep one of them, or give both the name of a method",
        ),
        (
            ["hand/p1/image1.png", "hand/p2/image1.jpg.cam.png"],
            r"image1\.jpg\.cam\.png tells the method cam and \S+p1/image1\.png tells none; name",
        ),
        (
            ["hand/p1/image1.jpg.cam.png", "hand/p1/image1.jpg.cam.npy"],
            r"image1\.jpg\.cam\.npy and \S+image1\.jpg\.cam\.png are both maps of",
        ),
        (
            ["hand/p1/image1.png", "image1.png"],
            r"maps holds files of no image of the data set: image1\.png; take them out, or name "
            r"them as the images below data\.root, such as hand/p1/image1\.png",
        ),
        (
            [f"hand/p1/image{number}.png" for number in range(1, 7)],
            r"no image of the data set: hand/p1/image2\.png, hand/p1/image3\.png, "
            r"hand/p1/image4\.png and 2 more; take",
        ),
        (["hand/p1/image1.txt"], r"files of no image of the data set: hand/p1/image1\.txt"),
        (["hand/p1/image1.PNG"], r"files of no image of the data set: hand/p1/image1\.PNG"),
        (["hand/p1/image1.cam.png"], r"files of no image of the data set: hand/p1/image1\.cam"),
        (["hand/p1/image1.jpg..png"], r"files of no image of the data set: hand/p1/image1\.jpg\."),
        (
            ["hand/p1/image1.jpg.lesion.png"],
            r"lesion\.png: no method can be called lesion, columns",
        ),
        ([], r"maps holds no file; put a map an image there, such as hand/p1/image1\.png"),
    ],
)
def test_a_folder_that_is_not_clear_is_refused(tmp_path, names, said):
    maps = tmp_path / "maps"
    maps.mkdir()
    put(maps, *names)
    with pytest.raises(DataError, match=said):
        find_maps(maps, IMAGES)


def test_a_name_that_two_images_share_is_refused(tmp_path):
    put(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"a\.png may be the map of a\.jpg or of a\.jpeg; give it"):
        find_maps(tmp_path, ["a.jpg", "a.jpeg"])
    put(tmp_path, "b.jpg.png", "b.jpeg.png")
    (tmp_path / "a.png").unlink()
    assert set(find_maps(tmp_path, ["b.jpg", "b.jpeg"])["map"]) == {"b.jpg", "b.jpeg"}


def test_no_folder_is_said(tmp_path):
    put(tmp_path, "a.png")
    with pytest.raises(DataError, match="--maps .*none does not exist; give the folder"):
        find_maps(tmp_path / "none", IMAGES)
    with pytest.raises(DataError, match="--maps .*a.png is a file; give the folder"):
        find_maps(tmp_path / "a.png", IMAGES)


@pytest.mark.parametrize("kind", ["pipe", "broken link"])
def test_what_is_no_file_is_not_opened(tmp_path, kind):
    path = tmp_path / "image1.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    with pytest.raises(DataError, match=re.escape(f"{path}: is no file (a broken link, or a")):
        find_maps(tmp_path, ["image1.jpg"])


# Two of each kind: with a lesion mask, abnormal without, normal.
TABLE = pd.DataFrame(
    {
        "path": [f"{kind}{number}.png" for kind in "man" for number in (1, 2)],
        "label": [1, 1, 1, 1, 0, 0],
        "lesion_mask": ["mask.png"] * 2 + [""] * 4,
        "split": "test",
    }
)


def chosen(tmp_path, kinds):
    """Images of these names have a map."""
    files = {f"{name}.png": tmp_path / f"{name}.png" for name in kinds.split()}
    found = choose_maps(files, TABLE, tmp_path, np.arange(6))
    return [TABLE["path"][row][:2] for row in found]


@pytest.mark.parametrize("kinds", ["m1 m2 a1 a2 n1 n2", "m1 m2 n1 n2", "m1 m2 a1 a2", "m1 m2"])
def test_images_without_a_mask_may_all_lack_a_map(tmp_path, kinds):
    assert chosen(tmp_path, kinds) == kinds.split()


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (
            "m1 a1 a2 n1 n2",
            r"no map of 1 of the 2 images with a lesion mask in test: m2\.png; make them$",
        ),
        ("a1 a2 n1 n2", r"of 2 of the 2 images with a lesion mask in test: m1.png, m2.png;"),
        (
            "m1 m2 a1 a2 n2",
            r"no map of 1 of the 2 normal images in test: n1\.png; make them, or leave all 2 out$",
        ),
        ("m1 m2 a1", r"no map of 1 of the 2 abnormal images without a lesion mask in test: a2.png"),
    ],
)
def test_missing_maps_are_named(tmp_path, kinds, said):
    with pytest.raises(DataError, match=said):
        chosen(tmp_path, kinds)


def test_all_maps_are_checked_before_any_is_used(tmp_path):
    sizes = {}
    for number in range(9):
        path = tmp_path / f"{number}.npy"
        np.save(path, np.eye(4, dtype=np.float32) * (2 if number % 2 else 1))
        sizes[path] = (4, 4)
    with pytest.raises(DataError) as caught:
        check_maps(sizes)
    told = str(caught.value).splitlines()
    assert told[0] == "4 of 9 maps cannot be used:"
    assert [line.split(":")[0].strip() for line in told[1:4]] == [
        str(tmp_path / f"{number}.npy") for number in (1, 3, 5)
    ]
    assert told[4:] == ["  and 1 more"]
    with pytest.raises(DataError, match=r"^\S+/3\.npy: its values reach from 0 to 2"):
        check_maps({path: size for path, size in sizes.items() if path.stem in "23"})


def test_maps_of_one_value_are_told(tmp_path):
    for name, value in (("dark", 0.0), ("flat", 0.7), ("points", 0.7)):
        map = np.full((4, 4), value, np.float32)
        map[0, 0] += 0.1 * (name == "points")
        np.save(tmp_path / f"{name}.npy", map)
    files = dict.fromkeys(tmp_path.iterdir(), (4, 4))
    assert {path.stem for path in check_maps(files)} == {"dark", "flat"}
