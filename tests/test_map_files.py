"""Which file is the map of which image, what a map must be, and what each refusal says."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from experiments.evaluation.map_file import read_map
from PIL import Image

from datamodules.index import DataError
from experiments.evaluation.folder import choose_rows, find_maps

# Which file is whose ------------------------------------------------------------------------------

IMAGES = ["hand/p1/image1.jpg", "hand/p2/image1.jpg", "wrist/p1/image1.png"]
ONE = f"{IMAGES[0]}.cam.png"


def put(folder, *names):
    """Empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_maps_are_found_by_the_names_that_predict_gives(tmp_path):
    maps = tmp_path / "maps"
    names = {image: f"{image}.{method}.png" for image in IMAGES[:2] for method in ("cam",)}
    put(maps, *names.values(), f"{IMAGES[0]}.grad-cam++.npy", ".DS_Store", "hand/p1/._image1.png")
    put(tmp_path, "elsewhere/image1.png.cam.npy")
    (maps / "wrist").mkdir()
    (maps / "wrist" / "p1").symlink_to(tmp_path / "elsewhere")
    (maps / "wrist" / "circle").symlink_to(maps)  # would be walked for ever
    files = find_maps(maps, IMAGES)
    assert {image: str(path.relative_to(maps)) for image, path in files["cam"].items()} == {
        **names,
        IMAGES[2]: "wrist/p1/image1.png.cam.npy",
    }
    assert list(files["grad-cam++"]) == IMAGES[:1]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([ONE, ONE.replace("png", "npy")], r"cam\.npy and \S+cam\.png are both maps of hand/p1/im"),
        ([ONE, "image1.png.cam.png"], r"no image: image1\.png\.cam\.png\. Fix: .*hand/p1/image1"),
        ([f"{n}.jpg.a.png" for n in range(5)], r"no image: 0\.jpg\.a\.png, .* and 2 more\. Fix"),
        (["hand/p1/image1.png"], r"no image: hand/p1/image1\.png"),  # no method
        ([f"{IMAGES[0]}.cam.PNG"], "files of no image"),
        ([f"{IMAGES[0]}..png"], "files of no image"),
        ([f"{IMAGES[0]}.lesion.png"], "files of no image"),  # columns of the results
        (
            [],
            r"maps holds no file\. Fix: call each map as its image below data\.root, such as hand",
        ),
    ],
)
def test_a_folder_that_is_not_clear_is_refused(tmp_path, names, said):
    (tmp_path / "maps").mkdir()
    put(tmp_path / "maps", *names)
    with pytest.raises(DataError, match=said):
        find_maps(tmp_path / "maps", IMAGES)


@pytest.mark.parametrize("kind", ["pipe", "broken link"])
def test_what_is_no_file_is_not_opened(tmp_path, kind):
    path = tmp_path / "image1.jpg.cam.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    with pytest.raises(DataError, match=re.escape(f"{path} is no file (a broken link, or a dev")):
        find_maps(tmp_path, ["image1.jpg"])


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
    ("images", "said"),
    [
        ("m1 m2 a1 a2 n1 n2", ""),
        ("m1 m2 n1 n2", ""),
        ("m1 m2 a1 a2", ""),
        ("m1 m2", ""),
        ("m1 a1 a2 n1 n2", "no map of 1 of the 2 images with a lesion mask in test: m2. Fix: make"),
        ("a1 a2 n1 n2", "of 2 of the 2 images with a lesion mask in test: m1, m2."),
        ("m1 m2 a1 a2 n2", "1 of the 2 normal images in test: n1. Fix: make them, or leave all 2"),
        ("m1 m2 a1", "of 1 of the 2 abnormal images without a lesion mask in test: a2"),
    ],
)
def test_images_without_a_mask_may_all_lack_a_map(images, said):
    files = {"mine": dict.fromkeys(images.split())}
    if not said:
        assert TABLE["path"][choose_rows(files, TABLE)].tolist() == images.split()
        files["other"] = dict.fromkeys(images.split()[1:])
        said = "only one of mine and other has a map of m1; methods are compared on the same"
    with pytest.raises(DataError, match=re.escape(said)):
        choose_rows(files, TABLE)


# What a map must be -------------------------------------------------------------------------------

SIZE = 30, 40
EYE = np.eye(*SIZE)
WHOLE = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {SIZE}}}"
HUGE = WHOLE.replace(str(SIZE), "(160000, 160000)")


def values():
    """A map whose values an 8-bit file holds exactly."""
    return (np.random.default_rng(0).integers(0, 256, SIZE) / 255).astype(np.float32)


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(size=SIZE, depth=8, colour=0, extra=0):
    """The bytes of a dark PNG, as its header tells or not."""
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes((SIZE[1] + 1) * SIZE[0] + extra))
    parts = [chunk(b"IHDR", header), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


def npy(text, body=b""):
    """The bytes of an .npy file with this header."""
    line = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line + body


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
        ("a.png", lambda values: np.rint(values * 255).astype(np.uint8)),
        ("a.png", lambda values: np.rint(values * 65535).astype(np.uint16)),
        *(
            ("a.npy", lambda values, kind=kind: values.astype(kind))
            for kind in ("<f4", ">f4", "<f8")
        ),
        ("a.npy", lambda values: values[None]),
        ("a.npy", np.asfortranarray),
        ("a.npy", lambda values: values + 5e-7 * (2 * (values > 0.5) - 1)),  # rounding is cut
    ],
)
def test_a_map_is_read(tmp_path, name, stored):
    read = read_map(written(tmp_path, name, stored(values())), SIZE)
    assert read.dtype == np.float32
    assert 0 <= read.min() <= read.max() <= 1
    assert np.abs(read - values()).max() <= 1e-6


def test_a_png_lies_as_it_is_stored_and_may_hold_more(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(np.rint(values() * 255).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_map(tmp_path / "a.png", SIZE), values())
    for content in (png() + b"and more", png(extra=9)):
        assert not read_map(written(tmp_path, "b.png", content), SIZE).any()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.npy", np.full(SIZE, np.nan, np.float32), "1,200 of 1,200 values are NaN or infinite"),
        ("a.npy", np.where(EYE, np.inf, 0), "30 of 1,200 values are NaN or infinite"),
        ("a.npy", EYE * 255, "its values reach from 0 to 255. Fix: scale the maps, all alike"),
        ("a.npy", EYE - 0.5, "its values reach from -0.5 to 0.5"),
        ("a.npy", EYE.astype(np.uint8), "holds uint8. Fix: save float32 in [0, 1]"),
        ("a.npy", EYE.astype(bool), "holds bool"),
        ("a.npy", EYE.astype(np.complex64), "holds complex64"),
        ("a.npy", np.zeros((3, *SIZE), np.float32), "has the shape (3, 30, 40); expected (H, W)"),
        ("a.npy", np.zeros(1200, np.float32), "has the shape (1200,)"),
        ("a.npy", np.zeros((40, 30)), "is 30x40 px, its image upright 40x30 px (width x height)"),
        ("a.npy", np.zeros((15, 20)), "is 20x15 px, its image upright 40x30 px"),
        ("a.npy", npy(HUGE), "is no whole .npy file"),  # gigabytes are promised, none allocated
        ("a.npy", npy(WHOLE, bytes(4799)), "is no whole .npy file"),
        ("a.npy", npy(WHOLE, bytes(4801)), "is longer than its header says"),
        ("a.npy", npy("[" * 5000), "is no whole .npy file"),
        ("a.npy", b"", "is no whole .npy file"),
        ("a.npy", png(), "is no whole .npy file"),
        ("a.png", npy(WHOLE), "is no whole PNG file"),
        ("a.png", b"", "is no whole PNG file"),
        ("a.png", png()[:20], "is no whole PNG file"),
        ("a.png", png()[:-20], "damaged image (the PNG is cut short)"),
        ("a.png", png()[:70] + b"?" + png()[71:], "damaged image (checksum of its IDAT chunk is"),
        ("a.png", png(extra=-99), "damaged image (it cannot be decoded)"),
        ("a.png", png(depth=1), "is not grey of 8 or 16 bits. Fix: save it as such"),
        *(("a.png", png(colour=kind), "is not grey of 8 or 16 bits") for kind in (2, 3, 4, 6)),
        ("a.png", png((160000, 160000)), "is 160000x160000 px, its image upright 40x30 px"),
        ("a.png", png() + bytes(2**21), "is larger than any map of its size"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path, name, content, said):
    path = written(tmp_path, name, content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {said}")):
        read_map(path, SIZE)


class Trap:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def test_objects_are_never_loaded_and_a_missing_file_is_told(tmp_path):
    trace = tmp_path / "trace"
    traps = np.full(SIZE, None)
    traps[:] = Trap(trace)
    for content in (traps, pickle.dumps(Trap(trace))):
        path = written(tmp_path, "a.npy", content)
        with pytest.raises(DataError, match=r"is no whole \.npy file of numbers"):
            read_map(path, SIZE)
    assert not trace.exists()
    with pytest.raises(DataError, match=r"b\.png: cannot be read \(No such file or directory\)"):
        read_map(tmp_path / "b.png", SIZE)
